// SPDX-License-Identifier: Apache-2.0
// Demo, last phase: what single operations take when nothing else goes on in this PE.
#include "run.h"

namespace nvshmem_efa::pe {
namespace {

constexpr uint32_t kRoundTrips = 100;
constexpr uint32_t kCalls = 50;
constexpr size_t kPingBytes = 64;

// Neighbours 0-1, 2-3, ...; the last one of an odd number plays with itself.
Status ping_pong(Run& run, Lane& lane, char* data, uint64_t* signal) {
    const int me = run.pe.id();
    const int other = (me ^ 1) < run.pe.n_pes() ? me ^ 1 : me;
    const bool starts = me <= other;
    const auto send = [&](uint64_t i) {
        return lane.put_signal(other, data, data + kPingBytes, kPingBytes, signal, abi::kAmoSignalSet, i);
    };
    for (uint64_t i = 1; i <= kRoundTrips; ++i) {
        const uint64_t start = real_clock().now_ns();
        std::memcpy(data + kPingBytes, &i, sizeof i);
        if (starts) EFA_TRY(send(i));
        EFA_TRY(run.pe.wait_until(signal, Compare::kAtLeast, i, other).with_context("ping-pong"));
        uint64_t seen = 0;
        std::memcpy(&seen, data, sizeof seen);
        run.checker.word("data under a signal", seen, i);
        // The place is used again: what we sent from it must have left.
        if (!starts) EFA_TRY(send(i));
        if (starts) lane.meter().time(Op::kPutSignal, (real_clock().now_ns() - start) / (other == me ? 1 : 2));
        EFA_TRY(lane.quiet());
    }
    return Status();
}

Status single_calls(Run& run, Lane& lane, char* data, uint64_t* word) {
    const int target = (run.pe.id() + 1) % run.pe.n_pes();
    lane.set_timed(true);
    for (uint32_t i = 0; i < kCalls; ++i) {
        uint64_t value = 0;
        EFA_TRY(lane.put(target, data, data + kPingBytes, 8));
        EFA_TRY(lane.get(target, data, data + 2 * kPingBytes, 8));
        EFA_TRY(lane.p(target, word, i, 8));
        EFA_TRY(lane.quiet());
        EFA_TRY(lane.g(target, word, 8, &value));
        run.checker.word("p, then g", value, i);
        EFA_TRY(lane.amo(target, word + 1, {abi::kAmoFetchInc}, &value));
        run.checker.word("FETCH_INC by one PE", value, i);
        EFA_TRY(lane.fence());
    }
    lane.set_timed(false);
    return Status();
}

}  // namespace

Status demo_latency(Run& run) {
    for (Lane* lane : {&run.host, &run.proxy}) {
        char* data = nullptr;
        uint64_t* words = nullptr;
        EFA_TRY(run.allocate(3 * kPingBytes, &data));
        EFA_TRY(run.allocate(4, &words));
        std::memset(words, 0, 4 * sizeof *words);
        EFA_TRY(run.pe.barrier_all());
        EFA_TRY(ping_pong(run, *lane, data, words));
        EFA_TRY(run.pe.barrier_all());
        EFA_TRY(single_calls(run, *lane, data, words + 1));
        EFA_TRY(run.pe.barrier_all());
        EFA_TRY(run.pe.free(words));
        EFA_TRY(run.pe.free(data));
    }
    for (uint32_t i = 0; i < kCalls; ++i) {
        const uint64_t start = real_clock().now_ns();
        EFA_TRY(run.pe.barrier_all());
        run.host.meter().count(Op::kBarrier, 0);
        run.host.meter().time(Op::kBarrier, real_clock().now_ns() - start);
    }
    return Status();
}

}  // namespace nvshmem_efa::pe
