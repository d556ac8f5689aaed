// SPDX-License-Identifier: Apache-2.0
// Normal mode's host side on a fake driver: counts from a kernel, places of peers, launches, and what kernels tell. No
// kernel runs here; tests/gpu/run_deep_ep_normal.py is for GPUs.
#include <cstring>

#include "ep_normal_gpu.h"
#include "ep_rig.h"
#include "fake_cuda/fake_cuda.h"

using namespace nvshmem_efa::ep;
using ep_rig::Error;
using ep_rig::error_of;
using ep_rig::Ranks;
using nvshmem_efa::Code;

namespace {

constexpr int kRanks = 2, kTokens = 5, kExperts = 4, kChannels = 3;
constexpr int32_t kPerRank[kRanks][kRanks] = {{3, 2}, {0, 5}};             // [source][to]
constexpr int32_t kPerExpert[kRanks][kExperts] = {{3, 1, 0, 2}, {0, 0, 4, 1}};
const std::string kImage = std::string(".version 7.0 ") + kNormalLayoutSymbol + " " + kNormalNotifySymbol + " " + kNormalDispatchSymbol + " " +
                           kNormalCombineSymbol;
// A GPU's address: the host must not look there.
template <class T>
T* on_gpu() {
    return reinterpret_cast<T*>(uint64_t{1} << 44);
}

// As normal_notify() does, of tokens that only the test knows.
int32_t miscounted;
void count(void* parameter) {
    const auto& launch = *static_cast<NormalNotifyLaunch*>(parameter);
    const int rank = launch.common.rank;
    NormalCounts& counts = *launch.counts;
    for (int to = 0; to < kRanks; ++to) counts.tokens_per_rank[to] = kPerRank[rank][to];
    for (int to = 0; to < kRanks; ++to) counts.counted[to] = kPerRank[rank][to] + miscounted;
    for (int expert = 0; expert < kExperts; ++expert) counts.tokens_per_expert[expert] = kPerExpert[rank][expert];
    __atomic_store_n(&counts.turn, launch.turn, __ATOMIC_RELEASE);
}

NormalDispatchLaunch dispatches[kRanks];
void keep_dispatch(void* parameter) {
    const auto& launch = *static_cast<NormalDispatchLaunch*>(parameter);
    dispatches[launch.common.rank] = launch;
}
NormalCombineLaunch combines[kRanks];
void keep_combine(void* parameter) {
    const auto& launch = *static_cast<NormalCombineLaunch*>(parameter);
    combines[launch.common.rank] = launch;
}

void use_gpu(ep_options& options) {
    fake_cuda_use_device(0);
    options.executor = EP_EXECUTOR_GPU;
    options.nvl_bytes = 1 << 20;
    options.timeout_ms = 2000;
}

struct Rank {
    ep_group* group;
    int rank;
    int32_t matrix[kRanks * kRanks] = {}, experts[kExperts / kRanks] = {}, n_recv = -1;
    ep_dispatch_args sent = {};

    Rank(ep_group* of, int number) : group(of), rank(number) {
        fake_cuda_use_device(0);
        CHECK_OK(error_of(ep_load_kernels(group, kImage.data(), static_cast<int64_t>(kImage.size()))));
    }
    Error notify() {
        ep_notify_args args = {};
        args.bytes = sizeof args;
        args.n_tokens = kTokens;
        args.n_experts = kExperts;
        args.n_channels = kChannels;
        args.expert_alignment = 4;
        args.tokens_per_rank = args.tokens_per_expert = on_gpu<int32_t>();
        args.is_token_in_rank = on_gpu<uint8_t>();
        args.channel_prefix_matrix = args.send_head = on_gpu<int32_t>();
        args.rank_prefix_matrix = matrix;
        args.recv_tokens_per_expert = experts;
        const Error error = error_of(ep_notify(group, &args));
        n_recv = args.n_recv;
        return error;
    }
    Error dispatch() {
        sent = {};
        sent.bytes = sizeof sent;
        sent.n_tokens = kTokens;
        sent.n_recv = n_recv;
        sent.row_bytes = 256;
        sent.n_channels = kChannels;
        sent.n_ranks = kRanks;
        sent.x = on_gpu<void>();
        sent.is_token_in_rank = on_gpu<uint8_t>();
        sent.send_head = sent.channel_prefix_matrix = on_gpu<int32_t>();
        sent.rank_prefix_matrix = matrix;
        sent.recv_block = ep_place(group, ep_dispatch_place(&sent));
        return error_of(ep_dispatch(group, &sent));
    }
    Error combine() {
        ep_combine_args args = {};
        args.bytes = sizeof args;
        args.n_tokens = kTokens;
        args.n_recv = n_recv;
        args.hidden = 128;
        args.n_sms = 6;
        args.x = on_gpu<void>();
        args.is_token_in_rank = on_gpu<uint8_t>();
        args.send_head = on_gpu<int32_t>();
        args.rank_prefix_matrix = matrix;
        args.combined_x = on_gpu<void>();
        return error_of(ep_combine(group, &args));
    }
    void waits() const { CHECK_OK(error_of(ep_barrier(group))); }
};

struct Gpu {
    Gpu() {
        fake_cuda_reset(1);
        fake_cuda_kernel(nullptr);
        miscounted = 0;
    }
};

}  // namespace

