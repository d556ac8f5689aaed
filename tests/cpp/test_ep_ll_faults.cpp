// SPDX-License-Identifier: Apache-2.0
// What the low-latency mode does when ranks are late, masked, differ, or ask for what cannot be; and how it begins anew.
#include "ep_ll_rig.h"

using namespace ll_rig;
using nvshmem_efa::Code;

namespace {

Shape mixed(int arrivals = EP_ARRIVALS_AUTO) {
    Shape s;
    s.nvlink = 2;
    s.arrivals = arrivals;
    return s;
}

ep_rig::Error dispatch(const Round& round, int rank, ep_group* group, Side& side, int format = EP_LL_BF16) {
    ep_ll_dispatch_args args = dispatch_args(round, rank, format, EP_SEND | EP_RECV, side);
    return error_of(ep_ll_dispatch(group, &args));
}

std::set<int> masks_of(ep_group* group, int n) {
    std::vector<int32_t> masks(static_cast<size_t>(n), -1);
    CHECK_OK(error_of(ep_ll_masked(group, masks.data())));
    std::set<int> masked;
    for (int rank = 0; rank < n; ++rank)
        if (masks[static_cast<size_t>(rank)] == 1) masked.insert(rank);
    return masked;
}

// What takes a deadline's time, side by side. Deadlines are long enough for a busy machine.
void at_once(const std::vector<std::function<void()>>& scenes) {
    std::vector<std::thread> threads;
    std::atomic<bool> failed{false};
    for (const auto& scene : scenes)
        threads.emplace_back([&] {
            try {
                scene();
            } catch (const check::Failed&) {
                failed = true;
            }
        });
    for (std::thread& thread : threads) thread.join();
    if (failed) throw check::Failed{};
}
constexpr int kDeadlineMs = check::kIsSanitized ? 2500 : 1200;

void one_does_not_come(int missing) {
    Ranks ranks(4, options_of(mixed(), kDeadlineMs));
    ranks.on_all([&](int rank, ep_group* group) {
        if (rank == missing) return;
        const Round round(mixed(), 1);
        Side side(round.shape);
        const std::string part = "for the counts of rank " + std::to_string(missing);
        CHECK_FAILS(dispatch(round, rank, group, side), Code::kTimeout, part.c_str());
        CHECK(side.waits[static_cast<size_t>(missing)] >= int64_t{kDeadlineMs} * 1'000'000);
        CHECK_FAILS(dispatch(round, rank, group, side), Code::kPeer, "of no use since");
    });
}

void one_does_not_combine() {
    Ranks ranks(4, options_of(mixed(), kDeadlineMs));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(mixed(), 1, Routes::kFull);
        Side side(round.shape);
        CHECK_OK(dispatch(round, rank, group, side));
        if (rank == 2) return;
        answer(round, side);
        ep_ll_combine_args args = combine_args(round, rank, EP_SEND | EP_RECV, side);
        CHECK_FAILS(error_of(ep_ll_combine(group, &args)), Code::kTimeout, "for the rows of rank 2");
    });
}

void one_receives_nothing() {
    Shape s = mixed();
    s.ranks = 2;
    s.nvlink = 1;
    Ranks ranks(2, options_of(s, kDeadlineMs));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(s, 1);
        Side side(s);
        for (int i = 0; i < 2; ++i) {
            ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_BF16, EP_SEND, side);
            CHECK_OK(error_of(ep_ll_dispatch(group, &args)));
        }
        if (rank == 1) return;  // its device lives on
        ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_BF16, EP_RECV, side);
        CHECK_OK(error_of(ep_ll_dispatch(group, &args)));
        args.phases = EP_SEND;
        CHECK_FAILS(error_of(ep_ll_dispatch(group, &args)), Code::kTimeout, "for the credit of rank 1");
    });
}

void one_is_late_and_masked() {
    Ranks ranks(4, options_of(mixed(), kDeadlineMs, 1));
    ranks.on_all([&](int rank, ep_group* group) {
        exchange(Round(mixed(), 1), rank, group, EP_LL_BF16);
        if (rank == 3) return;
        for (uint64_t i = 2; i < 5; ++i) {
            Round round(mixed(), i, Routes::kFull);
            round.masked = {3};
            exchange(round, rank, group, EP_LL_BF16);
            CHECK(masks_of(group, 4) == std::set<int>{3});
        }
    });
}

}  // namespace

TEST(a_late_rank_is_named_or_masked_by_each_wait_within_the_deadline) {
    const Settings settings(bad_network("efa3"));
    // Rank 0 reaches rank 1 by stores, and rank 3 by the network.
    at_once({[] { one_does_not_come(1); }, [] { one_does_not_come(3); }, one_does_not_combine, one_receives_nothing, one_is_late_and_masked});
}

