// SPDX-License-Identifier: Apache-2.0
// Normal mode: layout, notify, dispatch and combine of ranks that are threads, bit for bit as the oracle says.
#include <chrono>
#include <fstream>
#include <memory>

#include "ep_normal_rig.h"

using namespace ep_rig;

namespace {

void run_all(const Shape& shape, int workers = 1, int n_biases = 0) {
    Ranks ranks(shape.ranks(), [&](ep_options& o) { o.workers = workers; });
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange(shape, rank, group);
        exchange.run();
        exchange.combine_and_check(n_biases);
    });
    ranks.close_all();
}

// Whether shared memory that this process has mapped can still be opened by its name.
bool has_named_slabs() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);)
        if (line.find("nvshmem_efa_ep.") != std::string::npos && line.find("(deleted)") == std::string::npos) return true;
    return false;
}

// What each rank's call fails with, where rank `odd` passes something else.
std::vector<Error> dispatch_with(const Shape& shape, int odd, const std::function<void(ep_dispatch_args&)>& change, int timeout_ms = 20000) {
    Ranks ranks(shape.ranks(), [&](ep_options& o) { o.timeout_ms = timeout_ms; });
    std::vector<Error> errors(shape.tokens.size());
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange(shape, rank, group);
        exchange.make_layout();
        CHECK_OK(exchange.notify());
        ep_dispatch_args args = exchange.dispatch_args(false);
        if (rank == odd) change(args);
        const int64_t bytes = ep_dispatch_place(&args);
        if (bytes < 0) {
            errors[static_cast<size_t>(rank)] = error_of(static_cast<int>(Code::kInvalidArgument));
            return;
        }
        args.recv_block = ep_place(group, bytes);
        errors[static_cast<size_t>(rank)] = error_of(ep_dispatch(group, &args));
    });
    return errors;
}

}  // namespace

TEST(two_to_eight_ranks_get_their_tokens_in_order_and_back) {
    run_all({.tokens = {17, 30}, .hidden = 128, .n_scales = 3, .alignment = 8}, 1, 2);
    run_all({.tokens = {20, 1, 33}, .n_scales = 2, .column_scales = true, .seed = 2}, 2, 1);
    run_all({.tokens = {24, 9, 40, 13}, .hidden = 8, .topk = 6, .experts_each = 4, .channels = 5, .n_scales = 4, .column_scales = true, .seed = 3}, 3);
    run_all({.tokens = {8, 9, 10, 11, 12, 13, 14, 15}, .topk = 8, .experts_each = 1, .seed = 4}, 1, 2);
}

TEST(shapes_at_the_edges_work) {
    run_all({.tokens = {0, 12, 0}});                                                     // no tokens
    run_all({.tokens = {0, 0}});                                                         // none at all
    run_all({.tokens = {11, 7}, .choices = Shape::Choices::kOneExpert});                 // all to one expert
    run_all({.tokens = {11, 7}, .choices = Shape::Choices::kNone}, 1, 2);                // nobody sends
    run_all({.tokens = {5, 6}, .topk = 1, .experts_each = 1});                           // one expert a rank, one choice
    run_all({.tokens = {1, 1, 1, 1}, .channels = 10});                                   // fewer tokens than channels
    run_all({.tokens = {6, 6}, .topk = 32, .experts_each = 40, .spare_rows = 0});        // K at its most, n_worst == n
    run_all({.tokens = {3, 40}, .spare_rows = 17, .seed = 9}, 2, 1);                     // n_worst
}

TEST(a_cached_dispatch_needs_no_counts_and_gives_the_same_rows) {
    const Shape shape{.tokens = {14, 21, 8}, .n_scales = 2};
    Ranks ranks(3);
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange(shape, rank, group);
        exchange.run();
        ep_notify_args again = {};
        again.bytes = sizeof again;
        again.rank_prefix_matrix = exchange.matrix.data();
        CHECK_OK(error_of(ep_notify(group, &again)));
        CHECK_EQ(again.n_recv, exchange.n_recv);
        for (int i = 0; i < 3; ++i) {
            exchange.dispatch(true);
            exchange.check_received();
            CHECK(exchange.sent.recv_topk_idx == nullptr);
        }
    });
}