// All ranks through counting, with the kernels loaded.
struct Job {
    Gpu gpu;
    Ranks ranks{kRanks, use_gpu};
    std::vector<std::unique_ptr<Rank>> of{kRanks};
    Job() {
        on_all([&](int rank, ep_group* group) { of[static_cast<size_t>(rank)] = std::make_unique<Rank>(group, rank); });
        fake_cuda_kernel_of(sizeof(NormalNotifyLaunch), count);
    }
    void on_all(const std::function<void(int rank, ep_group* group)>& body) {
        ranks.on_all([&](int rank, ep_group* group) {
            fake_cuda_use_device(0);
            body(rank, group);
        });
    }
    Rank& at(int rank) { return *of[static_cast<size_t>(rank)]; }
};

TEST(counts_come_from_a_kernel_and_are_told_to_all) {
    Job job;
    job.on_all([&](int rank, ep_group*) {
        Rank& own = job.at(rank);
        CHECK_OK(own.notify());
        const int32_t matrix[] = {3, 2, 3, 7};
        CHECK(std::memcmp(own.matrix, matrix, sizeof matrix) == 0);
        CHECK_EQ(own.n_recv, rank == 0 ? 3 : 7);
        CHECK_EQ(own.experts[0], rank == 0 ? 4 : 4);  // 3 + 0 and 0 + 4, rounded up to 4
        CHECK_EQ(own.experts[1], rank == 0 ? 4 : 4);
    });
}

TEST(a_dispatch_is_launched_with_the_places_of_all_peers) {
    Job job;
    job.on_all([&](int rank, ep_group*) { CHECK_OK(job.at(rank).notify()); });
    fake_cuda_kernel_of(sizeof(NormalDispatchLaunch), keep_dispatch);
    job.on_all([&](int rank, ep_group*) {
        CHECK_OK(job.at(rank).dispatch());
        job.at(rank).waits();
    });
    for (int rank = 0; rank < kRanks; ++rank) {
        const NormalDispatchLaunch& launch = dispatches[rank];
        CHECK_EQ(launch.common.epoch, dispatches[0].common.epoch);
        for (int peer = 0; peer < kRanks; ++peer) {
            CHECK(launch.common.flags[peer] != nullptr && launch.common.flags[peer] == dispatches[peer].common.flags[peer]);
            CHECK(launch.view.peers[peer].x == job.at(peer).sent.recv_x);
            CHECK_EQ(launch.view.peers[peer].begin, rank == 1 ? kPerRank[0][peer] : 0);
            CHECK_EQ(launch.view.peers[peer].channels - job.at(peer).sent.recv_channel_prefix_matrix, rank * kChannels);
            CHECK_EQ(launch.n_to[peer], kPerRank[rank][peer]);
        }
        CHECK(std::memcmp(launch.matrix, job.at(rank).matrix, sizeof job.at(rank).matrix) == 0);
        CHECK_EQ(launch.n_recv, rank == 0 ? 3 : 7);
        CHECK(launch.own_topk_idx == nullptr);
    }
    CHECK(dispatches[0].common.flags[0] != dispatches[0].common.flags[1]);
}

