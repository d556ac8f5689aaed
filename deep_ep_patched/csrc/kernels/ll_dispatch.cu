// SPDX-License-Identifier: Apache-2.0
// Low-latency dispatch on the GPU, both halves: the steps of ep_ll_dispatch.cuh by all warps of the grid.
#include "ep_gpu_steps.cuh"
#include "ep_ll_dispatch.cuh"

namespace nvshmem_efa::ep {

__device__ static bool send(const DispatchLaunch& launch, GridSteps& steps, uint64_t epoch) {
    constexpr LlPhase kPhase = LlPhase::kDispatch;
    const LlView& view = launch.common.view;
    if (!gpu_begin_send(launch.common, steps, kPhase, epoch)) return false;
    // Behind the gate nobody writes `ordinals` of this epoch any more.
    if (!steps.step(view.shape.n_ranks, [&](uint32_t rank) { dispatch_plan(view, steps.lanes(), launch.args, epoch, rank); })) return false;
    const auto token = [&](uint32_t i) { dispatch_send_token(view, steps.lanes(), launch.args, epoch, i); };
    if (!steps.step(static_cast<uint32_t>(launch.args.n_tokens), token)) return false;
    gpu_raise_flags(launch.common, steps, kPhase, epoch);
    return true;
}

__device__ static bool receive(const DispatchLaunch& launch, GridSteps& steps, uint64_t epoch) {
    constexpr LlPhase kPhase = LlPhase::kDispatch;
    const LlView& view = launch.common.view;
    const uint32_t local = view.shape.local_experts();
    if (!steps.step(view.shape.n_ranks, [&](uint32_t rank) { dispatch_wait(view, steps.lanes(), launch.args, epoch, rank); })) return false;
    if (!steps.step(local, [&](uint32_t expert) { dispatch_begin_rows(view, steps.lanes(), launch.args, expert); })) return false;
    const auto unpack = [&](uint32_t i) { dispatch_unpack(view, steps.lanes(), launch.args, epoch, i % local, i / local); };
    if (!steps.step(local * view.shape.n_ranks, unpack)) return false;
    gpu_give_credits(launch.common, steps, kPhase, epoch);
    return true;
}

__global__ void __launch_bounds__(kGpuThreads, 1) dispatch(const __grid_constant__ DispatchLaunch launch) {
    GridSteps steps(launch.common, LlPhase::kDispatch);
    GpuTurn turn;
    if (!gpu_turn(launch.common, LlPhase::kDispatch, launch.args.phases, &turn)) return;
    if ((launch.args.phases & EP_SEND) && !send(launch, steps, turn.send)) return;
    if ((launch.args.phases & EP_RECV) && !receive(launch, steps, turn.receive)) return;
    steps.end();
}

}  // namespace nvshmem_efa::ep
