// SPDX-License-Identifier: Apache-2.0
// Queue pairs and counters of a verbs Nic, call by call: the bytes handed to the library, and what comes back.
#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::call;
using fake::Call;
using fake::check_rest_is_zero;
using fake::count_calls;
using fake::make_cq;
using fake::qp_attr;
using fake::Rig;
using fake::state;

TEST(a_queue_pair_is_asked_for_in_these_bytes) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq send = make_cq(nic), recv = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(send, recv), &qp));
    const Call& made = call("efadv_create_qp_ex");
    CHECK(made.at<uint64_t>(8) != 0 && made.at<uint64_t>(16) != 0 && made.at<uint64_t>(8) != made.at<uint64_t>(16));
    CHECK_EQ(made.at<uint32_t>(32), 128u);  // send slots
    CHECK_EQ(made.at<uint32_t>(36), 64u);   // receive slots
    CHECK_EQ(made.at<uint32_t>(40), 2u);    // send SGEs
    CHECK_EQ(made.at<uint32_t>(44), 1u);    // receive SGEs
    CHECK_EQ(made.at<uint32_t>(48), 32u);   // inline bytes: 64-byte slots
    CHECK_EQ(made.at<uint32_t>(52), 0xffu);  // a driver's own type
    CHECK_EQ(made.at<uint32_t>(60), 0x41u);  // PD and send operations are given
    CHECK(made.at<uint64_t>(64) != 0);
    CHECK_EQ(made.at<uint64_t>(128), uint64_t(0x1f));
    check_rest_is_zero(made.bytes, {{8, 16}, {32, 24}, {60, 12}, {128, 8}});
    check_rest_is_zero(made.bytes2, {});  // SRD is 0, no flags
}

TEST(slots_and_flags_follow_what_is_asked_for) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    QpAttr attr = qp_attr(cq, cq);
    attr.large_slots = true;
    attr.unsolicited_recv = true;
    attr.req_id_64 = true;
    Qp qp;
    CHECK_OK(nic.create_qp(attr, &qp));
    const Call& made = call("efadv_create_qp_ex");
    CHECK_EQ(made.at<uint32_t>(48), 80u);
    CHECK_EQ(made.at2<uint16_t>(12), uint16_t(3));
    CHECK_EQ(qp.sq_slot_bytes, 128u);
    CHECK_EQ(qp.sq_max_batch, 8u);
    CHECK(qp.req_id_64);
}

TEST(send_operations_follow_the_capabilities) {
    Rig rig;
    state().answers.efa_caps &= ~1u;  // no RDMA read
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_EQ(call("efadv_create_qp_ex").at<uint64_t>(128), uint64_t(0x0f));
}

TEST(a_queue_pair_goes_through_init_and_rtr_to_rts) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_EQ(count_calls("ibv_modify_qp"), size_t(3));
    const Call& init = call("ibv_modify_qp", 0);
    CHECK_EQ(init.args.at("mask"), uint64_t(0x71));
    CHECK_EQ(init.at<uint32_t>(0), 1u);
    CHECK_EQ(init.at<uint32_t>(16), 0x1234abcdu);  // qkey
    CHECK_EQ(init.at<uint8_t>(129), uint8_t(1));   // port
    check_rest_is_zero(init.bytes, {{0, 4}, {16, 4}, {129, 1}});
    const Call& rtr = call("ibv_modify_qp", 1);
    CHECK_EQ(rtr.args.at("mask"), uint64_t(1));
    CHECK_EQ(rtr.at<uint32_t>(0), 2u);
    check_rest_is_zero(rtr.bytes, {{0, 4}});
    const Call& rts = call("ibv_modify_qp", 2);
    CHECK_EQ(rts.args.at("mask"), uint64_t(0x10801));
    CHECK_EQ(rts.at<uint32_t>(0), 3u);
    CHECK_EQ(rts.at<uint8_t>(132), uint8_t(3));  // RNR retries
    check_rest_is_zero(rts.bytes, {{0, 4}, {132, 1}});
}

TEST(without_the_rnr_capability_no_retry_is_asked_for) {
    Rig rig;
    state().answers.efa_caps &= ~2u;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_EQ(call("ibv_modify_qp", 2).args.at("mask"), uint64_t(0x10001));
}

TEST(the_rings_are_those_that_the_library_reports) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    QpAttr attr = qp_attr(cq, cq);
    attr.sq_depth = 100;
    attr.rq_depth = 60;
    Qp qp;
    CHECK_OK(nic.create_qp(attr, &qp));
    CHECK_EQ(qp.sq_depth, 128u);
    CHECK_EQ(qp.rq_depth, 64u);
    CHECK_EQ(qp.sq_slot_bytes, 64u);
    CHECK_EQ(qp.sq_max_batch, 16u);
    CHECK_EQ(qp.qkey, 0x1234abcdu);
    CHECK(qp.qp_num >= 0x21);
    CHECK(qp.sq_slots && qp.sq_doorbell && qp.rq_slots && qp.rq_doorbell);
    CHECK(qp.sq_doorbell != qp.rq_doorbell);
    SendRing ring;
    CHECK(send_ring_init(ring, qp.sq_slots, qp.sq_doorbell, qp.sq_slot_bytes, qp.sq_depth, qp.sq_max_batch));
}