TEST(results_that_are_kept_are_not_overwritten_while_the_arena_grows) {
    Ranks ranks(3, [](ep_options& o) { o.nvl_bytes = 0; });
    std::atomic<bool> is_named{false};
    ranks.on_all([&](int rank, ep_group* group) {
        std::vector<std::unique_ptr<Exchange>> kept;
        for (uint64_t seed = 1; seed <= 6; ++seed) {
            const Shape shape{.tokens = {60, 70, 80}, .hidden = 2048 << (seed % 3), .seed = seed};
            kept.push_back(std::make_unique<Exchange>(shape, rank, group));
            kept.back()->run();
            ranks.meeting().barrier();
            if (has_named_slabs()) is_named = true;  // what the arenas grew by has lost its names, too
            ranks.meeting().barrier();
        }
        for (const auto& exchange : kept) exchange->check_received();
    });
    CHECK(!is_named);
    ranks.close_all();
}

TEST(exchanges_back_to_back_with_random_delays_stay_exact) {
    const int rounds = check::kIsSanitized ? 60 : 200;
    Ranks ranks(4);
    ranks.on_all([&](int rank, ep_group* group) {
        std::mt19937 random(static_cast<unsigned>(rank) + 5);
        const auto delay = [&] {
            if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
        };
        for (int round = 0; round < rounds; ++round) {
            Exchange exchange({.tokens = {4, 3, 0, 5}, .hidden = 16, .seed = static_cast<uint64_t>(round)}, rank, group);
            exchange.make_layout();
            delay();
            CHECK_OK(exchange.notify());
            delay();
            exchange.dispatch();
            exchange.check_received();
            delay();
            exchange.combine_and_check(round % 3);
        }
    });
    ranks.close_all();
}

TEST(blocks_that_another_thread_takes_meanwhile_are_apart) {
    Ranks ranks(2);
    ranks.on_all([&](int rank, ep_group* group) {
        std::atomic<bool> stop{false}, is_good{true};
        std::thread beside([&] {
            for (uint8_t mark = 1; !stop.load(); ++mark) {
                uint8_t* const block = static_cast<uint8_t*>(ep_place(group, 3000));
                std::memset(block, mark, 3000);
                std::this_thread::yield();
                for (int i = 0; i < 3000; ++i)
                    if (block[i] != mark) is_good = false;
                ep_unplace(group, block);
            }
        });
        try {
            for (uint64_t round = 0; round < 40; ++round) {
                Exchange exchange({.tokens = {9, 14}, .seed = round}, rank, group);
                exchange.run();
                exchange.combine_and_check(1);
            }
        } catch (const check::Failed&) {
            is_good = false;
        }
        stop = true;
        beside.join();
        CHECK(is_good.load());
    });
}

