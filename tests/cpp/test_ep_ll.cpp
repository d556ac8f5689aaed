// SPDX-License-Identifier: Apache-2.0
// Low-latency dispatch and combine, bit by bit against the oracle of ep_ll_rig.h: by stores, by the network in each way to
// learn of arrivals, and by both.
#include <unistd.h>

#include "ep_ll_rig.h"

using namespace ll_rig;
using nvshmem_efa::Code;

namespace {

constexpr int kFormats[] = {EP_LL_BF16, EP_LL_FP8, EP_LL_FP8_ROUND, EP_LL_FP8_UE8M0};

Shape far_apart(int ranks, int arrivals) {
    Shape s;
    s.ranks = ranks;
    s.nvlink = 1;
    s.arrivals = arrivals;
    s.E = 3 * ranks;
    return s;
}

// All formats, all shapes of routes.
void exchange_all(const Shape& s, const char* describes) {
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        CHECK(std::strstr(ep_describe(group), describes) != nullptr);
        uint64_t seed = 1;
        for (const int format : kFormats) exchange(Round(s, seed++), rank, group, format);
        for (const Routes routes : {Routes::kNone, Routes::kOneExpert, Routes::kSomeIdle, Routes::kFull})
            exchange(Round(s, seed++, routes), rank, group, EP_LL_FP8);
        for (const int format : {EP_LL_BF16, EP_LL_FP8}) exchange(Round(s, seed++), rank, group, format, true);
    });
    ranks.close_all();
}

}  // namespace

TEST(by_stores_every_row_and_every_sum_is_what_the_oracle_says) {
    const Settings settings(bad_network("efa3"));
    for (const int n : {1, 2, 3, 4}) {
        Shape s;
        s.ranks = s.nvlink = n;
        s.E = 4 * n;
        exchange_all(s, "arrivals by stores");
    }
}

TEST(more_tokens_than_one_word_of_marks_has_bits_keep_their_order) {
    for (const int near : {1, 0}) {
        const Settings settings(bad_network("efa3"));
        Shape s;
        s.ranks = s.nvlink = 2;
        s.near = near;
        s.M = 70;
        s.H = 128;
        Ranks ranks(s.ranks, options_of(s));
        ranks.on_all([&](int rank, ep_group* group) {
            uint64_t seed = 1;
            for (const Routes routes : {Routes::kRandom, Routes::kFull, Routes::kRandom, Routes::kOneExpert})
                exchange(Round(s, seed++, routes), rank, group, EP_LL_BF16);
        });
        ranks.close_all();
    }
}

TEST(by_the_network_and_counters_with_everything_reordered_and_placed_twice) {
    const Settings settings(bad_network("efa3"));
    for (const int n : {2, 3}) exchange_all(far_apart(n, EP_ARRIVALS_COUNTERS), "arrivals by counters");
}

TEST(by_the_network_and_immediates_with_everything_reordered_and_placed_twice) {
    const Settings settings(bad_network("efa3"));
    for (const int n : {2, 4}) exchange_all(far_apart(n, EP_ARRIVALS_IMMEDIATES), "arrivals by immediates");
}

TEST(by_the_network_and_lines_with_everything_reordered) {
    const Settings settings(bad_network("efa4"));
    for (const int n : {2, 3}) exchange_all(far_apart(n, EP_ARRIVALS_LINES), "arrivals by lines");
    Shape s = far_apart(2, EP_ARRIVALS_LINES);  // tokens and rows that take two packets, which overtake each other
    s.H = 7168;
    s.M = 4;
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        for (uint64_t seed = 1; seed < 5; ++seed) exchange(Round(s, seed, Routes::kFull), rank, group, EP_LL_BF16);
    });
    ranks.close_all();
}

