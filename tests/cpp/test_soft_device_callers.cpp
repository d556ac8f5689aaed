// SPDX-License-Identifier: Apache-2.0
// Queues and memory that belong to the device's caller, as a PCI front's do: rings in its memory, regions that programs
// address otherwise than this process does, states and options set one by one.
#include "soft_device_rig.h"

using namespace rig;

namespace {

constexpr uint64_t kIova = 0x7000'0000'0000;  // where the program believes its memory to be

// Side a of a rig, with its queue pair and region replaced by the caller's own.
struct Caller {
    Rig rig;
    std::vector<uint8_t> sq, rq, cq;
    uint32_t sq_doorbell = 0, rq_doorbell = 0;
    uint64_t cq_handle = 0;

    explicit Caller(uint32_t entry_bytes = 32, const RigOptions& options = {})
        : rig(options), sq(options.sq_depth * 64, 0xff), rq(options.rq_depth * 16), cq(64 * entry_bytes) {
        Side& side = rig.a;
        CHECK_OK(side.device->destroy_qp(side.qp.handle));
        CHECK_OK(side.device->deregister_memory(side.region.lkey));
        CHECK_OK(side.device->create_cq(CqEntries{cq.data(), entry_bytes, 64}, &cq_handle));
        CHECK(cq_ring_init(side.sent, cq.data(), entry_bytes, 64));
        QpAttr attr = rig.qp_attr(side);
        attr.send_cq = attr.recv_cq = cq_handle;
        CHECK_OK(side.device->create_qp(attr, QpRings{sq.data(), &sq_doorbell, rq.data(), &rq_doorbell}, &side.qp));
        const MemoryAttr memory{reinterpret_cast<void*>(kIova), side.memory.size(), MemoryKind::kHost, kAllAccess};
        CHECK_OK(side.device->register_memory(memory, side.memory.data(), &side.region));
    }
    void ready() { CHECK_OK(rig.a.device->set_qp_state(rig.a.qp.handle, QpState::kReady)); }
    Bytes at_iova(Bytes wqe, size_t field, size_t at) { return wqe.set(field, kIova + at, 8); }
};

}  // namespace

