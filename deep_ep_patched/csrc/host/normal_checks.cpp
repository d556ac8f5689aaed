// SPDX-License-Identifier: Apache-2.0
#include "normal_checks.h"

#include "ranges.h"

namespace nvshmem_efa::ep {

namespace {

// An array of nothing may be null.
Status there(const char* what, const void* pointer, int64_t n) {
    return pointer || n == 0 ? Status() : Status::error(Code::kInvalidArgument, nullptr, "%s is null", what);
}

Status check_experts(int32_t n_experts, int32_t n_ranks) {
    EFA_TRY(in_range("n_experts", n_experts, 1, INT32_MAX));
    if (n_experts % n_ranks == 0) return Status();
    return Status::error(Code::kInvalidArgument, "every rank has as many experts", "n_experts is %d, which %d ranks do not divide", n_experts,
                         n_ranks);
}

Status check_choices(const int64_t* topk_idx, int32_t n_tokens, int32_t n_topk, int32_t n_experts) {
    for (int64_t i = 0; i < static_cast<int64_t>(n_tokens) * n_topk; ++i)
        if (topk_idx[i] < -1 || topk_idx[i] >= n_experts)
            return Status::error(Code::kInvalidArgument, "-1 says: no expert", "topk_idx of token %lld, choice %lld is %lld; there are %d experts",
                                 static_cast<long long>(i / n_topk), static_cast<long long>(i % n_topk), static_cast<long long>(topk_idx[i]),
                                 n_experts);
    return Status();
}

// The own column of ordinals; null: only counts.
Status check_sent_to(const SentTokens& sent, int32_t n_ranks, int dest, int32_t expected) {
    int32_t n = 0;
    for (int32_t token = 0; token < sent.n_tokens; ++token) {
        const int64_t at = static_cast<int64_t>(token) * n_ranks + dest;
        const bool is_in = sent.is_token_in_rank[at] != 0;
        if (sent.send_head && (is_in ? sent.send_head[at] != n : sent.send_head[at] >= 0))
            return Status::error(Code::kInvalidArgument, "give back what the same dispatch's ep_notify() made",
                                 "send_head of token %d for rank %d is %d, expected %d", token, dest, sent.send_head[at], is_in ? n : -1);
        n += is_in ? 1 : 0;
    }
    if (n == expected) return Status();
    return Status::error(Code::kInvalidArgument, "both come from one layout", "is_token_in_rank sends %d tokens to rank %d, the counts say %d", n,
                         dest, expected);
}

Status check_scales(const ep_dispatch_args& args) {
    EFA_TRY(in_range("n_scales", args.n_scales, 0, INT32_MAX));
    if (args.n_scales == 0) return Status();
    EFA_TRY(in_range("scale_bytes", args.scale_bytes, 4, 4));
    return there("scales", args.scales, args.n_tokens);
}

}  // namespace

Status check_same(const char* what, int64_t own, int own_rank, int64_t theirs, int rank) {
    if (own == theirs) return Status();
    return Status::error(Code::kMismatch, "all ranks of a group pass the same", "%s is %lld on rank %d and %lld on rank %d", what,
                         static_cast<long long>(theirs), rank, static_cast<long long>(own), own_rank);
}

Status check_layout_sizes(const ep_layout_args& args) {
    EFA_TRY(in_range("n_tokens", args.n_tokens, 0, INT32_MAX));
    EFA_TRY(in_range("n_topk", args.n_topk, 1, kTopkMax));
    EFA_TRY(in_range("n_ranks", args.n_ranks, 1, 1024));
    EFA_TRY(check_experts(args.n_experts, args.n_ranks));
    EFA_TRY(there("topk_idx", args.topk_idx, args.n_tokens));
    EFA_TRY(there("tokens_per_rank", args.tokens_per_rank, 1));
    EFA_TRY(there("tokens_per_expert", args.tokens_per_expert, 1));
    return there("is_token_in_rank", args.is_token_in_rank, args.n_tokens);
}

Status check_layout(const ep_layout_args& args) {
    EFA_TRY(check_layout_sizes(args));
    return check_choices(args.topk_idx, args.n_tokens, args.n_topk, args.n_experts);
}

Status check_normal_group(Group& group) {
    EFA_TRY(group.check_usable());
    if (group.domain().n_ranks == group.n_ranks() && group.n_ranks() >= 2 && group.n_ranks() <= kNormalRanksMax) return Status();
    return Status::error(Code::kUnsupported, "use the low-latency calls, or fewer ranks",
                         "the normal mode works in one NVLink domain of 2 to %d ranks; this group has %d ranks, %d in a domain", kNormalRanksMax,
                         group.n_ranks(), group.domain().n_ranks);
}

Status check_matrix(const SentTokens& sent, const Group& group) {
    const int32_t n_ranks = group.n_ranks();
    const PrefixMatrix matrix{sent.rank_prefix_matrix, n_ranks};
    for (int from = 0; from < n_ranks; ++from)
        for (int to = 0; to < n_ranks; ++to)
            if (matrix.values[from * n_ranks + to] < 0 || matrix.count(from, to) < 0)
                return Status::error(Code::kInvalidArgument, "give back what ep_notify() made",
                                     "rank_prefix_matrix[%d][%d] is %d, which is less than the row before it", from, to,
                                     matrix.values[from * n_ranks + to]);
    if (sent.n_recv != matrix.total(group.rank()))
        return Status::error(Code::kInvalidArgument, "n_recv is what ep_notify() said", "n_recv is %d, the rank_prefix_matrix says %d", sent.n_recv,
                             matrix.total(group.rank()));
    if (group.is_on_gpu()) return Status();  // the rest lies there, and its kernels look at what they use
    for (int to = 0; to < n_ranks; ++to) EFA_TRY(check_sent_to(sent, n_ranks, to, matrix.count(group.rank(), to)));
    return Status();
}

Status check_notify(const ep_notify_args& args, const Group& group) {
    EFA_TRY(there("rank_prefix_matrix", args.rank_prefix_matrix, 1));
    if (!args.tokens_per_rank) return Status();
    const int32_t n_ranks = group.n_ranks();
    EFA_TRY(in_range("n_tokens", args.n_tokens, 0, INT32_MAX));
    EFA_TRY(check_experts(args.n_experts, n_ranks));
    EFA_TRY(in_range("experts of a rank", args.n_experts / n_ranks, 1, kLocalExpertsMax));
    EFA_TRY(in_range("n_channels", args.n_channels, 1, kChannelsMax));
    EFA_TRY(in_range("expert_alignment", args.expert_alignment, 1, 1 << 20));
    EFA_TRY(there("tokens_per_expert", args.tokens_per_expert, 1));
    EFA_TRY(there("is_token_in_rank", args.is_token_in_rank, args.n_tokens));
    EFA_TRY(there("channel_prefix_matrix", args.channel_prefix_matrix, 1));
    EFA_TRY(there("send_head", args.send_head, args.n_tokens));
    EFA_TRY(there("recv_tokens_per_expert", args.recv_tokens_per_expert, 1));
    if (group.is_on_gpu()) return Status();  // counts are looked at when they have come from there
    for (int expert = 0; expert < args.n_experts; ++expert) {
        if (args.tokens_per_expert[expert] < 0)
            return Status::error(Code::kInvalidArgument, nullptr, "tokens_per_expert[%d] is %d", expert, args.tokens_per_expert[expert]);
    }
    const SentTokens sent{nullptr, args.is_token_in_rank, nullptr, args.n_tokens, 0};
    for (int to = 0; to < n_ranks; ++to) EFA_TRY(check_sent_to(sent, n_ranks, to, args.tokens_per_rank[to]));
    return Status();
}

Status check_dispatch_sizes(const ep_dispatch_args& args) {
    EFA_TRY(in_range("n_tokens", args.n_tokens, 0, INT32_MAX));
    EFA_TRY(in_range("n_recv", args.n_recv, 0, INT32_MAX));
    EFA_TRY(in_range("row_bytes", args.row_bytes, 16, 1 << 24));
    if (args.row_bytes % 16 != 0)
        return Status::error(Code::kInvalidArgument, "H times the element's size must be a multiple of 16", "row_bytes is %d", args.row_bytes);
    EFA_TRY(check_scales(args));
    EFA_TRY(in_range("n_topk", args.n_topk, 0, kTopkMax));
    EFA_TRY(in_range("n_ranks", args.n_ranks, 2, kNormalRanksMax));
    EFA_TRY(in_range("n_channels", args.n_channels, 1, kChannelsMax));
    EFA_TRY(in_range("n_worst", args.n_worst, 0, INT32_MAX));
    if (args.n_worst != 0 && args.n_worst < args.n_recv)
        return Status::error(Code::kInvalidArgument, "take the sum of all ranks' tokens", "n_worst is %d; this rank receives %d tokens", args.n_worst,
                             args.n_recv);
    return Status();
}

Status check_dispatch(const ep_dispatch_args& args, const Group& group) {
    EFA_TRY(check_dispatch_sizes(args));
    const int32_t n_ranks = group.n_ranks();
    EFA_TRY(in_range("n_ranks", args.n_ranks, n_ranks, n_ranks));
    EFA_TRY(there("x", args.x, args.n_tokens));
    EFA_TRY(there("is_token_in_rank", args.is_token_in_rank, args.n_tokens));
    EFA_TRY(there("send_head", args.send_head, args.n_tokens));
    EFA_TRY(there("rank_prefix_matrix", args.rank_prefix_matrix, 1));
    EFA_TRY(there("channel_prefix_matrix", args.channel_prefix_matrix, 1));
    if (args.n_topk > 0) {
        EFA_TRY(check_experts(args.n_experts, n_ranks));
        EFA_TRY(there("topk_idx", args.topk_idx, args.n_tokens));
        EFA_TRY(there("topk_weights", args.topk_weights, args.n_tokens));
        if (!group.is_on_gpu()) EFA_TRY(check_choices(args.topk_idx, args.n_tokens, args.n_topk, args.n_experts));
    }
    return check_matrix({args.rank_prefix_matrix, args.is_token_in_rank, args.send_head, args.n_tokens, args.n_recv}, group);
}

Status check_combine(const ep_combine_args& args, const Group& group) {
    EFA_TRY(in_range("n_tokens", args.n_tokens, 0, INT32_MAX));
    EFA_TRY(in_range("n_recv", args.n_recv, 0, INT32_MAX));
    EFA_TRY(in_range("hidden", args.hidden, 8, 1 << 23));
    if (args.hidden % 8 != 0)
        return Status::error(Code::kInvalidArgument, "a row of bf16 must be a multiple of 16 bytes", "hidden is %d, not a multiple of 8", args.hidden);
    EFA_TRY(in_range("n_topk", args.n_topk, 0, kTopkMax));
    if (group.is_on_gpu()) EFA_TRY(in_range("n_sms", args.n_sms, 1, 2 * kChannelsMax));
    EFA_TRY(there("x", args.x, args.n_recv));
    EFA_TRY(there("topk_weights", args.topk_weights, static_cast<int64_t>(args.n_topk) * args.n_recv));
    EFA_TRY(there("is_token_in_rank", args.is_token_in_rank, args.n_tokens));
    EFA_TRY(there("send_head", args.send_head, args.n_tokens));
    EFA_TRY(there("rank_prefix_matrix", args.rank_prefix_matrix, 1));
    EFA_TRY(there("combined_x", args.combined_x, args.n_tokens));
    EFA_TRY(there("combined_weights", args.combined_weights, static_cast<int64_t>(args.n_topk) * args.n_tokens));
    return check_matrix({args.rank_prefix_matrix, args.is_token_in_rank, args.send_head, args.n_tokens, args.n_recv}, group);
}

}  // namespace nvshmem_efa::ep
