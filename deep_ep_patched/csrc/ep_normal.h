// SPDX-License-Identifier: Apache-2.0
// Normal mode in one NVLink domain: what ranks tell each other, and what the code below works on. Counts come first, then
// places; then each token's row is written once, by its source, to its last place in the receiver's memory.
#pragma once

#include "ep_api.h"
#include "ep_control.h"
#include "ep_lanes.h"

namespace nvshmem_efa::ep {

inline constexpr int kNormalRanksMax = 8;
inline constexpr int kTopkMax = 32;

// Where a block lies: a slab of its owner's arena, and bytes from its begin.
struct Place {
    uint32_t slab;
    uint32_t reserved;
    uint64_t offset;
};

// ---- bodies of records; `matrix` is the rank_prefix_matrix ----

struct NotifyRecord {
    int32_t n_experts, n_channels;
    int32_t tokens_per_rank[kNormalRanksMax];  // of the writer, for all ranks
    // int32_t [n_experts / n_ranks] follows: tokens for each expert of the reader
};
struct CachedNotifyRecord {
    int32_t matrix[kNormalRanksMax * kNormalRanksMax];
};
// Parts of the block that dispatch fills, from its begin; all 128-byte aligned.
struct DispatchParts {
    uint64_t scales, topk_idx, topk_weights, src_idx, channels;  // x comes first
    uint64_t bytes;                                              // of all
};
struct DispatchRecord {
    int32_t row_bytes, n_scales, n_topk, n_experts, n_channels;
    int32_t n_rows;  // that the writer has room for
    uint64_t matrix_hash;
    Place place;  // of the writer's block
};
struct CombineRecord {
    int32_t hidden, n_topk;
    int32_t n_rows;  // in the writer's staging block
    int32_t reserved;
    uint64_t matrix_hash;
    Place place;  // rows of x, then weights
    uint64_t weights_at;
};
inline constexpr int kLocalExpertsMax = (kRecordBytes - sizeof(NotifyRecord)) / sizeof(int32_t);
inline constexpr int kChannelsMax = 4096;

// ---- the matrix: [i][j] tokens sent to j by ranks 0..i ----

struct PrefixMatrix {
    const int32_t* values;
    int32_t n_ranks;
    // Of the rows at `to`: where those of `from` begin and how many they are.
    NVSHMEM_EFA_HD int32_t begin(int from, int to) const { return from == 0 ? 0 : values[(from - 1) * n_ranks + to]; }
    NVSHMEM_EFA_HD int32_t count(int from, int to) const { return values[from * n_ranks + to] - begin(from, to); }
    NVSHMEM_EFA_HD int32_t total(int to) const { return values[(n_ranks - 1) * n_ranks + to]; }
    // Of the staging rows of `owner`: where those of `from` begin. The owner's own are not staged.
    NVSHMEM_EFA_HD int32_t staged_begin(int owner, int from) const {
        int32_t sum = 0;
        for (int i = 0; i < from; ++i) sum += i == owner ? 0 : count(owner, i);
        return sum;
    }
};

NVSHMEM_EFA_HD inline uint64_t matrix_hash(const PrefixMatrix& matrix) {  // FNV-1a, a value at a time
    uint64_t hash = 0xcbf29ce484222325ull;
    for (int i = 0; i < matrix.n_ranks * matrix.n_ranks; ++i)
        hash = (hash ^ static_cast<uint32_t>(matrix.values[i])) * 0x100000001b3ull;
    return hash;
}

NVSHMEM_EFA_HD inline int32_t channel_tokens(int32_t n_tokens, int32_t n_channels) {
    return n_channels ? (n_tokens + n_channels - 1) / n_channels : 0;
}

NVSHMEM_EFA_HD inline uint64_t aligned_part(uint64_t bytes) { return (bytes + 127) / 128 * 128; }

struct DispatchShape {
    int64_t n_rows;
    int32_t row_bytes, n_scales, n_topk, n_ranks, n_channels;
};
NVSHMEM_EFA_HD inline DispatchParts dispatch_parts(const DispatchShape& shape) {
    const auto [n_rows, row_bytes, n_scales, n_topk, n_ranks, n_channels] = shape;
    const uint64_t rows = static_cast<uint64_t>(n_rows), topk = static_cast<uint64_t>(n_topk);
    DispatchParts parts;
    parts.scales = aligned_part(rows * static_cast<uint64_t>(row_bytes));
    parts.topk_idx = parts.scales + aligned_part(rows * static_cast<uint64_t>(n_scales) * 4);
    parts.topk_weights = parts.topk_idx + aligned_part(rows * topk * 8);
    parts.src_idx = parts.topk_weights + aligned_part(rows * topk * 4);
    parts.channels = parts.src_idx + aligned_part(rows * 4);
    parts.bytes = parts.channels + aligned_part(static_cast<uint64_t>(n_ranks) * static_cast<uint64_t>(n_channels) * 4);
    return parts;
}

}  // namespace nvshmem_efa::ep
