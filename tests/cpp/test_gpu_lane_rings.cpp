// SPDX-License-Identifier: Apache-2.0
// A job's GPU queues behind each kind of ring: whole transports with their agents, several posting threads a PE.
#include "gpu_lane_traffic.h"

using namespace gpu_lane_rig;

namespace {

uint64_t addr(const void* at) { return reinterpret_cast<uint64_t>(at); }

void run_job(const Knobs& knobs, const char* kind) {
    Job job(2, knobs, Traffic::kWords * 8);
    run_traffic(job, kind);
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
