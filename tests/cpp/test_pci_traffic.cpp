// SPDX-License-Identifier: Apache-2.0
// Work requests of a guest: descriptors in BAR 2, doorbells, completions in the guest's memory, events, counters, and
// what a reset leaves.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

using S = AdminStatus;
using Q = AdminQpState;
constexpr uint64_t kAddr = 0x7f0000001000;

// A function with two ready queue pairs, one page of memory and the way to itself.
struct Pair {
    Rig rig;
    CqView cq, recv_cq;
    QpView a, b;
    uint64_t page = 0;
    MrView mr;
    uint16_t ah = 0;

    explicit Pair(const RigOptions& options = {}, uint32_t slot_bytes = 64) : rig(options) {
        cq = rig.make_cq();
        recv_cq = rig.make_cq();
        a = rig.make_qp(rig.qp_command(cq, recv_cq, 16, slot_bytes));
        b = rig.make_qp(rig.qp_command(cq, recv_cq, 16, slot_bytes));
        rig.make_ready(a);
        rig.make_ready(b);
        ah = rig.make_ah();
        page = rig.alloc(kPage);
        mr = rig.make_mr(rig.mr_command(page, kPage, kAddr));
        CHECK_EQ(mr.status, 0);
    }
    SendWqe write(uint64_t from, uint64_t to, uint32_t bytes, uint64_t id = 1) {
        SendWqe wqe = rig.wqe(a, SendOpcode::kRdmaWrite, b, ah, id);
        wqe_set_remote(wqe, kAddr + to, bytes, mr.rkey);
        wqe_set_local(wqe, kAddr + from, bytes, mr.lkey);
        return wqe;
    }
    SendWqe send(uint64_t from, uint32_t bytes, uint64_t id = 1) {
        SendWqe wqe = rig.wqe(a, SendOpcode::kSend, b, ah, id);
        wqe_add_send_sge(wqe, kAddr + from, bytes, mr.lkey);
        return wqe;
    }
    int sent(RxCqeEx* entry = nullptr) { return Rig::next_status(cq.rings[0], entry); }
    int received(RxCqeEx* entry = nullptr) { return Rig::next_status(recv_cq.rings[0], entry); }
};

uint16_t make_eq(Rig& rig, uint64_t* ring, uint8_t vector, uint16_t depth = 4) {
    *ring = rig.alloc(depth * 16);
    CreateEqCommand command{depth, vector, 4, low(*ring), high(*ring), 1, 0};
    CHECK_EQ(rig.submit(AdminOpcode::kCreateEq, command), S::kSuccess);
    return rig.body<IdBody>().id;
}

uint32_t make_counter(Rig& rig, uint64_t addr) {
    CHECK_EQ(rig.submit(AdminOpcode::kCreateEventCounter, CreateEventCounterCommand{rig.uar, 0, addr}), S::kSuccess);
    return rig.body<CreateEventCounterReply>().handle;
}

S attach(Rig& rig, uint32_t counter, const QpView& qp, uint32_t events,
         AdminOpcode opcode = AdminOpcode::kAttachEventCounter) {
    return rig.submit(opcode, AttachEventCounterCommand{counter, 0, {}, qp.reply.handle, events});
}

uint64_t word_at(Rig& rig, uint64_t addr) {
    uint64_t word;
    std::memcpy(&word, rig.at(addr), sizeof word);
    return word;
}

}  // namespace

TEST(a_send_arrives_in_the_guests_receive_buffer) {
    Pair pair;
    std::memcpy(pair.rig.at(pair.page), "hello, guest", 13);
    pair.rig.post_receive(pair.b, kAddr + 1024, 256, pair.mr.lkey, 42);
    pair.rig.post(pair.a, pair.send(0, 13, 7));
    pair.rig.run();
    RxCqeEx entry{};
    CHECK_EQ(pair.sent(&entry), 0);
    CHECK_EQ(entry.base.req_id, 7);
    CHECK_EQ(entry.base.qp_num, pair.a.reply.qp_num);
    CHECK_EQ(pair.received(&entry), 0);
    CHECK_EQ(entry.base.req_id, 42);
    CHECK_EQ(entry.base.length, 13);
    CHECK_EQ(entry.base.src_qp_num, pair.a.reply.qp_num);
    CHECK_EQ(entry.base.ah, pair.ah);
    CHECK_EQ(std::memcmp(pair.rig.at(pair.page + 1024), "hello, guest", 13), 0);
}