TEST(two_domains_of_two_use_stores_inside_and_the_network_between) {
    for (const int arrivals : {EP_ARRIVALS_COUNTERS, EP_ARRIVALS_LINES}) {
        const Settings settings(bad_network(arrivals == EP_ARRIVALS_LINES ? "efa4" : "efa3"));
        Shape s = far_apart(4, arrivals);
        s.nvlink = 2;
        exchange_all(s, arrivals == EP_ARRIVALS_LINES ? "arrivals by lines" : "arrivals by counters");
    }
}

TEST(without_nvlink_all_that_goes_between_ranks_goes_by_the_network_and_a_token_goes_once) {
    Settings settings({{"MODE", "soft"}, {"SOFT_RAILS", "1"}, {"LOG_LEVEL", "warn"}});
    Shape s;
    s.ranks = s.nvlink = 2;
    s.near = 0;
    s.K = 8;  // all experts: every token has four at each rank
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        const Round round(s, 5, Routes::kFull);
        Side side(s);
        const Side before = side;
        ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_FP8, EP_SEND | EP_RECV, side);
        CHECK_OK(error_of(ep_ll_dispatch(group, &args)));
        check_dispatch(round, rank, EP_LL_FP8, side, before);
        CHECK_OK(error_of(ep_ll_clean(group, s.M, s.H, s.E)));  // waits for all that was posted
        // M tokens, a record and a credit to the other rank; and one word of clean.
        CHECK(std::strstr(ep_stats_json(group), "\"gpu_work_requests\": 11") != nullptr);
    });
    ranks.close_all();
}

TEST(edges_of_the_shape_work) {
    const Settings settings(bad_network("efa3"));
    Shape one = far_apart(3, EP_ARRIVALS_COUNTERS);  // an expert a rank
    one.E = 3;
    Shape wide = far_apart(2, EP_ARRIVALS_COUNTERS);  // as many choices as a header takes
    wide.E = 12;
    wide.K = 11;
    Shape real = far_apart(2, EP_ARRIVALS_COUNTERS);  // the smallest hidden size of the list
    real.H = 2048;
    real.M = 16;
    real.E = 16;
    real.K = 8;
    Shape odd = far_apart(2, EP_ARRIVALS_COUNTERS);  // UE8M0 scales whose bytes are no multiple of 16
    odd.H = 2560;
    odd.M = 5;
    for (const Shape& s : {one, wide, real, odd}) {
        Ranks ranks(s.ranks, options_of(s));
        ranks.on_all([&](int rank, ep_group* group) {
            exchange(Round(s, 3, Routes::kFull), rank, group, EP_LL_FP8_UE8M0);
            exchange(Round(s, 4), rank, group, EP_LL_BF16);
        });
        ranks.close_all();
    }
}

TEST(eight_ranks_in_four_domains_with_several_threads_each) {
    const Settings settings(bad_network("efa3"));
    Shape s = far_apart(8, EP_ARRIVALS_AUTO);
    s.nvlink = 2;
    s.M = 4;
    s.K = 6;
    const auto options = options_of(s);
    Ranks ranks(s.ranks, [&](ep_options& o) {
        options(o);
        o.workers = 1 + o.rank % 3;
    });
    ranks.on_all([&](int rank, ep_group* group) {
        for (uint64_t i = 0; i < 4; ++i) exchange(Round(s, 60 + i), rank, group, kFormats[i], i % 2 == 1);
    });
    ranks.close_all();
}