TEST(writes_and_reads_translate_the_callers_addresses) {
    Caller caller;
    caller.ready();
    Rig& rig = caller.rig;
    fill(rig.a);
    rig.a.post(caller.at_iova(rig.write(rig.a, rig.b, 1, 256, 100'000), 0x38, 256));
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(std::memcmp(&rig.a.memory[256], &rig.b.memory[256], 100'000) == 0);
    rig.a.post(caller.at_iova(rig.read(rig.a, rig.b, 2, 512, 4096), 0x38, 200'000));
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(std::memcmp(&rig.a.memory[200'000], &rig.b.memory[512], 4096) == 0);
    // And as a target.
    rig.b.post(rig.write(rig.b, rig.a, 3, 0, 64).set(0x28, kIova + 300'000, 8));
    CHECK_EQ(rig.run_until_sent(rig.b).status, 0);
    CHECK(std::memcmp(&rig.a.memory[300'000], rig.b.memory.data(), 64) == 0);
    rig.b.post(rig.read(rig.b, rig.a, 4, 700'000, 9000).set(0x28, kIova + 1000, 8));
    CHECK_EQ(rig.run_until_sent(rig.b).status, 0);
    CHECK(std::memcmp(&rig.b.memory[700'000], &rig.a.memory[1000], 9000) == 0);
}

TEST(peers_that_nothing_is_known_of_give_their_place_to_others) {
    Rig rig;
    AddressHandle kept;
    Gid gid{};
    gid.raw[0] = 0xfd;
    CHECK_OK(rig.a.device->create_address_handle(gid, &kept));
    for (uint32_t i = 1; i <= 40'000; ++i) {  // more than a device can tell apart at once
        std::memcpy(gid.raw + 4, &i, sizeof i);
        AddressHandle handle;
        CHECK_OK(rig.a.device->create_address_handle(gid, &handle));
        CHECK(handle.ahn != kept.ahn);
        CHECK_OK(rig.a.device->destroy_address_handle(handle));
    }
    fill(rig.a);
    rig.a.post(rig.write(rig.a, rig.b, 1, 256, 1000));
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(std::memcmp(&rig.a.memory[256], &rig.b.memory[256], 1000) == 0);
}

TEST(a_send_of_two_pieces_and_a_receive_translate_too) {
    Caller caller;
    caller.ready();
    Rig& rig = caller.rig;
    fill(rig.a);
    rig.b.post_receive(rig.b.addr(), 64, rig.b.region.lkey, 9);
    Bytes wqe = caller.at_iova(rig.send(rig.a, rig.b, 5, 0, 3), 0x28, 40);
    wqe.set(0x06, 2, 2).set(0x30, 5, 4).set(0x34, rig.a.region.lkey, 4).set(0x38, kIova + 900, 8);
    rig.a.post(wqe);
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);
    CHECK(std::memcmp(rig.b.memory.data(), &rig.a.memory[40], 3) == 0);
    CHECK(std::memcmp(&rig.b.memory[3], &rig.a.memory[900], 5) == 0);
    rig.a.post_receive(kIova + 5000, 64, rig.a.region.lkey, 10);
    rig.b.memory[100] = 0x5a;
    rig.b.post(rig.send(rig.b, rig.a, 6, 100, 1));
    CHECK_EQ(rig.run_until_sent(rig.b).status, 0);
    CHECK_EQ(rig.a.memory[5000], 0x5a);
}

TEST(this_processs_own_addresses_are_not_the_callers) {
    Caller caller;
    caller.ready();
    caller.rig.a.post(caller.rig.write(caller.rig.a, caller.rig.b, 1, 0, 8));  // a pointer of ours in the descriptor
    CHECK_EQ(caller.rig.run_until_sent(caller.rig.a).status, static_cast<int>(CqeStatus::kInvalidLkey));
    caller.rig.a.post(caller.at_iova(caller.rig.write(caller.rig.a, caller.rig.b, 2, 0, 8), 0x38, (1 << 20) - 7));
    CHECK_EQ(caller.rig.run_until_sent(caller.rig.a).status, static_cast<int>(CqeStatus::kInvalidLkey));
}

TEST(entries_of_16_bytes_are_packed_and_counted) {
    Caller caller(16);
    caller.ready();
    for (uint16_t i = 0; i < 100; ++i) {  // past the ring's end
        caller.rig.a.post(caller.at_iova(caller.rig.write(caller.rig.a, caller.rig.b, i, 0, 8), 0x38, 0));
        const Completion done = caller.rig.run_until_sent(caller.rig.a);
        CHECK_EQ(done.status, 0);
        CHECK_EQ(done.req_id, i);
    }
    CHECK_EQ(caller.rig.a.device->cq_written(caller.cq_handle), 100u);
    CHECK_EQ(caller.rig.a.device->cq_written(caller.cq_handle + 7), 0u);
}

TEST(a_queue_pair_in_reset_neither_sends_nor_receives) {
    Caller caller;
    Rig& rig = caller.rig;
    rig.a.post(caller.at_iova(rig.write(rig.a, rig.b, 1, 0, 8), 0x38, 0));
    CHECK_EQ(rig.run_until_sent(rig.a, 100'000).status, -1);
    rig.b.post(rig.write(rig.b, rig.a, 2, 0, 8).set(0x28, kIova, 8));
    CHECK_EQ(rig.run_until_sent(rig.b).status, static_cast<int>(CqeStatus::kRemoteAbort));
    caller.ready();
    CHECK_EQ(rig.run_until_sent(rig.a).status, 0);  // the doorbell was rung before
}

TEST(error_flushes_and_reset_forgets) {
    Caller caller;
    caller.ready();
    Rig& rig = caller.rig;
    rig.a.post_receive(kIova, 64, rig.a.region.lkey, 21);
    rig.a.post(caller.at_iova(rig.write(rig.a, rig.b, 1, 0, 8), 0x38, 0));
    CHECK_OK(rig.a.device->set_qp_state(rig.a.qp.handle, QpState::kError));
    CHECK_EQ(rig.run_until_sent(rig.a).status, static_cast<int>(CqeStatus::kFlushed));
    CHECK_EQ(rig.run_until_sent(rig.a).req_id, 21u);
    CHECK(rig.a.device->set_qp_state(rig.a.qp.handle, QpState::kReady).code() == Code::kInvalidArgument);
    CHECK_OK(rig.a.device->set_qp_state(rig.a.qp.handle, QpState::kReset));
    CHECK_EQ(caller.sq_doorbell, 0u);
    caller.ready();
    rig.a.posted = 0;
    rig.a.post(caller.at_iova(rig.write(rig.a, rig.b, 2, 0, 8), 0x38, 0));
    CHECK_OK(rig.a.device->set_qp_state(rig.a.qp.handle, QpState::kReset));  // posted, never to be heard of
    CHECK_EQ(rig.run_until_sent(rig.a, 100'000).status, -1);
    caller.ready();
    rig.a.posted = 0;
    rig.a.post(caller.at_iova(rig.write(rig.a, rig.b, 3, 0, 8), 0x38, 0));
    const Completion done = rig.run_until_sent(rig.a);
    CHECK_EQ(done.status, 0);
    CHECK_EQ(done.req_id, 3u);
}

TEST(options_bound_the_retries_of_a_receiver_that_is_not_ready) {
    Caller caller;
    caller.ready();
    Rig& rig = caller.rig;
    const uint64_t before = rig.b.device->stats().rnr;
    CHECK_OK(rig.a.device->set_qp_options(rig.a.qp.handle, kQkey, 2));
    rig.a.post(caller.at_iova(rig.send(rig.a, rig.b, 1, 0, 8), 0x28, 0));
    CHECK_EQ(rig.run_until_sent(rig.a).status, static_cast<int>(CqeStatus::kRnr));
    CHECK_EQ(rig.b.device->stats().rnr - before, 3u);
    CHECK(rig.a.device->set_qp_options(rig.a.qp.handle, kQkey, 8).code() == Code::kInvalidArgument);
    CHECK_OK(rig.a.device->set_qp_options(rig.a.qp.handle, kQkey + 1, 7));  // its qkey as a target
    rig.b.post(rig.write(rig.b, rig.a, 2, 0, 8).set(0x28, kIova, 8));
    CHECK_EQ(rig.run_until_sent(rig.b).status, static_cast<int>(CqeStatus::kBadDestQpn));
}

TEST(bad_rings_are_refused) {
    Caller caller;
    Device& device = *caller.rig.a.device;
    uint64_t handle = 0;
    CHECK(device.create_cq(CqEntries{caller.cq.data(), 24, 64}, &handle).code() == Code::kInvalidArgument);
    CHECK(device.create_cq(CqEntries{caller.cq.data(), 32, 48}, &handle).code() == Code::kInvalidArgument);
    CHECK(device.create_cq(CqEntries{nullptr, 32, 64}, &handle).code() == Code::kInvalidArgument);
    Qp qp;
    const QpAttr attr = caller.rig.qp_attr(caller.rig.a);
    CHECK(device.create_qp(attr, QpRings{caller.sq.data(), nullptr, caller.rq.data(), nullptr}, &qp).code() ==
          Code::kInvalidArgument);
    CHECK_OK(device.destroy_qp(caller.rig.a.qp.handle));  // the rings are not freed: they are not the device's
    CHECK_OK(device.destroy_cq(caller.cq_handle));
}

TEST_MAIN()