TEST(rings_wrap_and_every_byte_is_where_it_belongs) {
    for (uint32_t slot_bytes : {64u, 128u}) {
        Pair pair({}, slot_bytes);
        for (uint32_t i = 0; i < 100; ++i) {
            *pair.rig.at(pair.page + 8) = static_cast<uint8_t>(i + 1);
            pair.rig.post(pair.a, pair.write(8, 2048 + i, 1, i));
            pair.rig.run(3);
            RxCqeEx entry{};
            CHECK_EQ(pair.sent(&entry), 0);
            CHECK_EQ(entry.base.req_id, i);
            CHECK_EQ(*pair.rig.at(pair.page + 2048 + i), static_cast<uint8_t>(i + 1));
        }
        CHECK_EQ(pair.sent(), -1);
    }
}

TEST(a_queue_pair_that_breaks_the_rules_is_seen_in_error) {
    Pair pair;
    SendWqe wqe = pair.write(0, 64, 8);
    wqe.meta.ctrl2 ^= kCtrl2Phase;
    pair.rig.post(pair.a, wqe);
    pair.rig.run(5);
    CHECK_EQ(pair.sent(), static_cast<int>(CqeStatus::kQpInternal));
    CHECK_EQ(pair.rig.state_of(pair.a), Q::kError);
    CHECK_EQ(pair.rig.state_of(pair.b), Q::kRts);
    // Reset, it works again, from its ring's beginning.
    CHECK_EQ(pair.rig.modify(pair.a, Q::kRts, Q::kReset, 0), S::kSuccess);
    pair.a.posted = 0;
    pair.rig.make_ready(pair.a);
    pair.rig.post(pair.a, pair.write(0, 64, 8));
    pair.rig.run(5);
    CHECK_EQ(pair.sent(), 0);
}

TEST(an_error_state_flushes_what_is_posted) {
    Pair pair;
    for (uint16_t i = 0; i < 3; ++i) pair.rig.post_receive(pair.b, kAddr, 64, pair.mr.lkey, i);
    CHECK_EQ(pair.rig.modify(pair.b, Q::kRts, Q::kError, 0), S::kSuccess);
    for (int i = 0; i < 3; ++i) CHECK_EQ(pair.received(), static_cast<int>(CqeStatus::kFlushed));
    CHECK_EQ(pair.received(), -1);
}

TEST(nothing_is_sent_before_the_queue_pair_is_ready) {
    Pair pair;
    QpView fresh = pair.rig.make_qp(pair.rig.qp_command(pair.cq, pair.recv_cq));
    SendWqe wqe = pair.rig.wqe(fresh, SendOpcode::kRdmaWrite, pair.b, pair.ah, 5);
    wqe_set_remote(wqe, kAddr, 8, pair.mr.rkey);
    wqe_set_local(wqe, kAddr, 8, pair.mr.lkey);
    pair.rig.post(fresh, wqe);
    pair.rig.run(5);
    CHECK_EQ(pair.sent(), -1);
    pair.rig.make_ready(fresh);
    pair.rig.run(5);
    CHECK_EQ(pair.sent(), 0);
}

TEST(a_receiver_that_is_not_ready_is_an_error_unless_retries_were_asked_for) {
    Pair pair;
    pair.rig.post(pair.a, pair.send(0, 8));
    pair.rig.run(20);
    CHECK_EQ(pair.sent(), static_cast<int>(CqeStatus::kRnr));
    QpView patient = pair.rig.make_qp(pair.rig.qp_command(pair.cq, pair.recv_cq));
    CHECK_EQ(pair.rig.modify(patient, Q::kReset, Q::kInit, kModifyQkey), S::kSuccess);
    CHECK_EQ(pair.rig.modify(patient, Q::kInit, Q::kRtr, 0), S::kSuccess);
    CHECK_EQ(pair.rig.modify(patient, Q::kRtr, Q::kRts, kModifySqPsn | kModifyRnrRetry, 7), S::kSuccess);
    SendWqe wqe = pair.rig.wqe(patient, SendOpcode::kSend, pair.b, pair.ah, 9);
    wqe_add_send_sge(wqe, kAddr, 8, pair.mr.lkey);
    pair.rig.post(patient, wqe);
    pair.rig.run(3);
    CHECK_EQ(pair.sent(), -1);
    pair.rig.post_receive(pair.b, kAddr + 512, 64, pair.mr.lkey, 1);
    pair.rig.run(300);
    CHECK_EQ(pair.sent(), 0);
}

