// SPDX-License-Identifier: Apache-2.0
// Receives of a guest: of several pieces, of datagrams, and from senders that the receiver's domain does not know.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

using S = AdminStatus;
constexpr uint64_t kAddr = 0x7f0000001000;
constexpr uint32_t kFirst = kRecvFirst, kLast = kRecvLast;

struct Sides {
    Rig rig;
    CqView cq, recv_cq;
    QpView a, b;
    uint64_t page;
    MrView mr, mr_of_b;  // the same page, in the domain of each
    uint16_t ah;

    explicit Sides(uint8_t type = kQpTypeSrd, bool is_other_domain = false, const RigOptions& options = {})
        : rig(options) {
        cq = rig.make_cq();
        CreateCqCommand command = rig.cq_command();
        command.caps2 |= kCqSetSourceAddress;
        recv_cq = rig.make_cq(command);
        a = make(rig.pd, type);
        ah = rig.make_ah();
        page = rig.alloc(kPage);
        mr = rig.make_mr(rig.mr_command(page, kPage, kAddr));
        const uint16_t pd_of_b = is_other_domain ? rig.make_id(AdminOpcode::kAllocPd) : rig.pd;
        b = make(pd_of_b, type);
        RegMrCommand of_b = rig.mr_command(page, kPage, kAddr);
        of_b.pd = pd_of_b;
        mr_of_b = rig.make_mr(of_b);
    }
    QpView make(uint16_t pd, uint8_t type) {
        CreateQpCommand command = rig.qp_command(cq, recv_cq);
        command.pd = pd;
        command.type = type;
        QpView qp = rig.make_qp(command);
        rig.make_ready(qp);
        return qp;
    }
    void post_piece(uint64_t addr, uint16_t bytes, uint32_t lkey, uint16_t id, uint32_t marks, bool ring) {
        RecvWqe wqe;
        recv_wqe_set(wqe, addr, bytes, lkey, id);
        wqe.lkey_ctrl = (lkey & kLkeyMask) | marks;
        std::memcpy(rig.at(b.rq_addr) + b.recv_posted++ % b.rq_depth * sizeof wqe, &wqe, sizeof wqe);
        if (ring) rig.function->bar_write(kDoorbellBar, b.reply.rq_doorbell, b.recv_posted & 0xffff, 4);
    }
    void send(uint32_t bytes) {
        for (uint32_t i = 0; i < bytes; ++i) *rig.at(page + i) = static_cast<uint8_t>(i + 1);
        SendWqe wqe = rig.wqe(a, SendOpcode::kSend, b, ah, 1);
        wqe_add_send_sge(wqe, kAddr, bytes, mr.lkey);
        rig.post(a, wqe);
        rig.run(20);
    }
    int sent() { return Rig::next_status(cq.rings[0]); }
    int received(RxCqeEx* entry = nullptr) { return Rig::next_status(recv_cq.rings[0], entry); }
};

}  // namespace

TEST(a_message_fills_the_pieces_of_a_receive_in_turn) {
    for (uint32_t bytes : {1u, 99u, 100u, 101u, 300u}) {
        Sides sides;
        sides.post_piece(kAddr + 1000, 100, sides.mr.lkey, 5, kFirst, false);
        sides.post_piece(kAddr + 3000, 200, sides.mr.lkey, 5, kLast, true);
        sides.post_piece(kAddr + 2000, 300, sides.mr.lkey, 6, kFirst | kLast, true);
        sides.send(bytes);
        RxCqeEx entry{};
        CHECK_EQ(sides.sent(), 0);
        CHECK_EQ(sides.received(&entry), 0);
        CHECK_EQ(entry.base.length, bytes);
        CHECK_EQ(entry.base.req_id, 5);
        for (uint32_t i = 0; i < bytes; ++i) {
            const uint64_t at = i < 100 ? 1000 + i : 3000 + i - 100;
            CHECK_EQ(*sides.rig.at(sides.page + at), static_cast<uint8_t>(i + 1));
        }
        CHECK_EQ(*sides.rig.at(sides.page + 3000 + 200), 0);
        sides.send(10);  // the next message takes the next receive, not a leftover piece
        CHECK_EQ(sides.received(&entry), 0);
        CHECK_EQ(entry.base.req_id, 6);
    }
}

