// SPDX-License-Identifier: Apache-2.0
// What goes wrong comes back by name: error completions, a receiver that is not ready, limits, and the mistakes that a
// provider could make. Each mistake is made on purpose and must be seen.
#include "device_rig.h"

using namespace device;

namespace {

bool is_one_of(CqeStatus status, std::initializer_list<CqeStatus> allowed) {
    for (CqeStatus good : allowed) {
        if (status == good) return true;
    }
    std::fprintf(stderr, "status %u (%s)\n", static_cast<unsigned>(status), cqe_status_text(status));
    return false;
}

}  // namespace

TEST(requests_that_the_device_refuses_complete_with_its_status) {
    Pair pair;
    Endpoint &a = *pair.a, &b = *pair.b;
    const auto good = [&] { CHECK_EQ(a.run(a.write(b, 1, 0, 0, 8)), CqeStatus::kOk); };
    SendWqe wqe = a.write(b, 1, 0, 0, 8);
    wqe.rdma.remote.rkey ^= 0x10000;
    CHECK_EQ(a.run(wqe), CqeStatus::kRemoteBadAddress);
    good();
    CHECK_EQ(a.run(a.write(b, 2, 0, b.memory.size() - 4, 8)), CqeStatus::kRemoteBadAddress);
    wqe = a.write(b, 3, 0, 0, 8);
    wqe.rdma.local.lkey ^= 0x10000;
    CHECK_EQ(a.run(wqe), CqeStatus::kInvalidLkey);
    CHECK_EQ(a.run(a.write(b, 4, a.memory.size() - 4, 0, 8)), CqeStatus::kInvalidLkey);
    good();
    wqe = a.write(b, 5, 0, 0, 8);
    wqe.meta.dest_qp_num = static_cast<uint16_t>(b.qp.qp_num + 999);
    CHECK_EQ(a.run(wqe), CqeStatus::kBadDestQpn);
    wqe = a.write(b, 6, 0, 0, 8);
    wqe.meta.qkey ^= 1;
    CHECK_EQ(a.run(wqe), CqeStatus::kBadDestQpn);
    good();
}

TEST(memory_without_the_right_is_not_touched) {
    Pair pair;
    MemoryRegion locked;
    CHECK_OK(pair.b->nic.register_memory({pair.b->memory.data(), 4096, MemoryKind::kHost, kAccessLocalWrite}, &locked));
    pair.b->memory[0] = 77;
    SendWqe wqe = pair.a->write(*pair.b, 1, 0, 0, 8);
    wqe.rdma.remote.rkey = locked.rkey;
    CHECK_EQ(pair.a->run(wqe), CqeStatus::kRemoteBadAddress);
    CHECK_EQ(pair.b->memory[0], 77);
    CHECK_OK(pair.b->nic.deregister_memory(locked));
    CHECK_EQ(pair.a->run(wqe = pair.a->write(*pair.b, 2, 0, 0, 8)), CqeStatus::kOk);
}

TEST(a_region_is_gone_once_it_is_deregistered) {
    Pair pair;
    MemoryRegion region;
    CHECK_OK(pair.b->nic.register_memory({pair.b->memory.data(), 4096, MemoryKind::kHost, kAllAccess}, &region));
    SendWqe wqe = pair.a->write(*pair.b, 1, 0, 0, 8);
    wqe.rdma.remote.rkey = region.rkey;
    CHECK_EQ(pair.a->run(wqe), CqeStatus::kOk);
    CHECK_OK(pair.b->nic.deregister_memory(region));
    SendWqe stale = pair.a->write(*pair.b, 2, 0, 0, 8);
    stale.rdma.remote.rkey = region.rkey;
    CHECK_EQ(pair.a->run(stale), CqeStatus::kRemoteBadAddress);
}