TEST(memory_that_was_deregistered_is_never_touched_again) {
    RigOptions options;
    options.faults = Faults{.reorder_ns = 50'000, .duplicate_ppm = 900'000};
    Pair pair(options);
    for (int round = 0; round < 30; ++round) {
        const MrView mr = pair.rig.make_mr(pair.rig.mr_command(pair.page, kPage, kAddr));
        SendWqe wqe = pair.write(0, 2048, 100);
        wqe_set_remote(wqe, kAddr + 2048, 100, mr.rkey);
        pair.rig.post(pair.a, wqe);
        pair.rig.run(round % 7);
        CHECK_EQ(pair.rig.submit(AdminOpcode::kDeregMr, DeregMrCommand{mr.lkey}), S::kSuccess);
        pair.rig.run(100);
        CHECK(pair.sent() >= 0);
    }
}

TEST(an_armed_completion_queue_raises_its_vector_once) {
    Rig rig;
    uint64_t ring = 0;
    const uint16_t eq = make_eq(rig, &ring, 3);
    CreateCqCommand command = rig.cq_command();
    command.caps1 = kCqHasInterrupts;
    command.eq = eq;
    CqView cq = rig.make_cq(command);
    QpView qp = rig.make_qp(rig.qp_command(cq, cq));
    rig.make_ready(qp);
    const uint16_t ah = rig.make_ah();
    const uint64_t page = rig.alloc(kPage);
    const MrView mr = rig.make_mr(rig.mr_command(page, kPage, kAddr));
    const auto write = [&] {
        SendWqe wqe = rig.wqe(qp, SendOpcode::kRdmaWrite, qp, ah, 1);
        wqe_set_remote(wqe, kAddr, 8, mr.rkey);
        wqe_set_local(wqe, kAddr + 8, 8, mr.lkey);
        rig.post(qp, wqe);
        rig.run(5);
    };
    const auto arm = [&](uint32_t consumed) {
        rig.function->bar_write(kDoorbellBar, cq.doorbell, (consumed & 0xffff) | kCqDoorbellArm, 4);
    };
    rig.reg_write(kRegEqDoorbell, eq | kEqDoorbellArm);
    write();
    CHECK_EQ(rig.host.times(3), size_t{0});  // not armed
    arm(0);
    CHECK_EQ(rig.host.times(3), size_t{1});  // armed with an entry that was not read: at once
    const uint8_t entry[16] = {1, 0, 0, 0, 0, 0, 0, 0, static_cast<uint8_t>(cq.id)};
    CHECK_EQ(std::memcmp(rig.at(ring), entry, sizeof entry), 0);
    write();
    CHECK_EQ(rig.host.times(3), size_t{1});  // one arming, one event
    arm(2);
    CHECK_EQ(rig.host.times(3), size_t{1});  // all was read
    write();
    CHECK_EQ(rig.host.times(3), size_t{1});  // the event queue is not armed
    CHECK_EQ(*rig.at(ring + 16), 1);         // but has its entry
    rig.reg_write(kRegEqDoorbell, eq | kEqDoorbellArm);
    CHECK_EQ(rig.host.times(3), size_t{2});  // told of when it is
    // The third and fourth entry end the first lap; the fifth has the other phase.
    for (uint32_t i = 3; i < 6; ++i) {
        rig.reg_write(kRegEqDoorbell, eq | kEqDoorbellArm);
        arm(i);
        write();
        CHECK_EQ(rig.host.times(3), size_t{i});
    }
    CHECK_EQ(*rig.at(ring), 0);
    CHECK_EQ(*rig.at(ring + 16), 1);
}

