// SPDX-License-Identifier: Apache-2.0
// The inside of counted puts: what PEs must agree on, what devices must have, and the reading of completions by posters, over
// a completion ring of paper.
#include "arrival_queues.h"
#include "check.h"
#include "connect.h"
#include "nvshmem_efa/counted.cuh"
#include "soft_efa/engine.h"

using namespace nvshmem_efa;

namespace {

std::vector<std::unique_ptr<Nic>> one_nic() {
    std::shared_ptr<soft::Engine> engine;
    CHECK_OK(soft::Engine::open({1, 0, Knobs()}, &engine));
    std::vector<std::unique_ptr<Nic>> nics;
    nics.push_back(engine->make_nic(0));
    return nics;
}

std::vector<Hello> hellos_of(int n, const Knobs& knobs) {
    std::vector<Hello> hellos(static_cast<size_t>(n));
    for (int pe = 0; pe < n; ++pe) {
        Hello& hello = hellos[static_cast<size_t>(pe)];
        hello.magic = kHelloMagic;
        hello.n_rails = 1;
        hello.pe = pe;
        hello.n_pes = n;
        hello.unsolicited = hello.has_counters = hello.gpu_queues = 1;
        hello.arrival_slots = static_cast<uint8_t>(knobs.arrivals);
        hello.arrival_source = arrival_source_code(knobs);
    }
    return hellos;
}

// One rail's queue, written as a device does. Three PEs with two slots each.
struct Paper {
    static constexpr uint32_t kDepth = 8, kPes = 3, kSlots = 2;
    RxCqeEx entries[kDepth] = {};
    uint32_t written = 0;
    uint32_t doorbell = 0;
    uint64_t counts[kPes * kSlots] = {};
    uint32_t biases[kPes * kSlots] = {};
    ArrivalQueueState queue_state{};
    ArrivalQueue queue{};
    DeviceShared shared{};
    GpuQueueError error{};
    DeviceState state{};

    explicit Paper(bool has_receives = false) {
        queue.cq_entries = reinterpret_cast<const uint8_t*>(entries);
        queue.cq_depth = kDepth;
        queue.cq_depth_log2 = 3;
        queue.cq_entry_bytes = sizeof entries[0];
        queue.recv_doorbell = has_receives ? &doorbell : nullptr;
        queue.recv_depth = has_receives ? kDepth : 0;
        queue.counts = counts;
        queue.state = &queue_state;
        state.n_pes = kPes;
        state.n_rails = 1;
        state.shared = &shared;
        state.errors = &error;
        state.wait_ticks = 1000;
        state.arrival_slots = kSlots;
        state.arrival_counts = counts;
        state.arrival_biases = biases;
        state.arrival_queues = &queue;
    }
    void write(uint32_t immediate, CqeStatus status = CqeStatus::kOk, uint8_t flags = kCqeHasImm) {
        RxCqeEx& entry = entries[written % kDepth];
        entry.base.status = static_cast<uint8_t>(status);
        entry.base.immediate = immediate;
        entry.base.flags = static_cast<uint8_t>(flags | (((written / kDepth) & 1u) ^ 1u));
        ++written;
    }
    DeviceWait failure() const { return error.is_set ? static_cast<DeviceWait>(error.waited) : DeviceWait{}; }
};

}  // namespace

TEST(more_slots_than_a_device_can_count_are_refused_with_both_numbers) {
    const auto nics = one_nic();
    Job job;
    job.n_rails = 1;
    job.arrival_slots = 8;
    ArrivalAttr attr;
    attr.queues_taken = 5;
    attr.counters_taken = 2;
    std::unique_ptr<ArrivalQueues> queues;
    job.n_pes = 64;
    CHECK_FAILS(ArrivalQueues::open(job, nics, attr, &queues), Code::kResource,
                "8 arrival slots for each of 64 PEs need 514 completion counters on soft0, which has 512; hint: lower NVSHMEM_EFA_ARRIVALS, or set");
    job.n_pes = 128;
    CHECK_FAILS(ArrivalQueues::open(job, nics, attr, &queues), Code::kResource, "need 1029 queue pairs on soft0, which has 1024");
    job.arrivals_by_immediate = true;
    CHECK_OK(ArrivalQueues::open(job, nics, attr, &queues));
    CHECK_EQ(queues->unread_max(), 32768u / 128);
}