TEST(arguments_that_cannot_work_are_named) {
    const Shape shape{.tokens = {9, 9}};
    const auto refused = [&](const std::function<void(ep_dispatch_args&)>& change) { return dispatch_with(shape, 0, change, 50)[0]; };
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.row_bytes = 40; }), Code::kInvalidArgument, "row_bytes is 40");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.n_worst = a.n_recv - 1; }), Code::kInvalidArgument, "n_worst is");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.n_topk = 33; }), Code::kInvalidArgument, "n_topk is 33");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.x = nullptr; }), Code::kInvalidArgument, "x is null");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.n_recv += 1; }), Code::kInvalidArgument, "the rank_prefix_matrix says");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.n_experts = 5; }), Code::kInvalidArgument, "2 ranks do not divide");
    CHECK_FAILS(refused([](ep_dispatch_args& a) { a.n_experts = 2; }), Code::kInvalidArgument, "there are 2 experts");
    // A handle of another exchange must not lead a write astray.
    CHECK_FAILS(refused([](ep_dispatch_args& a) { const_cast<int32_t*>(a.send_head)[0] += 100000; }), Code::kInvalidArgument, "send_head of token 0");
    int32_t counts[4];
    uint8_t is_in[4];
    const int64_t choice[] = {0, 1, 7, -1};
    ep_layout_args layout = {sizeof layout, 2, 2, 4, 2, choice, counts, counts, is_in};
    CHECK_FAILS(error_of(ep_layout(&layout)), Code::kInvalidArgument, "topk_idx of token 1, choice 0 is 7");
    layout.n_experts = 3;
    CHECK_FAILS(error_of(ep_layout(&layout)), Code::kInvalidArgument, "n_experts is 3");
    layout.n_topk = 33;
    CHECK_FAILS(error_of(ep_layout(&layout)), Code::kInvalidArgument, "n_topk is 33");
}

TEST(a_block_that_is_too_small_is_refused) {
    Ranks ranks(2, [](ep_options& o) { o.timeout_ms = 50; });
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange({.tokens = {9, 9}}, rank, group);
        exchange.make_layout();
        CHECK_OK(exchange.notify());
        ep_dispatch_args args = exchange.dispatch_args(false);
        args.recv_block = ep_place(group, 128);
        CHECK_FAILS(error_of(ep_dispatch(group, &args)), Code::kInvalidArgument, "recv_block: the block at");
    });
}

TEST(sizes_that_differ_between_ranks_are_named) {
    const std::vector<Error> errors = dispatch_with({.tokens = {9, 9, 9}}, 2, [](ep_dispatch_args& a) { a.row_bytes -= 16; });
    CHECK_FAILS(errors[0], Code::kMismatch, "row_bytes is 112 on rank 2 and 128 on rank 0");
    CHECK_FAILS(errors[2], Code::kMismatch, "row_bytes is 128 on rank 0 and 112 on rank 2");
    Ranks ranks(2);
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange({.tokens = {9, 9}}, rank, group);
        exchange.make_layout();
        CHECK_FAILS(exchange.notify(rank == 0 ? 3 : 4), Code::kMismatch, "n_channels is");
    });
}

TEST(calls_that_differ_between_ranks_are_named) {
    Ranks ranks(2);
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange({.tokens = {9, 9}}, rank, group);
        exchange.make_layout();
        CHECK_OK(exchange.notify());
        if (rank == 0) {
            CHECK_FAILS(exchange.notify(), Code::kMismatch, "rank 1 called ep_dispatch while rank 0 called ep_notify");
        } else {
            exchange.sent = exchange.dispatch_args(false);
            exchange.place(exchange.sent);
            CHECK_FAILS(error_of(ep_dispatch(group, &exchange.sent)), Code::kMismatch, "rank 0 called ep_notify while rank 1 called ep_dispatch");
        }
    });
}

TEST(a_rank_that_died_is_named) {
    Ranks ranks(3, [](ep_options& o) { o.timeout_ms = 300; });
    ranks.on_all([&](int rank, ep_group* group) {
        Exchange exchange({.tokens = {9, 9, 9}}, rank, group);
        exchange.make_layout();
        CHECK_OK(exchange.notify());
        if (rank == 1) return;  // as if its process had ended here
        exchange.sent = exchange.dispatch_args(false);
        exchange.place(exchange.sent);
        CHECK_FAILS(error_of(ep_dispatch(group, &exchange.sent)), Code::kTimeout, "of rank 1");
    });
}

TEST(groups_without_one_domain_are_refused) {
    Ranks ranks(1);
    ep_notify_args args = {};
    args.bytes = sizeof args;
    CHECK_FAILS(error_of(ep_notify(ranks.group(0), &args)), Code::kUnsupported, "2 to 8 ranks");
}

TEST_MAIN()