TEST(sub_queues_share_one_completion_queue) {
    RigOptions options;
    options.sub_cqs = 2;
    Pair pair(options);
    CHECK_EQ(pair.a.reply.send_sub_cq, 0);
    CHECK_EQ(pair.b.reply.send_sub_cq, 1);
    CHECK_EQ(pair.b.reply.recv_sub_cq, 1);
    pair.rig.post_receive(pair.b, kAddr + 1024, 256, pair.mr.lkey, 42);
    pair.rig.post(pair.a, pair.send(0, 13, 7));
    pair.rig.run();
    CHECK_EQ(Rig::next_status(pair.cq.rings[1]), -1);
    CHECK_EQ(Rig::next_status(pair.cq.rings[0]), 0);
    CHECK_EQ(Rig::next_status(pair.recv_cq.rings[0]), -1);
    CHECK_EQ(Rig::next_status(pair.recv_cq.rings[1]), 0);
}

TEST(event_counters_count_what_they_are_attached_to) {
    Rig rig;
    CqView cq = rig.make_cq();
    const uint64_t words = rig.alloc(kPage), page = rig.alloc(kPage);
    std::memset(rig.at(words), 0xee, 64);
    const uint32_t good = make_counter(rig, words), failed = make_counter(rig, words + 8);
    const uint32_t in = make_counter(rig, words + 16);
    CHECK_EQ(word_at(rig, words), uint64_t{0});
    QpView qp = rig.make_qp(rig.qp_command(cq, cq));
    CHECK_EQ(attach(rig, good, qp, 1u << 6 | 1u << 4), S::kSuccess);    // writes and reads
    CHECK_EQ(attach(rig, failed, qp, 1u << 7 | 1u << 5), S::kSuccess);  // and their failures
    CHECK_EQ(attach(rig, in, qp, 1u << 9), S::kSuccess);                // writes of others
    CHECK_EQ(attach(rig, failed, qp, 0), S::kSuccess);
    CHECK_EQ(attach(rig, in, qp, 1u << 6), S::kIllegalParameter);  // counted already
    CHECK_EQ(attach(rig, in, qp, 1u << 10), S::kIllegalParameter);
    CHECK_EQ(attach(rig, in + 1, qp, 1), S::kIllegalParameter);
    rig.make_ready(qp);
    const uint16_t ah = rig.make_ah();
    const MrView mr = rig.make_mr(rig.mr_command(page, kPage, kAddr));
    for (int i = 0; i < 5; ++i) {
        SendWqe wqe = rig.wqe(qp, i == 4 ? SendOpcode::kRdmaRead : SendOpcode::kRdmaWrite, qp, ah, 1);
        wqe_set_remote(wqe, kAddr, 8, i == 3 ? mr.rkey ^ 0x1000000 : mr.rkey);
        wqe_set_local(wqe, kAddr + 8, 8, mr.lkey);
        rig.post(qp, wqe);
        rig.run(5);
    }
    CHECK_EQ(word_at(rig, words), uint64_t{4});
    CHECK_EQ(word_at(rig, words + 8), uint64_t{1});
    CHECK_EQ(word_at(rig, words + 16), uint64_t{3});
    const auto change = [&](uint8_t operation, uint64_t value) {
        return rig.submit(AdminOpcode::kModifyEventCounter, ModifyEventCounterCommand{good, operation, {}, value});
    };
    CHECK_EQ(change(kCounterSet, 0x7fffffff), S::kSuccess);
    CHECK_EQ(word_at(rig, words), uint64_t{0x7fffffff});
    CHECK_EQ(change(kCounterAdd, 3), S::kSuccess);
    CHECK_EQ(word_at(rig, words), uint64_t{2});  // it wraps after its largest value
    CHECK_EQ(change(2, 3), S::kIllegalParameter);
    CHECK_EQ(change(kCounterSet, 1u << 31), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyEventCounter, DestroyEventCounterCommand{good}), S::kResourceBusy);
    CHECK_EQ(attach(rig, good, qp, 1u << 6, AdminOpcode::kDetachEventCounter), S::kSuccess);
    CHECK_EQ(attach(rig, good, qp, 1u << 6, AdminOpcode::kDetachEventCounter), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyQp, QpHandleCommand{qp.reply.handle}), S::kSuccess);
    for (uint32_t handle : {good, failed, in})
        CHECK_EQ(rig.submit(AdminOpcode::kDestroyEventCounter, DestroyEventCounterCommand{handle}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyEventCounter, DestroyEventCounterCommand{good}), S::kIllegalParameter);
}