TEST(settings_that_do_not_go_together_are_told_by_pe) {
    Knobs knobs;
    knobs.arrivals = 4;
    std::vector<Hello> hellos = hellos_of(3, knobs);
    Job job;
    CHECK_OK(check_hello(hellos[0], hellos[1], 1));
    CHECK_OK(settle_arrivals(hellos, &job));
    CHECK(job.arrival_slots == 4 && !job.arrivals_by_immediate);
    hellos[1].arrival_slots = 2;
    CHECK_FAILS(check_hello(hellos[0], hellos[1], 1), Code::kMismatch, "PE 1 runs with NVSHMEM_EFA_ARRIVALS=2, this PE 0 with 4; hint:");
    hellos[1] = hellos[0];
    hellos[1].pe = 1;
    hellos[1].arrival_source = 2;
    CHECK_FAILS(check_hello(hellos[0], hellos[1], 1), Code::kMismatch,
                "PE 1 runs with NVSHMEM_EFA_ARRIVAL_SOURCE=immediates, this PE 0 with auto; hint:");
    hellos[1].arrival_source = 0;
    hellos[1].has_counters = 0;
    CHECK_OK(settle_arrivals(hellos, &job));
    CHECK(job.arrivals_by_immediate);
    for (Hello& hello : hellos) hello.arrival_source = 1;
    CHECK_FAILS(settle_arrivals(hellos, &job), Code::kUnsupported, "PE 1 has a device without completion counters");
    for (Hello& hello : hellos) hello.arrival_source = 2;
    hellos[2].unsolicited = 0;
    CHECK_FAILS(settle_arrivals(hellos, &job), Code::kUnsupported, "devices of PE 0 and PE 2 differ in unsolicited write receive");
    hellos[2].gpu_queues = 0;
    CHECK_FAILS(settle_arrivals(hellos, &job), Code::kConfig, "NVSHMEM_EFA_ARRIVALS=4, and PE 2 has no queues");
}

TEST(entries_are_counted_once_over_many_laps_and_their_descriptors_given_back) {
    Paper paper(true);
    uint32_t sent[Paper::kPes * Paper::kSlots] = {};
    for (uint32_t lap = 0; lap < 5000; ++lap) {
        for (uint32_t i = 0; i < 1 + lap % Paper::kDepth; ++i) {
            const uint32_t pe = (lap + i) % Paper::kPes, slot = lap / 3 % Paper::kSlots;
            paper.write(device::arrival_immediate(pe, slot));
            ++sent[pe * Paper::kSlots + slot];
        }
        CHECK_EQ(arrivals(paper.state, 1, 1), sent[3]);
        for (uint32_t i = 0; i < std::size(sent); ++i) CHECK_EQ(device::arrivals_known(paper.state, i / 2, i % 2), sent[i]);
        CHECK_EQ(paper.doorbell, (Paper::kDepth + paper.written) & 0xffffu);
        CHECK(!device::arrivals_are_lost(paper.state, 0));
    }
    CHECK(paper.written > 0x4000);
    CHECK_EQ(paper.error.is_set, 0u);
}

TEST(a_completion_that_no_counted_put_makes_ends_every_wait_by_name) {
    for (const uint32_t immediate : {device::arrival_immediate(Paper::kPes, 0), device::arrival_immediate(0, Paper::kSlots), 0xffffffffu}) {
        Paper paper;
        paper.write(device::arrival_immediate(1, 1));
        paper.write(immediate);
        CHECK(!wait_arrivals(paper.state, 1, 1, 2));
        CHECK_EQ(paper.failure(), DeviceWait::kStrayArrival);
        CHECK_EQ(paper.error.remote_addr, uint64_t{immediate});
        CHECK(!wait_arrivals(paper.state, 1, 1, 1));  // all others' waits too
    }
    Paper bad_status;
    bad_status.write(device::arrival_immediate(1, 1), CqeStatus::kFlushed);
    CHECK(!wait_arrivals(bad_status.state, 1, 1, 1));
    CHECK_EQ(bad_status.failure(), DeviceWait::kStrayArrival);
    Paper no_immediate;
    no_immediate.write(device::arrival_immediate(1, 1), CqeStatus::kOk, 0);
    CHECK(!wait_arrivals(no_immediate.state, 1, 1, 1));
    CHECK_EQ(no_immediate.failure(), DeviceWait::kStrayArrival);
}

TEST(entries_that_the_device_went_over_unread_are_told_at_the_deadline) {
    for (uint32_t before = 0; before < 2 * Paper::kDepth; ++before) {
        for (uint32_t unread = 0; unread < 2 * Paper::kDepth; ++unread) {
            Paper paper;
            for (uint32_t i = 0; i < before; ++i) {
                paper.write(device::arrival_immediate(2, 0));
                CHECK_EQ(arrivals(paper.state, 2, 0), i + 1);
            }
            for (uint32_t i = 0; i < unread; ++i) paper.write(device::arrival_immediate(2, 0));
            const bool is_whole = wait_arrivals(paper.state, 2, 0, before + unread);
            CHECK_EQ(is_whole, unread <= Paper::kDepth);
            if (!is_whole) CHECK_EQ(paper.failure(), DeviceWait::kLostArrivals);
        }
    }
    Paper late;
    CHECK(!wait_arrivals(late.state, 2, 0, 1));
    CHECK_EQ(late.failure(), DeviceWait::kArrivals);
}

TEST(who_finds_the_queue_taken_leaves_it_alone) {
    Paper paper;
    paper.queue_state.lock = 1;
    paper.write(device::arrival_immediate(0, 0));
    CHECK_EQ(arrivals(paper.state, 0, 0), 0u);
    paper.queue_state.lock = 0;
    CHECK_EQ(arrivals(paper.state, 0, 0), 1u);
    CHECK_EQ(paper.queue_state.lock, 0u);
}

TEST_MAIN()
