// SPDX-License-Identifier: Apache-2.0
// What a device is asked and what NicCaps says of it: every capability alone, every library that knows less.
#include "verbs_rig.h"

using namespace nvshmem_efa;
using fake::Rig;
using fake::state;

namespace {

NicCaps caps_of(Rig& rig) {
    CHECK_OK(rig.open_all());
    return rig.nics.at(0)->info().caps;
}

constexpr uint32_t kWriteBit = 1u << 3;  // without it a device is refused

}  // namespace

TEST(a_p5en_with_everything_on_says_so) {
    Rig rig;
    const NicCaps caps = caps_of(rig);
    CHECK(caps.rdma_read && caps.rdma_write && caps.rnr_retry && caps.unsolicited_write_recv);
    CHECK(caps.cq_sgid && caps.cq_ext_mem && caps.inline_write && caps.req_id_64);
    CHECK(caps.completion_counters && caps.data_polling_128);
    CHECK_EQ(caps.max_sq_depth, 4096u);
    CHECK_EQ(caps.max_rq_depth, 32768u);
    CHECK_EQ(caps.max_cq_depth, 32768u);  // 65535 entries hold a ring of 32768
    CHECK_EQ(caps.max_inline_small, 32u);
    CHECK_EQ(caps.max_inline_large, 80u);
    CHECK_EQ(caps.max_tx_batch_units, 16u);
    CHECK_EQ(caps.mtu, 8928u);
    CHECK_EQ(caps.max_rdma_bytes, uint64_t(1) << 30);
    CHECK_EQ(caps.max_counters, 512u);
    CHECK_EQ(caps.max_qps, 1024u);
    CHECK_EQ(caps.max_mrs, 262144u);
}

TEST(every_mix_of_capability_bits_is_reported_as_it_is) {
    Rig rig;
    for (uint32_t bits = 0; bits < 0x80; ++bits) {
        if (!(bits & kWriteBit)) continue;
        rig.renew(1);
        state().answers.efa_caps = bits;
        const NicCaps caps = caps_of(rig);
        CHECK_EQ(caps.rdma_read, (bits & 1) != 0);
        CHECK_EQ(caps.rnr_retry, (bits & 2) != 0);
        CHECK_EQ(caps.cq_sgid, (bits & 4) != 0);
        CHECK(caps.rdma_write);
        CHECK_EQ(caps.unsolicited_write_recv, (bits & 16) != 0);
        CHECK_EQ(caps.cq_ext_mem, (bits & 32) != 0);
        CHECK_EQ(caps.completion_counters, (bits & 64) != 0);
        rig.nics.clear();
        fake::check_nothing_left();
    }
}

TEST(a_device_without_rdma_write_is_refused_by_name) {
    Rig rig;
    for (uint32_t bits = 0; bits < 0x80; ++bits) {
        if (bits & kWriteBit) continue;
        rig.renew(1);
        state().answers.efa_caps = bits;
        CHECK_FAILS(rig.open_all(), Code::kUnsupported, "efa_0 has no RDMA write; hint: RDMA write needs p5");
        fake::check_nothing_left();
    }
}

TEST(an_extended_inline_size_that_repeats_the_small_one_is_no_large_slot) {
    Rig rig;
    state().answers.inline_large = 32;  // as libefa answers with an older kernel
    const NicCaps caps = caps_of(rig);
    CHECK(!caps.inline_write);
    CHECK_EQ(caps.max_inline_large, 0u);
    CHECK_EQ(caps.max_inline_small, 32u);
}

TEST(inline_sizes_never_exceed_what_our_descriptors_hold) {
    Rig rig;
    state().answers.inline_small = 48;
    state().answers.inline_large = 200;
    const NicCaps caps = caps_of(rig);
    CHECK_EQ(caps.max_inline_small, 32u);
    CHECK_EQ(caps.max_inline_large, 80u);
}

TEST(request_ids_are_16_bits_when_the_queue_says_so) {
    Rig rig;
    state().answers.wq_caps = 0;
    CHECK(!caps_of(rig).req_id_64);
}

TEST(no_batch_limit_is_reported_as_none) {
    Rig rig;
    state().answers.max_batch = 0xffff;
    CHECK_EQ(caps_of(rig).max_tx_batch_units, 0u);
}

TEST(a_batch_of_one_less_than_the_queue_is_the_queues_rule_and_not_the_devices) {
    Rig rig;
    state().answers.max_batch = 63;  // the probe's queue has 64 slots
    CHECK_EQ(caps_of(rig).max_tx_batch_units, 0u);
}

