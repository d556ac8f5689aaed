// SPDX-License-Identifier: Apache-2.0
// What arrives, where and when: every operation, through the rings that efadv_query_qp_wqs() and efadv_query_cq() name.
#include "device_rig.h"

using namespace device;

TEST(devices_say_what_they_can) {
    for (const auto& nic : open_devices()) {
        const NicCaps& caps = nic->info().caps;
        std::printf("     %s: read %d write %d rnr_retry %d unsolicited %d sgid %d ext_cq %d inline_write %d ids64 %d "
                    "counters %u, sq %u rq %u cq %u, inline %u and %u, batch %u, mtu %u, rdma %llu, qps %u, mrs %u\n",
                    nic->info().name.c_str(), caps.rdma_read, caps.rdma_write, caps.rnr_retry,
                    caps.unsolicited_write_recv, caps.cq_sgid, caps.cq_ext_mem, caps.inline_write, caps.req_id_64,
                    caps.completion_counters ? caps.max_counters : 0, caps.max_sq_depth, caps.max_rq_depth,
                    caps.max_cq_depth, caps.max_inline_small, caps.max_inline_large, caps.max_tx_batch_units, caps.mtu,
                    static_cast<unsigned long long>(caps.max_rdma_bytes), caps.max_qps, caps.max_mrs);
        CHECK(caps.rdma_write);
        CHECK(caps.max_sq_depth >= 64 && caps.max_rq_depth >= 64 && caps.max_cq_depth >= 256);
    }
}

TEST(writes_of_all_sizes_land_where_they_should_and_nowhere_else) {
    Pair pair;
    pair.a->fill(1);
    for (const uint32_t bytes : {1u, 8u, 63u, 4096u, 65537u, 1u << 20, 8u << 20}) {
        pair.b->fill(2);
        Endpoint& before = *pair.b;
        const std::vector<uint8_t> old = before.memory;
        CHECK_EQ(pair.a->run(pair.a->write(*pair.b, bytes & 0xffff, 4096, 12345, bytes)), CqeStatus::kOk);
        CHECK(same(*pair.a, 4096, *pair.b, 12345, bytes));
        CHECK(std::memcmp(old.data(), before.memory.data(), 12345) == 0);
        CHECK(std::memcmp(old.data() + 12345 + bytes, before.memory.data() + 12345 + bytes, 1 << 20) == 0);
    }
}

TEST(reads_fetch_the_peers_bytes) {
    Pair pair;
    if (!pair.a->nic.info().caps.rdma_read) SKIP("no RDMA read");
    pair.b->fill(3);
    for (const uint32_t bytes : {1u, 4096u, 3u << 20}) {
        CHECK_EQ(pair.a->run(pair.a->read(*pair.b, 7, 1000, 5000, bytes)), CqeStatus::kOk);
        CHECK(same(*pair.a, 1000, *pair.b, 5000, bytes));
    }
}

TEST(a_send_arrives_with_its_length_immediate_and_sender) {
    Pair pair;
    pair.a->fill(4);
    pair.b->post_receive(0x1234, 100, 2000);
    SendWqe wqe = pair.a->send(*pair.b, 9, 50, 700);
    wqe_add_send_sge(wqe, pair.a->address(9000), 300, pair.a->region.lkey);
    wqe_set_immediate(wqe, 0xfeedbeef);
    CHECK_EQ(pair.a->run(wqe), CqeStatus::kOk);
    const Completion got = pair.b->wait_received();
    CHECK(got.came);
    CHECK_EQ(got.status, CqeStatus::kOk);
    CHECK_EQ(got.req_id, 0x1234u);
    CHECK_EQ(got.entry.base.length, 1000);
    CHECK_EQ(got.entry.base.immediate, 0xfeedbeefu);
    CHECK_EQ(got.entry.base.ah, pair.b->peer.ahn);
    CHECK_EQ(got.entry.base.src_qp_num, pair.a->qp.qp_num);
    CHECK(same(*pair.a, 50, *pair.b, 100, 700));
    CHECK(same(*pair.a, 9000, *pair.b, 800, 300));
}