TEST(a_queue_pair_may_have_no_receive_queue) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    QpAttr attr = qp_attr(cq, cq);
    attr.rq_depth = 0;
    Qp qp;
    CHECK_OK(nic.create_qp(attr, &qp));
    CHECK_EQ(qp.rq_depth, 0u);
    CHECK(qp.rq_slots == nullptr && qp.rq_doorbell == nullptr);
}

TEST(no_batch_limit_reaches_the_caller_as_none) {
    Rig rig;
    state().answers.max_batch = 0xffff;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_EQ(qp.sq_max_batch, 0u);
}

TEST(depths_beyond_the_device_are_refused_with_its_maximum) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    QpAttr attr = qp_attr(cq, cq);
    attr.sq_depth = 4097;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kInvalidArgument,
                "a send queue of 4097 entries on efa_0, which has at most 4096");
    attr.large_slots = true;
    attr.sq_depth = 2049;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kInvalidArgument, "which has at most 2048");
    attr.large_slots = false;
    attr.sq_depth = 0;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kInvalidArgument, "no slots");
    attr.sq_depth = 4096;
    attr.rq_depth = 32769;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kInvalidArgument, "a receive queue of 32769 entries");
    attr.rq_depth = 32768;
    CHECK_OK(nic.create_qp(attr, &qp));
}

TEST(what_the_device_cannot_do_is_refused_by_name) {
    Rig rig;
    state().answers.efa_caps &= ~16u;
    state().answers.inline_large = 32;
    state().answers.wq_caps = 0;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    QpAttr attr = qp_attr(cq, cq);
    attr.unsolicited_recv = true;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kUnsupported, "efa_0 has no unsolicited write receive");
    attr = qp_attr(cq, cq);
    attr.large_slots = true;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kUnsupported, "efa_0 has no 128-byte slots");
    attr = qp_attr(cq, cq);
    attr.req_id_64 = true;
    CHECK_FAILS(nic.create_qp(attr, &qp), Code::kUnsupported, "efa_0 has no 64-bit request ids");
    CHECK_EQ(count_calls("efadv_create_qp_ex"), size_t(0));
}

TEST(a_ring_of_other_slots_than_asked_for_is_refused_and_nothing_is_left) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    state().answers.sq_entry_bytes = 128;
    Qp qp;
    CHECK_FAILS(nic.create_qp(qp_attr(cq, cq), &qp), Code::kUnsupported, "entries of 128 bytes");
    CHECK_EQ(state().live["qp"], 0);
}

TEST(a_completion_queue_in_use_is_not_destroyed) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq send = make_cq(nic), recv = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(send, recv), &qp));
    CHECK_FAILS(nic.destroy_cq(send.handle), Code::kInvalidArgument, "in use by 1 queue pairs");
    CHECK_FAILS(nic.destroy_cq(recv.handle), Code::kInvalidArgument, "in use by 1 queue pairs");
    CHECK_OK(nic.destroy_qp(qp.handle));
    CHECK_OK(nic.destroy_cq(send.handle));
    CHECK_OK(nic.destroy_cq(recv.handle));
    CHECK_EQ(count_calls("ibv_destroy_cq"), size_t(2));
}

TEST(one_completion_queue_for_both_sides_is_free_after_its_queue_pair) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    CHECK_FAILS(nic.destroy_cq(cq.handle), Code::kInvalidArgument, "in use by 1 queue pairs");
    CHECK_OK(nic.destroy_qp(qp.handle));
    CHECK_OK(nic.destroy_cq(cq.handle));
}

TEST(a_counter_in_host_memory_is_asked_for_in_these_bytes) {
    Rig rig;
    Nic& nic = rig.open_one();
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    const Call& made = call("efadv_create_comp_cntr");
    check_rest_is_zero(made.bytes, {});
    CHECK_EQ(made.bytes2.size(), size_t(80));
    CHECK_EQ(made.at2<uint32_t>(8), 3u);
    CHECK_EQ(made.at2<uint64_t>(16), reinterpret_cast<uint64_t>(&words[0]));
    CHECK_EQ(made.at2<uint64_t>(48), reinterpret_cast<uint64_t>(&words[1]));
    check_rest_is_zero(made.bytes2, {{8, 4}, {16, 8}, {48, 8}});
}

