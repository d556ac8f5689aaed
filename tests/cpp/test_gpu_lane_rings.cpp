// SPDX-License-Identifier: Apache-2.0
// A job's GPU queues behind each kind of ring: whole transports with their agents, several posting threads a PE.
#include "gpu_lane_rig.h"

using namespace gpu_lane_rig;

namespace {

constexpr size_t kThreads = 3, kEach = 120;
constexpr size_t kSum = 0, kFrom = 16, kTo = kFrom + kThreads * kEach, kWords = kTo + kThreads * kEach;

uint64_t addr(const void* at) { return reinterpret_cast<uint64_t>(at); }

// Each PE's threads write to the other PE and add to its sum; then the host's quiet says that all of it is there.
void run_job(const Knobs& knobs, const char* kind) {
    Job job(2, knobs, kWords * 8);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, kWords * 8); });
    const std::string text = job.pes[0].transport->describe();
    if (text.find(kind) == std::string::npos) check::fail(__FILE__, __LINE__, std::string(kind) + " is not in: " + text);
    job.on_all([&](int pe) {
        PeSide& side = job.pes[static_cast<size_t>(pe)];
        const int other = 1 - pe;
        for (size_t i = 0; i < kThreads * kEach; ++i) *side.word(kFrom + i) = (i + 1) << (8 * pe);
        std::atomic<int> failed{0};
        std::vector<std::thread> posters;
        for (size_t t = 0; t < kThreads; ++t) {
            posters.emplace_back([&, t] {
                for (size_t i = t * kEach; i < (t + 1) * kEach; ++i) {
                    failed += post_write(*side.state, i % 2, addr(side.word(kFrom + i)), addr(side.word(kTo + i)), 8, other) ? 0 : 1;
                    std::this_thread::yield();  // posters wait without leaving the processor, and here they outnumber it
                }
                for (size_t i = 0; i < 4; ++i) failed += post_add(*side.state, t % 2, addr(side.word(kSum)), 5, other) ? 0 : 1;
            });
        }
        for (std::thread& poster : posters) poster.join();
        CHECK_EQ(failed.load(), 0);
        CHECK_OK(side.transport->quiet(Lane::kHost, other));
        job.barrier();
        CHECK_EQ(__atomic_load_n(side.word(kSum), __ATOMIC_ACQUIRE), uint64_t{kThreads * 4 * 5});
        for (size_t i = 0; i < kThreads * kEach; ++i) CHECK_EQ(*side.word(kTo + i), (i + 1) << (8 * other));
        job.barrier();
    });
}

Knobs with(const char* ring, const char* profile) {
    Knobs knobs = default_knobs();
    knobs.gpu_ring = ring;
    knobs.soft_profile = profile;
    knobs.soft_duplicate_ppm = 50'000;
    return knobs;
}

}  // namespace

TEST(relay_rings_carry_writes_and_atomics) { run_job(with("relay", "efa3"), "relay queues"); }

TEST(a_device_without_counters_gets_relay_rings_by_itself) { run_job(with("auto", "efa2"), "relay queues"); }

TEST(direct_rings_carry_writes_and_atomics) { run_job(with("direct", "efa3"), "direct (counters in host memory) queues"); }

TEST(a_refused_request_of_a_relay_ring_is_named_by_the_hosts_quiet) {
    Job job(2, with("relay", "efa3"), 4096);
    job.on_all([&](int pe) { job.add_chunk(pe, 0, 4096); });
    PeSide& side = job.pes[0];
    CHECK(post_write(*side.state, 0, addr(side.word(0)), addr(side.word(8)), 8, 1, 0, 0x10000));
    const Status status = side.transport->quiet(Lane::kHost, 1);
    for (const char* part : {"PE 0 -> PE 1 (GPU queue 0 of soft0): RDMA WRITE at 0x", "REMOTE_BAD_ADDRESS"})
        if (!std::strstr(status.message(), part)) check::fail(__FILE__, __LINE__, status.message());
}

TEST_MAIN()
