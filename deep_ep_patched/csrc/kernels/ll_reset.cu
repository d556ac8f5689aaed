// SPDX-License-Identifier: Apache-2.0
// Makes the places of low-latency mode ready for another shape, on the GPU; the host has a barrier between its steps.
#include "ep_gpu_steps.cuh"

namespace nvshmem_efa::ep {

__device__ static void zero(uint8_t* at, uint64_t bytes) {
    const uint64_t n = bytes / 16, stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
        reinterpret_cast<uint4*>(at)[i] = uint4{0, 0, 0, 0};
}

// All that tells of epochs, and tags of lines that another shape's content left where this one's have theirs.
__device__ static void empty_places(const LlView& view) {
    zero(view.base, view.at.control_bytes);
    if (view.has_lines) zero(view.base + view.at.tokens_in, view.at.rows_out - view.at.tokens_in);
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, n_ranks = view.shape.n_ranks;
    const uint32_t n_marks = 2 * (view.shape.n_experts + n_ranks) * view.shape.mark_words();
    for (uint32_t at = i; at < n_marks; at += gridDim.x * blockDim.x) view.marks[at] = 0;
    for (uint32_t at = i; at < 4 * n_ranks; at += gridDim.x * blockDim.x) {
        view.sent[at] = 0;
        const uint32_t rank = at % n_ranks;
        if (view.state && !view.has_lines && by_network(view, rank)) view.arrived[at] = arrivals(*view.state, static_cast<int>(rank), at / n_ranks);
    }
}

// A rank that was masked has made fewer calls than others. All go on from the highest epoch. One warp.
__device__ static void tell_epochs(const GpuCommon& common, const WarpLanes& lanes) {
    const LlView& view = common.view;
    uint64_t* own = word_at(view.base, view.at.epochs_out, 0);
    const GpuEpochs* epochs = common.words->epochs;
    if (lanes.rank() == 0) *own = (epochs[0].sent > epochs[1].sent ? epochs[0].sent : epochs[1].sent) + 1;
    lanes.sync();
    for (uint32_t rank = 0; rank < view.shape.n_ranks; ++rank) {
        if (is_masked(view, rank)) continue;
        // pairs with take_epochs() there, behind the host's barrier
        if (!by_network(view, rank)) flag_store(lanes, word_at(view.stores[rank], view.at.epochs_in, view.rank), *own);
        else ll_put(view, lanes, LlPhase::kDispatch, word_at(view.base, view.at.epochs_in, view.rank), own, 8, rank);
    }
    if (lanes.rank() == 0) ll_settle(view, LlPhase::kDispatch);
}

__device__ static void take_epochs(const GpuCommon& common) {
    const LlView& view = common.view;
    uint64_t highest = *word_at(view.base, view.at.epochs_out, 0);
    for (uint32_t rank = 0; rank < view.shape.n_ranks; ++rank) {
        const uint64_t told = flag_load(word_at(view.base, view.at.epochs_in, rank));
        highest = told > highest ? told : highest;
    }
    const uint64_t next = (highest + 1) / 2 * 2;
    for (GpuEpochs& at : common.words->epochs) at = {next, next};
}

__global__ void __launch_bounds__(kGpuThreads, 1) reset(const __grid_constant__ ResetLaunch launch) {
    const bool is_first_warp = blockIdx.x == 0 && threadIdx.x < 32;
    const WarpLanes lanes{threadIdx.x % 32u};
    if (launch.step == ResetStep::kEmpty) empty_places(launch.common.view);
    if (!is_first_warp) return;
    if (launch.step == ResetStep::kTell) tell_epochs(launch.common, lanes);
    if (lanes.rank() != 0) return;
    if (launch.step == ResetStep::kSettle) ll_settle(launch.common.view, LlPhase::kDispatch);
    if (launch.step == ResetStep::kTake) take_epochs(launch.common);
    if (launch.common.view.fault->is_set != 0) gpu_stop(launch.common, GpuStop::kFault, LlPhase::kDispatch);
}

}  // namespace nvshmem_efa::ep
