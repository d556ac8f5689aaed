// SPDX-License-Identifier: Apache-2.0
// Admin commands that make and end objects: what is good, what is refused and with which status, and the limits.
#include "efa_function_rig.h"

using namespace pci_test;

namespace {

using S = AdminStatus;
using Q = AdminQpState;

Gid gid_of(uint8_t number) {
    Gid gid;
    gid.raw[15] = number;
    return gid;
}

CreateEqCommand eq_command(Rig& rig, uint16_t depth = 16) {
    CreateEqCommand command{};
    const uint64_t addr = rig.alloc(depth * 16);
    command.depth = depth;
    command.vector = 1;
    command.caps = 4;
    command.addr_lo = low(addr);
    command.addr_hi = high(addr);
    command.events = 1;
    return command;
}

// Each of `changes` makes `good` bad; after all of them the good one is taken.
template <class Command, class Change>
void check_refused(Rig& rig, AdminOpcode opcode, const Command& good, std::initializer_list<Change> changes) {
    int number = 0;
    for (const Change& change : changes) {
        Command bad = good;
        change.apply(bad);
        const S status = rig.submit(opcode, bad);
        if (status != change.expected)
            check::fail(__FILE__, __LINE__, "change " + std::to_string(number) + " gave status " + check::show(status));
        ++number;
    }
    CHECK_EQ(rig.submit(opcode, good), S::kSuccess);
}

template <class Command>
struct Change {
    S expected;
    void (*apply)(Command&);
};

}  // namespace

TEST(domains_and_uars_are_counted_and_busy_while_used) {
    Rig rig;
    std::vector<uint16_t> ids;
    while (rig.submit(AdminOpcode::kAllocPd, uint32_t{0}) == S::kSuccess) ids.push_back(rig.body<IdBody>().id);
    CHECK_EQ(static_cast<S>(rig.last.status), S::kNoResources);
    CHECK_EQ(ids.size() + 1, size_t{rig.profile.pci.max_pds});
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{ids[3], 0}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{ids[3], 0}), S::kIllegalParameter);
    CHECK_EQ(rig.make_id(AdminOpcode::kAllocPd), ids[3]);
    rig.make_ah();
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocPd, IdBody{rig.pd, 0}), S::kResourceBusy);
    rig.make_cq();
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocUar, IdBody{rig.uar, 0}), S::kResourceBusy);
    CHECK_EQ(rig.submit(AdminOpcode::kDeallocUar, IdBody{999, 0}), S::kIllegalParameter);
}

TEST(an_address_handle_asks_the_fabric_and_belongs_to_its_domain) {
    Rig rig;
    rig.host.strangers.push_back(gid_of(66));
    CHECK_EQ(rig.submit(AdminOpcode::kCreateAh, rig.ah_command(gid_of(66))), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kCreateAh, rig.ah_command(gid_of(8))), S::kSuccess);
    CHECK_EQ(rig.host.asked, 2);
    const uint16_t ah = rig.body<IdBody>().id;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateAh, rig.ah_command(gid_of(8))), S::kSuccess);  // older drivers: one each
    CHECK_EQ(rig.body<IdBody>().id, ah);
    const uint16_t other_pd = rig.make_id(AdminOpcode::kAllocPd);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyAh, DestroyAhCommand{ah, other_pd}), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyAh, DestroyAhCommand{ah, rig.pd}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyAh, DestroyAhCommand{ah, rig.pd}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyAh, DestroyAhCommand{ah, rig.pd}), S::kIllegalParameter);
    CreateAhCommand command = rig.ah_command(gid_of(9));
    command.pd = 500;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateAh, command), S::kIllegalParameter);
    command = rig.ah_command(gid_of(9));
    command.reserved = 1;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateAh, command), S::kMalformedRequest);
}

TEST(address_handles_end_at_the_devices_number_of_peers) {
    Rig rig;
    uint32_t made = 0;
    for (;; ++made) {
        Gid gid = gid_of(1);
        std::memcpy(gid.raw, &made, sizeof made);
        if (rig.submit(AdminOpcode::kCreateAh, rig.ah_command(gid)) != S::kSuccess) break;
    }
    CHECK_EQ(static_cast<S>(rig.last.status), S::kNoResources);
    CHECK_EQ(made, rig.profile.ahs_max);
}

