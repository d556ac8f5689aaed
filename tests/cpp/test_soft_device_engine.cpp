// SPDX-License-Identifier: Apache-2.0
// Software devices in real time: the engine's thread, two "processes" (engines) on this host, planned faults.
#include <thread>

#include "check.h"
#include "log.h"
#include "nvshmem_efa/ring.h"
#include "soft_efa/engine.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

Knobs test_knobs() {
    Knobs knobs;
    knobs.timeout_ms = 4000;
    knobs.soft_duplicate_ppm = 1000;
    return knobs;
}

std::shared_ptr<Engine> open_engine(const Knobs& knobs, int rails = 1, int pe = -1) {
    std::shared_ptr<Engine> engine;
    CHECK_OK(Engine::open({rails, pe, knobs}, &engine));
    return engine;
}

struct Node {
    std::vector<uint64_t> words;  // outlives the Nic that may still write it
    std::unique_ptr<Nic> nic;
    Cq send_cq, recv_cq;
    Qp qp;
    SendRing ring;
    CqRing sent;
    MemoryRegion region;
    AddressHandle peer;
    uint8_t statuses = 0;

    Node(std::unique_ptr<Nic> with, size_t n_words) : words(n_words), nic(std::move(with)) {
        JobSecret secret;
        secret.bytes[0] = 42;
        CHECK_OK(nic->join_job(secret));
        CHECK_OK(nic->create_cq({512}, &send_cq));
        CHECK_OK(nic->create_cq({512}, &recv_cq));
        QpAttr attr;
        attr.send_cq = send_cq.handle;
        attr.recv_cq = recv_cq.handle;
        attr.sq_depth = 256;
        attr.qkey = 9;
        CHECK_OK(nic->create_qp(attr, &qp));
        CHECK(send_ring_init(ring, qp.sq_slots, qp.sq_doorbell, qp.sq_slot_bytes, qp.sq_depth, qp.sq_max_batch));
        CHECK(cq_ring_init(sent, send_cq.entries, send_cq.entry_bytes, send_cq.depth));
        CHECK_OK(nic->register_memory({words.data(), words.size() * 8, MemoryKind::kHost, 7}, &region));
    }
    void write(const Node& to, size_t word, size_t n_words) {
        uint32_t slot;
        while (!send_ring_reserve(ring, slot)) poll();
        SendWqe wqe;
        wqe_begin(wqe, SendOpcode::kRdmaWrite, {peer.ahn, static_cast<uint16_t>(to.qp.qp_num), 9}, slot, false,
                  send_ring_phase(ring, slot));
        const auto bytes = static_cast<uint32_t>(n_words * 8);
        wqe_set_remote(wqe, reinterpret_cast<uint64_t>(&to.words[word]), bytes, to.region.rkey);
        wqe_set_local(wqe, reinterpret_cast<uint64_t>(&words[word]), bytes, region.lkey);
        send_ring_write(ring, slot, wqe);
        send_ring_ring(ring);
    }
    void poll() {
        bool any = false;
        while (const uint8_t* entry = cq_ring_peek(sent)) {
            statuses |= entry[offsetof(TxCqe, status)];
            cq_ring_pop(sent);
            CHECK(send_ring_complete(ring, 1));
            any = true;
        }
        if (!any) nic->progress();
    }
    void quiet() {
        Deadline deadline(real_clock(), 20'000);
        while (send_ring_in_flight(ring)) {
            if (deadline.passed()) check::fail(__FILE__, __LINE__, "no completion within 20 s");
            poll();
            deadline.relax();
        }
    }
};

// Two engines connect to each other at once, as two processes do.
void connect(Node& left, Node& right) {
    const PeerAddress left_at = left.nic->address(), right_at = right.nic->address();
    Status status;
    std::thread other([&] { status = right.nic->create_address_handle(left_at, &right.peer); });
    const Status mine = left.nic->create_address_handle(right_at, &left.peer);
    other.join();
    if (!mine.ok()) check::fail(__FILE__, __LINE__, mine.message());
    if (!status.ok()) check::fail(__FILE__, __LINE__, status.message());
}

struct Environment {
    explicit Environment(std::initializer_list<std::pair<const char*, const char*>> set) {
        for (const auto& [name, value] : set) {
            setenv(name, value, 1);
            names.push_back(name);
        }
        CHECK_OK(load_knobs());
    }
    ~Environment() {
        for (const char* name : names) unsetenv(name);
        (void)load_knobs();
    }
    std::vector<const char*> names;
};

}  // namespace

