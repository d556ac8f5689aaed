// SPDX-License-Identifier: Apache-2.0
// Dispatch, the copying: one group of lanes a token. Rows of different tokens never meet, so groups need not know of each
// other; the flag that says "all rows are there" is stored when all groups of the rank are through (Control::tell_done()).
#pragma once

#include "ep_normal.h"

namespace nvshmem_efa::ep {

// The block of a receiver, as it is mapped here, and its first row that is ours.
struct DispatchPeer {
    uint8_t* x;
    uint8_t* scales;
    int64_t* topk_idx;
    float* topk_weights;
    int32_t* src_idx;
    int32_t* channels;  // our row of its recv_channel_prefix_matrix
    int32_t begin;
    int32_t reserved;
};

struct DispatchView {
    int32_t n_ranks, row_bytes, n_scales, n_topk, n_local_experts;
    int32_t reserved;
    int64_t scale_stride_token, scale_stride_value;
    const uint8_t* x;
    const uint32_t* scales;
    const int64_t* topk_idx;
    const float* topk_weights;
    const uint8_t* is_token_in_rank;
    const int32_t* send_head;
    const int32_t* channel_prefix_matrix;
    int32_t n_channels;
    int32_t reserved_too;
    DispatchPeer peers[kNormalRanksMax];
};

// What goes with a row: scales, the choices that are the receiver's experts, and the token's number.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_row_facts(const Lanes& lanes, const DispatchView& view, int64_t token, int rank, int64_t row) {
    const DispatchPeer& peer = view.peers[rank];
    for (int64_t s = lanes.rank(); s < view.n_scales; s += lanes.size()) {
        const uint32_t* const from = view.scales + token * view.scale_stride_token + s * view.scale_stride_value;
        memcpy(__builtin_assume_aligned(peer.scales + (row * view.n_scales + s) * 4, 4), from, 4);
    }
    const int64_t first = static_cast<int64_t>(rank) * view.n_local_experts;
    for (int k = static_cast<int>(lanes.rank()); k < view.n_topk; k += static_cast<int>(lanes.size())) {
        const int64_t local = view.topk_idx[token * view.n_topk + k] - first;
        const bool is_here = local >= 0 && local < view.n_local_experts;
        peer.topk_idx[row * view.n_topk + k] = is_here ? local : -1;
        peer.topk_weights[row * view.n_topk + k] = is_here ? view.topk_weights[token * view.n_topk + k] : 0.0f;
    }
    if (lanes.rank() == 0) peer.src_idx[row] = static_cast<int32_t>(token);
}

template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_token(const Lanes& lanes, const DispatchView& view, int64_t token) {
    for (int rank = 0; rank < view.n_ranks; ++rank) {
        const int64_t at = token * view.n_ranks + rank;
        if (!view.is_token_in_rank[at]) continue;
        const int64_t row = view.peers[rank].begin + view.send_head[at];
        copy_rows(lanes, view.peers[rank].x + row * view.row_bytes, view.x + token * view.row_bytes, static_cast<size_t>(view.row_bytes));
        dispatch_row_facts(lanes, view, token, rank, row);
    }
}

// Where each of our channels starts inside our rows at `rank`, which has no use for the end of the last.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_channel_starts(const Lanes& lanes, const DispatchView& view, int rank) {
    const int32_t* const ends = view.channel_prefix_matrix + static_cast<int64_t>(rank) * view.n_channels;
    for (int c = static_cast<int>(lanes.rank()); c < view.n_channels; c += static_cast<int>(lanes.size()))
        view.peers[rank].channels[c] = c == 0 ? 0 : ends[c - 1];
}

// Rows that nobody sent, of a block with more rows than came: they have no expert.
template <class Lanes>
NVSHMEM_EFA_HD inline void clear_unused_row(const Lanes& lanes, int64_t* topk_idx, int32_t n_topk, int64_t row) {
    for (int k = static_cast<int>(lanes.rank()); k < n_topk; k += static_cast<int>(lanes.size())) topk_idx[row * n_topk + k] = -1;
}

}  // namespace nvshmem_efa::ep