TEST(inline_bytes_travel_in_the_slot) {
    const auto nics = open_devices(1);
    const NicCaps& caps = nics.front()->info().caps;
    for (const bool is_large : {false, true}) {
        if (is_large && !caps.inline_write) continue;
        Endpoint a(*nics.front(), {.large_slots = is_large}), b(*nics.front());
        Endpoint::connect(a, b);
        uint8_t bytes[kInlineLargeMax];
        for (size_t i = 0; i < sizeof bytes; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + 1);
        const uint32_t most = is_large ? caps.max_inline_large : caps.max_inline_small;
        b.post_receive(1, 0, 128);
        SendWqe wqe = a.begin(SendOpcode::kSend, b, 2);
        wqe_set_send_inline(wqe, bytes, most);
        CHECK_EQ(a.run(wqe), CqeStatus::kOk);
        CHECK_EQ(b.wait_received().status, CqeStatus::kOk);
        CHECK(std::memcmp(b.memory.data(), bytes, most) == 0);
        if (!is_large) continue;
        wqe = a.begin(SendOpcode::kRdmaWrite, b, 3);
        wqe_set_remote(wqe, b.address(512), most, b.region.rkey);
        wqe_set_write_inline(wqe, bytes, most);
        CHECK_EQ(a.run(wqe), CqeStatus::kOk);
        CHECK(std::memcmp(b.memory.data() + 512, bytes, most) == 0);
    }
}

TEST(a_write_with_immediate_tells_the_target_once_its_bytes_are_there) {
    for (const bool is_unsolicited : {false, true}) {
        if (is_unsolicited && !open_devices(1).front()->info().caps.unsolicited_write_recv) continue;
        Pair pair({.unsolicited = is_unsolicited});
        pair.a->fill(5);
        for (uint32_t i = 0; i < 50; ++i) {
            if (!is_unsolicited) pair.b->post_receive(static_cast<uint16_t>(i), 0, 0);
            SendWqe wqe = pair.a->write(*pair.b, i, i * 5000, i * 5000, 5000);
            wqe_set_immediate(wqe, 0x1000 + i);
            pair.a->post(wqe);
            pair.a->ring();
            const Completion got = pair.b->wait_received();
            CHECK(got.came);
            CHECK_EQ(got.entry.base.immediate, 0x1000 + i);
            CHECK_EQ((got.flags & kCqeUnsolicited) != 0, is_unsolicited);
            CHECK(same(*pair.a, i * 5000, *pair.b, i * 5000, 5000));
            CHECK_EQ(pair.a->wait_sent().status, CqeStatus::kOk);
        }
    }
}

// Full rings, many laps: phases, credits, batches, and every id back exactly once.
TEST(rings_wrap_and_every_id_comes_back_once) {
    Pair pair({.sq_depth = 128});
    const bool is_64 = pair.a->qp.req_id_64;
    const uint32_t count = 128 * 9 + 5;
    pair.a->fill(6);
    std::vector<int> seen(count);
    uint32_t posted = 0, done = 0;
    while (done < count) {
        while (posted < count && send_ring_credits(pair.a->send_ring) > 0) {
            const uint64_t id = is_64 ? posted * 0x100010001ull : posted;
            pair.a->post(pair.a->write(*pair.b, id, posted * 512, posted * 512, 512));
            ++posted;
        }
        pair.a->ring();
        const Completion completion = pair.a->wait_sent();
        CHECK(completion.came);
        CHECK_EQ(completion.status, CqeStatus::kOk);
        const uint64_t index = is_64 ? completion.req_id / 0x100010001ull : completion.req_id;
        CHECK(index < count);
        if (is_64) CHECK_EQ(completion.req_id, index * 0x100010001ull);
        ++seen[index];
        ++done;
    }
    for (int times : seen) CHECK_EQ(times, 1);
    CHECK(same(*pair.a, 0, *pair.b, 0, count * 512));
}

TEST(one_completion_queue_serves_sends_and_receives) {
    Pair pair({.one_cq = true});
    pair.a->fill(7);
    for (uint16_t i = 0; i < 300; ++i) {  // more than the queue has entries
        pair.b->post_receive(i, 0, 64);
        CHECK_EQ(pair.a->run(pair.a->send(*pair.b, i, i * 64, 64)), CqeStatus::kOk);
        const Completion got = pair.b->wait_received();
        CHECK(got.came);
        CHECK_EQ(got.req_id, i);
        CHECK(same(*pair.a, i * 64, *pair.b, 0, 64));
    }
}

TEST(a_queue_pair_needs_no_receive_queue) {
    Pair pair({.rq_depth = 0});
    pair.a->fill(11);
    CHECK_EQ(pair.a->run(pair.a->write(*pair.b, 1, 0, 0, 5000)), CqeStatus::kOk);
    CHECK(same(*pair.a, 0, *pair.b, 0, 5000));
    CHECK_EQ(pair.a->run(pair.a->send(*pair.b, 2, 0, 64)), CqeStatus::kRnr);
}

TEST(two_devices_reach_each_other) {
    Pair pair({}, 2);
    pair.a->fill(8);
    pair.b->fill(9);
    CHECK_EQ(pair.a->run(pair.a->write(*pair.b, 1, 0, 0, 4 << 20)), CqeStatus::kOk);
    CHECK(same(*pair.a, 0, *pair.b, 0, 4 << 20));
    CHECK_EQ(pair.b->run(pair.b->read(*pair.a, 2, 8 << 20, 1 << 20, 2 << 20)), CqeStatus::kOk);
    CHECK(same(*pair.b, 8 << 20, *pair.a, 1 << 20, 2 << 20));
}