TEST(a_completion_queue_that_is_asked_for_wrongly_is_refused) {
    Rig rig;
    using C = Change<CreateCqCommand>;
    check_refused<CreateCqCommand, C>(
        rig, AdminOpcode::kCreateCq, rig.cq_command(),
        {{S::kMalformedRequest, [](auto& c) { c.caps1 |= 1; }},
         {S::kMalformedRequest, [](auto& c) { c.caps1 |= 0x80; }},
         {S::kMalformedRequest, [](auto& c) { c.caps2 |= 0x80; }},
         {S::kMalformedRequest, [](auto& c) { c.reserved = 1; }},
         {S::kIllegalParameter, [](auto& c) { c.caps1 |= kCqIsVirtual; }},
         {S::kIllegalParameter, [](auto& c) { c.caps2 = 5; }},
         {S::kIllegalParameter, [](auto& c) { c.caps2 = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.caps2 = 4 | kCqSetSourceAddress; }},
         {S::kIllegalParameter, [](auto& c) { c.n_sub_cqs = 2; }},
         {S::kIllegalParameter, [](auto& c) { c.n_sub_cqs = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.sub_cq_depth = 63; }},
         {S::kIllegalParameter, [](auto& c) { c.sub_cq_depth = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.uar = 99; }},
         {S::kIllegalParameter, [](auto& c) { c.addr_lo += 16; }},
         {S::kIllegalParameter, [](auto& c) { c.addr_hi = 0x7fff; }},
         {S::kIllegalParameter, [](auto& c) { c.addr_lo = low(kRamBase + kRamBytes - 1024); }},
         {S::kIllegalParameter, [](auto& c) { c.addr_lo = c.addr_hi = 0xffffffc0; }},
         {S::kIllegalParameter, [](auto& c) { c.caps1 |= kCqHasInterrupts; }}});  // no event queue was made
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyCq, DestroyCqCommand{0, 0}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyCq, DestroyCqCommand{0, 0}), S::kIllegalParameter);
}

TEST(an_old_device_has_no_64_bit_ids) {
    RigOptions options;
    options.profile = "efa2";
    Rig rig(options);
    CreateCqCommand cq = rig.cq_command();
    cq.caps2 |= kCqReqId64;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateCq, cq), S::kIllegalParameter);
    const CqView plain = rig.make_cq();
    CreateQpCommand qp = rig.qp_command(plain, plain);
    qp.flags = kQpFlagReqId64;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, qp), S::kIllegalParameter);
    qp.flags = kQpFlagUnsolicited;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, qp), S::kIllegalParameter);
    qp = rig.qp_command(plain, plain, 16, 128);  // no large slots either
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, qp), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kCreateEventCounter, CreateEventCounterCommand{rig.uar, 0, kRamBase}),
             S::kUnsupportedOpcode);
}

TEST(an_event_queue_that_is_asked_for_wrongly_is_refused) {
    Rig rig;
    using C = Change<CreateEqCommand>;
    check_refused<CreateEqCommand, C>(rig, AdminOpcode::kCreateEq, eq_command(rig),
                                      {{S::kMalformedRequest, [](auto& c) { c.reserved = 1; }},
                                       {S::kMalformedRequest, [](auto& c) { c.caps |= 0x20; }},
                                       {S::kIllegalParameter, [](auto& c) { c.caps = 8; }},
                                       {S::kIllegalParameter, [](auto& c) { c.events = 2; }},
                                       {S::kIllegalParameter, [](auto& c) { c.depth = 17; }},
                                       {S::kIllegalParameter, [](auto& c) { c.depth = 0; }},
                                       {S::kIllegalParameter, [](auto& c) { c.depth = 0x8000; }},
                                       {S::kIllegalParameter, [](auto& c) { c.vector = 17; }},
                                       {S::kIllegalParameter, [](auto& c) { c.addr_hi = 1; }}});
    CreateCqCommand cq = rig.cq_command();
    cq.caps1 = kCqHasInterrupts;
    const CqView made = rig.make_cq(cq);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyEq, IdBody{0, 0}), S::kResourceBusy);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyCq, DestroyCqCommand{made.id, 0}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyEq, IdBody{0, 0}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyEq, IdBody{0, 0}), S::kIllegalParameter);
    for (uint32_t i = 0; i < rig.profile.pci.max_eqs; ++i)
        CHECK_EQ(rig.submit(AdminOpcode::kCreateEq, eq_command(rig)), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kCreateEq, eq_command(rig)), S::kNoResources);
}