TEST(two_engines_on_one_host_write_to_each_other) {
    const auto first = open_engine(test_knobs()), second = open_engine(test_knobs());
    Node left(first->make_nic(0), 1 << 20), right(second->make_nic(0), 1 << 20);
    connect(left, right);
    for (size_t i = 0; i < left.words.size(); ++i) left.words[i] = mix64(i);
    size_t at = 0;
    for (size_t n_words : {1u, 3u, 16u, 17u, 1000u, 2000u, 40'000u, 500'000u}) {
        left.write(right, at, n_words);
        at += n_words;
    }
    left.quiet();
    CHECK_EQ(left.statuses, 0);
    CHECK(second->stats().bytes_placed >= at * 8);  // takes its lock: ThreadSanitizer does not see through the ring
    CHECK(std::equal(left.words.begin(), left.words.begin() + static_cast<ptrdiff_t>(at), right.words.begin()));
    CHECK_EQ(right.words[at], 0u);
    CHECK_EQ(first->stats().work_requests, 8u);
}

TEST(many_small_writes_complete_and_some_arrive_out_of_order) {
    const auto first = open_engine(test_knobs()), second = open_engine(test_knobs());
    Node left(first->make_nic(0), 4096), right(second->make_nic(0), 4096);
    connect(left, right);
    for (size_t i = 0; i < 4096; ++i) left.words[i] = i + 1;
    for (size_t i = 0; i < 20'000; ++i) left.write(right, i % 4096, 1);
    left.quiet();
    CHECK_EQ(left.statuses, 0);
    CHECK(second->stats().out_of_order > 0);
    CHECK(left.words == right.words);
}

TEST(rails_of_one_process_reach_each_other_without_a_peer) {
    const auto engine = open_engine(test_knobs(), 2);
    Node left(engine->make_nic(0), 65536), right(engine->make_nic(1), 65536);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    for (size_t i = 0; i < left.words.size(); ++i) left.words[i] = i;
    left.write(right, 0, 65536);
    left.quiet();
    CHECK_EQ(left.statuses, 0);
    CHECK(left.words == right.words);
}

TEST(the_engines_thread_alone_moves_the_data) {
    const auto engine = open_engine(test_knobs(), 2);
    Node left(engine->make_nic(0), 16), right(engine->make_nic(1), 16);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    for (int round = 0; round < 3; ++round) {
        left.write(right, 0, 1);
        Deadline deadline(real_clock(), 10'000);
        while (!cq_ring_peek(left.sent)) {
            CHECK(!deadline.passed());
            deadline.relax();
        }
        left.poll();
        std::this_thread::sleep_for(std::chrono::milliseconds(80));  // so that the thread goes to its long naps
    }
    CHECK_EQ(left.statuses, 0);
}

TEST(control_calls_and_traffic_run_side_by_side) {
    const auto engine = open_engine(test_knobs(), 2);
    Node left(engine->make_nic(0), 4096), right(engine->make_nic(1), 4096);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    std::atomic<bool> is_done{false};
    std::thread control([&] {
        std::vector<uint64_t> other(512);
        while (!is_done.load()) {
            MemoryRegion region;
            CHECK_OK(left.nic->register_memory({other.data(), 4096, MemoryKind::kHost, 7}, &region));
            CHECK_OK(left.nic->deregister_memory(region));
            Cq cq;
            CHECK_OK(left.nic->create_cq({16}, &cq));
            CHECK_OK(left.nic->destroy_cq(cq.handle));
        }
    });
    for (size_t i = 0; i < 5000; ++i) left.write(right, i % 4096, 1);
    left.quiet();
    is_done = true;
    control.join();
    CHECK_EQ(left.statuses, 0);
}

TEST(a_dead_peer_ends_in_status_13_within_its_deadline) {
    Knobs knobs = test_knobs();
    knobs.timeout_ms = 400;
    knobs.soft_duplicate_ppm = 0;
    const auto first = open_engine(knobs, 1, 0);
    knobs.soft_fault = "dead_peer=1@5";
    const auto second = open_engine(knobs, 1, 1);
    Node left(first->make_nic(0), 16), right(second->make_nic(0), 16);
    connect(left, right);
    for (int i = 0; i < 10; ++i) left.write(right, 0, 1);
    const uint64_t start = real_clock().now_ns();
    left.quiet();
    CHECK_EQ(left.statuses, 13);
    CHECK(real_clock().now_ns() - start < 5'000'000'000u);
}

TEST(a_planned_fault_finds_its_pe_when_the_job_tells) {
    Knobs knobs = test_knobs();
    knobs.timeout_ms = 400;
    knobs.soft_fault = "dead_peer=6@0";
    log_set_pe(-1);
    const auto engine = open_engine(knobs, 2);
    Node left(engine->make_nic(0), 16), right(engine->make_nic(1), 16);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    left.write(right, 0, 1);
    left.quiet();
    CHECK_EQ(left.statuses, 0);
    log_set_pe(6);
    left.write(right, 0, 1);
    left.quiet();
    log_set_pe(-1);
    CHECK_EQ(left.statuses, 13);
}

TEST(a_dead_rail_leaves_the_others_alone) {
    Knobs knobs = test_knobs();
    knobs.timeout_ms = 400;
    knobs.soft_fault = "dead_rail=1@0";
    const auto engine = open_engine(knobs, 3);
    Node left(engine->make_nic(0), 16), dead(engine->make_nic(1), 16), right(engine->make_nic(2), 16);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    left.write(right, 0, 1);
    left.quiet();
    CHECK_EQ(left.statuses, 0);
    CHECK_OK(left.nic->create_address_handle(dead.nic->address(), &left.peer));
    CHECK_OK(dead.nic->create_address_handle(left.nic->address(), &dead.peer));
    left.write(dead, 0, 1);
    left.quiet();
    CHECK_EQ(left.statuses, 13);
}

TEST(fault_plans_are_read_strictly) {
    std::vector<PlannedFault> plan;
    CHECK_OK(parse_fault_plan("", &plan));
    CHECK_EQ(plan.size(), 0u);
    CHECK_OK(parse_fault_plan("dead_peer=3@500,dead_rail=1@0", &plan));
    CHECK_EQ(plan.size(), 2u);
    CHECK_EQ(plan[0].which, 3);
    CHECK_EQ(plan[0].after_packets, 500u);
    CHECK(plan[1].kind == PlannedFault::Kind::kDeadRail);
    for (const char* bad : {"dead", "dead_peer=1", "dead_peer@1=2", "dead_peer=@1", "dead_peer=1@", "dead_peer=x@1",
                            "dead_peer=1@1x", "late_peer=1@1", "dead_peer=1@1,,", "dead_peer=-1@1"})
        CHECK_FAILS(parse_fault_plan(bad, &plan), Code::kConfig, "NVSHMEM_EFA_SOFT_FAULT");
    Knobs knobs;
    knobs.soft_fault = "dead_rail=2@1";
    std::shared_ptr<Engine> engine;
    CHECK_FAILS(Engine::open({2, -1, knobs}, &engine), Code::kConfig, "rail 2 of 2");
}

TEST(nics_are_opened_as_the_knobs_say) {
    const Environment environment{{"NVSHMEM_EFA_SOFT_RAILS", "3"}, {"NVSHMEM_EFA_SOFT_PROFILE", "efa2"}};
    std::vector<std::unique_ptr<Nic>> nics;
    CHECK_OK(open_soft_nics({}, &nics));
    CHECK_EQ(nics.size(), 3u);
    CHECK_EQ(nics[2]->info().name, "soft2");
    CHECK(!nics[0]->info().caps.completion_counters);
    CHECK(!(nics[0]->address().gid == nics[1]->address().gid));
    nics.clear();
    CHECK_OK(open_soft_nics({.rails_max = 2}, &nics));
    CHECK_EQ(nics.size(), 2u);
    nics.clear();
    CHECK_OK(open_soft_nics({.device_filter = "soft1"}, &nics));
    CHECK_EQ(nics.size(), 1u);
    CHECK_EQ(nics[0]->info().name, "soft1");
    nics.clear();
    CHECK_FAILS(open_soft_nics({.rails_max = 4}, &nics), Code::kResource, "NVSHMEM_EFA_SOFT_RAILS");
    CHECK_FAILS(open_soft_nics({.device_filter = "rdmap0"}, &nics), Code::kResource, "rdmap0");
}

TEST(statistics_of_the_process_are_there_while_an_engine_is) {
    CHECK_EQ(soft_stats().work_requests, 0u);
    const auto engine = open_engine(test_knobs(), 2);
    Node left(engine->make_nic(0), 16), right(engine->make_nic(1), 16);
    CHECK_OK(left.nic->create_address_handle(right.nic->address(), &left.peer));
    CHECK_OK(right.nic->create_address_handle(left.nic->address(), &right.peer));
    left.write(right, 0, 1);
    left.quiet();
    CHECK_EQ(soft_stats().work_requests, 1u);
    CHECK_EQ(soft_stats().by_status[0], 1u);
    CHECK_EQ(soft_stats().bytes_sent, 8u);
}

TEST(a_completion_queue_in_the_callers_memory_is_refused_by_name) {
    const auto engine = open_engine(Knobs{});
    Node node(engine->make_nic(0), 1);
    alignas(4096) static uint8_t memory[4096];
    CqAttr attr{64};
    attr.memory = memory;
    attr.memory_bytes = sizeof memory;
    Cq cq;
    CHECK(!node.nic->info().caps.cq_ext_mem);
    CHECK(node.nic->create_cq(attr, &cq).code() == Code::kUnsupported);
}

TEST_MAIN()