TEST(a_receive_that_is_not_whole_or_not_ours_fails) {
    {
        Sides sides;  // never marked as the last
        sides.post_piece(kAddr, 100, sides.mr.lkey, 5, kFirst, false);
        sides.post_piece(kAddr, 100, sides.mr.lkey, 5, 0, true);
        sides.send(10);
        CHECK_EQ(sides.received(), static_cast<int>(CqeStatus::kInvalidLkey));
        CHECK_EQ(sides.sent(), static_cast<int>(CqeStatus::kRemoteAbort));
    }
    for (const bool is_key : {false, true}) {
        Sides sides;  // the second piece is outside of its region, or of none
        sides.post_piece(kAddr, 100, sides.mr.lkey, 5, kFirst, false);
        sides.post_piece(kAddr + kPage - 50, 100, sides.mr.lkey + is_key, 5, kLast, true);
        sides.send(10);
        CHECK_EQ(sides.received(), static_cast<int>(CqeStatus::kInvalidLkey));
    }
}

TEST(a_message_that_is_too_long_leaves_the_receive_for_another) {
    Sides sides;
    sides.post_piece(kAddr + 1000, 100, sides.mr.lkey, 5, kFirst, false);
    sides.post_piece(kAddr + 3000, 200, sides.mr.lkey, 5, kLast, true);
    sides.send(301);
    CHECK_EQ(sides.sent(), static_cast<int>(CqeStatus::kRemoteBadLength));
    CHECK_EQ(sides.received(), -1);
    sides.send(300);
    CHECK_EQ(sides.sent(), 0);
    CHECK_EQ(sides.received(), 0);
}

TEST(a_flush_completes_receives_not_pieces) {
    Sides sides;
    sides.post_piece(kAddr, 100, sides.mr.lkey, 5, kFirst, false);
    sides.post_piece(kAddr, 100, sides.mr.lkey, 5, kLast, false);
    sides.post_piece(kAddr, 100, sides.mr.lkey, 6, kFirst | kLast, true);
    CHECK_EQ(sides.rig.modify(sides.b, AdminQpState::kRts, AdminQpState::kError, 0), S::kSuccess);
    RxCqeEx entry{};
    for (uint16_t id : {5, 6}) {
        CHECK_EQ(sides.received(&entry), static_cast<int>(CqeStatus::kFlushed));
        CHECK_EQ(entry.base.req_id, id);
    }
    CHECK_EQ(sides.received(), -1);
}

TEST(a_datagram_lies_behind_a_header_with_both_addresses) {
    Sides sides(kQpTypeUd);
    sides.post_piece(kAddr + 1000, 140, sides.mr.lkey, 5, kFirst | kLast, true);
    sides.send(100);
    RxCqeEx entry{};
    CHECK_EQ(sides.sent(), 0);
    CHECK_EQ(sides.received(&entry), 0);
    CHECK_EQ(entry.base.length, 140);
    const uint8_t* at = sides.rig.at(sides.page + 1000);
    CHECK_EQ(std::memcmp(at + 8, sides.rig.device->gid().raw, 16), 0);
    CHECK_EQ(std::memcmp(at + 24, sides.rig.device->gid().raw, 16), 0);
    CHECK_EQ(at[40], 1);
    CHECK_EQ(at[139], 100);
    CHECK_EQ(at[140], 0);
}

TEST(a_datagram_needs_room_for_its_header_too) {
    Sides sides(kQpTypeUd);
    sides.post_piece(kAddr + 1000, 139, sides.mr.lkey, 5, kFirst | kLast, true);
    sides.send(100);
    CHECK_EQ(sides.received(), -1);
    CHECK_EQ(*sides.rig.at(sides.page + 1000), 0);
}

TEST(a_datagram_that_nobody_waits_for_is_dropped) {
    Sides sides(kQpTypeUd);
    sides.send(100);
    CHECK_EQ(sides.sent(), 0);
    CHECK_EQ(sides.received(), -1);
}

