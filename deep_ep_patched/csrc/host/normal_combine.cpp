// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "api.h"
#include "ep_normal_combine.cuh"
#include "normal_checks.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

namespace {

// Where other ranks put this rank's rows. Given back only after a good end: else somebody may write to it yet. On a GPU
// that is when the kernel is in the stream: nobody writes to the block again before this stream's next kernel says so.
struct Staging {
    Place place = {};
    void* block = nullptr;
    int32_t n_rows = 0;
    uint64_t weights_at = 0;
};

uint64_t staging_weights_at(int32_t n_rows, int32_t hidden) {
    return aligned_part(static_cast<uint64_t>(n_rows) * static_cast<uint64_t>(hidden) * 2);
}
uint64_t staging_bytes(int32_t n_rows, int32_t hidden, int32_t n_topk) {
    return staging_weights_at(n_rows, hidden) + static_cast<uint64_t>(n_rows) * static_cast<uint64_t>(n_topk) * 4;
}

Status take_staging(Group& group, const ep_combine_args& args, Staging* staging) {
    const PrefixMatrix matrix{args.rank_prefix_matrix, group.n_ranks()};
    staging->n_rows = matrix.staged_begin(group.rank(), group.n_ranks());
    staging->weights_at = staging_weights_at(staging->n_rows, args.hidden);
    const size_t bytes = staging_bytes(staging->n_rows, args.hidden, args.n_topk);
    EFA_TRY(group.arena().place(bytes, &staging->block));
    return group.arena().find(staging->block, bytes, &staging->place);
}

Status check_record(const CombineRecord& own, int own_rank, const CombineRecord& theirs, int rank, const PrefixMatrix& matrix) {
    EFA_TRY(check_same("hidden", own.hidden, own_rank, theirs.hidden, rank));
    EFA_TRY(check_same("n_topk", own.n_topk, own_rank, theirs.n_topk, rank));
    if (own.matrix_hash != theirs.matrix_hash)
        return Status::error(Code::kMismatch, "all ranks use the results of the same ep_notify()",
                             "rank %d has another rank_prefix_matrix than rank %d", rank, own_rank);
    if (theirs.n_rows == matrix.staged_begin(rank, matrix.n_ranks) && theirs.weights_at == staging_weights_at(theirs.n_rows, theirs.hidden))
        return Status();
    return Status::error(Code::kProtocol, "run one version of this library on all ranks", "rank %d has another idea of its rows", rank);
}

// How the rows that this rank got from `source` go back to it.
Status make_return_view(Group& group, const ep_combine_args& args, const CombineRecord& own, int source, ReturnView* made) {
    const PrefixMatrix matrix{args.rank_prefix_matrix, group.n_ranks()};
    CombineRecord record;
    std::memcpy(&record, group.control().received(source), sizeof record);
    EFA_TRY(check_record(own, group.rank(), record, source, matrix));
    uint8_t* staging = nullptr;
    EFA_TRY(group.control().locate(source, record.place, staging_bytes(record.n_rows, record.hidden, record.n_topk), group.arena(), &staging));
    const int64_t row_bytes = static_cast<int64_t>(args.hidden) * 2;
    const int64_t first = matrix.begin(source, group.rank()), there = matrix.staged_begin(source, group.rank());
    ReturnView& view = *made;
    view = {};
    view.row_bytes = row_bytes;
    view.n_topk = args.n_topk;
    view.n_rows = matrix.count(source, group.rank());
    if (view.n_rows == 0) return Status();  // and x may be null
    view.x = static_cast<const uint8_t*>(args.x) + first * row_bytes;
    view.to_x = staging + there * row_bytes;
    if (args.n_topk) view.weights = args.topk_weights + first * args.n_topk;
    view.to_weights = reinterpret_cast<float*>(staging + record.weights_at) + there * args.n_topk;
    return Status();
}

ReduceView reduce_view(Group& group, const ep_combine_args& args, const Staging& staging) {
    const PrefixMatrix matrix{args.rank_prefix_matrix, group.n_ranks()};
    ReduceView view = {};
    view.n_ranks = group.n_ranks();
    view.hidden = args.hidden;
    view.n_topk = args.n_topk;
    const int64_t row_bytes = static_cast<int64_t>(args.hidden) * 2;
    for (int rank = 0; rank < group.n_ranks(); ++rank) {
        const bool is_own = rank == group.rank();
        if (matrix.count(group.rank(), rank) == 0) continue;
        const int64_t row = is_own ? matrix.begin(rank, rank) : matrix.staged_begin(group.rank(), rank);
        const uint8_t* const rows = is_own ? static_cast<const uint8_t*>(args.x) : static_cast<const uint8_t*>(staging.block);
        view.rows[rank] = rows + row * row_bytes;
        if (args.n_topk == 0) continue;
        const float* const weights = is_own ? args.topk_weights : reinterpret_cast<const float*>(rows + staging.weights_at);
        view.weights[rank] = weights + row * args.n_topk;
    }
    view.bias_0 = static_cast<const uint8_t*>(args.bias_0);
    view.bias_1 = static_cast<const uint8_t*>(args.bias_1);
    view.is_token_in_rank = args.is_token_in_rank;
    view.send_head = args.send_head;
    view.combined_x = static_cast<uint8_t*>(args.combined_x);
    view.combined_weights = args.combined_weights;
    return view;
}

Status combine(Group& group, const ep_combine_args& args, const Staging& staging) {
    CombineRecord own = {};
    own.hidden = args.hidden;
    own.n_topk = args.n_topk;
    own.n_rows = staging.n_rows;
    own.matrix_hash = matrix_hash({args.rank_prefix_matrix, group.n_ranks()});
    own.place = staging.place;
    own.weights_at = staging.weights_at;
    EFA_TRY(group.control().exchange(CallKind::kCombine, group.arena(), [&](int, uint8_t* body) { std::memcpy(body, &own, sizeof own); }));
    const ReduceView view = reduce_view(group, args, staging);
    ReturnView returns[kNormalRanksMax] = {};
    for (int source = 0; source < group.n_ranks(); ++source)
        if (source != group.rank()) EFA_TRY(make_return_view(group, args, own, source, &returns[source]));
    if (GpuNormal* gpu = group.gpu_normal()) return gpu->combine(args, returns, view, group.control().epoch());
    for (int i = 1; i < group.n_ranks(); ++i) {  // from the next rank on, so that not all write to one first
        const int source = (group.rank() + i) % group.n_ranks();
        const ReturnView& back = returns[source];
        group.workers().split(back.n_rows, [&](int64_t from, int64_t to) { return_rows(OneLane{}, back, from, to); });
        group.control().tell_done(source);
    }
    EFA_TRY(group.control().wait_done(CallKind::kCombine, group.arena()));
    group.workers().split(args.n_tokens, [&](int64_t from, int64_t to) {
        for (int64_t token = from; token < to; ++token) reduce_token(OneLane{}, view, token);
    });
    return Status();
}

}  // namespace

int ep_combine(ep_group* of, ep_combine_args* args) {
    return guarded("ep_combine", [&] {
        EFA_TRY(check_group(of));
        EFA_TRY(check_args(args, "ep_combine_args"));
        Group& group = *of->group;
        EFA_TRY(check_normal_group(group));
        EFA_TRY(check_combine(*args, group));
        Staging staging;
        EFA_TRY(take_staging(group, *args, &staging).with_context("the block for returned rows"));
        EFA_TRY(group.breaks(combine(group, *args, staging)));
        return group.arena().unplace(staging.block);
    });
}