TEST(a_queue_pair_that_is_asked_for_wrongly_is_refused) {
    Rig rig;
    const CqView cq = rig.make_cq();
    using C = Change<CreateQpCommand>;
    check_refused<CreateQpCommand, C>(
        rig, AdminOpcode::kCreateQp, rig.qp_command(cq, cq),
        {{S::kMalformedRequest, [](auto& c) { c.flags = 0x10; }},
         {S::kMalformedRequest, [](auto& c) { c.reserved = 1; }},
         {S::kMalformedRequest, [](auto& c) { c.reserved2 = 1; }},
         {S::kIllegalParameter, [](auto& c) { c.flags = kQpFlagSqVirtual; }},
         {S::kIllegalParameter, [](auto& c) { c.flags = kQpFlagRqVirtual; }},
         {S::kIllegalParameter, [](auto& c) { c.flags = kQpFlagReqId64; }},  // the queue for completions has none
         {S::kIllegalParameter, [](auto& c) { c.type = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.type = 3; }},
         {S::kIllegalParameter, [](auto& c) { c.pd = 77; }},
         {S::kIllegalParameter, [](auto& c) { c.uar = 77; }},
         {S::kIllegalParameter, [](auto& c) { c.send_cq = 77; }},
         {S::kIllegalParameter, [](auto& c) { c.recv_cq = 0xffffffff; }},
         {S::kIllegalParameter, [](auto& c) { c.sq_depth = 4097; }},
         {S::kIllegalParameter, [](auto& c) { c.sq_bytes = 16 * 96; }},
         {S::kIllegalParameter, [](auto& c) { c.sq_bytes = 16 * 64 - 1; }},
         {S::kIllegalParameter, [](auto& c) { c.sq_bytes = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.sq_depth = 4096, c.sq_bytes = 4096 * 128; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_bytes = 15 * 16; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_bytes = 16 * 16 - 1; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_depth = 17; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_bytes = 65536 * 16; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_addr += 16; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_addr = 0; }},
         {S::kIllegalParameter, [](auto& c) { c.rq_addr = UINT64_MAX - 63; }}});
}

TEST(the_size_of_slots_follows_from_the_rings_size) {
    Rig rig;
    const CqView cq = rig.make_cq();
    CHECK_EQ(rig.make_qp(rig.qp_command(cq, cq, 16, 128)).slot_bytes, 128u);
    CreateQpCommand command = rig.qp_command(cq, cq);
    command.sq_depth = 100;  // as the program asked; the ring has the next power of two
    command.sq_bytes = 128 * 64;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, command), S::kSuccess);
    command.sq_bytes = 128 * 128;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, command), S::kSuccess);
    command.sq_bytes = 256 * 128;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, command), S::kIllegalParameter);
    command.sq_depth = command.sq_bytes = command.rq_depth = command.rq_bytes = 0;
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, command), S::kSuccess);
}

TEST(queue_pairs_end_at_the_devices_number_and_share_no_memory) {
    Rig rig;
    const CqView cq = rig.make_cq();
    const CreateQpCommand command = rig.qp_command(cq, cq);
    std::vector<CreateQpReply> made;
    while (rig.submit(AdminOpcode::kCreateQp, command) == S::kSuccess) made.push_back(rig.body<CreateQpReply>());
    CHECK_EQ(static_cast<S>(rig.last.status), S::kNoResources);
    CHECK_EQ(rig.submit(AdminOpcode::kGetFeature, FeatureCommand{{}, 0, 4, 0, {}}), S::kSuccess);
    CHECK_EQ(made.size(), size_t{rig.body<QueueAttr1>().max_qps});
    std::vector<uint32_t> offsets, doorbells;
    for (const CreateQpReply& reply : made) {
        offsets.push_back(reply.sq_offset);
        doorbells.push_back(reply.sq_doorbell / 4096);
    }
    for (auto* all : {&offsets, &doorbells}) {
        std::sort(all->begin(), all->end());
        CHECK(std::adjacent_find(all->begin(), all->end()) == all->end());
    }
    CHECK(offsets.back() + rig.body<QueueAttr1>().max_sq_bytes <= rig.function->identity().bars[2].bytes);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyCq, DestroyCqCommand{cq.id, 0}), S::kResourceBusy);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyQp, QpHandleCommand{made[5].handle}), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kCreateQp, command), S::kSuccess);
    CHECK(rig.body<CreateQpReply>().handle != made[5].handle);
    CHECK_EQ(rig.submit(AdminOpcode::kQueryQp, QpHandleCommand{made[5].handle}), S::kIllegalParameter);
    CHECK_EQ(rig.submit(AdminOpcode::kDestroyQp, QpHandleCommand{made[5].handle}), S::kIllegalParameter);
}