TEST(masked_ranks_are_left_out_both_ways_and_come_back) {
    for (const int arrivals : {EP_ARRIVALS_COUNTERS, EP_ARRIVALS_IMMEDIATES, EP_ARRIVALS_LINES}) {
        const Settings settings(bad_network(arrivals == EP_ARRIVALS_LINES ? "efa4" : "efa3"));
        const Shape s = mixed(arrivals);
        Ranks ranks(4, options_of(s, 20000, 1));
        ranks.on_all([&](int rank, ep_group* group) {
            exchange(Round(s, 1), rank, group, EP_LL_BF16);
            for (uint64_t i = 2; i < 6 && rank != 2; ++i) {
                CHECK_OK(error_of(ep_ll_mask(group, 2, 1)));
                Round round(s, i);
                round.masked = {2};
                exchange(round, rank, group, EP_LL_FP8);
                CHECK(masks_of(group, 4) == std::set<int>{2});
            }
            // Rank 2 has made fewer calls; clean() has all go on together.
            CHECK_OK(error_of(ep_ll_unmask_all(group)));
            CHECK_OK(error_of(ep_ll_clean(group, s.M, s.H, s.E)));
            for (uint64_t i = 6; i < 9; ++i) exchange(Round(s, i), rank, group, EP_LL_FP8);
        });
        ranks.close_all();
    }
}

TEST(another_shape_needs_a_clean_buffer_and_then_works) {
    for (const int arrivals : {EP_ARRIVALS_COUNTERS, EP_ARRIVALS_LINES}) {
        const Settings settings(bad_network(arrivals == EP_ARRIVALS_LINES ? "efa4" : "efa3"));
        const Shape large = mixed(arrivals);
        Shape small = large;
        small.H = 1024;
        small.M = 3;
        small.E = 4;
        Ranks ranks(4, options_of(large));
        ranks.on_all([&](int rank, ep_group* group) {
            Side side(large);
            for (uint64_t i = 0; i < 3; ++i) exchange(Round(large, i), rank, group, EP_LL_FP8);
            CHECK_FAILS(dispatch(Round(small, 9), rank, group, side), Code::kInvalidArgument, "clean_low_latency_buffer");
            for (const Shape& s : {small, large}) {
                CHECK_OK(error_of(ep_ll_clean(group, s.M, s.H, s.E)));
                for (uint64_t i = 0; i < 3; ++i) exchange(Round(s, 10 + i), rank, group, EP_LL_FP8);
            }
        });
        ranks.close_all();
    }
}

TEST(ranks_that_differ_in_format_are_told) {
    const Settings settings(bad_network("efa3"));
    Ranks ranks(4, options_of(mixed()));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(mixed(), 1);
        Side side(round.shape);
        const ep_rig::Error error = dispatch(round, rank, group, side, rank == 3 ? EP_LL_FP8 : EP_LL_BF16);
        CHECK_FAILS(error, Code::kMismatch, rank == 3 ? "than rank 3 receives" : "rank 3 sends in another shape or format");
    });
}

TEST(lines_are_refused_by_name_where_devices_do_not_place_them_whole) {
    const Settings settings(bad_network("efa3"));
    Ranks ranks(2, Ranks::Closed{});
    ranks.on_all_threads([&](int rank) {
        Shape s;
        s.ranks = 2;
        s.nvlink = 1;
        s.arrivals = EP_ARRIVALS_LINES;
        CHECK_FAILS(ranks.open(rank, options_of(s)), Code::kUnsupported, "128-byte data polling");
    });
}

TEST(without_a_way_in_particular_it_takes_counters_where_there_are_any_and_else_immediates) {
    for (const std::string profile : {"efa2", "efa3", "efa4"}) {
        const Settings settings(bad_network(profile.c_str()));
        Shape s;
        s.ranks = 2;
        s.nvlink = 1;
        Ranks ranks(2, options_of(s));
        const char* const expected = profile == "efa2" ? "arrivals by immediates" : "arrivals by counters";
        ranks.on_all([&](int rank, ep_group* group) {
            CHECK(std::strstr(ep_describe(group), expected) != nullptr);
            for (uint64_t i = 1; i < 4; ++i) exchange(Round(s, i), rank, group, EP_LL_FP8);
        });
        ranks.close_all();
    }
}

