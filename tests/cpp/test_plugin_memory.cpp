// SPDX-License-Identifier: Apache-2.0
// Memory handles: 512 opaque bytes that the host copies and exchanges, and that we must recognise when they come back.
#include <atomic>
#include <thread>

#include "fake_nvshmem/stub_host.h"
#include "nvshmem_efa/api.h"

using namespace fake;

namespace {

alignas(16) unsigned char memory[8192];

bool last_error_has(const char* part) { return std::strstr(nvshmem_efa_last_error(nullptr), part) != nullptr; }

// What the host has after its allgather: two transports, ours is the second.
std::vector<abi::MemHandleBytes> gathered(const abi::MemHandleBytes& own, int n_pes) {
    std::vector<abi::MemHandleBytes> all(static_cast<size_t>(n_pes) * 2);
    for (size_t i = 0; i < all.size(); ++i) {
        if (i % 2 == 1) {
            all[i] = own;
        } else {
            std::memset(&all[i], 0xaa, sizeof all[i]);  // another transport's
        }
    }
    return all;
}

}  // namespace

TEST(registered_memory_is_known_again_from_a_copy_of_its_bytes) {
    for_every_abi([]<class V>() {
        StubHost<V> host;
        const abi::MemHandleBytes made = host.handle(memory, sizeof memory);
        abi::MemHandleBytes copy = made;
        CHECK_EQ(host.recorded.registered.at(0).second, sizeof memory);
        CHECK_EQ(host.t->host_ops.release_mem_handle(&copy, host.t), 0);
        CHECK_EQ(host.recorded.released.at(0), 1u);
        CHECK(host.t->host_ops.release_mem_handle(&copy, host.t) != 0);  // not twice
        CHECK_EQ(host.recorded.released.size(), 1u);
    });
}

TEST(the_handle_of_every_peer_is_attached) {
    for_every_abi([]<class V>() {
        StubHost<V> host;
        auto all = gathered(host.handle(memory, sizeof memory), 4);
        CHECK_EQ(host.t->host_ops.add_device_remote_mem_handles(host.t, 2, all.data(), 0, sizeof memory), 0);
        CHECK_EQ(host.recorded.attached.size(), 4u);
        for (int pe = 0; pe < 4; ++pe) CHECK_EQ(host.recorded.attached[static_cast<size_t>(pe)].first, pe);
    });
}

TEST(a_peer_with_no_handle_for_a_chunk_is_passed_over) {
    StubHost<V3> host;
    auto all = gathered(host.handle(memory, sizeof memory), 4);
    all[2 * 2 + 1] = {};
    CHECK_EQ(host.t->host_ops.add_device_remote_mem_handles(host.t, 2, all.data(), 0, sizeof memory), 0);
    CHECK_EQ(host.recorded.attached.size(), 3u);
}

TEST(a_damaged_or_foreign_or_differently_versioned_handle_names_its_pe) {
    for_every_abi([]<class V>() {
        StubHost<V> host;
        const auto good = gathered(host.handle(memory, sizeof memory), 4);
        const auto attach = [&host](std::vector<abi::MemHandleBytes> all) {
            return host.t->host_ops.add_device_remote_mem_handles(host.t, 2, all.data(), 0, sizeof memory);
        };
        auto foreign = good;
        std::memset(&foreign[5], 0x55, 512);
        CHECK(attach(foreign) != 0);
        CHECK(last_error_has("from PE 2: a memory handle that this plugin did not make"));
        auto versioned = good;
        versioned[7].bytes[8] ^= 2;
        CHECK(attach(versioned) != 0);
        CHECK(last_error_has("from PE 3: a memory handle of layout version 3"));
        auto sized = good;
        sized[3].bytes[12] ^= 1;
        CHECK(attach(sized) != 0);
        CHECK(last_error_has("from PE 1: a memory handle of layout version 1 with 289 bytes"));
        auto damaged = good;
        damaged[1].bytes[24 + 100] ^= 0x10;
        CHECK(attach(damaged) != 0);
        CHECK(last_error_has("the memory handle of PE 0 was damaged"));
    });
}

TEST(places_of_handles_that_cannot_be_are_refused) {
    StubHost<V6<6>> host;
    auto all = gathered(host.handle(memory, sizeof memory), 4);
    CHECK_EQ(host.t->host_ops.add_device_remote_mem_handles(host.t, 1, all.data(), 0, 1), 1);  // our place is 1
    CHECK_EQ(host.t->host_ops.add_device_remote_mem_handles(host.t, 2, nullptr, 0, 1), 1);
    CHECK(host.recorded.attached.empty());
}

TEST(nothing_at_nowhere_is_not_registered) {
    StubHost<V3> host;
    abi::MemHandleBytes handle{};
    CHECK_EQ(host.t->host_ops.get_mem_handle(&handle, nullptr, 8, host.t, false), 1);
    CHECK_EQ(host.t->host_ops.get_mem_handle(&handle, memory, 0, host.t, false), 1);
    CHECK(host.recorded.registered.empty());
}

TEST(chunks_may_be_registered_while_the_proxy_sends) {
    StubHost<V4<4>> host;
    auto* const t = host.t;
    abi::MemHandleBytes heap = host.handle(memory, sizeof memory);
    std::atomic<bool> stop{false};
    std::atomic<int> puts{0}, failures{0};
    std::thread proxy([&] {
        abi::RmaMemdesc desc{memory, 0, &heap};
        while (!stop.load()) {
            if (t->host_ops.rma(t, 0, {1, 1, 0, nullptr}, &desc, &desc, {1, 8, 1, 1}, 1) != 0) failures.fetch_add(1);
            puts.fetch_add(1);
        }
    });
    while (puts.load() < 10) std::this_thread::yield();
    for (int i = 0; i < 100; ++i) {
        abi::MemHandleBytes later = host.handle(memory + i, 64, i % 2 == 0);
        auto all = gathered(later, 4);
        CHECK_EQ(t->host_ops.add_device_remote_mem_handles(t, 2, all.data(), 0, 64), 0);
        CHECK_EQ(t->host_ops.release_mem_handle(&later, t), 0);
    }
    stop.store(true);
    proxy.join();
    CHECK_EQ(failures.load(), 0);
    CHECK_EQ(host.recorded.rmas.size(), static_cast<size_t>(puts.load()));
    CHECK_EQ(host.recorded.registered.size(), 101u);
}

TEST_MAIN()