TEST(a_queue_pair_goes_through_the_states_of_verbs_only) {
    // From each state: the states that it may go to, with all that any step asks for.
    const std::vector<std::vector<Q>> allowed = {{Q::kReset, Q::kInit},
                                                 {Q::kReset, Q::kInit, Q::kRtr, Q::kError},
                                                 {Q::kReset, Q::kRts, Q::kError},
                                                 {Q::kReset, Q::kRts, Q::kSqd, Q::kError},
                                                 {Q::kReset, Q::kRts, Q::kSqd, Q::kError},
                                                 {},
                                                 {Q::kReset, Q::kError}};
    const std::vector<std::vector<Q>> paths = {{}, {Q::kInit}, {Q::kInit, Q::kRtr}, {Q::kInit, Q::kRtr, Q::kRts},
                                               {Q::kInit, Q::kRtr, Q::kRts, Q::kSqd}, {}, {Q::kInit, Q::kError}};
    Rig rig;
    const CqView cq = rig.make_cq();
    const CreateQpCommand command = rig.qp_command(cq, cq);
    for (uint32_t from = 0; from < kQpStates; ++from) {
        if (allowed[from].empty()) continue;
        for (uint32_t to = 0; to <= kQpStates; ++to) {
            const QpView qp = rig.make_qp(command);
            Q state = Q::kReset;
            for (Q next : paths[from]) {
                CHECK_EQ(rig.modify(qp, state, next, kModifyQkey | kModifySqPsn), S::kSuccess);
                state = next;
            }
            const bool is_good = std::count(allowed[from].begin(), allowed[from].end(), static_cast<Q>(to)) != 0;
            CHECK_EQ(rig.modify(qp, state, static_cast<Q>(to), kModifyQkey | kModifySqPsn),
                     is_good ? S::kSuccess : S::kIllegalParameter);
            CHECK_EQ(rig.state_of(qp), is_good ? static_cast<Q>(to) : state);
            CHECK_EQ(rig.submit(AdminOpcode::kDestroyQp, QpHandleCommand{qp.reply.handle}), S::kSuccess);
        }
    }
}

TEST(a_step_needs_what_belongs_to_it) {
    Rig rig;
    const CqView cq = rig.make_cq();
    const QpView qp = rig.make_qp(rig.qp_command(cq, cq));
    CHECK_EQ(rig.modify(qp, Q::kReset, Q::kInit, 0), S::kIllegalParameter);
    CHECK_EQ(rig.modify(qp, Q::kInit, Q::kRtr, 0), S::kIllegalParameter);  // it is not in INIT
    CHECK_EQ(rig.modify(qp, Q::kReset, Q::kInit, 1u << 6), S::kMalformedRequest);
    CHECK_EQ(rig.modify(qp, Q::kReset, Q::kInit, kModifyQkey), S::kSuccess);
    CHECK_EQ(rig.modify(qp, Q::kInit, Q::kRtr, 0), S::kSuccess);
    CHECK_EQ(rig.modify(qp, Q::kRtr, Q::kRts, 0), S::kIllegalParameter);
    CHECK_EQ(rig.modify(qp, Q::kRtr, Q::kRts, kModifySqPsn | kModifyRnrRetry, 8), S::kIllegalParameter);
    CHECK_EQ(rig.modify(qp, Q::kRtr, Q::kRts, kModifySqPsn | kModifyRnrRetry, 5), S::kSuccess);
    CHECK_EQ(rig.submit(AdminOpcode::kQueryQp, QpHandleCommand{qp.reply.handle}), S::kSuccess);
    CHECK_EQ(rig.body<QueryQpReply>().rnr_retry, 5);
    CHECK_EQ(rig.body<QueryQpReply>().qkey, kQkey);
    ModifyQpCommand only_qkey{};
    only_qkey.mask = kModifyQkey;
    only_qkey.handle = qp.reply.handle;
    only_qkey.qkey = 77;
    CHECK_EQ(rig.submit(AdminOpcode::kModifyQp, only_qkey), S::kSuccess);
    CHECK_EQ(rig.state_of(qp), Q::kRts);
    CHECK_EQ(rig.body<QueryQpReply>().qkey, 77u);
    only_qkey.handle ^= 1u << 16;
    CHECK_EQ(rig.submit(AdminOpcode::kModifyQp, only_qkey), S::kIllegalParameter);
}

TEST_MAIN()