TEST(a_sender_is_known_in_the_domains_that_have_its_handle) {
    for (const char* profile : {"efa2", "efa3"}) {
        RigOptions options;
        options.profile = profile;
        Sides same(kQpTypeSrd, false, options), other(kQpTypeSrd, true, options);
        RxCqeEx entry{};
        same.post_piece(kAddr + 1000, 140, same.mr.lkey, 5, kFirst | kLast, true);
        same.send(10);
        CHECK_EQ(same.received(&entry), 0);
        CHECK_EQ(entry.base.ah, same.ah);
        other.post_piece(kAddr + 1000, 140, other.mr_of_b.lkey, 5, kFirst | kLast, true);
        other.send(10);
        CHECK_EQ(other.received(&entry), 0);
        CHECK_EQ(entry.base.ah, kAhUnknown);
        CHECK_EQ(std::memcmp(entry.src_gid, other.rig.device->gid().raw, 16), 0);
    }
}

TEST(datagrams_are_the_only_messages_of_their_queue_pairs) {
    Sides sides(kQpTypeUd);
    for (SendOpcode opcode : {SendOpcode::kRdmaRead, SendOpcode::kRdmaWrite}) {
        SendWqe wqe = sides.rig.wqe(sides.b, opcode, sides.a, sides.ah, 1);
        wqe_set_remote(wqe, kAddr + 1000, 8, sides.mr.rkey);
        wqe_set_local(wqe, kAddr, 8, sides.mr.lkey);
        sides.rig.post(sides.b, wqe);
        sides.rig.run(20);
        CHECK_EQ(sides.sent(), static_cast<int>(CqeStatus::kUnsupportedOp));
        // Nor are they a target.
        QpView reliable = sides.make(sides.rig.pd, kQpTypeSrd);
        wqe = sides.rig.wqe(reliable, opcode, sides.b, sides.ah, 2);
        wqe_set_remote(wqe, kAddr + 1000, 8, sides.mr.rkey);
        wqe_set_local(wqe, kAddr, 8, sides.mr.lkey);
        sides.rig.post(reliable, wqe);
        sides.rig.run(20);
        CHECK_EQ(sides.sent(), static_cast<int>(CqeStatus::kBadDestQpn));
    }
}

// A key is good for queue pairs of its region's domain, on both sides.
TEST(memory_of_another_domain_is_no_memory) {
    for (SendOpcode opcode : {SendOpcode::kRdmaRead, SendOpcode::kRdmaWrite}) {
        for (const bool is_target : {false, true}) {
            Sides sides;
            const uint16_t other = sides.rig.make_id(AdminOpcode::kAllocPd);
            QpView from = is_target ? sides.a : sides.make(other, kQpTypeSrd);
            QpView to = is_target ? sides.make(other, kQpTypeSrd) : sides.b;
            CreateAhCommand handle = sides.rig.ah_command(sides.rig.device->gid());
            handle.pd = other;
            CHECK_EQ(sides.rig.submit(AdminOpcode::kCreateAh, handle), S::kSuccess);
            SendWqe wqe = sides.rig.wqe(from, opcode, to, sides.ah, 1);
            wqe_set_remote(wqe, kAddr + 1000, 8, sides.mr.rkey);
            wqe_set_local(wqe, kAddr, 8, sides.mr.lkey);
            sides.rig.post(from, wqe);
            sides.rig.run(20);
            CHECK_EQ(sides.sent(),
                     static_cast<int>(is_target ? CqeStatus::kRemoteBadAddress : CqeStatus::kInvalidLkey));
        }
    }
    Sides sides(kQpTypeSrd, true);  // a receive of b's, in a's memory
    sides.post_piece(kAddr + 1000, 100, sides.mr.lkey, 5, kFirst | kLast, true);
    sides.send(10);
    CHECK_EQ(sides.received(), static_cast<int>(CqeStatus::kInvalidLkey));
}

TEST(a_handle_of_another_domain_is_no_handle) {
    Sides sides(kQpTypeSrd, true);
    SendWqe wqe = sides.rig.wqe(sides.b, SendOpcode::kSend, sides.a, sides.ah, 1);
    wqe_add_send_sge(wqe, kAddr, 8, sides.mr_of_b.lkey);
    sides.rig.post(sides.b, wqe);
    sides.rig.run(20);
    CHECK_EQ(sides.sent(), static_cast<int>(CqeStatus::kInvalidAh));
}

TEST_MAIN()
