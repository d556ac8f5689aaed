// SPDX-License-Identifier: Apache-2.0
// Plugin ABI 3: a put of the proxy and the signal behind it leave as one put_signal, and nothing overtakes a held put.
#include <cstring>

#include "fake_nvshmem/ops.h"

using namespace fake;

namespace {

constexpr int kPut = 1, kSignalSet = 9, kAmoAdd = 4;

struct Proxy {
    Ops<V3> ops;
    int put(int pe = 2, size_t bytes = 64) {
        abi::RmaMemdesc remote{remote_memory + 64, 0, &ops.remote_handle};
        abi::RmaMemdesc local{local_memory + 32, 0, &ops.local_handle};
        return ops.host.t->host_ops.rma(ops.host.t, pe, {kPut, 1, 0, nullptr}, &remote, &local, {bytes, 1, 1, 1}, kDefaultQp);
    }
    int fence(int pe = 2) { return ops.host.t->host_ops.fence(ops.host.t, pe, kDefaultQp); }
    int quiet(int pe = 2) { return ops.host.t->host_ops.quiet(ops.host.t, pe, kDefaultQp); }
};

}  // namespace

TEST(put_fence_signal_leave_as_one_put_signal) {
    Proxy proxy;
    CHECK_EQ(proxy.put(), 0);
    CHECK(proxy.ops.recorded.rmas.empty());
    CHECK_EQ(proxy.fence(), 0);
    CHECK_EQ(proxy.ops.amo(kSignalSet, 8, kDefaultQp), 0);
    CHECK(proxy.ops.recorded.rmas.empty() && proxy.ops.recorded.amos.empty());
    CHECK_EQ(proxy.ops.recorded.put_signals.size(), 1u);
    const auto& sent = proxy.ops.recorded.put_signals[0];
    CHECK(sent.lane == Lane::kProxy && sent.puts.size() == 1);
    CHECK_EQ(sent.puts[0].bytes, 64u);
    CHECK_EQ(sent.puts[0].remote, reinterpret_cast<uint64_t>(remote_memory + 64));
    CHECK_EQ(sent.signal.remote, reinterpret_cast<uint64_t>(remote_memory + 128));
    CHECK_EQ(proxy.quiet(), 0);
    CHECK_EQ(proxy.ops.recorded.put_signals.size(), 1u);
}

TEST(a_signal_without_a_fence_is_ordered_behind_its_put_all_the_same) {
    Proxy proxy;
    CHECK_EQ(proxy.put(), 0);
    CHECK_EQ(proxy.ops.amo(kSignalSet, 8, kDefaultQp), 0);
    CHECK_EQ(proxy.ops.recorded.put_signals.size(), 1u);
}

TEST(the_last_piece_carries_the_signal_and_a_fence_orders_it_behind_the_others) {
    Proxy proxy;
    for (int i = 0; i < 3; ++i) CHECK_EQ(proxy.put(), 0);
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 2u);
    CHECK_EQ(proxy.ops.amo(kSignalSet, 8, kDefaultQp), 0);
    CHECK_EQ(proxy.ops.recorded.put_signals.size(), 1u);
    CHECK_EQ(proxy.ops.recorded.syncs.back().what, "fence");
    CHECK_EQ(proxy.ops.recorded.syncs.back().pe, 2);
}

TEST(a_signal_with_nothing_held_is_fenced_and_sent_alone) {
    Proxy proxy;
    CHECK_EQ(proxy.ops.amo(kSignalSet, 8, kDefaultQp), 0);
    CHECK_EQ(proxy.ops.recorded.amos.size(), 1u);
    CHECK_EQ(proxy.ops.recorded.syncs.back().what, "fence");
}

TEST(a_held_put_leaves_before_anything_else_does) {
    Proxy proxy;
    CHECK_EQ(proxy.put(3), 0);
    CHECK_EQ(proxy.ops.amo(kSignalSet, 8, kDefaultQp), 0);  // to PE 2
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 1u);
    CHECK_EQ(proxy.ops.recorded.rmas[0].op.pe, 3);
    CHECK(proxy.ops.recorded.put_signals.empty());
    CHECK_EQ(proxy.put(), 0);
    CHECK_EQ(proxy.ops.amo(kAmoAdd, 8, kDefaultQp), 0);  // an atomic is no signal
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 2u);
    CHECK_EQ(proxy.put(), 0);
    CHECK_EQ(proxy.quiet(), 0);
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 3u);
    CHECK_EQ(proxy.ops.recorded.syncs.back().what, "quiet");
}

TEST(a_fence_behind_a_held_put_counts_when_the_put_leaves) {
    Proxy proxy;
    CHECK_EQ(proxy.put(), 0);
    CHECK_EQ(proxy.fence(), 0);
    CHECK_EQ(proxy.put(), 0);  // posts the first, then fences it
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 1u);
    CHECK_EQ(proxy.ops.recorded.syncs.size(), 2u);
    CHECK_EQ(proxy.ops.recorded.syncs.back().what, "fence");
}

TEST(a_held_put_keeps_its_handles_and_leaves_by_itself_soon) {
    Proxy proxy;
    CHECK_EQ(proxy.put(), 0);
    std::memset(&proxy.ops.remote_handle, 0, sizeof proxy.ops.remote_handle);  // the host may move its table
    std::memset(&proxy.ops.local_handle, 0, sizeof proxy.ops.local_handle);
    CHECK_EQ(proxy.ops.release_held(), 0);
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 1u);
    CHECK_EQ(proxy.ops.recorded.rmas[0].op.remote_handle->id, 1u);
    CHECK_EQ(proxy.ops.recorded.rmas[0].op.local_handle->id, 2u);
}

TEST(host_calls_and_later_abis_hold_nothing_back) {
    Proxy proxy;
    CHECK_EQ(proxy.ops.rma(kPut, 8, 1, kHostQp, 1), 0);
    CHECK_EQ(proxy.ops.recorded.rmas.size(), 1u);
    Ops<V4<4>> four;
    CHECK_EQ(four.rma(kPut, 8, 1, kDefaultQp), 0);
    CHECK_EQ(four.recorded.rmas.size(), 1u);
}

TEST_MAIN()
