// SPDX-License-Identifier: Apache-2.0
// Low-latency dispatch on the GPU, both halves: the steps of ep_ll_dispatch.cuh by all warps of the grid.
#include "ep_gpu_steps.cuh"
#include "ep_ll_dispatch.cuh"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kPartsMax = 16;  // warps that share what one token brings

__device__ static bool send(const DispatchLaunch& launch, GridSteps& steps, uint64_t epoch) {
    constexpr LlPhase kPhase = LlPhase::kDispatch;
    const LlView& view = launch.common.view;
    const uint32_t n_tokens = static_cast<uint32_t>(launch.args.n_tokens), n_ranks = view.shape.n_ranks;
    const auto mark = [&](uint32_t i) {
        dispatch_mark(view, steps.lanes(), launch.args, epoch, i);
        return true;
    };
    if (!gpu_begin_send(launch.common, steps, kPhase, epoch, mark_parts(launch.args), mark)) return false;
    // Tokens first: a block has two teams, and there are more teams than tokens, as a rule.
    steps.for_teams(n_tokens + n_ranks + 1, [&](const WarpTeam& team, uint32_t i) {
        if (i < n_tokens) return dispatch_send_token(view, team, launch.args, epoch, i);
        if (i < n_tokens + n_ranks) return dispatch_send_record(view, team, launch.args, epoch, (view.rank + i - n_tokens) % n_ranks);
        dispatch_clear_marks(view, team.all(), epoch);
        return true;
    });
    gpu_end_send(launch.common, steps, kPhase, epoch);
    return true;
}

__device__ static bool receive(const DispatchLaunch& launch, GridSteps& steps, uint64_t epoch) {
    const LlView& view = launch.common.view;
    const uint32_t local = view.local, n_ranks = view.shape.n_ranks;
    steps.for_teams(n_ranks, [&](const WarpTeam& team, uint32_t rank) { return dispatch_wait(view, team, launch.args, epoch, rank); });
    if (!steps.gate()) return false;
    const uint32_t n = steps.number(n_ranks, [&](uint32_t source) { return view.counts[source * (1 + local)]; });
    const uint32_t spare = steps.warps() > local && n != 0 ? (steps.warps() - local) / n : 1;
    const uint32_t parts = spare < 1 ? 1 : spare < kPartsMax ? spare : kPartsMax;
    steps.for_items(n * parts + local, [&](uint32_t i) {
        if (i < n * parts) {
            const GridSteps::Found token = steps.find(n_ranks, i % n);
            const LlRow share{token_in(view, epoch, token.heap, token.number), 0, 0, 0, i / n, parts};
            return dispatch_unpack(view, steps.lanes(), launch.args, epoch, share, token.heap);
        }
        dispatch_begin_rows(view, steps.lanes(), launch.args, i - n * parts);
        return true;
    });
    gpu_end_receive(launch.common, steps, LlPhase::kDispatch, epoch);
    return true;
}

__global__ void __launch_bounds__(kGpuThreads, 1) dispatch(const __grid_constant__ DispatchLaunch launch) {
    const GpuTurn turn = gpu_turn(launch.common, LlPhase::kDispatch, launch.args.phases);
    GridSteps steps(launch.common, LlPhase::kDispatch);
    if (!turn.is_good) return;
    if ((launch.args.phases & EP_SEND) && !send(launch, steps, turn.send)) return;
    if (launch.args.phases & EP_RECV) receive(launch, steps, turn.receive);
}

}  // namespace nvshmem_efa::ep