TEST(a_counter_in_gpu_memory_is_given_as_two_dmabufs) {
    Rig rig;
    Nic& nic = rig.open_one();
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kCuda}, &counter));
    CHECK_EQ(rig.exports, 2);
    const Call& made = call("efadv_create_comp_cntr");
    for (const size_t at : {size_t(16), size_t(48)}) {
        CHECK_EQ(made.at2<uint64_t>(at), uint64_t(0));           // no CPU address
        CHECK_EQ(made.at2<uint64_t>(at + 8), uint64_t(0x1000));  // offset
        CHECK(made.at2<int32_t>(at + 16) > 0);                   // file descriptor
        CHECK_EQ(made.at2<uint8_t>(at + 24), uint8_t(1));        // a dma-buf
    }
    CHECK(made.at2<int32_t>(32) != made.at2<int32_t>(64));
    CHECK(!fake::is_open(made.at2<int32_t>(32)) && !fake::is_open(made.at2<int32_t>(64)));
}

TEST(each_counted_operation_is_the_librarys_own_bit) {
    const struct {
        uint32_t ours;
        uint32_t library;
    } cases[] = {{kCountSend, 1},
                 {kCountRecv, 2},
                 {kCountRead, 4},
                 {kCountRemoteRead, 8},
                 {kCountWrite, 16},
                 {kCountRemoteWrite, 32},
                 {kCountWrite | kCountRemoteWrite, 48}};
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    for (const auto& one : cases) {
        Qp qp;
        CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
        state().calls.clear();
        CHECK_OK(nic.attach_counter(qp.handle, counter, one.ours));
        CHECK_EQ(call("ibv_qp_attach_comp_cntr").at<uint32_t>(0), 0u);
        CHECK_EQ(call("ibv_qp_attach_comp_cntr").at<uint32_t>(4), one.library);
        CHECK_OK(nic.destroy_qp(qp.handle));
    }
    CHECK_OK(nic.destroy_counter(counter));
}

TEST(attaching_takes_the_queue_through_reset_and_back_to_rts_with_its_qkey) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    state().calls.clear();
    CHECK_OK(nic.attach_counter(qp.handle, counter, kCountWrite));
    CHECK_EQ(fake::joined(fake::call_names()),
             std::string("ibv_modify_qp ibv_qp_attach_comp_cntr ibv_modify_qp ibv_modify_qp ibv_modify_qp"));
    const uint32_t states[] = {0, 1, 2, 3};
    for (size_t i = 0; i < 4; ++i) CHECK_EQ(call("ibv_modify_qp", i).at<uint32_t>(0), states[i]);
    CHECK_EQ(call("ibv_modify_qp", 1).at<uint32_t>(16), 0x1234abcdu);
}

TEST(an_attach_that_fails_leaves_the_queue_ready) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    state().calls.clear();
    state().failures["ibv_qp_attach_comp_cntr"] = {.error = 95};
    CHECK_FAILS(nic.attach_counter(qp.handle, counter, kCountRecv), Code::kUnsupported,
                "ibv_qp_attach_comp_cntr failed on efa_0");
    CHECK_EQ(call("ibv_modify_qp", 3).at<uint32_t>(0), 3u);
    CHECK_OK(nic.destroy_counter(counter));
}

TEST(bad_counter_requests_are_refused_before_the_library_sees_them) {
    Rig rig;
    Nic& nic = rig.open_one();
    const Cq cq = make_cq(nic);
    Qp qp;
    CHECK_OK(nic.create_qp(qp_attr(cq, cq), &qp));
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_FAILS(nic.create_counter({nullptr, &words[1], MemoryKind::kHost}, &counter), Code::kInvalidArgument,
                "without memory");
    CHECK_OK(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter));
    CHECK_OK(nic.attach_counter(qp.handle, counter, kCountWrite));
    state().calls.clear();
    CHECK_FAILS(nic.attach_counter(qp.handle, counter, kCountWrite), Code::kInvalidArgument, "counted already (0x8)");
    CHECK_FAILS(nic.attach_counter(qp.handle, counter, 0), Code::kInvalidArgument, "0x0");
    CHECK_FAILS(nic.attach_counter(qp.handle, counter, 0x40), Code::kInvalidArgument, "0x40");
    CHECK_FAILS(nic.destroy_counter(counter), Code::kInvalidArgument, "is attached 1 times");
    CHECK(state().calls.empty());
}

TEST(without_the_capability_there_are_no_counters) {
    Rig rig;
    state().answers.efa_caps &= ~64u;
    Nic& nic = rig.open_one();
    uint64_t words[2] = {};
    uint64_t counter = 0;
    CHECK_FAILS(nic.create_counter({&words[0], &words[1], MemoryKind::kHost}, &counter), Code::kUnsupported,
                "no completion counters");
}

TEST_MAIN()
