// SPDX-License-Identifier: Apache-2.0
// Counts of a layout, a token a thread. Sums of whole numbers, so that their order does not matter.
#include "ep_normal_gpu.cuh"

namespace nvshmem_efa::ep {

__device__ static void count_token(const NormalLayoutLaunch& launch, int32_t token) {
    const LayoutView& view = launch.view;
    uint8_t* const is_in = view.is_token_in_rank + static_cast<int64_t>(token) * view.n_ranks;
    const int32_t n_local = view.n_experts / view.n_ranks;
    for (int r = 0; r < view.n_ranks; ++r) is_in[r] = 0;
    for (int k = 0; k < view.n_topk; ++k) {
        const int64_t expert = view.topk_idx[static_cast<int64_t>(token) * view.n_topk + k];
        if (expert == -1) continue;
        if (expert < 0 || expert >= view.n_experts) {
            normal_stop(launch.common, NormalStop::kChoice, k, token, view.n_experts, expert);
            continue;
        }
        atomicAdd(view.tokens_per_expert + expert, 1);
        const int64_t rank = expert / n_local;
        if (is_in[rank]) continue;
        is_in[rank] = 1;
        atomicAdd(view.tokens_per_rank + rank, 1);
    }
}

__global__ void __launch_bounds__(kNormalThreads) normal_layout(const __grid_constant__ NormalLayoutLaunch launch) {
    for (int32_t token = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x); token < launch.view.n_tokens;
         token += static_cast<int32_t>(gridDim.x * blockDim.x))
        count_token(launch, token);
}

}  // namespace nvshmem_efa::ep
