// SPDX-License-Identifier: Apache-2.0
// Puts, gets, fence, quiet and errors of every ABI arrive at the transport with the right meaning.
#include "fake_nvshmem/ops.h"
#include "nvshmem_efa/api.h"

using namespace fake;

TEST(a_put_becomes_one_put_at_the_address_of_the_target_on_the_lane_of_its_caller) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        CHECK_EQ(ops.rma(1, 40, 8, kDefaultQp), 0);
        CHECK_EQ(ops.rma(1, 7, 1, kHostQp, 0), 0);
        CHECK_EQ(ops.recorded.rmas.size(), 2u);
        const auto& [lane, op, bytes] = ops.recorded.rmas[0];
        CHECK(lane == Lane::kProxy && op.kind == RmaKind::kPut);
        CHECK_EQ(op.pe, 2);
        CHECK_EQ(op.bytes, 320u);
        CHECK_EQ(op.remote, reinterpret_cast<uint64_t>(remote_memory + 64));
        CHECK_EQ(op.local, local_memory + 32);
        CHECK_EQ(op.remote_handle->id, 1u);
        CHECK_EQ(op.local_handle->id, 2u);
        CHECK(!op.blocking && !op.copy_source);
        CHECK(ops.recorded.rmas[1].lane == Lane::kHost && ops.recorded.rmas[1].op.blocking);
    });
}

TEST(a_get_and_a_g_become_gets) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        CHECK_EQ(ops.rma(4, 16, 4, kDefaultQp), 0);
        CHECK_EQ(ops.rma(5, 1, 8, kDefaultQp), 0);
        CHECK_EQ(ops.rma(4, 16, 4, kHostQp, 0), 0);
        CHECK_EQ(ops.recorded.rmas.size(), 3u);
        for (const auto& seen : ops.recorded.rmas) CHECK(seen.op.kind == RmaKind::kGet && !seen.op.copy_source);
        CHECK(!ops.recorded.rmas[0].op.blocking && !ops.recorded.rmas[1].op.blocking);
        CHECK(ops.recorded.rmas[2].op.blocking);
    });
}

TEST(the_stack_value_of_a_p_is_copied_before_it_returns) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        {
            uint32_t value = 0xcafe0001;
            abi::RmaMemdesc remote{remote_memory, 0, &ops.remote_handle};
            abi::RmaMemdesc local{&value, 0, nullptr};
            auto* t = ops.host.t;
            CHECK_EQ(t->host_ops.rma(t, 3, {2, 0, 0, nullptr}, &remote, &local, {1, 4, 1, 1}, kDefaultQp), 0);
        }
        const auto& [lane, op, bytes] = ops.recorded.rmas.at(0);
        CHECK(op.copy_source && !op.blocking && op.local_handle == nullptr);
        CHECK_EQ(bytes, std::string("\x01\x00\xfe\xca", 4));
    });
}

TEST(a_g_into_the_stack_of_a_host_thread_goes_through_registered_memory) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        ops.recorded.get_data = "12345678";
        char value[8] = {};
        abi::RmaMemdesc remote{remote_memory, 0, &ops.remote_handle};
        abi::RmaMemdesc local{value, 0, nullptr};
        for (int times = 0; times < 2; ++times) {
            auto* t = ops.host.t;
            CHECK_EQ(t->host_ops.rma(t, 3, {5, 0, 0, nullptr}, &remote, &local, {1, 8, 1, 1}, kHostQp), 0);
        }
        CHECK_EQ(std::string(value, 8), "12345678");
        CHECK(ops.recorded.rmas.at(0).op.local != value && ops.recorded.rmas.at(0).op.blocking);
        CHECK_EQ(ops.recorded.registered.size(), 2u);  // nothing but the two handles: the scratch memory was there
    });
}

TEST(a_strided_put_of_a_host_thread_moves_element_by_element_and_waits_once) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        CHECK_EQ(ops.rma(1, 3, 4, kHostQp, 0, 5, 2), 0);
        CHECK_EQ(ops.recorded.rmas.size(), 3u);
        for (size_t i = 0; i < 3; ++i) {
            const RmaOp& op = ops.recorded.rmas[i].op;
            CHECK_EQ(op.local, local_memory + 32 + i * 5 * 4);
            CHECK_EQ(op.remote, reinterpret_cast<uint64_t>(remote_memory + 64 + i * 2 * 4));
            CHECK_EQ(op.bytes, 4u);
            CHECK(!op.blocking);
        }
        CHECK_EQ(ops.recorded.syncs.size(), 1u);
        CHECK_EQ(ops.recorded.syncs[0].what, "quiet");
    });
}