TEST(more_than_the_immediates_of_a_device_can_tell_is_refused_by_name) {
    const Settings settings(bad_network("efa2"));  // 8192 receive descriptors
    Shape s;
    s.ranks = 2;
    s.nvlink = 1;
    s.E = 16;
    s.M = 1024;
    Ranks ranks(2, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(s, 1, Routes::kNone);
        Side side(s);
        ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_BF16, EP_SEND | EP_RECV, side);
        CHECK_FAILS(error_of(ep_ll_dispatch(group, &args)), Code::kResource, "M=1024 with 2 ranks may bring 26624 of them");
    });
    ranks.close_all();
}

TEST(each_argument_that_cannot_be_is_refused_by_name_and_harms_nothing) {
    const Settings settings(bad_network("efa3"));
    const Shape s = mixed();
    Ranks ranks(4, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(s, 1, Routes::kFull);
        Side side(s);
        const auto refuse = [&](const char* part, const std::function<void(ep_ll_dispatch_args&)>& change, Code code = Code::kInvalidArgument) {
            ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_FP8, EP_SEND | EP_RECV, side);
            change(args);
            CHECK_FAILS(error_of(ep_ll_dispatch(group, &args)), code, part);
        };
        refuse("bytes", [](auto& a) { a.bytes -= 4; }, Code::kMismatch);
        refuse("phases", [](auto& a) { a.phases = 0; });
        refuse("the format", [](auto& a) { a.format = 4; });
        refuse("the number of tokens", [&](auto& a) { a.n_tokens = s.M + 1; });
        refuse("hidden", [](auto& a) { a.hidden = 100; });
        refuse("multiple of 512", [](auto& a) { a.hidden = 640; });
        refuse("num_topk", [](auto& a) { a.n_topk = 12; });
        refuse("num_max_dispatch_tokens_per_rank", [](auto& a) { a.max_tokens = 0; });
        refuse("num_experts is 9", [](auto& a) { a.n_experts = 9; });
        refuse("topk_idx", [](auto& a) { a.topk_idx = nullptr; });
        refuse("x is missing", [](auto& a) { a.x = nullptr; });
        refuse("x is not aligned", [](auto& a) { a.x = static_cast<const char*>(a.x) + 2; });
        refuse("recv_scales", [](auto& a) { a.recv_scales = nullptr; });
        refuse("recv_count", [](auto& a) { a.recv_count = nullptr; });
        std::vector<int64_t> wrong = round.of[static_cast<size_t>(rank)].topk;
        wrong[4] = s.E;
        refuse("topk_idx[1][1] is 8", [&](auto& a) { a.topk_idx = wrong.data(); });
        wrong[4] = wrong[3];
        refuse("twice", [&](auto& a) { a.topk_idx = wrong.data(); });
        CHECK_OK(dispatch(round, rank, group, side));
        Side broken = side;
        broken.range[0] = int64_t{1} << 32 | 1000;
        ep_ll_combine_args combine = combine_args(round, rank, EP_SEND | EP_RECV, broken);
        CHECK_FAILS(error_of(ep_ll_combine(group, &combine)), Code::kInvalidArgument, "layout_range[0][0]");
        CHECK_FAILS(error_of(ep_ll_mask(group, (rank + 1) % 4, 1)), Code::kInvalidArgument, "enable_shrink");
        exchange(Round(s, 2), rank, group, EP_LL_FP8);
    });
    ranks.close_all();
}

TEST(the_buffer_needs_no_more_than_deepep_says_for_usual_shapes) {
    const auto deepep = [](int64_t M, int64_t H, int64_t E) {
        const int64_t dispatch = 16 + std::max(2 * H, H + H / 32), combine = H / 32 + 2 * H;
        const int64_t send = std::max(M * dispatch, E * M * combine), recv = std::max(E * M * dispatch, E * M * combine);
        return 2 * send + 2 * recv + 2 * ((4 * E + 127) / 128 * 128);
    };
    CHECK_EQ((deepep(128, 7168, 288) + 128) / 128 * 128, 2146961792);
    for (const int ranks : {2, 4, 8, 16, 32, 64})
        for (const int H : {2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192})
            for (const int E : {128, 256, 320})
                for (const int M : {1, 16, 128, 256, 1024}) CHECK(ep_ll_bytes(M, H, ranks, E) <= deepep(M, H, E));
    CHECK_EQ(ep_ll_bytes(128, 7168, 3, 256), -1);
    const Settings settings(bad_network("efa3"));
    Ranks ranks(2, [](ep_options& options) {
        options.low_latency = 1;
        options.rdma_bytes = 4096;
    });
    ranks.on_all([&](int rank, ep_group* group) {
        Shape s;
        s.ranks = 2;
        Side side(s);
        CHECK_FAILS(dispatch(Round(s, 1), rank, group, side), Code::kInvalidArgument, "num_rdma_bytes is 4096");
    });
    ranks.close_all();
}

TEST_MAIN()
