// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <vector>

#include "api.h"
#include "ep_normal_dispatch.cuh"
#include "normal_checks.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

namespace {

int32_t rows_of(const ep_dispatch_args& args) { return args.n_worst ? args.n_worst : args.n_recv; }

DispatchParts parts_of(const ep_dispatch_args& args) {
    return dispatch_parts({rows_of(args), args.row_bytes, args.n_scales, args.n_topk, args.n_ranks, args.n_channels});
}

// By numbers, as the block may be null.
template <class T>
void point(T*& part, const void* block, uint64_t offset) {
    part = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(block) + offset);
}

void place_parts(ep_dispatch_args& args, const DispatchParts& parts) {
    point(args.recv_x, args.recv_block, 0);
    point(args.recv_scales, args.recv_block, parts.scales);
    point(args.recv_topk_idx, args.recv_block, parts.topk_idx);
    point(args.recv_topk_weights, args.recv_block, parts.topk_weights);
    point(args.recv_src_idx, args.recv_block, parts.src_idx);
    point(args.recv_channel_prefix_matrix, args.recv_block, parts.channels);
    if (args.n_scales == 0) args.recv_scales = nullptr;
    if (args.n_topk == 0) args.recv_topk_idx = nullptr;
    if (args.n_topk == 0) args.recv_topk_weights = nullptr;
}

DispatchRecord record_of(const ep_dispatch_args& args, const PrefixMatrix& matrix, const Place& place) {
    DispatchRecord record = {};
    record.row_bytes = args.row_bytes;
    record.n_scales = args.n_scales;
    record.n_topk = args.n_topk;
    record.n_experts = args.n_topk ? args.n_experts : 0;
    record.n_channels = args.n_channels;
    record.n_rows = rows_of(args);
    record.matrix_hash = matrix_hash(matrix);
    record.place = place;
    return record;
}

Status check_record(const DispatchRecord& own, int own_rank, const DispatchRecord& theirs, int rank, int32_t rows_needed) {
    EFA_TRY(check_same("row_bytes", own.row_bytes, own_rank, theirs.row_bytes, rank));
    EFA_TRY(check_same("n_scales", own.n_scales, own_rank, theirs.n_scales, rank));
    EFA_TRY(check_same("n_topk", own.n_topk, own_rank, theirs.n_topk, rank));
    EFA_TRY(check_same("n_experts", own.n_experts, own_rank, theirs.n_experts, rank));
    EFA_TRY(check_same("n_channels", own.n_channels, own_rank, theirs.n_channels, rank));
    if (own.matrix_hash != theirs.matrix_hash)
        return Status::error(Code::kMismatch, "all ranks use the results of the same ep_notify()",
                             "rank %d has another rank_prefix_matrix than rank %d", rank, own_rank);
    if (theirs.n_rows >= rows_needed) return Status();
    return Status::error(Code::kProtocol, "run one version of this library on all ranks", "rank %d has room for %d rows and gets %d", rank,
                         theirs.n_rows, rows_needed);
}

// What the code that copies works on: each peer's block, as it lies here.
Status make_view(Group& group, const ep_dispatch_args& args, const DispatchRecord& own, DispatchView* view) {
    const PrefixMatrix matrix{args.rank_prefix_matrix, group.n_ranks()};
    *view = {};
    view->n_ranks = group.n_ranks();
    view->row_bytes = args.row_bytes;
    view->n_scales = args.n_scales;
    view->n_topk = args.n_topk;
    view->n_local_experts = args.n_experts / group.n_ranks();
    view->scale_stride_token = args.scale_stride_token;
    view->scale_stride_value = args.scale_stride_value;
    view->x = static_cast<const uint8_t*>(args.x);
    view->scales = static_cast<const uint32_t*>(args.scales);
    view->topk_idx = args.topk_idx;
    view->topk_weights = args.topk_weights;
    view->is_token_in_rank = args.is_token_in_rank;
    view->send_head = args.send_head;
    view->channel_prefix_matrix = args.channel_prefix_matrix;
    view->n_channels = args.n_channels;
    for (int rank = 0; rank < group.n_ranks(); ++rank) {
        DispatchRecord record;
        std::memcpy(&record, group.control().received(rank), sizeof record);
        EFA_TRY(check_record(own, group.rank(), record, rank, matrix.total(rank)));
        const DispatchParts parts =
            dispatch_parts({record.n_rows, record.row_bytes, record.n_scales, record.n_topk, group.n_ranks(), record.n_channels});
        uint8_t* block = nullptr;
        EFA_TRY(group.control().locate(rank, record.place, parts.bytes, group.arena(), &block));
        DispatchPeer& peer = view->peers[rank];
        peer.x = block;
        peer.scales = block + parts.scales;
        peer.topk_idx = reinterpret_cast<int64_t*>(block + parts.topk_idx);
        peer.topk_weights = reinterpret_cast<float*>(block + parts.topk_weights);
        peer.src_idx = reinterpret_cast<int32_t*>(block + parts.src_idx);
        peer.channels = reinterpret_cast<int32_t*>(block + parts.channels) + static_cast<int64_t>(group.rank()) * record.n_channels;
        peer.begin = matrix.begin(group.rank(), rank);
    }
    return Status();
}

Status dispatch(Group& group, ep_dispatch_args& args, const Place& place) {
    const DispatchRecord own = record_of(args, {args.rank_prefix_matrix, group.n_ranks()}, place);
    EFA_TRY(group.control().exchange(CallKind::kDispatch, group.arena(), [&](int, uint8_t* body) { std::memcpy(body, &own, sizeof own); }));
    DispatchView view;
    EFA_TRY(make_view(group, args, own, &view));
    if (GpuNormal* gpu = group.gpu_normal()) return gpu->dispatch(args, view, group.control().epoch());
    for (int rank = 0; rank < group.n_ranks(); ++rank) dispatch_channel_starts(OneLane{}, view, rank);
    group.workers().split(args.n_tokens, [&](int64_t from, int64_t to) {
        for (int64_t token = from; token < to; ++token) dispatch_token(OneLane{}, view, token);
    });
    for (int dest = 0; dest < group.n_ranks(); ++dest) group.control().tell_done(dest);
    for (int64_t row = args.n_recv; row < rows_of(args) && args.n_topk; ++row) clear_unused_row(OneLane{}, args.recv_topk_idx, args.n_topk, row);
    return group.control().wait_done(CallKind::kDispatch, group.arena());
}

}  // namespace

int64_t ep_dispatch_place(ep_dispatch_args* args) {
    int64_t bytes = -1;
    guarded("ep_dispatch_place", [&] {
        EFA_TRY(check_args(args, "ep_dispatch_args"));
        EFA_TRY(check_dispatch_sizes(*args));
        const DispatchParts parts = parts_of(*args);
        place_parts(*args, parts);
        bytes = static_cast<int64_t>(parts.bytes);
        return Status();
    });
    return bytes;
}

int ep_dispatch(ep_group* of, ep_dispatch_args* args) {
    return guarded("ep_dispatch", [&] {
        EFA_TRY(check_group(of));
        EFA_TRY(check_args(args, "ep_dispatch_args"));
        Group& group = *of->group;
        EFA_TRY(check_normal_group(group));
        EFA_TRY(check_dispatch(*args, group));
        const DispatchParts parts = parts_of(*args);
        Place place = {};
        EFA_TRY(group.arena().find(args->recv_block, parts.bytes, &place).with_context("recv_block"));
        place_parts(*args, parts);
        return group.breaks(dispatch(group, *args, place));
    });
}