TEST(counters_count_what_they_are_attached_to) {
    Pair pair;
    Nic& nic = pair.a->nic;
    if (!nic.info().caps.completion_counters) SKIP("no completion counters");
    alignas(64) uint64_t words[6] = {};
    uint64_t writes = 0, remote = 0, reads = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &writes));
    CHECK_OK(nic.create_counter({&words[2], &words[3], MemoryKind::kHost}, &remote));
    CHECK_OK(nic.create_counter({&words[4], &words[5], MemoryKind::kHost}, &reads));
    CHECK_OK(nic.attach_counter(pair.a->qp.handle, writes, kCountWrite));
    CHECK_OK(nic.attach_counter(pair.a->qp.handle, reads, kCountRead));  // a second pass through RESET
    CHECK_OK(nic.attach_counter(pair.b->qp.handle, remote, kCountRemoteWrite));
    for (int i = 0; i < 10; ++i)
        CHECK_EQ(pair.a->run(pair.a->write(*pair.b, 1, 0, 0, 100'000)), CqeStatus::kOk);
    CHECK_EQ(__atomic_load_n(&words[0], __ATOMIC_ACQUIRE), 10u);  // pairs with the device's write
    CHECK_EQ(__atomic_load_n(&words[2], __ATOMIC_ACQUIRE), 10u);
    if (nic.info().caps.rdma_read) {
        CHECK_EQ(pair.a->run(pair.a->read(*pair.b, 1, 0, 0, 64)), CqeStatus::kOk);
        CHECK_EQ(__atomic_load_n(&words[4], __ATOMIC_ACQUIRE), 1u);
        CHECK_EQ(__atomic_load_n(&words[0], __ATOMIC_ACQUIRE), 10u);
    }
    SendWqe bad = pair.a->write(*pair.b, 1, 0, 0, 8);
    bad.rdma.remote.rkey ^= 0x10000;
    CHECK(pair.a->run(bad) != CqeStatus::kOk);
    CHECK_EQ(__atomic_load_n(&words[0], __ATOMIC_ACQUIRE), 10u);
    CHECK_EQ(__atomic_load_n(&words[1], __ATOMIC_ACQUIRE), 1u);
    pair.a.reset();
    pair.b.reset();
    CHECK_OK(nic.destroy_counter(writes));
    CHECK_OK(nic.destroy_counter(remote));
    CHECK_OK(nic.destroy_counter(reads));
}

TEST(memory_by_dma_buf_is_read_and_written_like_any_other) {
    auto nics = open_devices(1);
    std::unique_ptr<SharedPages> pages;
    if (Status made = SharedPages::create(4 << 20, false, &pages); !made.ok()) SKIP(made.message());
    Endpoint a(*nics.front()), b(*nics.front());
    Endpoint::connect(a, b);
    a.fill(10);
    MemoryRegion region;
    CHECK_OK(nics.front()->register_memory({pages->data() + 8192, 1 << 20, MemoryKind::kCuda, kAllAccess}, &region));
    SendWqe wqe = a.begin(SendOpcode::kRdmaWrite, b, 1);
    wqe_set_remote(wqe, reinterpret_cast<uint64_t>(pages->data() + 8192 + 100), 900'000, region.rkey);
    wqe_set_local(wqe, a.address(0), 900'000, a.region.lkey);
    CHECK_EQ(a.run(wqe), CqeStatus::kOk);
    CHECK(std::memcmp(pages->data() + 8292, a.memory.data(), 900'000) == 0);
    CHECK_EQ(pages->data()[8291], 0);
    CHECK_OK(nics.front()->deregister_memory(region));
}

TEST(completions_land_in_the_callers_contiguous_memory) {
    auto nics = open_devices(1);
    if (!nics.front()->info().caps.cq_ext_mem) SKIP("no completion queue in the caller's memory");
    std::unique_ptr<SharedPages> pages;
    if (Status made = SharedPages::create(2 << 20, true, &pages); !made.ok()) SKIP(made.message());
    EndpointOptions options;
    options.cq_depth = 1024;  // 32 KiB: several pages
    options.cq_memory = pages->data();
    options.cq_memory_bytes = 1024 * sizeof(RxCqeEx);
    Endpoint a(*nics.front(), options), b(*nics.front());
    Endpoint::connect(a, b);
    CHECK_EQ(static_cast<const void*>(a.sent.entries), static_cast<const void*>(pages->data()));
    for (uint32_t i = 0; i < 1500; ++i) CHECK_EQ(a.run(a.write(b, i & 0xffff, 0, 0, 8)), CqeStatus::kOk);
    CHECK(pages->data()[3] != 0);
}
