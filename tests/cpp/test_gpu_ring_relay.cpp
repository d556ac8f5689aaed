// SPDX-License-Identifier: Apache-2.0
// The relay: by hand over a device of paper, and with its thread over software devices.
#include <dirent.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "clock.h"
#include "gpu_ring_rig.h"
#include "relay.h"
#include "soft_efa/engine.h"

using namespace ring_rig;

namespace {

// A relayed ring over paper, served by the test.
struct Paper {
    PaperNic nic;
    std::unique_ptr<RelayQueue> relay;
    uint32_t posted = 0;

    explicit Paper(uint32_t depth = 8, uint32_t max_batch = 0) {
        nic.max_batch = max_batch;
        CHECK_OK(RelayQueue::open(nic, {.depth = depth, .qkey = 5, .posters = MemoryKind::kHost}, &relay));
    }
    void write_slot(uint32_t index) {
        uint8_t bytes[kSlotBytesSmall];
        for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = static_cast<uint8_t>(index * 7 + i);
        std::memcpy(relay->view().slots + size_t{index % relay->view().depth} * kSlotBytesSmall, bytes, sizeof bytes);
    }
    bool device_has(uint32_t index) const {
        const uint8_t* at = &nic.slots[size_t{index % nic.sq_depth} * kSlotBytesSmall];
        for (size_t i = 0; i < kSlotBytesSmall; ++i) {
            if (at[i] != static_cast<uint8_t>(index * 7 + i)) return false;
        }
        return true;
    }
    void ring(uint32_t value) { __atomic_store_n(relay->view().doorbell, value, __ATOMIC_RELEASE); }
    void post(uint32_t n) {
        for (uint32_t i = 0; i < n; ++i) write_slot(posted++);
        ring(posted);
    }
    uint64_t completions() const { return relay->view().completions[0]; }
    uint64_t errors() const { return relay->view().errors[0]; }
};

SendWqe any_write(uint64_t addr) {
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kRdmaWrite, {1, 2, 3}, 0, false, 0);
    wqe_set_remote(wqe, addr, 8, 4);
    wqe_set_local(wqe, addr, 8, 5);
    return wqe;
}

}  // namespace

TEST(slots_reach_the_device_unchanged_lap_after_lap) {
    Paper paper(8);
    for (uint32_t n : {1u, 3u, 8u, 2u, 7u, 8u, 5u}) {
        const uint32_t first = paper.posted;
        paper.post(n);
        CHECK(paper.relay->serve());
        CHECK_EQ(paper.nic.doorbell(), paper.posted);  // the absolute counter, as the posters' was
        for (uint32_t i = first; i < paper.posted; ++i) CHECK(paper.device_has(i));
        for (uint32_t i = 0; i < n; ++i) paper.nic.complete(0);
        CHECK(paper.relay->serve());
        CHECK_EQ(paper.completions(), uint64_t{paper.posted});
        CHECK(!paper.relay->serve());  // nothing left to do
    }
    CHECK_OK(paper.relay->failure());
}

TEST(a_slot_that_was_not_rung_for_stays_where_it_is) {
    Paper paper(8);
    paper.post(2);
    paper.write_slot(2);
    CHECK(paper.relay->serve());
    CHECK(paper.device_has(1) && !paper.device_has(2));
    CHECK_EQ(paper.nic.doorbell(), 2u);
}

TEST(the_devices_batch_limit_is_kept_by_doorbells_in_between) {
    Paper paper(16, 3);
    CHECK_EQ(paper.relay->view().max_batch, 0u);  // posters have none
    paper.post(16);
    CHECK(paper.relay->serve());
    CHECK_EQ(paper.relay->doorbells(), uint64_t{6});  // 5 of 3 slots and one of 1
    CHECK_EQ(paper.nic.doorbell(), 16u);
}