TEST(a_strided_get_strides_the_other_way_round) {
    Ops<V3> ops;
    CHECK_EQ(ops.rma(4, 2, 8, kHostQp, 1, 3, 1), 0);
    CHECK_EQ(ops.recorded.rmas.at(1).op.remote, reinterpret_cast<uint64_t>(remote_memory + 64 + 3 * 8));
    CHECK_EQ(ops.recorded.rmas.at(1).op.local, local_memory + 32 + 8);
    CHECK(ops.recorded.syncs.empty());
}

TEST(stride_fields_that_nobody_set_do_not_scatter_a_chunk) {
    Ops<V6<7>> ops;
    CHECK_EQ(ops.rma(1, 64, 1, kHostQp, 0, 0x7ffd12345678, 3), 0);
    CHECK_EQ(ops.rma(1, 64, 8, kDefaultQp, 1, 0, -4), 0);
    CHECK_EQ(ops.recorded.rmas.size(), 2u);
    CHECK_EQ(ops.recorded.rmas[0].op.bytes, 64u);
    CHECK_EQ(ops.recorded.rmas[1].op.bytes, 512u);
}

TEST(a_length_that_overflows_is_refused_by_name) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        CHECK_EQ(ops.rma(1, SIZE_MAX / 4 + 1, 8, kDefaultQp), 1);
        CHECK(std::strstr(nvshmem_efa_last_error(nullptr), "elements of 8 bytes"));
        CHECK_EQ(ops.rma(1, 4, -1, kDefaultQp), 1);
        CHECK_EQ(ops.rma(1, SIZE_MAX / 4, 4, kHostQp, 0, 1ll << 60, 1), 1);
        CHECK(ops.recorded.rmas.empty());
    });
}

TEST(nothing_to_move_is_nothing_to_do) {
    Ops<V3> ops;
    CHECK_EQ(ops.rma(1, 0, 8, kDefaultQp), 0);
    CHECK(ops.recorded.rmas.empty());
}

TEST(an_unknown_operation_is_refused_by_number) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        for (const int opcode : {0, 3, 6, 7, 8, 9, 100, 109, 1000, -1}) {
            CHECK_EQ(ops.rma(opcode, 1, 8, kDefaultQp), 3);
            CHECK(std::strstr(nvshmem_efa_last_error(nullptr), std::to_string(opcode).c_str()));
        }
        for (const int opcode : {0, 1, 11, 20, -3}) {
            CHECK_EQ(ops.amo(opcode, 8, kDefaultQp), 3);
            CHECK(std::strstr(nvshmem_efa_last_error(nullptr), std::to_string(opcode).c_str()));
        }
        CHECK(ops.recorded.rmas.empty() && ops.recorded.amos.empty());
    });
}

TEST(opcodes_with_the_queue_pair_offset_mean_the_same) {
    Ops<V6<7>> ops;
    CHECK_EQ(ops.rma(101, 1, 8, kDefaultQp), 0);
    CHECK_EQ(ops.rma(102, 1, 8, kDefaultQp), 0);
    CHECK_EQ(ops.rma(104, 1, 8, kDefaultQp), 0);
    CHECK(ops.recorded.rmas[1].op.copy_source && ops.recorded.rmas[2].op.kind == RmaKind::kGet);
}

TEST(a_pe_out_of_range_is_refused_by_name_for_every_operation) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        abi::RmaMemdesc desc{remote_memory, 0, &ops.remote_handle};
        abi::AmoMemdesc target{};
        typename V::Verb verb{};
        verb.desc = 4;
        auto* t = ops.host.t;
        for (const int pe : {-1, 4, 1 << 30}) {
            CHECK_EQ(t->host_ops.rma(t, pe, {1, 1, 0, nullptr}, &desc, &desc, {1, 1, 1, 1}, kDefaultQp), 1);
            CHECK(std::strstr(nvshmem_efa_last_error(nullptr), ("PE " + std::to_string(pe) + " of 4").c_str()));
            CHECK_EQ(t->host_ops.amo(t, pe, nullptr, verb, &target, {0, 8}, kDefaultQp), 1);
            CHECK_EQ(t->host_ops.quiet(t, pe, kDefaultQp), 1);
        }
        CHECK(ops.recorded.rmas.empty() && ops.recorded.amos.empty() && ops.recorded.syncs.empty());
    });
}

