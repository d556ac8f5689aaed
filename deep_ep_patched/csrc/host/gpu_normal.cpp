// SPDX-License-Identifier: Apache-2.0
#include "gpu_normal.h"

#include <algorithm>

#include "clock.h"

namespace nvshmem_efa::ep {

namespace {

constexpr uint32_t kLookEvery = 4096;  // turns of the wait for counts

const char* what_was_waited_for(NormalStop stop) {
    switch (stop) {
        case NormalStop::kReady: return "to come to the same call";
        case NormalStop::kRows: return "to have stored its rows";
        default: return "to have returned rows";
    }
}

}  // namespace

Status GpuNormal::create(GpuRuntime& gpu, const ep_options& options, std::unique_ptr<GpuNormal>* normal) {
    std::unique_ptr<GpuNormal> made(new GpuNormal(gpu, options));
    EFA_TRY(gpu.allocate(sizeof(NormalFlags), "flags of normal mode", &made->flags_));
    EFA_TRY(gpu.allocate(sizeof(NormalWords), "words of normal mode", &made->words_));
    void *host = nullptr, *on_gpu = nullptr;
    EFA_TRY(gpu.fill_host(sizeof(Pinned), &host, &on_gpu));
    made->pinned_ = static_cast<Pinned*>(host);
    made->gpu_pinned_ = static_cast<Pinned*>(on_gpu);
    *normal = std::move(made);
    return Status();
}

Status GpuNormal::map_peer(int rank, const GpuShare& share) {
    if (share.bytes != flags_.bytes())
        return Status::error(Code::kProtocol, "run one version of this library on all ranks", "the flags of rank %d have %llu bytes, expected %zu",
                             rank, static_cast<unsigned long long>(share.bytes), flags_.bytes());
    return gpu_.open_shared(share, &peer_flags_[rank]).with_context("rank " + std::to_string(rank));
}

NormalCommon GpuNormal::common(uint64_t epoch) const {
    NormalCommon common = {};
    common.report = &gpu_pinned_->report;
    common.words = reinterpret_cast<NormalWords*>(words_.data());
    for (int rank = 0; rank < options_.n_ranks && rank < kNormalRanksMax; ++rank)
        common.flags[rank] = reinterpret_cast<NormalFlags*>(rank == options_.rank ? flags_.data() : peer_flags_[rank].data());
    common.epoch = epoch;
    common.timeout_ns = static_cast<uint64_t>(options_.timeout_ms) * 1000000u;
    common.rank = options_.rank;
    common.n_ranks = options_.n_ranks;
    return common;
}

Status GpuNormal::check() const {
    const NormalReport& report = pinned_->report;
    // pairs with the release in normal_stop()
    if (!__atomic_load_n(&report.is_set, __ATOMIC_ACQUIRE)) return Status();
    switch (report.stop) {
        case NormalStop::kChoice:
            return Status::error(Code::kInvalidArgument, "-1 says: no expert", "topk_idx of token %d, choice %d is %lld; there are %lld experts",
                                 report.token, report.rank, static_cast<long long>(report.seen), static_cast<long long>(report.wanted));
        case NormalStop::kPlace:
            return Status::error(Code::kInvalidArgument, "give back what the same dispatch made",
                                 "send_head of token %d for rank %d is %lld; %lld rows go there", report.token, report.rank,
                                 static_cast<long long>(report.seen), static_cast<long long>(report.wanted));
        default:
            return Status::error(Code::kTimeout, "is its process alive, and did it make the same calls? (timeout_ms)",
                                 "normal mode: rank %d waited %lld ms for rank %d %s (exchange %lld, it is at %lld)", options_.rank,
                                 static_cast<long long>(options_.timeout_ms), report.rank, what_was_waited_for(report.stop),
                                 static_cast<long long>(report.wanted), static_cast<long long>(report.seen));
    }
}

Status GpuNormal::layout(const ep_layout_args& args) {
    EFA_TRY(check());
    NormalLayoutLaunch launch = {};
    launch.common = common(0);
    launch.view = {args.n_tokens,        args.n_topk,           args.n_experts,       args.n_ranks, args.topk_idx,
                   args.tokens_per_rank, args.tokens_per_expert, args.is_token_in_rank};
    const uint32_t blocks = (static_cast<uint32_t>(args.n_tokens) + kNormalThreads - 1) / kNormalThreads;
    if (blocks == 0) return Status();
    return gpu_.launch(kNormalLayoutSymbol, "a layout", std::min(blocks, gpu_.multiprocessors()), kNormalThreads, &launch);
}

Status GpuNormal::wait_for_counts() {
    Deadline deadline(real_clock(), static_cast<uint64_t>(options_.timeout_ms));
    // pairs with the release in normal_notify()
    for (uint32_t turn = 1; __atomic_load_n(&pinned_->counts.turn, __ATOMIC_ACQUIRE) != turn_; ++turn) {
        if (turn % kLookEvery == 0) EFA_TRY(gpu_.look("counting the tokens of a dispatch"));
        if (deadline.passed())
            return Status::error(Code::kTimeout, "a kernel of the program that never ends, in the same stream?",
                                 "the counts of a dispatch of rank %d were not there within %lld ms", options_.rank,
                                 static_cast<long long>(options_.timeout_ms));
        deadline.relax();
    }
    return check();
}

Status GpuNormal::count(const ep_notify_args& args, const NormalCounts** counts) {
    EFA_TRY(check());
    NormalNotifyLaunch launch = {};
    launch.common = common(0);
    launch.counts = &gpu_pinned_->counts;
    launch.turn = ++turn_;
    launch.n_tokens = args.n_tokens;
    launch.n_channels = args.n_channels;
    launch.n_experts = args.n_experts;
    launch.is_token_in_rank = args.is_token_in_rank;
    launch.tokens_per_rank = args.tokens_per_rank;
    launch.tokens_per_expert = args.tokens_per_expert;
    launch.send_head = args.send_head;
    launch.channel_prefix_matrix = args.channel_prefix_matrix;
    EFA_TRY(gpu_.launch(kNormalNotifySymbol, "the counts of a dispatch", static_cast<uint32_t>(options_.n_ranks), kNormalThreads, &launch));
    EFA_TRY(wait_for_counts());
    *counts = &pinned_->counts;
    return Status();
}

Status GpuNormal::dispatch(const ep_dispatch_args& args, const DispatchView& view, uint64_t epoch) {
    EFA_TRY(check());
    const PrefixMatrix matrix{args.rank_prefix_matrix, options_.n_ranks};
    NormalDispatchLaunch launch = {};
    launch.common = common(epoch);
    launch.view = view;
    for (int rank = 0; rank < options_.n_ranks; ++rank) launch.n_to[rank] = matrix.count(options_.rank, rank);
    std::copy_n(matrix.values, options_.n_ranks * options_.n_ranks, launch.matrix);
    launch.matrix_out = args.rank_prefix_matrix_out;
    launch.own_topk_idx = args.n_topk ? args.recv_topk_idx : nullptr;
    launch.n_tokens = args.n_tokens;
    launch.n_recv = args.n_recv;
    launch.n_rows = args.n_worst ? args.n_worst : args.n_recv;
    const uint32_t blocks = std::min(2 * static_cast<uint32_t>(args.n_channels), gpu_.multiprocessors());
    return gpu_.launch(kNormalDispatchSymbol, "a dispatch", blocks, kNormalThreads, &launch);
}

Status GpuNormal::combine(const ep_combine_args& args, const ReturnView (&returns)[kNormalRanksMax], const ReduceView& reduce, uint64_t epoch) {
    EFA_TRY(check());
    const PrefixMatrix matrix{args.rank_prefix_matrix, options_.n_ranks};
    NormalCombineLaunch launch = {};
    launch.common = common(epoch);
    std::copy(std::begin(returns), std::end(returns), launch.returns);
    launch.reduce = reduce;
    for (int rank = 0; rank < options_.n_ranks; ++rank) launch.n_to[rank] = matrix.count(options_.rank, rank);
    launch.n_tokens = args.n_tokens;
    launch.rows_of_piece = return_rows_of_piece(matrix);
    const uint32_t blocks = std::min(static_cast<uint32_t>(args.n_sms), gpu_.multiprocessors());
    return gpu_.launch(kNormalCombineSymbol, "a combine", blocks, kNormalThreads, &launch);
}

Status GpuNormal::wait() {
    EFA_TRY(gpu_.wait("kernels of normal mode"));
    return check();
}

}  // namespace nvshmem_efa::ep