TEST(counters_wrap_at_31_bits_and_slot_numbers_at_32) {
    Paper paper(8);
    const uint32_t first = 0xfffffffcu;
    paper.relay->start_at_for_test(first, 0x7ffffffeu);
    paper.nic.doorbell() = first;
    RingQueue posters(paper.relay->view(), first, 0x7ffffffeu);
    for (uint32_t i = 0; i < 20; ++i) {
        CHECK(posters.post(any_write(i * 64)));
        CHECK(paper.relay->serve());
        const SendWqe wqe = paper.nic.slot(first + i);
        CHECK_EQ(wqe.rdma.remote.addr_lo, i * 64);
        CHECK_EQ(uint32_t{wqe.meta.ctrl2} & kCtrl2Phase, (first + i) / 8 & 1u);
        paper.nic.complete(static_cast<uint16_t>(first + i));
        CHECK(paper.relay->serve());
        CHECK_EQ(paper.completions(), uint64_t{(0x7ffffffeu + i + 1) & kCounterMask31});
        CHECK(posters.quiet());
    }
}

// Whichever completion it is, and whatever completes with it, the posters find status, slot, PE and address.
TEST(an_error_is_found_by_posters_with_all_that_was_posted) {
    for (uint32_t before : {0u, 1u, 7u, 14u, 15u, 16u, 31u, 33u, 100u}) {
        for (uint32_t after : {0u, 3u}) {
            Paper paper(8);
            RingQueue posters(paper.relay->view());
            for (uint32_t i = 0; i < before; ++i) {
                CHECK(posters.post(any_write(64)));
                CHECK(paper.relay->serve());
                paper.nic.complete(static_cast<uint16_t>(i));
                CHECK(paper.relay->serve());
            }
            for (uint32_t i = 0; i <= after; ++i) CHECK(posters.post(any_write(4096 + i * 64), 7 + i));
            CHECK(paper.relay->serve());
            paper.nic.complete(static_cast<uint16_t>(before), CqeStatus::kRemoteBadAddress);
            for (uint32_t i = 1; i <= after; ++i) paper.nic.complete(static_cast<uint16_t>(before + i));
            CHECK(paper.relay->serve());
            CHECK_EQ(paper.errors(), uint64_t{1});
            CHECK_EQ(paper.completions(), uint64_t{before + after});
            CHECK(!posters.quiet());
            const GpuQueueError* error = gpu_queue_error(&posters.error);
            CHECK(error != nullptr);
            CHECK_EQ(error->status, static_cast<uint8_t>(CqeStatus::kRemoteBadAddress));
            CHECK_EQ(error->opcode, static_cast<uint8_t>(SendOpcode::kRdmaWrite));
            CHECK_EQ(error->slot, before);
            CHECK_EQ(error->pe, 7u);
            CHECK_EQ(error->remote_addr, uint64_t{4096});
        }
    }
}

// Doorbells that no poster of ours stores: before the ring's, or beyond its free slots.
TEST(a_doorbell_that_cannot_be_stops_the_ring_by_name) {
    const struct {
        uint32_t value;
        const char* text;
    } cases[] = {{4, "the doorbell went from 5 to 4, but 5 slots were free"},
                 {11, "the doorbell went from 5 to 11, but 5 slots were free"},
                 {0x80000005u, "the doorbell went from 5 to 2147483653"}};
    for (const auto& bad : cases) {
        Paper paper(8);
        paper.post(5);
        CHECK(paper.relay->serve());
        for (int i = 0; i < 2; ++i) paper.nic.complete(0);
        CHECK(paper.relay->serve());
        paper.ring(bad.value);
        CHECK(paper.relay->serve());
        CHECK_EQ(paper.nic.doorbell(), 5u);
        CHECK_FAILS(paper.relay->failure(), Code::kDevice, bad.text);
        CHECK_FAILS(paper.relay->failure(), Code::kDevice, "relay queue 77 of paper0 stopped");
        CHECK_EQ(paper.errors(), uint64_t{1});
        paper.ring(6);
        paper.nic.complete(0);
        CHECK(!paper.relay->serve());  // it stays stopped
        CHECK_EQ(paper.completions(), uint64_t{2});
    }
    Paper paper(8);  // all free slots at once are good
    paper.post(8);
    CHECK(paper.relay->serve());
    CHECK_OK(paper.relay->failure());
}

TEST(posters_of_a_stopped_ring_get_an_error_and_wait_for_no_deadline) {
    Paper paper(8);
    RingQueue posters(paper.relay->view());
    CHECK(posters.post(any_write(0)));
    paper.relay->stop("the test says so");
    paper.relay->stop("and says more");
    CHECK(!posters.quiet());
    CHECK_EQ(gpu_queue_error(&posters.error)->status, static_cast<uint8_t>(CqeStatus::kQpInternal));
    CHECK(!posters.post(any_write(0)));
    CHECK_FAILS(paper.relay->failure(), Code::kDevice, "stopped: the test says so; hint");
}

