// SPDX-License-Identifier: Apache-2.0
// Low-latency combine on the GPU, both halves: the steps of ep_ll_combine.cuh by all warps of the grid.
#include "ep_gpu_steps.cuh"
#include "ep_ll_combine.cuh"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kRowPartsMax = 4, kTokenPartsMax = 32;  // warps that share a row, a sum

__device__ static uint32_t shares(uint32_t warps, uint32_t n, uint32_t most) {
    const uint32_t parts = n != 0 ? warps / n : 1;
    return parts < 1 ? 1 : parts < most ? parts : most;
}

__device__ static bool send(const CombineLaunch& launch, GridSteps& steps, uint64_t epoch) {
    const LlView& view = launch.common.view;
    const uint32_t local = view.local, n_ranks = view.shape.n_ranks;
    // While credits come: all rows of all experts behind one another. A masked source's are among them, and are not sent.
    const uint32_t n = steps.number(local, [&](uint32_t expert) {
        const LlRows last = rows_of(view, launch.args, expert, n_ranks - 1);
        return last.begin + last.count;
    });
    if (!gpu_begin_send(launch.common, steps, LlPhase::kCombine, epoch, 0, [](uint32_t) { return true; })) return false;
    const uint32_t parts = view.state ? 1 : shares(steps.warps(), n, kRowPartsMax);  // the network takes a row in one
    steps.for_items(n * parts, [&](uint32_t i) {
        const GridSteps::Found row = steps.find(local, i % n);
        // While it is looked up whose it is.
        prefetch_part(steps.lanes(), row_of(view, launch.args, epoch, row.heap, row.number), 2 * view.shape.hidden, i / n, parts);
        const uint32_t source = source_of(view, steps.lanes(), launch.args, row.heap, row.number);
        if (is_masked(view, source)) return true;
        return combine_send_row(view, steps.lanes(), launch.args, epoch, {row.heap, row.number, source, i / n, parts});
    });
    gpu_end_send(launch.common, steps, LlPhase::kCombine, epoch);
    return true;
}

__device__ static bool receive(const CombineLaunch& launch, GridSteps& steps, uint64_t epoch) {
    constexpr LlPhase kPhase = LlPhase::kCombine;
    const LlView& view = launch.common.view;
    steps.for_items(view.shape.n_ranks, [&](uint32_t rank) { return combine_wait(view, steps.lanes(), launch.args, epoch, rank); });
    if (!steps.gate()) return false;
    const uint32_t n_tokens = static_cast<uint32_t>(launch.args.n_tokens);
    const uint32_t parts = shares(steps.warps(), n_tokens, kTokenPartsMax);
    // Our own rows of this epoch become complete beside the sums: the credits say so, too.
    steps.for_items(n_tokens * parts + 1, [&](uint32_t i) {
        if (i == n_tokens * parts) {
            const bool is_settled = steps.lanes().rank() != 0 || ll_settle(view, kPhase);
            __syncwarp();
            return is_settled;
        }
        combine_reduce_share(view, steps.lanes(), launch.args, epoch, i % n_tokens, i / n_tokens, parts);
        return true;
    });
    gpu_end_receive(launch.common, steps, kPhase, epoch);
    return true;
}

__global__ void __launch_bounds__(kGpuThreads, 1) combine(const __grid_constant__ CombineLaunch launch) {
    const GpuTurn turn = gpu_turn(launch.common, LlPhase::kCombine, launch.args.phases);
    GridSteps steps(launch.common, LlPhase::kCombine);
    if (!turn.is_good) return;
    const bool is_sending = (launch.args.phases & EP_SEND) != 0;
    if (is_sending && launch.args.zero_copy && parity_of(launch.zero_copy_epoch) != parity_of(turn.send)) {
        if (steps.is_first_thread()) gpu_stop(launch.common, GpuStop::kZeroCopy, LlPhase::kCombine);
        return;
    }
    if (is_sending && !send(launch, steps, turn.send)) return;
    if (launch.args.phases & EP_RECV) receive(launch, steps, turn.receive);
}

}  // namespace nvshmem_efa::ep