TEST(counters_outside_of_ram_or_beyond_their_number_are_refused) {
    Rig rig;
    const uint64_t words = rig.alloc(kPage);
    const auto create = [&rig](uint16_t uar, uint64_t addr) {
        return rig.submit(AdminOpcode::kCreateEventCounter, CreateEventCounterCommand{uar, 0, addr});
    };
    for (uint64_t addr : {words + 4, uint64_t{0}, kRamBase + kRamBytes, UINT64_MAX - 7})
        CHECK_EQ(create(rig.uar, addr), S::kIllegalParameter);
    CHECK_EQ(create(9, words), S::kIllegalParameter);
    for (int i = 0; i < 1024; ++i) make_counter(rig, words);
    CHECK_EQ(create(rig.uar, words), S::kNoResources);
}

TEST(statistics_tell_requests_and_bytes_by_kind) {
    Pair pair;
    pair.rig.post_receive(pair.b, kAddr + 1024, 256, pair.mr.lkey, 42);
    pair.rig.post(pair.a, pair.send(0, 13));
    pair.rig.post(pair.a, pair.write(0, 2048, 100));
    SendWqe read = pair.write(0, 2048, 300);
    read.meta.ctrl1 = static_cast<uint8_t>(kCtrl1MetaDesc | static_cast<uint8_t>(SendOpcode::kRdmaRead));
    pair.rig.post(pair.a, read);
    SendWqe bad = pair.write(0, 2048, 100);
    bad.rdma.remote.rkey ^= 0x1000000;
    pair.rig.post(pair.a, bad);
    pair.rig.run();
    const auto stats = [&pair](StatsType type) {
        StatsCommand command{};
        command.type = static_cast<uint8_t>(type);
        CHECK_EQ(pair.rig.submit(AdminOpcode::kGetStats, command), S::kSuccess);
        std::vector<uint64_t> words(5);
        std::memcpy(words.data(), pair.rig.last.body, 40);
        return words;
    };
    CHECK_EQ(stats(StatsType::kMessages), (std::vector<uint64_t>{13, 1, 13, 1, 0}));
    CHECK_EQ(stats(StatsType::kRdmaRead), (std::vector<uint64_t>{1, 300, 0, 300, 0}));
    CHECK_EQ(stats(StatsType::kRdmaWrite), (std::vector<uint64_t>{2, 200, 1, 100, 0}));
    CHECK(stats(StatsType::kBasic)[0] >= 13 + 100 + 300);
}

TEST(a_reset_in_the_middle_frees_everything) {
    for (const bool is_function_level : {false, true}) {
        RigOptions options;
        options.faults = Faults{.reorder_ns = 100'000, .duplicate_ppm = 500'000};
        Pair pair(options);
        for (int i = 0; i < 10; ++i) pair.rig.post(pair.a, pair.write(0, 1024, 64));
        pair.rig.run(2);
        if (is_function_level) pair.rig.function->reset();
        pair.rig.memory.remove_all();  // nothing may be touched any more
        if (!is_function_level) pair.rig.reg_write(kRegDevCtl, kCtlReset);
        pair.rig.run(50);
        CHECK_OK(pair.rig.memory.add_range(kRamBase, kRamBytes, dup(pair.rig.ram.get()), 0, true));
        pair.rig.reset_handshake();
        pair.rig.start_admin();
        CHECK_EQ(pair.rig.make_id(AdminOpcode::kAllocPd), 0);
        CHECK_EQ(pair.rig.make_id(AdminOpcode::kAllocUar), 0);
        CHECK_EQ(pair.rig.submit(AdminOpcode::kDestroyQp, QpHandleCommand{pair.a.reply.handle}), S::kIllegalParameter);
        CHECK_EQ(pair.rig.submit(AdminOpcode::kDeregMr, DeregMrCommand{pair.mr.lkey}), S::kIllegalParameter);
        CHECK_EQ(pair.rig.make_cq().id, 0);
    }
}

TEST(a_function_that_ends_leaves_no_descriptors) {
    { Pair warm; }
    const size_t before = open_fds();
    { Pair pair; }
    CHECK_EQ(open_fds(), before);
}

TEST_MAIN()
