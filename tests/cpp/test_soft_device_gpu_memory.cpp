// SPDX-License-Identifier: Apache-2.0
// Payload from and to memory that the CPU does not read or write itself, as a GPU's: bounce buffers, references, counters.
#include <deque>

#include "soft_device_rig.h"

using namespace rig;

namespace {

// Memory whose "GPU" ranges are ordinary memory, but copies from and to them end only when the test says so, and which
// peers can reach by reference if the test says so.
class SlowMemory final : public MemoryPort {
   public:
    Ticket copy(MemoryAddr to, MemoryAddr from, size_t bytes) override {
        if (to.kind == MemoryKind::kHost && from.kind == MemoryKind::kHost) return host->copy(to, from, bytes);
        started.push_back({to, from, bytes});
        return ++last;
    }
    void flush() override { ++flushes; }
    bool done(Ticket ticket) override {
        while (ended < ticket && end_at_once) end_one();
        return ended >= ticket;
    }
    Status error() override {
        if (!is_broken) return Status();
        is_broken = false;
        return Status::error(Code::kDevice, nullptr, "the GPU fell off the bus");
    }
    void* alloc_host(size_t bytes) override { return host->alloc_host(bytes); }
    void free_host(void* memory) override { host->free_host(memory); }
    Status add_local(const MemoryAttr&, MemoryShare*) override { return Status(); }
    void remove_local(const MemoryAttr&) override {}
    Status attach(const MemoryShare&, const FetchFd&) override { return Status(); }
    int export_fd(uint64_t, uint32_t) override { return -1; }
    bool reference_of(MemoryAddr local, size_t, PeerBytes* reference) override {
        *reference = PeerBytes{1, 5, local.addr};
        return gives_references;
    }
    bool resolve(const PeerBytes& reference, size_t, MemoryAddr* mapped) override {
        *mapped = MemoryAddr{MemoryKind::kCuda, reference.offset};
        return resolves;
    }
    void end_one() {
        const Copy copy = started.front();
        started.pop_front();
        ++ended;
        std::memmove(reinterpret_cast<void*>(copy.to.addr), reinterpret_cast<void*>(copy.from.addr), copy.bytes);
    }
    struct Copy {
        MemoryAddr to, from;
        size_t bytes;
    };
    std::unique_ptr<MemoryPort> host = make_host_memory_port();
    std::deque<Copy> started;
    Ticket last = 0, ended = 0;
    bool is_broken = false;
    bool end_at_once = true, gives_references = false, resolves = false;
    int flushes = 0;
};

// A rig whose registered memory is "GPU" memory.
struct SlowRig : Rig {
    explicit SlowRig(const Faults& faults = {})
        : Rig({.faults = faults, .kind = MemoryKind::kCuda}, std::make_unique<SlowMemory>()) {}
    SlowMemory& slow() { return static_cast<SlowMemory&>(*memory); }
};

}  // namespace


TEST(gpu_payload_travels_through_bounce_buffers_and_is_acknowledged_only_when_it_is_there) {
    SlowRig rig;
    fill(rig.a);
    rig.slow().end_at_once = false;
    rig.a.post(rig.write(rig.a, rig.b, 1, 0, 100'000));
    rig.run(1000);
    CHECK_EQ(rig.slow().started.size(), 7u);  // out of the source, a segment each
    while (!rig.slow().started.empty()) rig.slow().end_one();
    rig.run(1000);
    CHECK_EQ(rig.slow().started.size(), 7u);  // into the target
    for (int i = 0; i < 6; ++i) rig.slow().end_one();
    rig.run(10'000);
    CHECK_EQ(next_sent(rig.a).status, -1);
    CHECK(rig.b.device->is_copying());
    rig.slow().end_one();
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(std::memcmp(rig.a.memory.data(), rig.b.memory.data(), 100'000) == 0);
    CHECK(rig.slow().flushes > 0);
}

TEST(gpu_payload_that_the_target_can_reach_is_copied_once_and_in_few_pieces) {
    for (const uint64_t reorder_ns : {0u, 2000u}) {
        const uint64_t pieces = reorder_ns ? 3 : 1;
        SlowRig rig({.reorder_ns = reorder_ns});
        fill(rig.a);
        rig.slow().gives_references = rig.slow().resolves = true;
        CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 1 << 20)), 0);
        CHECK(rig.a.memory == rig.b.memory);
        CHECK_EQ(rig.slow().last, pieces);  // from memory to memory
        CHECK_EQ(rig.b.device->stats().packets_received, pieces);
        rig.a.memory.assign(rig.a.memory.size(), 0);
        CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 2, 0, 1 << 20)), 0);
        CHECK(rig.a.memory == rig.b.memory);
        CHECK_EQ(rig.slow().last, 2 * pieces);
    }
}

TEST(a_target_that_cannot_resolve_a_reference_gets_the_bytes) {
    SlowRig rig({.reorder_ns = 2000, .duplicate_ppm = 300'000});
    rig.wire.set_refusals(100'000);
    fill(rig.a);
    rig.slow().gives_references = true;
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 1 << 20)), 0);
    CHECK(rig.a.memory == rig.b.memory);
    const uint64_t asked = rig.b.device->stats().payload_requests;
    CHECK(asked > 0 && asked <= 8);
    rig.a.memory.assign(rig.a.memory.size(), 0);
    CHECK_EQ(rig.status_of(rig.read(rig.a, rig.b, 2, 0, 1 << 20)), 0);
    CHECK(rig.a.memory == rig.b.memory);
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 3, 0, 1 << 20)), 0);
    CHECK_EQ(rig.b.device->stats().payload_requests, asked);  // the sender has learned it
}

TEST(sends_come_from_and_go_to_gpu_memory) {
    SlowRig rig;
    fill(rig.a);
    rig.b.post_receive(rig.b.addr(4096), 8192, rig.b.region.lkey, 1);
    CHECK_EQ(rig.status_of(rig.send(rig.a, rig.b, 1, 0, 8000)), 0);
    CHECK_EQ(next_received(rig.b).status, 0);
    CHECK(std::memcmp(rig.a.memory.data(), rig.b.memory.data() + 4096, 8000) == 0);
}

TEST(counters_in_gpu_memory_follow_the_payload) {
    SlowRig rig;
    uint64_t word = 99;
    uint64_t counter;
    CHECK_OK(rig.b.device->create_counter({&word, nullptr, MemoryKind::kCuda}, &counter));
    CHECK_OK(rig.b.device->attach_counter(rig.b.qp.handle, counter, kCountRemoteWrite));
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    rig.run(10'000);
    CHECK_EQ(word, 1u);
}

TEST(a_copy_that_fails_stops_the_devices_queue_pairs) {
    SlowRig rig;
    CHECK_EQ(rig.status_of(rig.write(rig.a, rig.b, 1, 0, 8)), 0);
    rig.slow().is_broken = true;
    rig.a.post(rig.write(rig.a, rig.b, 2, 0, 8));
    CHECK_EQ(rig.run_until_sent(rig.a).status, 1);
    CHECK(rig.a.device->diagnosis(rig.a.qp.handle).find("bus") != std::string::npos);
    // The peer of a stopped queue pair is refused, and told so.
    rig.b.post(rig.write(rig.b, rig.a, 3, 0, 8));
    CHECK_EQ(rig.run_until_sent(rig.b).status, 8);
}

TEST_MAIN()