TEST(a_receiver_that_is_not_ready_is_retried_or_named) {
    Pair pair;
    pair.a->fill(1);
    const CqeStatus refused = pair.a->run(pair.a->send(*pair.b, 1, 0, 64));
    CHECK_EQ(refused, CqeStatus::kRnr);
    SendWqe wqe = pair.a->write(*pair.b, 2, 0, 0, 64);
    wqe_set_immediate(wqe, 1);
    CHECK_EQ(pair.a->run(wqe), CqeStatus::kRnr);
    pair.b->post_receive(1, 1000, 64);
    CHECK_EQ(pair.a->run(pair.a->send(*pair.b, 3, 0, 64)), CqeStatus::kOk);
    CHECK(same(*pair.a, 0, *pair.b, 1000, 64));
}

TEST(a_message_longer_than_its_buffer_is_refused) {
    Pair pair;
    pair.b->post_receive(1, 0, 32);
    CHECK_EQ(pair.a->run(pair.a->send(*pair.b, 1, 0, 64)), CqeStatus::kRemoteBadLength);
}

// ---- deliberate mistakes ----

TEST(mistake_wrong_phase_is_caught) {
    Pair pair;
    SendWqe wqe = pair.a->write(*pair.b, 1, 0, 0, 8);
    wqe.meta.ctrl2 ^= kCtrl2Phase;
    CHECK(is_one_of(pair.a->run(wqe), {CqeStatus::kQpInternal}));
    // And the queue is of no use any more.
    CHECK(is_one_of(pair.a->run(pair.a->write(*pair.b, 2, 0, 0, 8)), {CqeStatus::kFlushed}));
}

TEST(mistake_doorbell_value_is_caught) {
    Pair pair;
    pair.a->fill(1);
    CHECK_EQ(pair.a->run(pair.a->write(*pair.b, 1, 0, 0, 8)), CqeStatus::kOk);
    pair.a->post(pair.a->write(*pair.b, 2, 0, 64, 8));
    // A count of new slots instead of the producer counter: the device sees no new request.
    wc_flush();
    __atomic_store_n(pair.a->send_ring.doorbell, 1u, __ATOMIC_RELEASE);  // pairs with the device's fetch
    CHECK(!pair.a->wait_sent(300).came);
    // One too many: a slot that was never written.
    __atomic_store_n(pair.a->send_ring.doorbell, 3u, __ATOMIC_RELEASE);
    pair.a->send_ring.posted = pair.a->send_ring.rung = 3;
    CHECK(pair.a->wait_sent().came);
    const Completion second = pair.a->wait_sent();
    CHECK(second.came);
    CHECK(is_one_of(second.status, {CqeStatus::kQpInternal, CqeStatus::kFlushed}));
}

TEST(mistake_missing_address_handle_is_caught) {
    {
        Pair pair;
        SendWqe wqe = pair.a->write(*pair.b, 1, 0, 0, 8);
        wqe.meta.ah = static_cast<uint16_t>(pair.a->peer.ahn + 100);
        CHECK_EQ(pair.a->run(wqe), CqeStatus::kInvalidAh);
    }
    // The target must hold one for the initiator, too.
    auto nics = open_devices(2);
    Endpoint a(*nics[0]), b(*nics[1]);
    CHECK_OK(a.nic.create_address_handle(b.nic.address(), &a.peer));
    CHECK_EQ(a.run(a.write(b, 1, 0, 0, 8)), CqeStatus::kUnknownPeer);
    CHECK_OK(b.nic.create_address_handle(a.nic.address(), &b.peer));
    CHECK_EQ(a.run(a.write(b, 2, 0, 0, 8)), CqeStatus::kOk);
}

TEST(mistake_completion_memory_that_is_not_contiguous_is_caught) {
    auto nics = open_devices(1);
    if (!nics.front()->info().caps.cq_ext_mem) SKIP("no completion queue in the caller's memory");
    // Two pages, swapped: adjacent for the program, in two places for the device.
    std::unique_ptr<SharedPages> pages;
    if (Status made = SharedPages::create(1 << 20, false, &pages); !made.ok()) SKIP(made.message());
    CqAttr attr{32768};
    attr.memory = pages->data();
    attr.memory_bytes = 1 << 20;
    Cq cq;
    const Status status = nics.front()->create_cq(attr, &cq);
    CHECK(!status.ok());
    std::printf("     %s\n", status.message());
    CHECK(std::strstr(status.message(), "contiguous") != nullptr);
}
