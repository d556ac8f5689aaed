// SPDX-License-Identifier: Apache-2.0
// Rings for the GPU, posted to by CPU threads in its place: relayed to this device's queue, and the queue itself.
#include <atomic>
#include <thread>

#include "device_rig.h"
#include "gpu_ring_rig.h"

using namespace device;

namespace {

constexpr size_t kThreads = 4, kEach = 300, kBytes = 72;

// A ring to a target on the same or another device.
struct RingPair {
    Pair pair;
    std::unique_ptr<GpuRing> ring;  // goes before its device

    explicit RingPair(const char* kind, uint32_t depth, size_t devices = 1)
        : pair({.unsolicited = open_devices(1).front()->info().caps.unsolicited_write_recv}, devices) {
        const auto make = std::string(kind) == "relay" ? make_relay_ring : make_direct_ring;
        CHECK_OK(make(pair.a->nic, {.depth = depth, .qkey = kQkey, .posters = MemoryKind::kHost}, &ring));
        std::printf("     %s, %u slots, batches of %u, %s ids\n", ring->kind(), ring->view().depth, ring->view().max_batch,
                    ring->view().req_id_64 ? "64-bit" : "16-bit");
        pair.a->fill(21);
    }
    // Phase and request id are the queue's to set.
    SendWqe write(size_t at, uint32_t bytes) { return pair.a->write(*pair.b, 0, at, at, bytes); }
};

void post_from_threads(const char* kind, uint32_t depth, size_t devices) {
    RingPair rings(kind, depth, devices);
    ring_rig::RingQueue queue(rings.ring->view());
    std::atomic<size_t> failed{0};
    std::vector<std::thread> posters;
    for (size_t t = 0; t < kThreads; ++t) {
        posters.emplace_back([&, t] {
            for (size_t i = t * kEach; i < (t + 1) * kEach; ++i) failed += queue.post(rings.write(i * kBytes, kBytes)) ? 0 : 1;
        });
    }
    for (std::thread& poster : posters) poster.join();
    CHECK(queue.quiet());
    CHECK_EQ(failed.load(), size_t{0});
    CHECK_OK(rings.ring->failure());
    CHECK(same(*rings.pair.a, 0, *rings.pair.b, 0, kThreads * kEach * kBytes));  // a completion means placed
}

void refuse_by_name(const char* kind) {
    RingPair rings(kind, 16);
    ring_rig::RingQueue queue(rings.ring->view());
    for (size_t i = 0; i < 40; ++i) CHECK(queue.post(rings.write(i * 64, 64), 3));
    CHECK(queue.quiet());
    SendWqe bad = rings.write(4096, 64);
    bad.rdma.remote.rkey ^= 0x10000;
    CHECK(queue.post(bad, 5));
    CHECK(!queue.quiet());
    const GpuQueueError* error = gpu_queue_error(&queue.error);
    CHECK(error != nullptr);
    CHECK_EQ(static_cast<CqeStatus>(error->status), CqeStatus::kRemoteBadAddress);
    CHECK_EQ(error->pe, 5u);
    CHECK_EQ(error->slot & 0xffffu, 40u);
    CHECK_EQ(error->remote_addr, rings.pair.b->address(4096));
    CHECK_OK(rings.ring->failure());
}

}  // namespace

TEST(threads_share_a_relay_ring_of_eight_slots_and_all_is_placed) { post_from_threads("relay", 8, 1); }

TEST(threads_share_the_devices_own_ring_and_all_is_placed) {
    post_from_threads("direct", 8, 1);
    post_from_threads("direct", 64, 1);
}

TEST(a_relay_ring_reaches_another_device) { post_from_threads("relay", 64, 2); }

TEST(a_relayed_request_that_is_refused_is_named) { refuse_by_name("relay"); }

TEST(a_request_on_the_devices_own_ring_that_is_refused_is_named) { refuse_by_name("direct"); }

TEST(relay_rings_come_and_go_with_work_in_flight) {
    for (int i = 0; i < 10; ++i) {
        RingPair rings("relay", 16);
        ring_rig::RingQueue queue(rings.ring->view());
        for (size_t n = 0; n < 10; ++n) CHECK(queue.post(rings.write(0, 1 << 20)));
    }
}
