// SPDX-License-Identifier: Apache-2.0
// Dispatch: a token a warp, read once and stored to its last place in the memory of each rank that gets it.
#include "ep_normal_gpu.cuh"

namespace nvshmem_efa::ep {

// Lane r: the row of this token at rank r, or -1.
__device__ static int32_t row_at_rank(const NormalDispatchLaunch& launch, const WarpLanes& lanes, int32_t token) {
    const int32_t rank = static_cast<int32_t>(lanes.rank()), n_ranks = launch.view.n_ranks;
    if (rank >= n_ranks) return -1;
    const int64_t at = static_cast<int64_t>(token) * n_ranks + rank;
    if (!launch.view.is_token_in_rank[at]) return -1;
    const int32_t ordinal = launch.view.send_head[at];
    if (ordinal >= 0 && ordinal < launch.n_to[rank]) return launch.view.peers[rank].begin + ordinal;
    normal_stop(launch.common, NormalStop::kPlace, rank, token, launch.n_to[rank], ordinal);
    return -1;
}

// The ranks `to`; lane r has the row at rank r.
struct RowPlaces {
    const DispatchView& view;
    uint32_t to;
    int32_t own_row;
    template <class Store>
    __device__ void each(const Store& store) const {
        for (uint32_t left = to; left != 0; left &= left - 1) {
            const int rank = __ffs(static_cast<int>(left)) - 1;
            const int64_t row = __shfl_sync(kAllLanes, own_row, rank);
            store(reinterpret_cast<uint4*>(view.peers[rank].x + row * view.row_bytes));
        }
    }
};

__device__ static void send_token(const NormalDispatchLaunch& launch, const WarpLanes& lanes, int32_t token) {
    const DispatchView& view = launch.view;
    const int32_t own_row = row_at_rank(launch, lanes, token);
    const uint32_t to = __ballot_sync(kAllLanes, own_row >= 0);
    if (to == 0) return;
    const uint32_t row_bytes = static_cast<uint32_t>(view.row_bytes);
    copy_to_each(lanes, view.x + static_cast<int64_t>(token) * row_bytes, row_bytes, RowPlaces{view, to, own_row});
    for (uint32_t left = to; left != 0; left &= left - 1) {
        const int rank = __ffs(static_cast<int>(left)) - 1;
        const int64_t row = __shfl_sync(kAllLanes, own_row, rank);
        dispatch_row_facts(lanes, view, token, rank, row);
    }
}

// What lies in own memory or is small: the matrix, channels, and rows that nobody sends.
__device__ static void write_rest(const NormalDispatchLaunch& launch, const WarpLanes& lanes, uint32_t warp, uint32_t n_warps) {
    const DispatchView& view = launch.view;
    const int32_t n_values = view.n_ranks * view.n_ranks;
    if (warp == 0 && launch.matrix_out)
        for (int32_t i = static_cast<int32_t>(lanes.rank()); i < n_values; i += 32) launch.matrix_out[i] = launch.matrix[i];
    for (uint32_t rank = warp; rank < static_cast<uint32_t>(view.n_ranks); rank += n_warps) dispatch_channel_starts(lanes, view, static_cast<int>(rank));
    if (!launch.own_topk_idx) return;
    for (int64_t row = launch.n_recv + static_cast<int64_t>(warp); row < launch.n_rows; row += n_warps)
        clear_unused_row(lanes, launch.own_topk_idx, view.n_topk, row);
}

__global__ void __launch_bounds__(kNormalThreads, 1) normal_dispatch(const __grid_constant__ NormalDispatchLaunch launch) {
    const NormalCommon& common = launch.common;
    const WarpLanes lanes{threadIdx.x % 32u};
    // Neighbouring tokens go to different blocks, so that a short batch uses them all.
    const uint32_t warp = threadIdx.x / 32u * gridDim.x + blockIdx.x, n_warps = kNormalWarps * gridDim.x;
    if (blockIdx.x == 0) normal_tell_ready(common);
    if (normal_wait_ready(common)) {
        write_rest(launch, lanes, warp, n_warps);
        for (uint32_t token = warp; token < static_cast<uint32_t>(launch.n_tokens); token += n_warps)
            send_token(launch, lanes, static_cast<int32_t>(token));
    }
    if (!normal_is_last(common)) return;
    const int32_t rank = static_cast<int32_t>(threadIdx.x);
    if (rank >= common.n_ranks) return;
    order::store_release_sys(&common.flags[rank]->done[common.rank], common.epoch);  // pairs with the wait below, there
    normal_wait(common, &common.flags[common.rank]->done[rank], NormalStop::kRows, rank);
}

}  // namespace nvshmem_efa::ep
