// SPDX-License-Identifier: Apache-2.0
// A block a rank: numbers the tokens that go there, says where its channels end, and tells the host the counts.
#include "ep_normal_gpu.cuh"

namespace nvshmem_efa::ep {

// How many of the block's threads of lower number say yes, and how many of all. All threads.
struct BlockCount {
    int32_t before, all;
};
__device__ static BlockCount count_in_block(bool yes) {
    __shared__ int32_t of_warp[kNormalWarps];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t votes = __ballot_sync(kAllLanes, yes);
    __syncthreads();  // of the last count, all have read it
    if (lane == 0) of_warp[warp] = __popc(votes);
    __syncthreads();
    BlockCount count = {__popc(votes & ((1u << lane) - 1u)), 0};
    for (uint32_t w = 0; w < kNormalWarps; ++w) {
        if (w < warp) count.before += of_warp[w];
        count.all += of_warp[w];
    }
    return count;
}

__device__ static int32_t number_column(const NormalNotifyLaunch& launch, int32_t rank) {
    const int32_t per_channel = channel_tokens(launch.n_tokens, launch.n_channels), n_ranks = launch.common.n_ranks;
    int32_t* const ends = launch.channel_prefix_matrix + static_cast<int64_t>(rank) * launch.n_channels;
    int32_t n = 0;
    for (int32_t first = 0; first < launch.n_tokens; first += static_cast<int32_t>(kNormalThreads)) {
        const int32_t token = first + static_cast<int32_t>(threadIdx.x);
        const int64_t at = static_cast<int64_t>(token) * n_ranks + rank;
        const bool is_token = token < launch.n_tokens, is_in = is_token && launch.is_token_in_rank[at] != 0;
        const BlockCount count = count_in_block(is_in);
        if (is_token) launch.send_head[at] = is_in ? n + count.before : -1;
        if (is_token && (token + 1) % per_channel == 0) ends[token / per_channel] = n + count.before + (is_in ? 1 : 0);
        n += count.all;
    }
    // The last channel that has tokens may be a short one; those behind it have none.
    const int32_t full = per_channel ? launch.n_tokens / per_channel : 0;
    for (int32_t c = full + static_cast<int32_t>(threadIdx.x); c < launch.n_channels; c += static_cast<int32_t>(kNormalThreads)) ends[c] = n;
    return n;
}

__global__ void __launch_bounds__(kNormalThreads) normal_notify(const __grid_constant__ NormalNotifyLaunch launch) {
    const int32_t rank = static_cast<int32_t>(blockIdx.x);
    const int32_t n = number_column(launch, rank);
    NormalCounts* const counts = launch.counts;
    if (threadIdx.x == 0) counts->counted[rank] = n;
    if (threadIdx.x == 0) counts->tokens_per_rank[rank] = launch.tokens_per_rank[rank];
    const int32_t n_local = launch.n_experts / launch.common.n_ranks;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < n_local; i += static_cast<int32_t>(kNormalThreads))
        counts->tokens_per_expert[rank * n_local + i] = launch.tokens_per_expert[rank * n_local + i];
    // pairs with the host's acquire in GpuNormal::count()
    if (normal_is_last(launch.common) && threadIdx.x == 0) order::store_release_sys(&counts->turn, launch.turn);
}

}  // namespace nvshmem_efa::ep