TEST(fence_and_quiet_go_to_the_lane_of_their_caller_or_to_both_when_all_is_meant) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        auto* t = ops.host.t;
        const auto fence = [t](int qp, [[maybe_unused]] int is_multi) {
            if constexpr (V::kAbi == 3) {
                return t->host_ops.fence(t, 2, qp);
            } else {
                return t->host_ops.fence(t, 2, qp, is_multi);
            }
        };
        CHECK_EQ(fence(kHostQp, 0), 0);
        CHECK_EQ(fence(kDefaultQp, 0), 0);
        CHECK_EQ(t->host_ops.quiet(t, 3, kHostQp), 0);
        CHECK_EQ(t->host_ops.quiet(t, 3, kDefaultQp), 0);
        CHECK_EQ(t->host_ops.progress(t), 0);
        const auto& syncs = ops.recorded.syncs;
        CHECK_EQ(syncs.size(), 5u);
        CHECK(syncs[0].what == "fence" && syncs[0].lane == Lane::kHost && syncs[0].pe == 2);
        CHECK(syncs[1].what == "fence" && syncs[1].lane == Lane::kProxy);
        CHECK(syncs[2].what == "quiet" && syncs[2].lane == Lane::kHost && syncs[2].pe == 3);
        CHECK(syncs[3].what == "quiet" && syncs[3].lane == Lane::kProxy);
        CHECK(syncs[4].what == "progress");
        ops.recorded.syncs.clear();
        if constexpr (V::kAbi > 3) {
            CHECK_EQ(t->host_ops.quiet(t, 3, INT_MAX), 0);
            CHECK_EQ(fence(INT_MAX, 0), 0);
            CHECK_EQ(fence(kDefaultQp, 1), 0);
            CHECK_EQ(ops.recorded.syncs.size(), 6u);
            for (size_t i = 0; i < 6; ++i) CHECK(ops.recorded.syncs[i].lane == (i % 2 ? Lane::kProxy : Lane::kHost));
        }
    });
}

TEST(queue_pairs_that_a_program_creates_get_numbers_of_their_own_and_share_the_proxys_lane) {
    Ops<V6<7>> ops;
    auto* t = ops.host.t;
    int device = 0, numbers[3] = {};
    CHECK_EQ(t->host_ops.connect_endpoints(t, &device, 1, numbers, 3), 0);
    CHECK(numbers[0] == 2 && numbers[1] == 3 && numbers[2] == 4);
    CHECK_EQ(t->host_ops.connect_endpoints(t, &device, 1, numbers, 1), 0);
    CHECK_EQ(numbers[0], 5);
    CHECK_EQ(ops.recorded.connected, 1);
    CHECK_EQ(ops.rma(1, 8, 1, 4), 0);
    CHECK(ops.recorded.rmas.back().lane == Lane::kProxy);
}

TEST(an_error_of_the_transport_becomes_its_number_and_stays_readable) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        ops.recorded.fails = Code::kTimeout;
        CHECK_EQ(ops.rma(1, 8, 1, kDefaultQp), 7);
        int code = 0;
        CHECK_EQ(std::string(nvshmem_efa_last_error(&code)), "failed by the fake; hint: nothing");
        CHECK_EQ(code, static_cast<int>(Code::kTimeout));
        ops.recorded.fails = Code::kResource;
        CHECK_EQ(ops.host.t->host_ops.quiet(ops.host.t, 2, kDefaultQp), 2);
        CHECK_EQ(ops.rma(1, 8, 1, kDefaultQp), 0);
    });
}

TEST(no_exception_crosses_the_abi) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        ops.recorded.throws = true;
        CHECK_EQ(ops.rma(1, 8, 1, kDefaultQp), 7);
        CHECK(std::strstr(nvshmem_efa_last_error(nullptr), "thrown by the fake"));
        ops.recorded.throws = true;
        CHECK_EQ(ops.host.t->host_ops.quiet(ops.host.t, 2, kDefaultQp), 7);
    });
}

TEST(a_handle_that_we_did_not_make_is_refused) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        ops.remote_handle.bytes[0] ^= 1;
        CHECK_EQ(ops.rma(1, 8, 1, kDefaultQp), 7);
        CHECK(std::strstr(nvshmem_efa_last_error(nullptr), "did not make"));
        CHECK_EQ(ops.amo(4, 8, kDefaultQp), 7);
        CHECK(ops.recorded.rmas.empty() && ops.recorded.amos.empty());
    });
}

TEST(enforce_cst_reads_back_through_the_device_only_where_that_can_matter) {
    for_every_abi([]<class V>() {
        Ops<V> ops;  // mode proxy, host memory only
        auto* t = ops.host.t;
        CHECK_EQ(t->host_ops.enforce_cst(t), 0);
        CHECK(ops.recorded.rmas.empty());
        ops.recorded.kind = MemoryKind::kCuda;
        abi::MemHandleBytes heap = ops.host.handle(remote_memory, sizeof remote_memory);
        CHECK_EQ(t->host_ops.enforce_cst(t), 0);
        const RmaOp& op = ops.recorded.rmas.at(0).op;
        CHECK(op.kind == RmaKind::kGet && op.blocking && op.pe == 1 && op.bytes == 8);
        CHECK_EQ(op.remote, reinterpret_cast<uint64_t>(remote_memory));
        CHECK_EQ(t->host_ops.release_mem_handle(&heap, t), 0);
        CHECK_EQ(t->host_ops.enforce_cst(t), 0);
        CHECK_EQ(ops.recorded.rmas.size(), 1u);
    });
}

TEST_MAIN()