TEST(a_completion_too_many_stops_the_ring) {
    Paper paper(8);
    paper.post(1);
    CHECK(paper.relay->serve());
    paper.nic.complete(0);
    paper.nic.complete(0);
    CHECK(paper.relay->serve());
    CHECK_EQ(paper.completions(), uint64_t{1});
    CHECK_FAILS(paper.relay->failure(), Code::kDevice, "more requests than were in flight");
}

TEST(what_cannot_be_opened_is_named_and_leaves_nothing) {
    std::unique_ptr<RelayQueue> relay;
    for (const char* call : {"create_cq", "create_qp"}) {
        PaperNic nic;
        nic.fails = call;
        CHECK_FAILS(RelayQueue::open(nic, {.depth = 8}, &relay), Code::kResource,
                    (std::string("relay ring on paper0: ") + call + " failed").c_str());
        CHECK(nic.is_empty());
    }
    PaperNic odd;
    odd.extra_depth = 8;
    CHECK_FAILS(RelayQueue::open(odd, {.depth = 8}, &relay), Code::kUnsupported, "gave 16 slots of 64 bytes");
    odd.extra_depth = 0;
    odd.slot_bytes = kSlotBytesLarge;
    CHECK_FAILS(RelayQueue::open(odd, {.depth = 8}, &relay), Code::kUnsupported, "8 slots of 128 bytes");
    CHECK_FAILS(RelayQueue::open(odd, {.depth = 12}, &relay), Code::kInvalidArgument, "12 slots");
    CHECK(odd.is_empty());
    PaperNic nic;
    CHECK_OK(RelayQueue::open(nic, {.depth = 4096}, &relay));
    CHECK_EQ(relay->view().depth, 64u);  // what the device has
    relay.reset();
    CHECK(nic.is_empty());
}

// ---- with the thread, over software devices ----

namespace {

// Two rails of one process: the first one's memory is written to the second one's through relay rings.
struct Rails {
    std::shared_ptr<soft::Engine> engine;
    std::vector<uint64_t> source, target;  // outlive the devices
    std::unique_ptr<Nic> near, far;
    MemoryRegion from, to;
    AddressHandle peer, back;
    Cq cq;
    Qp qp;  // of the target

    explicit Rails(size_t words, Knobs knobs = {}) : source(words), target(words) {
        knobs.timeout_ms = 4000;
        knobs.soft_duplicate_ppm = 50'000;
        CHECK_OK(soft::Engine::open({2, -1, knobs}, &engine));
        near = engine->make_nic(0);
        far = engine->make_nic(1);
        CHECK_OK(near->create_address_handle(far->address(), &peer));
        CHECK_OK(far->create_address_handle(near->address(), &back));
        CHECK_OK(near->register_memory({source.data(), words * 8, MemoryKind::kHost, 7}, &from));
        CHECK_OK(far->register_memory({target.data(), words * 8, MemoryKind::kHost, 7}, &to));
        CHECK_OK(far->create_cq({64}, &cq));
        CHECK_OK(far->create_qp({.send_cq = cq.handle, .recv_cq = cq.handle, .sq_depth = 16, .rq_depth = 0, .qkey = 9}, &qp));
        for (size_t i = 0; i < words; ++i) source[i] = i * 0x9e3779b97f4a7c15u + 1;
    }
    std::unique_ptr<GpuRing> open_ring(uint32_t depth) {
        std::unique_ptr<GpuRing> ring;
        CHECK_OK(make_relay_ring(*near, {.depth = depth, .qkey = 9, .posters = MemoryKind::kHost}, &ring));
        return ring;
    }
    SendWqe write(size_t word) const {
        SendWqe wqe;
        wqe_begin(wqe, SendOpcode::kRdmaWrite, {peer.ahn, static_cast<uint16_t>(qp.qp_num), 9}, 0, false, 0);
        wqe_set_remote(wqe, reinterpret_cast<uint64_t>(&target[word]), 8, to.rkey);
        wqe_set_local(wqe, reinterpret_cast<uint64_t>(&source[word]), 8, from.lkey);
        return wqe;
    }
};

int threads_named(const std::string& name) {
    int count = 0;
    DIR* tasks = opendir("/proc/self/task");
    while (const dirent* task = readdir(tasks)) {
        std::ifstream file(std::string("/proc/self/task/") + task->d_name + "/comm");
        std::string comm;
        count += std::getline(file, comm) && comm == name ? 1 : 0;
    }
    closedir(tasks);
    return count;
}

}  // namespace