TEST(two_dispatches_and_two_combines_may_be_between_send_and_receive) {
    const Settings settings(bad_network("efa3"));
    Shape s = far_apart(4, EP_ARRIVALS_AUTO);
    s.nvlink = 2;
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        for (uint64_t turn = 0; turn < 4; ++turn) {
            const Round rounds[] = {Round(s, 20 + turn), Round(s, 40 + turn)};
            Side sides[] = {Side(s), Side(s)};
            const Side before(s);
            const auto dispatch = [&](int i, int phase) {
                ep_ll_dispatch_args args = dispatch_args(rounds[i], rank, EP_LL_BF16, phase, sides[i]);
                return error_of(ep_ll_dispatch(group, &args));
            };
            const auto combine = [&](int i, int phase) {
                ep_ll_combine_args args = combine_args(rounds[i], rank, phase, sides[i]);
                return error_of(ep_ll_combine(group, &args));
            };
            for (const int i : {0, 1}) CHECK_OK(dispatch(i, EP_SEND));
            CHECK_FAILS(dispatch(1, EP_SEND), Code::kInvalidArgument, "third dispatch");
            for (const int i : {0, 1}) CHECK_OK(dispatch(i, EP_RECV));
            CHECK_FAILS(dispatch(1, EP_RECV), Code::kInvalidArgument, "no dispatch was sent");
            for (const int i : {0, 1}) {
                check_dispatch(rounds[i], rank, EP_LL_BF16, sides[i], before);
                answer(rounds[i], sides[i]);
                CHECK_OK(combine(i, EP_SEND));
            }
            for (const int i : {0, 1}) CHECK_OK(combine(i, EP_RECV));
            for (const int i : {0, 1}) check_combine(rounds[i], rank, sides[i]);
        }
    });
    ranks.close_all();
}

TEST(a_late_second_copy_never_meets_what_is_sent_to_its_place_next) {
    auto network = bad_network("efa3");
    network["SOFT_REORDER_NS"] = "1500000";  // second copies come later than two operations take
    const Settings settings(network);
    Shape s = far_apart(3, EP_ARRIVALS_COUNTERS);
    s.E = 6;
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        for (uint64_t i = 1; i < (check::kIsSanitized ? 8 : 20); ++i) exchange(Round(s, i), rank, group, EP_LL_BF16);
    });
    ranks.close_all();
}

TEST(a_rank_that_is_slow_to_receive_finds_what_was_sent_to_it) {
    for (const int arrivals : {EP_ARRIVALS_COUNTERS, EP_ARRIVALS_LINES}) {
        const Settings settings(bad_network(arrivals == EP_ARRIVALS_LINES ? "efa4" : "efa3"));
        Shape s = far_apart(4, arrivals);
        s.nvlink = 2;
        Ranks ranks(s.ranks, options_of(s));
        ranks.on_all([&](int rank, ep_group* group) {
            const Side before(s);
            const auto dispatch = [&](uint64_t i, int phase, Side& side) {
                const Round round(s, i);
                ep_ll_dispatch_args args = dispatch_args(round, rank, EP_LL_BF16, phase, side);
                CHECK_OK(error_of(ep_ll_dispatch(group, &args)));
                if (phase == EP_RECV) check_dispatch(round, rank, EP_LL_BF16, side, before);
            };
            // The fast are two ahead of the slow, and no further.
            Side sending(s);
            dispatch(1, EP_SEND, sending);
            for (uint64_t i = 1; i < (check::kIsSanitized ? 10 : 24); ++i) {
                dispatch(i + 1, EP_SEND, sending);
                if (i % 4 == static_cast<uint64_t>(rank)) usleep(3000);
                Side side(s);
                dispatch(i, EP_RECV, side);
            }
        });
    }
}

TEST(a_hundred_in_a_row_with_ranks_that_are_late_by_chance) {
    const Settings settings(bad_network("efa3"));
    Shape s = far_apart(4, EP_ARRIVALS_AUTO);
    s.nvlink = 2;
    s.M = 4;
    s.E = 4;
    s.K = 2;
    Ranks ranks(s.ranks, options_of(s));
    ranks.on_all([&](int rank, ep_group* group) {
        nvshmem_efa::soft::Prng random(static_cast<uint64_t>(rank));
        for (uint64_t i = 0; i < (check::kIsSanitized ? 25 : 100); ++i) {
            if (random.below(4) == 0) usleep(static_cast<useconds_t>(random.below(500)));
            exchange(Round(s, 100 + i), rank, group, kFormats[i % 4], i % 3 == 0);
        }
    });
    ranks.close_all();
}

TEST_MAIN()
