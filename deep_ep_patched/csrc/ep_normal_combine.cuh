// SPDX-License-Identifier: Apache-2.0
// Combine. First each rank copies the rows that it got from a source back to a block of that source, in one piece; when
// all have said so, the source adds up its tokens' rows: in fp32, from zero, in rank order, biases last, rounded once.
#pragma once

#include "ep_normal.h"

namespace nvshmem_efa::ep {

// Rows that go back to one source: they lie together on both sides.
struct ReturnView {
    const uint8_t* x;
    const float* weights;
    uint8_t* to_x;
    float* to_weights;
    int64_t row_bytes;
    int32_t n_topk;
    int32_t n_rows;
};

template <class Lanes>
NVSHMEM_EFA_HD inline void return_rows(const Lanes& lanes, const ReturnView& view, int64_t from, int64_t to) {
    if (from >= to) return;
    copy_rows(lanes, view.to_x + from * view.row_bytes, view.x + from * view.row_bytes, static_cast<size_t>((to - from) * view.row_bytes));
    for (int64_t i = from * view.n_topk + lanes.rank(); i < to * view.n_topk; i += lanes.size()) view.to_weights[i] = view.weights[i];
}

struct ReduceView {
    int32_t n_ranks, hidden, n_topk;
    int32_t reserved;
    const uint8_t* rows[kNormalRanksMax];   // of each rank, bf16: row i is the i-th token that was sent there
    const float* weights[kNormalRanksMax];  // the same rows, [n_topk]
    const uint8_t* bias_0;                  // bf16 [T,H], or null
    const uint8_t* bias_1;
    const uint8_t* is_token_in_rank;
    const int32_t* send_head;
    uint8_t* combined_x;
    float* combined_weights;
};

struct alignas(16) RowPiece {
    uint16_t values[8];
};
NVSHMEM_EFA_HD inline RowPiece load_piece(const uint8_t* from) {
#if defined(__CUDA_ARCH__)
    return *reinterpret_cast<const RowPiece*>(from);
#else
    RowPiece piece;  // a caller's tensor on the CPU may begin anywhere
    memcpy(&piece, from, sizeof piece);
    return piece;
#endif
}
NVSHMEM_EFA_HD inline void add_piece(float (&sum)[8], const uint8_t* from) {
    const RowPiece piece = load_piece(from);
    for (int i = 0; i < 8; ++i) sum[i] += bf16_to_float(piece.values[i]);
}

template <class Lanes>
NVSHMEM_EFA_HD inline void reduce_weights(const Lanes& lanes, const ReduceView& view, int64_t token) {
    for (int k = static_cast<int>(lanes.rank()); k < view.n_topk; k += static_cast<int>(lanes.size())) {
        float sum = 0.0f;
        for (int rank = 0; rank < view.n_ranks; ++rank) {
            const int64_t at = token * view.n_ranks + rank;
            if (view.is_token_in_rank[at]) sum += view.weights[rank][static_cast<int64_t>(view.send_head[at]) * view.n_topk + k];
        }
        view.combined_weights[token * view.n_topk + k] = sum;
    }
}

template <class Lanes>
NVSHMEM_EFA_HD inline void reduce_token(const Lanes& lanes, const ReduceView& view, int64_t token) {
    const int64_t row_bytes = static_cast<int64_t>(view.hidden) * 2;
    const uint8_t* sources[kNormalRanksMax];
    int n_sources = 0;
    for (int rank = 0; rank < view.n_ranks; ++rank) {
        const int64_t at = token * view.n_ranks + rank;
        if (view.is_token_in_rank[at]) sources[n_sources++] = view.rows[rank] + view.send_head[at] * row_bytes;
    }
    for (int64_t i = static_cast<int64_t>(lanes.rank()) * 16; i < row_bytes; i += static_cast<int64_t>(lanes.size()) * 16) {
        float sum[8] = {};
        for (int s = 0; s < n_sources; ++s) add_piece(sum, sources[s] + i);
        if (view.bias_0) add_piece(sum, view.bias_0 + token * row_bytes + i);
        if (view.bias_1) add_piece(sum, view.bias_1 + token * row_bytes + i);
        RowPiece rounded;
        for (int j = 0; j < 8; ++j) rounded.values[j] = bf16_of_float(sum[j]);
        memcpy(view.combined_x + token * row_bytes + i, &rounded, sizeof rounded);
    }
    reduce_weights(lanes, view, token);
}

}  // namespace nvshmem_efa::ep