TEST(many_threads_post_through_two_small_rings_and_all_arrives) {
    constexpr size_t kThreads = 5, kEach = 300;
    Rails rails(kThreads * kEach);
    {
        const auto first = rails.open_ring(8), second = rails.open_ring(16);
        RingQueue one(first->view()), two(second->view());
        std::atomic<size_t> failed{0};
        std::vector<std::thread> posters;
        for (size_t t = 0; t < kThreads; ++t) {
            posters.emplace_back([&, t] {
                for (size_t i = t * kEach; i < (t + 1) * kEach; ++i)
                    failed += (t % 3 == 0 ? two : one).post(rails.write(i)) ? 0 : 1;
            });
        }
        for (std::thread& poster : posters) poster.join();
        CHECK(one.quiet() && two.quiet());
        CHECK_EQ(failed.load(), size_t{0});
        CHECK_OK(first->failure());
        CHECK_OK(second->failure());
        CHECK_EQ(rails.engine->stats().work_requests, uint64_t{kThreads * kEach});
    }
    CHECK(rails.source == rails.target);  // a completion means placed
}

TEST(a_request_that_the_device_refuses_is_named_to_its_poster) {
    Rails rails(64);
    const auto ring = rails.open_ring(8);
    RingQueue posters(ring->view());
    CHECK(posters.post(rails.write(3)));
    CHECK(posters.quiet());
    SendWqe bad = rails.write(5);
    bad.rdma.remote.rkey ^= 0x10000;
    CHECK(posters.post(bad, 12));
    CHECK(!posters.quiet());
    const GpuQueueError* error = gpu_queue_error(&posters.error);
    CHECK_EQ(error->status, static_cast<uint8_t>(CqeStatus::kRemoteBadAddress));
    CHECK_EQ(error->pe, 12u);
    CHECK_EQ(error->remote_addr, reinterpret_cast<uint64_t>(&rails.target[5]));
    CHECK_EQ(error->qp_num, ring->view().qp_num);
    CHECK_OK(ring->failure());  // the relay itself is well
}

TEST(one_thread_serves_all_rings_and_ends_with_the_last) {
    Rails rails(64);
    CHECK_EQ(threads_named("efa-relay"), 0);
    for (int round = 0; round < 2; ++round) {
        auto first = rails.open_ring(8), second = rails.open_ring(8);
        RingQueue one(first->view()), two(second->view());
        CHECK(two.post(rails.write(1)) && two.quiet());
        CHECK_EQ(threads_named("efa-relay"), 1);
        second.reset();
        CHECK(one.post(rails.write(2)) && one.quiet());
        CHECK_EQ(threads_named("efa-relay"), 1);
        first.reset();
        CHECK_EQ(threads_named("efa-relay"), 0);
    }
}

TEST(a_ring_that_slept_wakes_up_by_itself) {
    Rails rails(8);
    const auto ring = rails.open_ring(8);
    RingQueue posters(ring->view());
    for (size_t i = 0; i < 3; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(70));  // to its long naps
        CHECK(posters.post(rails.write(i)) && posters.quiet());
        CHECK_EQ(rails.target[i], rails.source[i]);
    }
}

TEST(rings_come_and_go_beside_traffic_also_with_work_in_flight) {
    Rails rails(4096);
    const auto steady = rails.open_ring(8);
    RingQueue posters(steady->view());
    std::atomic<bool> is_done{false};
    std::thread poster([&] {
        for (size_t i = 0; i < 1000 && posters.post(rails.write(i)); ++i) {
        }
        is_done = true;
    });
    int rounds = 0;
    while (!is_done || rounds < 5) {
        const auto ring = rails.open_ring(16);
        RingQueue other(ring->view());
        for (size_t i = 0; i < 10; ++i) CHECK(other.post(rails.write(2000 + i)));
        ++rounds;
    }
    poster.join();
    CHECK(posters.quiet());
    CHECK(std::equal(rails.source.begin(), rails.source.begin() + 1000, rails.target.begin()));
}

TEST_MAIN()
