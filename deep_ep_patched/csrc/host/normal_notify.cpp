// SPDX-License-Identifier: Apache-2.0
// Counts first: layout, and who gets how much.
#include <cstring>

#include "api.h"
#include "ep_normal_layout.cuh"
#include "normal_checks.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

namespace {

Status layout(const ep_layout_args& args) {
    EFA_TRY(check_layout(args));
    const LayoutView view{args.n_tokens,        args.n_topk,           args.n_experts,       args.n_ranks, args.topk_idx,
                          args.tokens_per_rank, args.tokens_per_expert, args.is_token_in_rank};
    std::memset(args.tokens_per_rank, 0, static_cast<size_t>(args.n_ranks) * sizeof(int32_t));
    std::memset(args.tokens_per_expert, 0, static_cast<size_t>(args.n_experts) * sizeof(int32_t));
    for (int64_t token = 0; token < args.n_tokens; ++token) layout_token(view, token);
    return Status();
}

// Ordinals and channel ends of this rank's own tokens.
void number_own_tokens(Group& group, const ep_notify_args& args) {
    group.workers().split(group.n_ranks(), [&](int64_t from, int64_t to) {
        for (int64_t rank = from; rank < to; ++rank)
            number_tokens(args.is_token_in_rank + rank, args.n_tokens, group.n_ranks(), args.n_channels, args.send_head + rank,
                          args.channel_prefix_matrix + rank * args.n_channels);
    });
}

// What this rank sends: where the counts lie on the CPU.
struct OwnCounts {
    const int32_t* per_rank;
    const int32_t* per_expert;
};

// On a GPU a kernel numbers the tokens and tells the counts.
Status count_on_gpu(GpuNormal& gpu, const ep_notify_args& args, int n_ranks, OwnCounts* own) {
    const NormalCounts* counts = nullptr;
    EFA_TRY(gpu.count(args, &counts));
    for (int rank = 0; rank < n_ranks; ++rank)
        if (counts->counted[rank] != counts->tokens_per_rank[rank])
            return Status::error(Code::kInvalidArgument, "both come from one layout", "is_token_in_rank sends %d tokens to rank %d, the counts say %d",
                                 counts->counted[rank], rank, counts->tokens_per_rank[rank]);
    for (int expert = 0; expert < args.n_experts; ++expert)
        if (counts->tokens_per_expert[expert] < 0)
            return Status::error(Code::kInvalidArgument, nullptr, "tokens_per_expert[%d] is %d", expert, counts->tokens_per_expert[expert]);
    *own = {counts->tokens_per_rank, counts->tokens_per_expert};
    return Status();
}

Status notify(Group& group, ep_notify_args& args) {
    const int n_ranks = group.n_ranks();
    const int32_t n_local = args.n_experts / n_ranks;
    OwnCounts own = {args.tokens_per_rank, args.tokens_per_expert};
    if (GpuNormal* gpu = group.gpu_normal()) EFA_TRY(count_on_gpu(*gpu, args, n_ranks, &own));
    EFA_TRY(group.control().exchange(CallKind::kNotify, group.arena(), [&](int dest, uint8_t* body) {
        NotifyRecord record = {args.n_experts, args.n_channels, {}};
        std::memcpy(record.tokens_per_rank, own.per_rank, static_cast<size_t>(n_ranks) * sizeof(int32_t));
        std::memcpy(body, &record, sizeof record);
        std::memcpy(body + sizeof record, own.per_expert + static_cast<int64_t>(dest) * n_local, static_cast<size_t>(n_local) * 4);
    }));
    for (int32_t expert = 0; expert < n_local; ++expert) args.recv_tokens_per_expert[expert] = 0;
    for (int source = 0; source < n_ranks; ++source) {
        NotifyRecord record;
        std::memcpy(&record, group.control().received(source), sizeof record);
        EFA_TRY(check_same("n_experts", args.n_experts, group.rank(), record.n_experts, source));
        EFA_TRY(check_same("n_channels", args.n_channels, group.rank(), record.n_channels, source));
        for (int to = 0; to < n_ranks; ++to) {
            const int32_t before = source == 0 ? 0 : args.rank_prefix_matrix[(source - 1) * n_ranks + to];
            args.rank_prefix_matrix[source * n_ranks + to] = before + record.tokens_per_rank[to];
        }
        const auto* const experts = reinterpret_cast<const int32_t*>(group.control().received(source) + sizeof record);
        for (int32_t expert = 0; expert < n_local; ++expert) args.recv_tokens_per_expert[expert] += experts[expert];
    }
    for (int32_t expert = 0; expert < n_local; ++expert) {
        int32_t& n = args.recv_tokens_per_expert[expert];
        n = (n + args.expert_alignment - 1) / args.expert_alignment * args.expert_alignment;
    }
    args.n_recv = args.rank_prefix_matrix[(n_ranks - 1) * n_ranks + group.rank()];
    if (!group.is_on_gpu()) number_own_tokens(group, args);
    return Status();
}

// All ranks show each other the counts that they kept.
Status notify_cached(Group& group, ep_notify_args& args) {
    const int n_ranks = group.n_ranks();
    const size_t bytes = static_cast<size_t>(n_ranks) * static_cast<size_t>(n_ranks) * sizeof(int32_t);
    EFA_TRY(group.control().exchange(CallKind::kNotifyCached, group.arena(),
                                     [&](int, uint8_t* body) { std::memcpy(body, args.rank_prefix_matrix, bytes); }));
    for (int source = 0; source < n_ranks; ++source)
        if (std::memcmp(group.control().received(source), args.rank_prefix_matrix, bytes) != 0)
            return Status::error(Code::kMismatch, "all ranks keep the results of the same ep_notify()",
                                 "rank %d has another rank_prefix_matrix than rank %d", source, group.rank());
    args.n_recv = args.rank_prefix_matrix[(n_ranks - 1) * n_ranks + group.rank()];
    return Status();
}

}  // namespace

int ep_layout(const ep_layout_args* args) {
    return guarded("ep_layout", [&] {
        EFA_TRY(check_args(args, "ep_layout_args"));
        return layout(*args);
    });
}

int ep_gpu_layout(ep_group* of, const ep_layout_args* args) {
    return guarded("ep_gpu_layout", [&] {
        EFA_TRY(check_group(of));
        EFA_TRY(check_args(args, "ep_layout_args"));
        EFA_TRY(check_layout_sizes(*args));
        GpuNormal* const gpu = of->group->gpu_normal();
        if (!gpu) return Status::error(Code::kInvalidArgument, "ep_layout() works on the CPU", "this group has no GPU");
        return gpu->layout(*args);
    });
}

int ep_notify(ep_group* of, ep_notify_args* args) {
    return guarded("ep_notify", [&] {
        EFA_TRY(check_group(of));
        EFA_TRY(check_args(args, "ep_notify_args"));
        Group& group = *of->group;
        EFA_TRY(check_normal_group(group));
        EFA_TRY(check_notify(*args, group));
        return group.breaks(args->tokens_per_rank ? notify(group, *args) : notify_cached(group, *args));
    });
}
