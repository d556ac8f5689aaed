// SPDX-License-Identifier: Apache-2.0
// Low-latency combine on the GPU, both halves: the steps of ep_ll_combine.cuh by all warps of the grid.
#include "ep_gpu_steps.cuh"
#include "ep_ll_combine.cuh"

namespace nvshmem_efa::ep {

__device__ static bool send(const CombineLaunch& launch, GridSteps& steps, uint64_t epoch) {
    const LlView& view = launch.common.view;
    const uint32_t local = view.shape.local_experts();
    if (!gpu_begin_send(launch.common, steps, LlPhase::kCombine, epoch)) return false;
    const auto rows = [&](uint32_t i) { combine_send(view, steps.lanes(), launch.args, epoch, i % local, i / local); };
    if (!steps.step(local * view.shape.n_ranks, rows)) return false;
    gpu_raise_flags(launch.common, steps, LlPhase::kCombine, epoch);
    return true;
}

__device__ static bool receive(const CombineLaunch& launch, GridSteps& steps, uint64_t epoch) {
    constexpr LlPhase kPhase = LlPhase::kCombine;
    const LlView& view = launch.common.view;
    if (!steps.step(view.shape.n_ranks, [&](uint32_t rank) { combine_wait(view, steps.lanes(), launch.args, epoch, rank); })) return false;
    // Our own rows of this epoch become complete beside the sums: the credits say so, too.
    const uint32_t n_tokens = static_cast<uint32_t>(launch.args.n_tokens);
    const auto reduce = [&](uint32_t i) {
        if (i != 0) return combine_reduce(view, steps.lanes(), launch.args, epoch, i - 1);
        if (steps.lanes().rank() == 0) ll_settle(view, kPhase);
        __syncwarp();
    };
    if (!steps.step(n_tokens + 1, reduce)) return false;
    gpu_give_credits(launch.common, steps, kPhase, epoch);
    return true;
}

__global__ void __launch_bounds__(kGpuThreads, 1) combine(const __grid_constant__ CombineLaunch launch) {
    GridSteps steps(launch.common, LlPhase::kCombine);
    GpuTurn turn;
    if (!gpu_turn(launch.common, LlPhase::kCombine, launch.args.phases, &turn)) return;
    const bool is_sending = (launch.args.phases & EP_SEND) != 0;
    if (is_sending && launch.args.zero_copy && parity_of(launch.zero_copy_epoch) != parity_of(turn.send)) {
        if (steps.is_first_thread()) gpu_stop(launch.common, GpuStop::kZeroCopy, LlPhase::kCombine);
        return;
    }
    if (is_sending && !send(launch, steps, turn.send)) return;
    if ((launch.args.phases & EP_RECV) && !receive(launch, steps, turn.receive)) return;
    steps.end();
}

}  // namespace nvshmem_efa::ep
