// SPDX-License-Identifier: Apache-2.0
#include "ll_checks.h"

#include <algorithm>

#include "ep_fp8.h"
#include "ep_ll_layout.h"
#include "ranges.h"

namespace nvshmem_efa::ep {

namespace {

Status is_given(const char* what, const void* pointer, size_t alignment) {
    if (!pointer) return Status::error(Code::kInvalidArgument, nullptr, "%s is missing", what);
    if (reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return Status();
    return Status::error(Code::kInvalidArgument, nullptr, "%s is not aligned to %zu bytes", what, alignment);
}

Status check_experts(const int64_t* experts, int32_t n_topk, int32_t token, int32_t n_experts) {
    for (int32_t k = 0; k < n_topk; ++k) {
        if (experts[k] < -1 || experts[k] >= n_experts)
            return Status::error(Code::kInvalidArgument, "-1 means none", "topk_idx[%d][%d] is %lld, and there are %d experts", token,
                                 k, static_cast<long long>(experts[k]), n_experts);
        for (int32_t j = 0; j < k; ++j)
            if (experts[k] >= 0 && experts[j] == experts[k])
                return Status::error(Code::kInvalidArgument, "a token goes to an expert once",
                                     "topk_idx[%d] names expert %lld twice", token, static_cast<long long>(experts[k]));
    }
    return Status();
}

// What both calls share.
template <class Args>
Status check_tokens(const Args& args, int n_ranks, bool has_values) {
    EFA_TRY(in_range("phases", args.phases, EP_SEND, EP_SEND | EP_RECV));
    EFA_TRY(check_sizes({args.max_tokens, args.hidden, args.n_experts, n_ranks}));
    EFA_TRY(in_range("the number of tokens", args.n_tokens, 0, args.max_tokens));
    EFA_TRY(in_range("num_topk", args.n_topk, 1, std::min<int64_t>(kLlTopkMax, args.n_experts)));
    if (args.n_tokens > 0) EFA_TRY(is_given("topk_idx", args.topk_idx, 8));
    if (!has_values) return Status();
    const int64_t* experts = args.topk_idx;
    for (int32_t token = 0; token < args.n_tokens; ++token, experts += args.n_topk)
        EFA_TRY(check_experts(experts, args.n_topk, token, args.n_experts));
    return Status();
}

constexpr const char* kHandleHint = "pass the handle of the dispatch as it is";

Status check_rows(const ep_ll_combine_args& args, int n_ranks) {
    const int64_t local = args.n_experts / n_ranks, rows_max = int64_t{n_ranks} * args.max_tokens;
    for (int64_t i = 0; i < local * n_ranks; ++i) {
        const uint64_t range = static_cast<uint64_t>(args.recv_layout_range[i]);
        const int64_t begin = static_cast<int64_t>(range >> 32), end = begin + static_cast<int64_t>(range & 0xffffffffu);
        if (end > rows_max)
            return Status::error(Code::kInvalidArgument, kHandleHint, "layout_range[%lld][%lld] ends at row %lld of %lld",
                                 static_cast<long long>(i / n_ranks), static_cast<long long>(i % n_ranks),
                                 static_cast<long long>(end), static_cast<long long>(rows_max));
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = i / n_ranks * rows_max + row;
            const int32_t token = args.recv_src_info[at], choice = args.recv_src_info[local * rows_max + at];
            const bool is_choice = choice >= 0 && choice < std::min<int64_t>(kLlTopkMax, args.n_experts);
            if (token < 0 || token >= args.max_tokens || !is_choice)
                return Status::error(Code::kInvalidArgument, kHandleHint, "src_info[%lld][%lld] is token %d, choice %d",
                                     static_cast<long long>(i / n_ranks), static_cast<long long>(row), token, choice);
        }
    }
    return Status();
}

}  // namespace

Status check_sizes(const LlSizes& sizes) {
    EFA_TRY(in_range("num_max_dispatch_tokens_per_rank", sizes.max_tokens, 1, kLlTokensMax));
    EFA_TRY(in_range("hidden", sizes.hidden, kScaleBlock, kLlHiddenMax));
    if (sizes.hidden % static_cast<int32_t>(kScaleBlock) != 0)
        return Status::error(Code::kInvalidArgument, nullptr, "hidden is %d, which is no multiple of %u", sizes.hidden, kScaleBlock);
    EFA_TRY(in_range("the number of ranks", sizes.n_ranks, 1, 1024));
    EFA_TRY(in_range("num_experts", sizes.n_experts, 1, kLlExpertsMax));
    if (sizes.n_experts % sizes.n_ranks == 0) return Status();
    return Status::error(Code::kInvalidArgument, "each rank has as many experts as the others",
                         "num_experts is %d, which %d ranks cannot share", sizes.n_experts, sizes.n_ranks);
}

Status check_unread(const LlShape& shape, const DeviceState& state) {
    if (!state.arrival_queues) return Status();
    // Two operations of each phase may be under way, all on one rail: tokens of every rank, and rows for every choice.
    const uint64_t tokens = uint64_t{shape.n_ranks} * shape.max_tokens, rows = uint64_t{shape.max_tokens} * shape.topk_max();
    const uint64_t needed = 2 * (tokens + rows), room = uint64_t{state.arrival_unread_max} * static_cast<uint32_t>(state.n_pes);
    if (needed <= room) return Status();
    return Status::error(Code::kResource, "use arrivals by counters or lines, or a smaller num_max_dispatch_tokens_per_rank",
                         "arrivals by immediates: M=%u with %u ranks may bring %llu of them before they are read, and there is room for %llu",
                         shape.max_tokens, shape.n_ranks, static_cast<unsigned long long>(needed), static_cast<unsigned long long>(room));
}

Status check_dispatch(const ep_ll_dispatch_args& args, int n_ranks, bool has_values) {
    EFA_TRY(check_tokens(args, n_ranks, has_values));
    EFA_TRY(in_range("the format", args.format, EP_LL_BF16, EP_LL_FP8_UE8M0));
    if (is_fp8(args.format) && args.hidden % 512 != 0)
        return Status::error(Code::kInvalidArgument, "use_fp8=False has no such limit",
                             "hidden is %d; with fp8 it must be a multiple of 512", args.hidden);
    if ((args.phases & EP_SEND) && args.n_tokens > 0) EFA_TRY(is_given("x", args.x, 16));
    if (!(args.phases & EP_RECV)) return Status();
    EFA_TRY(is_given("recv_x", args.recv_x, 16));
    if (is_fp8(args.format)) EFA_TRY(is_given("recv_scales", args.recv_scales, 4));
    EFA_TRY(is_given("recv_src_info", args.recv_src_info, 4));
    EFA_TRY(is_given("recv_layout_range", args.recv_layout_range, 8));
    return is_given("recv_count", args.recv_count, 4);
}

Status check_combine(const ep_ll_combine_args& args, int n_ranks, bool has_values) {
    EFA_TRY(check_tokens(args, n_ranks, has_values));
    if (args.phases & EP_SEND) {
        if (!args.zero_copy) EFA_TRY(is_given("x", args.x, 16));
        EFA_TRY(is_given("recv_src_info", args.recv_src_info, 4));
        EFA_TRY(is_given("recv_layout_range", args.recv_layout_range, 8));
        if (has_values) EFA_TRY(check_rows(args, n_ranks));
    }
    if (!(args.phases & EP_RECV) || args.n_tokens == 0) return Status();
    EFA_TRY(is_given("topk_weights", args.topk_weights, 4));
    return is_given("combined_x", args.combined_x, 2);
}

}  // namespace nvshmem_efa::ep