TEST(data_polling_follows_the_queues_answer) {
    for (const int answer : {0, 1, 2, 3, -22}) {
        Rig rig;
        state().answers.data_in_order = answer;
        CHECK_EQ(caps_of(rig).data_polling_128, answer == 2 || answer == 3);
        CHECK_EQ(fake::call("ibv_query_qp_data_in_order").args.at("flags"), uint64_t(1));
        CHECK_EQ(fake::call("ibv_query_qp_data_in_order").args.at("opcode"), uint64_t(0));
    }
}

TEST(the_send_queue_is_as_deep_as_its_window_and_the_device_allow) {
    Rig rig;
    state().answers.llq_slots = 2048;
    CHECK_EQ(caps_of(rig).max_sq_depth, 2048u);
    const fake::Call& asked = fake::call("efadv_get_max_sq_depth");
    CHECK_EQ(asked.at<uint32_t>(8), 0u);    // flags
    CHECK_EQ(asked.at<uint32_t>(12), 2u);   // send SGEs
    CHECK_EQ(asked.at<uint32_t>(16), 1u);   // RDMA SGEs
    CHECK_EQ(asked.at<uint32_t>(20), 32u);  // inline bytes
    Rig second;
    state().answers.max_sq_wr = 1000;
    CHECK_EQ(caps_of(second).max_sq_depth, 512u);
}

TEST(without_the_depth_calls_of_v63_the_attributes_give_the_depths) {
    Rig rig;
    rig.machine.libefa = rig.without_symbol(fake::kEfa, "efadv_get_max_sq_depth");
    state().answers.max_qp_wr = 1500;
    CHECK_EQ(caps_of(rig).max_sq_depth, 1024u);
    Rig second;
    second.machine.libefa = second.without_symbol(fake::kEfa, "efadv_get_max_rq_depth");
    CHECK_EQ(caps_of(second).max_rq_depth, 32768u);
}

TEST(counters_need_all_their_calls_a_capacity_and_a_count_of_writes) {
    for (const char* symbol : {"_ibv_query_comp_cntr_caps", "ibv_destroy_comp_cntr", "ibv_qp_attach_comp_cntr"}) {
        Rig rig;
        rig.machine.libibverbs = rig.without_symbol(fake::kIbverbs, symbol);
        CHECK(!caps_of(rig).completion_counters);
    }
    {
        Rig rig;
        rig.machine.libefa = rig.without_symbol(fake::kEfa, "efadv_create_comp_cntr");
        CHECK(!caps_of(rig).completion_counters);
    }
    {
        Rig rig;
        state().answers.max_counters = 0;
        CHECK(!caps_of(rig).completion_counters);
    }
    {
        Rig rig;
        state().answers.counter_ops = 0x2f;  // all but writes
        CHECK(!caps_of(rig).completion_counters);
    }
    {
        Rig rig;
        state().failures["_ibv_query_comp_cntr_caps"] = {.error = 95};
        CHECK(!caps_of(rig).completion_counters);
    }
}

TEST(every_query_passes_the_size_of_its_struct) {
    Rig rig;
    caps_of(rig);
    CHECK_EQ(fake::call("efadv_query_device").args.at("bytes"), uint64_t(32));
    CHECK_EQ(fake::call("efadv_get_max_sq_depth").args.at("bytes"), uint64_t(24));
    CHECK_EQ(fake::call("efadv_get_max_rq_depth").args.at("bytes"), uint64_t(16));
    CHECK_EQ(fake::call("efadv_create_cq").args.at("bytes"), uint64_t(56));
    CHECK_EQ(fake::call("efadv_query_cq").args.at("bytes"), uint64_t(32));
    CHECK_EQ(fake::call("efadv_create_qp_ex").args.at("bytes"), uint64_t(24));
    CHECK_EQ(fake::call("efadv_query_qp_wqs").args.at("bytes"), uint64_t(40));
    CHECK_EQ(fake::call("_ibv_query_comp_cntr_caps").args.at("bytes"), uint64_t(16));
    CHECK_EQ(fake::call("ibv_query_port").args.at("port"), uint64_t(1));
    CHECK_EQ(fake::call("ibv_query_gid").args.at("port"), uint64_t(1));
    CHECK_EQ(fake::call("ibv_query_gid").args.at("index"), uint64_t(0));
}

TEST(the_address_is_gid_0) {
    Rig rig;
    CHECK_OK(rig.open_all());
    const PeerAddress address = rig.nics[0]->address();
    for (int i = 0; i < 16; ++i) CHECK_EQ(address.gid.raw[i], static_cast<uint8_t>(0xa0 + i + '0'));
    for (const uint8_t byte : address.extra) CHECK_EQ(byte, uint8_t(0));
}

TEST_MAIN()
