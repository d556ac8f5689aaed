// SPDX-License-Identifier: Apache-2.0
// Groups: opening and closing, barriers, the arena, and how a rank that is late, gone or different is named.
#include <chrono>
#include <cstdlib>
#include <fstream>

#include "ep_rig.h"
#include "host/arena.h"
#include "host/control.h"
#include "host/workers.h"

using namespace ep_rig;
using namespace nvshmem_efa;

namespace {

// Of the shared memory that this process has mapped: how much there is, and how much still has a name.
struct Mapped {
    int slabs = 0, with_name = 0;
};
Mapped mapped_slabs() {
    Mapped mapped;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        if (line.find("nvshmem_efa_ep.") == std::string::npos) continue;
        ++mapped.slabs;
        mapped.with_name += line.find("(deleted)") == std::string::npos ? 1 : 0;
    }
    return mapped;
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

ep_options valid_options() {
    ep_options options = default_options(2);
    options.rank = 0;
    return options;
}

// Opens with one field of rank `odd` changed; the error of each rank.
std::vector<Error> open_with(int n, int odd, const std::function<void(ep_options&)>& change) {
    Ranks ranks(n, Ranks::Closed{});
    std::vector<Error> errors(static_cast<size_t>(n));
    ranks.on_all_threads([&](int rank) {
        errors[static_cast<size_t>(rank)] = ranks.open(rank, [&](ep_options& options) {
            if (rank == odd) change(options);
        });
    });
    return errors;
}

}  // namespace

TEST(groups_open_meet_at_barriers_and_close) {
    for (const int n : {1, 2, 3, 8}) {
        Ranks ranks(n);
        std::atomic<int> here{0};
        ranks.on_all([&](int, ep_group* group) {
            for (int round = 1; round <= 20; ++round) {
                here.fetch_add(1);
                CHECK_OK(error_of(ep_barrier(group)));
                CHECK(here.load() >= round * n);
            }
        });
        ranks.close_all();
    }
}

TEST(several_groups_of_one_process_do_not_see_each_other) {
    Ranks one(2), other(2);
    std::thread beside([&] { other.on_all([&](int, ep_group* group) { CHECK_OK(error_of(ep_barrier(group))); }); });
    one.on_all([&](int, ep_group* group) {
        for (int i = 0; i < 50; ++i) CHECK_OK(error_of(ep_barrier(group)));
    });
    beside.join();
    one.close_all();
    other.on_all([&](int, ep_group* group) { CHECK_OK(error_of(ep_barrier(group))); });
}

TEST(shared_memory_has_no_name_once_a_group_is_open) {
    Ranks ranks(3);
    CHECK(mapped_slabs().slabs >= 9);
    CHECK_EQ(mapped_slabs().with_name, 0);
    ranks.close_all();
    CHECK_EQ(mapped_slabs().slabs, 0);
}

TEST(each_option_out_of_range_is_named) {
    const struct {
        const char* name;
        void (*change)(ep_options&);
    } cases[] = {{"nvlink_ranks is 0", [](ep_options& o) { o.nvlink_ranks = 0; }},
                 {"workers is 17", [](ep_options& o) { o.workers = 17; }},
                 {"low_latency is 2", [](ep_options& o) { o.low_latency = 2; }},
                 {"arrivals is 9", [](ep_options& o) { o.arrivals = 9; }},
                 {"nvl_bytes is -1", [](ep_options& o) { o.nvl_bytes = -1; }},
                 {"rdma_bytes is -5", [](ep_options& o) { o.rdma_bytes = -5; }},
                 {"timeout_ms is 0", [](ep_options& o) { o.timeout_ms = 0; }},
                 {"enable_shrink is -1", [](ep_options& o) { o.enable_shrink = -1; }},
                 {"does not divide", [](ep_options& o) { o.nvlink_ranks = 3; }}};
    for (const auto& bad : cases) {
        const std::vector<Error> errors = open_with(2, 1, bad.change);
        CHECK_FAILS(errors[1], Code::kInvalidArgument, bad.name);
        CHECK_FAILS(errors[0], Code::kInvalidArgument, "rank 1");  // told, not left to wait
    }
    ep_group* group = nullptr;
    ep_options options = valid_options();
    options.rank = 2;
    const auto none = [](void*, const void*, void*, int64_t) { return 1; };
    CHECK_FAILS(error_of(ep_open(&options, none, nullptr, &group)), Code::kInvalidArgument, "rank is 2");
    options = valid_options();
    options.bytes = 8;
    CHECK_FAILS(error_of(ep_open(&options, none, nullptr, &group)), Code::kMismatch, "ep_options has 8 bytes");
    options = valid_options();
    CHECK_FAILS(error_of(ep_open(&options, nullptr, nullptr, &group)), Code::kInvalidArgument, "allgather");
    CHECK_FAILS(error_of(ep_open(&options, none, nullptr, &group)), Code::kPeer, "the allgather of rank 0 failed (it returned 1)");
    CHECK_FAILS(error_of(ep_barrier(nullptr)), Code::kInvalidArgument, "no group");
}

TEST(options_that_differ_between_ranks_are_named) {
    const std::vector<Error> errors = open_with(3, 2, [](ep_options& o) { o.enable_shrink = 1; });
    CHECK_FAILS(errors[0], Code::kMismatch, "enable_shrink is 1 on rank 2 and 0 on rank 0");
    CHECK(!errors[1].ok() && !errors[2].ok());
}

