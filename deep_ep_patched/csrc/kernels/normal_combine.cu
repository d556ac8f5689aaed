// SPDX-License-Identifier: Apache-2.0
// Combine: half of each block's warps return rows to their sources, piece by piece in the order of tokens; the other half
// add up tokens as soon as their pieces are there.
#include "ep_normal_gpu.cuh"

namespace nvshmem_efa::ep {

// One piece of the rows that came from `source`, back to it, and its flag. One warp.
__device__ static void return_piece(const NormalCombineLaunch& launch, const WarpLanes& lanes, int source, int32_t piece) {
    const ReturnView& view = launch.returns[source];
    const int64_t from = static_cast<int64_t>(piece) * launch.rows_of_piece;
    const int64_t end = from + launch.rows_of_piece, to = end < view.n_rows ? end : view.n_rows;
    for (int64_t row = from; row < to; ++row) {
        const OnePlace there{reinterpret_cast<uint4*>(view.to_x + row * view.row_bytes)};
        copy_to_each(lanes, view.x + row * view.row_bytes, static_cast<uint32_t>(view.row_bytes), there);
    }
    for (int64_t i = from * view.n_topk + lanes.rank(); i < to * view.n_topk; i += 32) view.to_weights[i] = view.weights[i];
    // pairs with wait_for_rows() there; it is cumulative over what sync() made known to lane 0
    flag_store(lanes, &launch.common.flags[source]->pieces[launch.common.rank][piece], launch.common.epoch);
}

__device__ static void return_all(const NormalCombineLaunch& launch, const WarpLanes& lanes, uint32_t warp, uint32_t n_warps) {
    const int n_ranks = launch.common.n_ranks;
    int32_t most = 0;
    for (int rank = 0; rank < n_ranks; ++rank) most = launch.returns[rank].n_rows > most ? launch.returns[rank].n_rows : most;
    const uint32_t n_pieces = static_cast<uint32_t>((most + launch.rows_of_piece - 1) / launch.rows_of_piece);
    const uint32_t n_others = static_cast<uint32_t>(n_ranks - 1);
    for (uint32_t i = warp; i < n_pieces * n_others; i += n_warps) {
        const int source = static_cast<int>((static_cast<uint32_t>(launch.common.rank) + 1 + i % n_others) % static_cast<uint32_t>(n_ranks));
        const int32_t piece = static_cast<int32_t>(i / n_others);
        if (static_cast<int64_t>(piece) * launch.rows_of_piece < launch.returns[source].n_rows) return_piece(launch, lanes, source, piece);
    }
}

// Lane r: the row of this token among those of rank r, or -1; when it is here.
__device__ static int32_t wait_for_rows(const NormalCombineLaunch& launch, const WarpLanes& lanes, int32_t token) {
    const int32_t rank = static_cast<int32_t>(lanes.rank()), n_ranks = launch.common.n_ranks;
    int32_t row = -1;
    const int64_t at = static_cast<int64_t>(token) * n_ranks + rank;
    if (rank < n_ranks && launch.reduce.is_token_in_rank[at]) {
        row = launch.reduce.send_head[at];
        if (row < 0 || row >= launch.n_to[rank]) {
            normal_stop(launch.common, NormalStop::kPlace, rank, token, launch.n_to[rank], row);
            row = -1;
        } else if (rank != launch.common.rank) {
            const uint64_t* const flag = &launch.common.flags[launch.common.rank]->pieces[rank][row / launch.rows_of_piece];
            if (!normal_wait(launch.common, flag, NormalStop::kReturned, rank)) row = -1;  // pairs with return_piece() there
        }
    }
    lanes.sync();  // all lanes read what these lanes have acquired
    return row;
}

// kRanks: at least as many as there are; the fewer, the more columns of 16 bytes a lane has in flight.
template <int kRanks>
__device__ static void add_up(const NormalCombineLaunch& launch, const WarpLanes& lanes, int32_t token) {
    constexpr int kColumns = 16 / kRanks;
    const ReduceView& view = launch.reduce;
    const int32_t own_row = wait_for_rows(launch, lanes, token);
    const uint32_t from = __ballot_sync(kAllLanes, own_row >= 0);
    const uint32_t row_bytes = static_cast<uint32_t>(view.hidden) * 2, n = row_bytes / 16;
    const uint4* rows[kRanks];
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank)
        rows[rank] = reinterpret_cast<const uint4*>(view.rows[rank] + static_cast<int64_t>(__shfl_sync(kAllLanes, own_row, rank)) * row_bytes);
    for (uint32_t first = lanes.rank(); first < n; first += 32 * kColumns) {
        uint4 held[kRanks][kColumns];
#pragma unroll
        for (int rank = 0; rank < kRanks; ++rank)
#pragma unroll
            for (int c = 0; c < kColumns; ++c)
                if (from >> rank & 1u) held[rank][c] = first + 32 * c < n ? load_row(rows[rank] + first + 32 * c) : uint4{};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const uint32_t i = first + 32 * c;
            if (i >= n) break;
            float sum[8] = {};
#pragma unroll
            for (int rank = 0; rank < kRanks; ++rank)  // in rank order: sums are rounded alike everywhere
                if (from >> rank & 1u) add_eight(sum, held[rank][c]);
            const uint64_t at = static_cast<uint64_t>(token) * row_bytes + i * 16;
            if (view.bias_0) add_eight(sum, load_once(reinterpret_cast<const uint4*>(view.bias_0 + at)));
            if (view.bias_1) add_eight(sum, load_once(reinterpret_cast<const uint4*>(view.bias_1 + at)));
            store_row(reinterpret_cast<uint4*>(view.combined_x + at), round_eight(sum));
        }
    }
    // A row that was refused or did not come has no weights either.
    if (__all_sync(kAllLanes, own_row >= 0 || static_cast<int32_t>(lanes.rank()) >= view.n_ranks ||
                                  !view.is_token_in_rank[static_cast<int64_t>(token) * view.n_ranks + lanes.rank()]))
        reduce_weights(lanes, view, token);
}

template <int kRanks>
__device__ static void add_up_all(const NormalCombineLaunch& launch, const WarpLanes& lanes, uint32_t warp, uint32_t n_warps) {
    for (uint32_t token = warp; token < static_cast<uint32_t>(launch.n_tokens); token += n_warps)
        add_up<kRanks>(launch, lanes, static_cast<int32_t>(token));
}

__global__ void __launch_bounds__(kNormalThreads, 1) normal_combine(const __grid_constant__ NormalCombineLaunch launch) {
    const WarpLanes lanes{threadIdx.x % 32u};
    const uint32_t in_block = threadIdx.x / 32u;
    if (blockIdx.x == 0) normal_tell_ready(launch.common);
    if (!normal_wait_ready(launch.common)) return;
    if (in_block < kReturnWarps) return return_all(launch, lanes, in_block * gridDim.x + blockIdx.x, kReturnWarps * gridDim.x);
    const uint32_t warp = (in_block - kReturnWarps) * gridDim.x + blockIdx.x, n_warps = (kNormalWarps - kReturnWarps) * gridDim.x;
    if (launch.common.n_ranks <= 2) return add_up_all<2>(launch, lanes, warp, n_warps);
    if (launch.common.n_ranks <= 4) return add_up_all<4>(launch, lanes, warp, n_warps);
    add_up_all<kNormalRanksMax>(launch, lanes, warp, n_warps);
}

}  // namespace nvshmem_efa::ep
