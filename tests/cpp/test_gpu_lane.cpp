// SPDX-License-Identifier: Apache-2.0
// What the host does for posters that are not it: real transports, with CPU threads as posters.
#include "gpu_lane_rig.h"
#include "nvshmem_efa/gpu_queue_shared.h"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kHeapBytes = 1 << 16;

// A message takes up to this long to arrive: long enough that a host which does not wait looks too early.
Knobs slow_knobs() {
    Knobs knobs = default_knobs();
    knobs.soft_reorder_ns = 20'000'000;
    knobs.soft_duplicate_ppm = 200'000;
    return knobs;
}

bool post_write(const DeviceState& state, size_t queue, uint64_t from, uint64_t to, uint32_t bytes, int pe, uint32_t chunk = 0) {
    const uint32_t rail = static_cast<uint32_t>(queue) / state.queues_per_rail;
    const DeviceTarget target = state.targets[static_cast<uint32_t>(pe) * state.n_rails + rail];
    const uint32_t entry = chunk * static_cast<uint32_t>(state.n_pes) + static_cast<uint32_t>(pe);
    const uint64_t offset = to - state.heap_base - state.chunks[chunk].offset;
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kRdmaWrite, {target.ahn, target.qp_num, target.qkey}, 0, false, 0);
    wqe_set_remote(wqe, state.remote_bases[entry] + offset, bytes, state.rkeys[entry * state.n_rails + rail]);
    wqe_set_local(wqe, from, bytes, state.lkeys[chunk * state.n_rails + rail]);
    return shared_post(state.queues[queue], OneThread{}, wqe, static_cast<uint32_t>(pe));
}

// A record of the GPU lane: adds `value` to a word.
bool post_add(const DeviceState& state, size_t queue, uint64_t word, uint64_t value, int pe) {
    const uint32_t rail = static_cast<uint32_t>(queue) / state.queues_per_rail;
    const DeviceTarget target = state.targets[static_cast<uint32_t>(pe) * state.n_rails + rail];
    AgentRecord record{};
    record.addr = state.remote_bases[pe] + (word - state.heap_base);
    record.operand = value;
    record.seq = __atomic_fetch_add(&state.peers[pe].next_seq, 1, __ATOMIC_RELAXED);
    record.op = static_cast<uint8_t>(WordOp::kAdd) & 0xf;
    record.bytes_log2 = 3;
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kSend, {target.ahn, target.qp_num, target.qkey}, 0, false, 0);
    wqe_set_send_inline(wqe, &record, sizeof record);
    return shared_post(state.queues[queue], OneThread{}, wqe, static_cast<uint32_t>(pe));
}

uint64_t load(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

}  // namespace

TEST(host_quiet_returns_only_when_posted_writes_are_placed) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    const Lane lanes[] = {Lane::kHost, Lane::kProxy};
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 24; ++i) {
            *from.word(i) = round * 1000 + i;
            CHECK(post_write(*from.state, i % 2, reinterpret_cast<uint64_t>(from.word(i)), reinterpret_cast<uint64_t>(from.word(100 + i)), 8, 1));
        }
        CHECK_OK(from.transport->quiet(lanes[round % 2], 1));
        for (size_t i = 0; i < 24; ++i) CHECK_EQ(load(job.pes[1].word(100 + i)), round * 1000 + i);
    }
}

TEST(host_quiet_returns_only_when_posted_atomics_are_applied) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 8; ++i) CHECK(post_add(*from.state, i % 2, reinterpret_cast<uint64_t>(from.word(7)), 3, 1));
        CHECK_OK(from.transport->quiet(round % 2 ? Lane::kHost : Lane::kProxy, 1));
        CHECK_EQ(load(job.pes[1].word(7)), round * 24);
    }
}

TEST(host_fence_orders_posted_writes_before_host_puts) {
    Job job(2, slow_knobs(), kHeapBytes);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kHeapBytes); });
    PeSide& from = job.pes[0];
    for (uint64_t round = 1; round <= 4; ++round) {
        for (size_t i = 0; i < 16; ++i) {
            *from.word(i) = round;
            CHECK(post_write(*from.state, i % 2, reinterpret_cast<uint64_t>(from.word(i)), reinterpret_cast<uint64_t>(from.word(100 + i)), 8, 1));
        }
        CHECK_OK(from.transport->fence(Lane::kHost, 1));
        for (size_t i = 0; i < 16; ++i) CHECK_EQ(load(job.pes[1].word(100 + i)), round);
    }
}

TEST_MAIN()