TEST(a_combine_returns_rows_to_the_block_of_their_source) {
    Job job;
    job.on_all([&](int rank, ep_group*) { CHECK_OK(job.at(rank).notify()); });
    fake_cuda_kernel_of(sizeof(NormalCombineLaunch), keep_combine);
    job.on_all([&](int rank, ep_group*) {
        CHECK_OK(job.at(rank).combine());
        job.at(rank).waits();
    });
    for (int rank = 0; rank < kRanks; ++rank) {
        const NormalCombineLaunch& launch = combines[rank];
        const int other = 1 - rank;
        CHECK_EQ(launch.returns[other].n_rows, kPerRank[other][rank]);
        CHECK_EQ(launch.returns[rank].n_rows, 0);
        // What the source adds up from there is where this rank puts it.
        if (kPerRank[other][rank]) CHECK(launch.returns[other].to_x == combines[other].reduce.rows[rank]);
        CHECK(launch.rows_of_piece == kReturnRowsMin && combines[0].common.epoch == launch.common.epoch);
    }
}

TEST(counts_that_do_not_fit_the_tokens_are_an_error_of_the_rank_that_gave_them) {
    Job job;
    miscounted = 1;
    job.on_all([&](int rank, ep_group*) { CHECK_FAILS(job.at(rank).notify(), Code::kInvalidArgument, "sends"); });
}

TEST(a_kernel_that_does_not_count_is_a_timeout) {
    Job job;
    fake_cuda_kernel(nullptr);
    job.on_all([&](int rank, ep_group*) { CHECK_FAILS(job.at(rank).notify(), Code::kTimeout, "the counts of a dispatch of rank"); });
}

TEST(what_a_kernel_tells_is_the_error_of_the_next_call) {
    const struct {
        NormalStop stop;
        Code code;
        const char* text;
    } cases[] = {{NormalStop::kReady, Code::kTimeout, "for rank 1 to come to the same call"},
                 {NormalStop::kRows, Code::kTimeout, "for rank 1 to have stored its rows"},
                 {NormalStop::kReturned, Code::kTimeout, "for rank 1 to have returned rows"},
                 {NormalStop::kPlace, Code::kInvalidArgument, "send_head of token 4 for rank 1"},
                 {NormalStop::kChoice, Code::kInvalidArgument, "topk_idx of token 4"}};
    static NormalStop stop;
    for (const auto& one : cases) {
        Job job;
        stop = one.stop;
        job.on_all([&](int rank, ep_group*) { CHECK_OK(job.at(rank).notify()); });
        fake_cuda_kernel([](void* first) {  // of the parameter
            NormalReport& report = *static_cast<NormalReport*>(first);
            report.stop = stop;
            report.rank = 1;
            report.token = 4;
            __atomic_store_n(&report.is_set, 1, __ATOMIC_RELEASE);
        });
        job.on_all([&](int rank, ep_group* group) {
            CHECK_OK(job.at(rank).dispatch());
            CHECK_FAILS(error_of(ep_barrier(group)), one.code, one.text);
            CHECK_FAILS(job.at(rank).dispatch(), Code::kPeer, "of no use since");
        });
    }
}

TEST(ranks_on_two_gpus_of_one_process_are_told_what_cuda_says) {
    Gpu gpu;
    Ranks ranks(2, Ranks::Closed{});
    std::vector<std::thread> threads;
    std::vector<Error> errors(2);
    fake_cuda_fail("cuIpcOpenMemHandle", 1, 0, 2);  // as CUDA does for handles of the same process
    for (int rank = 0; rank < 2; ++rank)
        threads.emplace_back([&, rank] {
            errors[static_cast<size_t>(rank)] = ranks.open(rank, [](ep_options& options) {
                use_gpu(options);
                fake_cuda_use_device(options.rank);
            });
        });
    for (std::thread& thread : threads) thread.join();
    for (const Error& error : errors) CHECK_FAILS(error, Code::kDevice, "cuIpcOpenMemHandle");
}

TEST(a_group_that_ends_gives_all_of_it_back) {
    {
        Job job;
        job.on_all([&](int rank, ep_group*) { CHECK_OK(job.at(rank).notify()); });
        fake_cuda_kernel(nullptr);
        job.on_all([&](int rank, ep_group*) { CHECK_OK(job.at(rank).dispatch()); });
    }
    CHECK_EQ(fake_cuda_calls("cuMemFree"), fake_cuda_calls("cuMemAlloc"));
    CHECK_EQ(fake_cuda_calls("cuMemFreeHost"), fake_cuda_calls("cuMemHostAlloc"));
    CHECK_EQ(fake_cuda_calls("cuStreamDestroy"), fake_cuda_calls("cuStreamCreateWithPriority"));
    CHECK_EQ(fake_cuda_open_mappings(), 0);
}

TEST_MAIN()
