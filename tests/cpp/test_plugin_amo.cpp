// SPDX-License-Identifier: Apache-2.0
// Atomics and put_signal of every ABI arrive at the transport with the right meaning.
#include "fake_nvshmem/ops.h"
#include "nvshmem_efa/api.h"

using namespace fake;

namespace {

struct AmoCase {
    int opcode;
    WordOp op;
    bool is_fetching;
    bool is_increment;
};
constexpr AmoCase kAmoCases[] = {
    {2, WordOp::kAdd, false, true},   {3, WordOp::kSet, false, false},  {4, WordOp::kAdd, false, false},
    {5, WordOp::kAnd, false, false},  {6, WordOp::kOr, false, false},   {7, WordOp::kXor, false, false},
    {8, WordOp::kSet, false, false},  {9, WordOp::kSet, false, false},  {10, WordOp::kAdd, false, false},
    {12, WordOp::kFetch, true, false}, {13, WordOp::kAdd, true, true},  {14, WordOp::kAdd, true, false},
    {15, WordOp::kAnd, true, false},  {16, WordOp::kOr, true, false},   {17, WordOp::kXor, true, false},
    {18, WordOp::kSwap, true, false}, {19, WordOp::kCompareSwap, true, false}};

}  // namespace

TEST(every_atomic_becomes_the_word_operation_that_it_means) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        uint64_t result[2] = {};
        for (const AmoCase& test : kAmoCases) {
            for (const int bytes : {2, 4, 8}) {
                CHECK_EQ(ops.amo(test.opcode, bytes, kDefaultQp, result), 0);
                const auto& [lane, op] = ops.recorded.amos.back();
                CHECK(lane == Lane::kProxy && op.op == test.op && op.fetching == test.is_fetching);
                CHECK(op.type == WordType::kInteger);
                CHECK_EQ(op.pe, 2);
                CHECK_EQ(static_cast<int>(op.bytes), bytes);
                CHECK_EQ(op.remote, reinterpret_cast<uint64_t>(remote_memory + 128));
                CHECK_EQ(op.remote_handle->id, 1u);
                CHECK_EQ(op.operand, test.is_increment ? 1u : 0x1122334455667788ull);
                CHECK_EQ(op.compare, 0x99u);
                CHECK_EQ(op.result, test.is_fetching ? result : nullptr);
                CHECK_EQ(op.result_flag, test.is_fetching ? 77u : 0u);
            }
        }
    });
}

TEST(floats_are_floats_from_abi_6_on) {
    Ops<V6<6>> six;
    CHECK_EQ(six.amo(4, 4, kDefaultQp, nullptr, 1), 0);
    CHECK(six.recorded.amos.back().op.type == WordType::kFloat);
    CHECK_EQ(six.amo(2, 8, kDefaultQp, nullptr, 1), 0);
    CHECK_EQ(six.recorded.amos.back().op.operand, 0x3ff0000000000000ull);  // 1.0
    CHECK_EQ(six.amo(4, 8, kDefaultQp, nullptr, 0), 0);
    CHECK(six.recorded.amos.back().op.type == WordType::kInteger);
    CHECK_EQ(six.amo(0x80 | 4, 8, kDefaultQp, nullptr, 0), 0);
    CHECK(six.recorded.amos.back().op.type == WordType::kFloat);
}

TEST(an_atomic_of_odd_size_or_place_or_without_room_for_its_result_is_refused) {
    for_every_abi([]<class V>() {
        Ops<V> ops;
        for (const int bytes : {0, 1, 3, 16, -8}) CHECK_EQ(ops.amo(4, bytes, kDefaultQp), 1);
        CHECK_EQ(ops.amo(12, 8, kDefaultQp, nullptr), 1);
        CHECK(std::strstr(nvshmem_efa_last_error(nullptr), "nowhere to put its result"));
        abi::AmoMemdesc target{};
        target.remote = {remote_memory + 2, 0, &ops.remote_handle};
        typename V::Verb verb{};
        verb.desc = 4;
        CHECK_EQ(ops.host.t->host_ops.amo(ops.host.t, 2, nullptr, verb, &target, {0, 4}, kDefaultQp), 1);
        CHECK(ops.recorded.amos.empty());
    });
}

TEST(put_signal_takes_all_its_pieces_and_its_signal_in_one_call) {
    const auto check = []<class V>() {
        Ops<V> ops;
        for (const size_t pieces : {1u, 3u, 40u}) {
            std::vector<abi::RmaMemdesc> remote, local;
            std::vector<abi::RmaBytesdesc> bytes;
            for (size_t i = 0; i < pieces; ++i) {
                remote.push_back({remote_memory + i, 0, &ops.remote_handle});
                local.push_back({local_memory + i, 0, &ops.local_handle});
                bytes.push_back({i == 1 ? 0 : i + 1, 1, 1, 1});  // the second is empty, and vanishes
            }
            abi::AmoMemdesc signal{};
            signal.remote = {remote_memory + 256, 0, &ops.remote_handle};
            signal.value = 5;
            typename V::Verb verb{};
            verb.desc = pieces == 3 ? 9 : 10;
            auto* t = ops.host.t;
            CHECK_EQ(t->host_ops.put_signal(t, 3, {3, 1, 0, nullptr}, remote, local, bytes, verb, &signal, {0, 8},
                                            pieces == 3 ? kHostQp : kDefaultQp),
                     0);
            const auto& seen = ops.recorded.put_signals.back();
            CHECK(seen.lane == (pieces == 3 ? Lane::kHost : Lane::kProxy));
            CHECK_EQ(seen.puts.size(), pieces - (pieces > 1));
            CHECK_EQ(seen.puts.back().bytes, pieces);
            CHECK_EQ(seen.puts.back().local, local_memory + pieces - 1);
            CHECK_EQ(seen.puts.back().pe, 3);
            CHECK(seen.signal.op == (pieces == 3 ? WordOp::kSet : WordOp::kAdd) && !seen.signal.fetching);
            CHECK_EQ(seen.signal.operand, 5u);
            CHECK_EQ(seen.signal.remote, reinterpret_cast<uint64_t>(remote_memory + 256));
        }
    };
    check.operator()<V4<4>>();
    check.operator()<V4<5>>();
    check.operator()<V6<6>>();
    check.operator()<V6<7>>();
}

TEST(put_signal_refuses_vectors_of_different_lengths_and_signals_that_are_none) {
    Ops<V4<4>> ops;
    std::vector<abi::RmaMemdesc> one{{remote_memory, 0, &ops.remote_handle}}, two(2, one[0]);
    std::vector<abi::RmaBytesdesc> bytes{{1, 1, 1, 1}};
    abi::AmoMemdesc signal{};
    signal.remote = one[0];
    auto* t = ops.host.t;
    const abi::RmaVerb put{3, 1, 0, nullptr};
    CHECK_EQ(t->host_ops.put_signal(t, 3, put, two, one, bytes, {9, 0, 1, 0}, &signal, {0, 8}, kDefaultQp), 1);
    CHECK_EQ(t->host_ops.put_signal(t, 3, put, one, one, bytes, {7, 0, 1, 0}, &signal, {0, 8}, kDefaultQp), 3);
    CHECK(ops.recorded.put_signals.empty());
}

TEST_MAIN()
