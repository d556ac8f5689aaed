// SPDX-License-Identifier: Apache-2.0
// What `nvshmem-efa bench transport` times: the same text for kernels (transport_bench.cu) and for CPU threads
// (perf/transport_bench.cpp). A body is one poster's; it times itself, and what it saw goes to `out`.
#pragma once

#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

#if !defined(__CUDACC__)
#include <time.h>
#endif

namespace nvshmem_efa::bench {

// Of Args::call.
enum class Call : uint32_t { kPut, kGet, kP, kAdd, kFetchAdd };

// A kernel's one argument. python/nvshmem_efa/bench_gpu.py has the same layout.
struct Args {
    uint64_t* out;       // a record: kRecordWords, then a sample a round. Of posters with samples, only
    char* dest;          // symmetric
    const char* source;  // symmetric
    uint64_t* words;     // symmetric, one a PE; hold `base` or less at the start
    uint64_t bytes;      // of one call
    uint64_t base;
    int32_t peer;        // where calls go
    uint32_t call;
    uint32_t rounds;     // that are timed
    uint32_t warm_up;    // rounds before them
    uint32_t in_flight;  // calls of a round
    uint32_t is_issue;   // 1: a sample is the calls alone, not the wait for them
    uint32_t side;       // ping-pong: 0 begins, 1 answers
    uint32_t n_slots;    // all-to-all: places in `dest`, one a PE
};
static_assert(sizeof(Args) == 80, "bench_gpu.py lays it out by hand");

// Words of a record. Times are of one clock of the poster's; ticks are order::clock_ticks().
inline constexpr uint32_t kFailedRound = 0;  // 1 + the round in which a call failed; 0: none
inline constexpr uint32_t kBeginNs = 1, kEndNs = 2, kBeginTicks = 3, kEndTicks = 4;
inline constexpr uint32_t kWrongBytes = 5;
inline constexpr uint32_t kRecordWords = 8;

NVSHMEM_EFA_HD inline uint64_t now_ns() {
#if defined(__CUDA_ARCH__)
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns)::"memory");
    return ns;
#elif !defined(__CUDACC__)
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
#else
    return 0;  // the host's side of a kernel source, which nobody calls
#endif
}

// The bytes that PE `owner` sends: byte `at` of any source.
NVSHMEM_EFA_HD inline char pattern(uint32_t owner, uint64_t at) {
    const uint32_t mixed = (static_cast<uint32_t>(at) + 1) * 2654435761u ^ (owner + 1) * 40503u;
    return static_cast<char>(mixed >> 13);
}

// Every `stride`th byte from `first` on: the source is this PE's pattern, the destination's zero.
NVSHMEM_EFA_HD inline void fill(const Args& args, uint32_t owner, uint64_t first, uint64_t stride) {
    for (uint64_t i = first; i < args.bytes; i += stride) {
        const_cast<char*>(args.source)[i] = pattern(owner, i);
        args.dest[i] = 0;
    }
}
// How many of these bytes of the destination are not what `args.peer` sends. `offset`: of the destination in the pattern.
NVSHMEM_EFA_HD inline uint64_t wrong_bytes(const Args& args, uint64_t offset, uint64_t first, uint64_t stride) {
    uint64_t wrong = 0;
    for (uint64_t i = first; i < args.bytes; i += stride)
        wrong += args.dest[i] != pattern(static_cast<uint32_t>(args.peer), offset + i);
    return wrong;
}

// Times of one poster. Rounds below `warm_up` are not kept.
struct Record {
    uint64_t* out;
    uint32_t warm_up;
    uint64_t begun;

    NVSHMEM_EFA_HD void begin(uint32_t round) {
        if (round == warm_up) {
            out[kBeginNs] = now_ns();
            out[kBeginTicks] = order::clock_ticks();
        }
        begun = order::clock_ticks();
    }
    NVSHMEM_EFA_HD void end(uint32_t round) {
        if (round >= warm_up) out[kRecordWords + round - warm_up] = order::clock_ticks() - begun;
    }
    NVSHMEM_EFA_HD void finish() {
        out[kEndTicks] = order::clock_ticks();
        out[kEndNs] = now_ns();
    }
    NVSHMEM_EFA_HD void fail(uint32_t round) { out[kFailedRound] = round + 1; }
};