TEST(a_rank_that_does_not_come_is_named_within_the_deadline) {
    Ranks ranks(3, [](ep_options& o) { o.timeout_ms = 200; });
    ranks.on_all([&](int rank, ep_group* group) {
        if (rank == 1) return;
        CHECK_FAILS(error_of(ep_barrier(group)), Code::kTimeout, "rank 1");
        CHECK_FAILS(error_of(ep_barrier(group)), Code::kPeer, "of no use since");
    });
}

TEST(a_rank_that_leaves_is_named_at_once) {
    Ranks ranks(3, [](ep_options& o) { o.timeout_ms = 60000; });
    const auto start = std::chrono::steady_clock::now();
    ranks.on_all([&](int rank, ep_group* group) {
        if (rank == 2) {
            ep_abandon(group);
            ranks.group(2) = nullptr;
            return;
        }
        CHECK_FAILS(error_of(ep_barrier(group)), Code::kPeer, "of rank 2, which has left the group");
    });
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST(a_group_that_may_shrink_masks_a_rank_that_is_late) {
    Ranks ranks(3, [](ep_options& o) {
        o.timeout_ms = 200;
        o.enable_shrink = 1;
    });
    ranks.on_all([&](int rank, ep_group* group) {
        if (rank == 1) return;
        for (int i = 0; i < 3; ++i) CHECK_OK(error_of(ep_barrier(group)));
    });
}

TEST(blocks_of_the_arena_do_not_overlap_and_are_used_again) {
    Ranks ranks(1);
    ep_group* const group = ranks.group(0);
    std::vector<uint8_t*> blocks;
    for (int i = 0; i < 40; ++i) {
        const size_t bytes = static_cast<size_t>(i) * 13001;
        uint8_t* const block = static_cast<uint8_t*>(ep_place(group, static_cast<int64_t>(bytes)));
        CHECK(block != nullptr);
        CHECK_EQ(reinterpret_cast<uint64_t>(block) % 128, 0u);
        std::memset(block, i, bytes);
        blocks.push_back(block);
    }
    for (size_t i = 0; i < blocks.size(); ++i)
        for (size_t byte = 0; byte < i * 13001; byte += 997) CHECK_EQ(blocks[i][byte], static_cast<uint8_t>(i));
    for (size_t i = 0; i < blocks.size(); i += 2) ep_unplace(group, blocks[i]);
    for (size_t i = 1; i < blocks.size(); i += 2) ep_unplace(group, blocks[i]);
    // Free neighbours were joined: the same first place, for all of the first slab.
    void* const whole = ep_place(group, 2 << 20);
    CHECK_EQ(whole, static_cast<void*>(blocks[0]));
    ep_unplace(group, whole);
    ep_unplace(group, whole);
    int code = 0;
    CHECK(contains(ep_last_error(&code), "not a block of this group"));
    CHECK(ep_place(group, -1) == nullptr);
}

TEST(the_arena_finds_only_blocks_that_are_in_use_and_long_enough) {
    ep::Arena arena;
    CHECK_OK(arena.open(1 << 20));
    void* block = nullptr;
    CHECK_OK(arena.place(1000, &block));
    ep::Place place;
    CHECK_OK(arena.find(block, 1000, &place));
    CHECK_EQ(arena.at(place), static_cast<uint8_t*>(block));
    CHECK_FAILS(arena.find(block, 2000, &place), Code::kInvalidArgument, "2000 are needed");
    CHECK_FAILS(arena.find(static_cast<uint8_t*>(block) + 128, 1, &place), Code::kInvalidArgument, "no block of this group");
    CHECK_OK(arena.unplace(block));
    CHECK_FAILS(arena.find(block, 1000, &place), Code::kInvalidArgument, "no block of this group");
}

TEST(workers_cover_each_item_once) {
    for (const int n : {1, 2, 3, 16}) {
        ep::Workers workers(n);
        for (const int64_t items : {0, 1, 2, 15, 1000}) {
            std::vector<int> hits(static_cast<size_t>(items));
            workers.split(items, [&](int64_t from, int64_t to) {
                for (int64_t i = from; i < to; ++i) ++hits[static_cast<size_t>(i)];
            });
            for (const int hit : hits) CHECK_EQ(hit, 1);
        }
    }
}

TEST(ranks_of_two_domains_meet_through_the_network) {
    setenv("NVSHMEM_EFA_MODE", "soft", 1);
    setenv("NVSHMEM_EFA_SOFT_RAILS", "1", 1);
    Ranks ranks(4, [](ep_options& o) {
        o.nvlink_ranks = 2;
        o.rdma_bytes = 1 << 16;
    });
    std::atomic<int> here{0};
    ranks.on_all([&](int, ep_group* group) {
        for (int round = 1; round <= 5; ++round) {
            here.fetch_add(1);
            CHECK_OK(error_of(ep_barrier(group)));
            CHECK(here.load() >= round * 4);
        }
        void* base = nullptr;
        int64_t bytes = 0;
        CHECK_OK(error_of(ep_buffer(group, 1, &base, &bytes)));
        CHECK_EQ(bytes, int64_t{1 << 16});
        CHECK(contains(ep_describe(group), "4 ranks, 2 of NVLink each; 1 rails (soft0)"));
        CHECK(contains(ep_stats_json(group), "\"work_requests\": "));
    });
    ranks.close_all();
}

TEST(a_network_that_is_not_there_is_an_error_on_all_ranks) {
    setenv("NVSHMEM_EFA_MODE", "auto", 1);
    Ranks ranks(2, Ranks::Closed{});
    ranks.on_all_threads([&](int rank) {
        const Error error = ranks.open(rank, [](ep_options& o) { o.low_latency = 1; });
        if (error.ok()) return;  // a machine with a device
        CHECK_FAILS(error, Code::kMissing, "NVSHMEM_EFA_MODE=soft");
    });
}

TEST_MAIN()