NVSHMEM_EFA_HD inline bool make_call(const DeviceState& state, const Args& args, uint32_t i, uint64_t value) {
    const uint64_t at = i * args.bytes;
    switch (static_cast<Call>(args.call)) {
        case Call::kPut: return put_nbi(state, args.dest + at, args.source + at, args.bytes, args.peer);
        case Call::kGet: return get_nbi(state, args.dest + at, args.source + at, args.bytes, args.peer);
        case Call::kP: return p(state, args.words, value, args.peer);
        case Call::kAdd: return atomic_add(state, args.words, uint64_t{1}, args.peer);
        case Call::kFetchAdd: {
            uint64_t old = 0;
            return atomic_fetch_add(state, args.words, uint64_t{1}, args.peer, &old);
        }
    }
    return false;
}

// A round: `in_flight` calls, then a wait for all of them.
NVSHMEM_EFA_HD inline void time_calls(const DeviceState& state, const Args& args) {
    Record record{args.out, args.warm_up, 0};
    for (uint32_t round = 0; round < args.warm_up + args.rounds; ++round) {
        record.begin(round);
        bool is_good = true;
        for (uint32_t i = 0; i < args.in_flight; ++i) is_good = make_call(state, args, i, args.base + round + 1) && is_good;
        if (args.is_issue) record.end(round);
        if (!is_good || !quiet(state)) return record.fail(round);
        if (!args.is_issue) record.end(round);
    }
    record.finish();
}

// A call: beside a round trip it is nothing, and a copy for each kernel would be a third of what compiling takes.
NVSHMEM_EFA_COLD inline bool send(const DeviceState& state, char* dest, const Args& args, uint64_t* word, uint64_t value, int pe) {
    return put_signal_nbi(state, dest, args.source, args.bytes, word, value, SignalOp::kSet, pe);
}

// Both sides call. A round is there and back. Sides put to their own half of `dest` and set their own word.
NVSHMEM_EFA_HD inline void ping_pong(const DeviceState& state, const Args& args) {
    Record record{args.out, args.warm_up, 0};
    for (uint32_t round = 0; round < args.warm_up + args.rounds; ++round) {
        const uint64_t value = args.base + round + 1;
        record.begin(round);
        for (uint32_t turn = 0; turn < 2; ++turn) {
            const bool is_good = turn == args.side
                                     ? send(state, args.dest + turn * args.bytes, args, args.words + turn, value, args.peer)
                                     : wait_until(state, args.words + turn, Cmp::kGe, value);
            if (!is_good) return record.fail(round);
        }
        record.end(round);
    }
    record.finish();
    if (!quiet(state)) record.fail(args.warm_up + args.rounds);
}

// All PEs call: each sends to all others, into the place that is its own there, and waits for all others.
NVSHMEM_EFA_HD inline void all_to_all(const DeviceState& state, const Args& args) {
    Record record{args.out, args.warm_up, 0};
    const uint32_t me = static_cast<uint32_t>(state.pe);
    for (uint32_t round = 0; round < args.warm_up + args.rounds; ++round) {
        const uint64_t value = args.base + round + 1;
        record.begin(round);
        for (uint32_t step = 1; step < args.n_slots; ++step) {
            const int to = static_cast<int>((me + step) % args.n_slots);
            if (!send(state, args.dest + me * args.bytes, args, args.words + me, value, to)) return record.fail(round);
        }
        for (uint32_t from = 0; from < args.n_slots; ++from)
            if (from != me && !wait_until(state, args.words + from, Cmp::kGe, value)) return record.fail(round);
        record.end(round);
    }
    record.finish();
    if (!quiet(state)) record.fail(args.warm_up + args.rounds);
}

// 8-byte puts to places of this poster's own, without a wait.
NVSHMEM_EFA_HD inline bool strew(const DeviceState& state, const Args& args, uint64_t poster) {
    bool is_good = true;
    for (uint64_t i = poster * args.in_flight; i < (poster + 1) * args.in_flight; ++i)
        is_good = put_nbi(state, args.dest + i * 8, args.source + i * 8, 8, args.peer) && is_good;
    return is_good;
}

}  // namespace nvshmem_efa::bench
