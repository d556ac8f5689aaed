// SPDX-License-Identifier: Apache-2.0
// A kernel as a row of steps: each is done by all warps of the grid, an item a warp, and is over before the next begins.
// There is no cooperative launch: blocks wait for each other in GPU memory, so all must run at once (the host launches at
// most one a multiprocessor), and a deadline ends the wait where they do not.
#pragma once

#include "ep_gpu_launch.h"

namespace nvshmem_efa::ep {

// Tells the host why; the first of all blocks does.
__device__ inline void gpu_stop(const GpuCommon& common, GpuStop stop, LlPhase phase) {
    if (order::exchange_acquire_gpu(&common.words->is_told, 1) != 0) return;
    GpuReport* report = common.report;
    report->stop = stop;
    report->phase = static_cast<uint32_t>(phase);
    if (stop == GpuStop::kFault) report->fault = *common.view.fault;
    order::store_release_sys(&report->is_set, 1u);  // pairs with the host's acquire in GpuRuntime::check()
}

class GridSteps {
 public:
    __device__ GridSteps(const GpuCommon& common, LlPhase phase) : common_(common), phase_(phase), lanes_{threadIdx.x % 32u} {
        look();
    }

    __device__ const WarpLanes& lanes() const { return lanes_; }
    // No fault of this or an earlier kernel was known at the last gate. The same for all threads of a block. After a fault
    // bodies are left out and gates are passed, so that no block waits for one that has given up.
    __device__ bool is_good() const { return is_good_; }
    __device__ bool is_first_thread() const { return blockIdx.x == 0 && threadIdx.x == 0; }

    // body(i) for i < n, by one warp each; neighbours go to different blocks. No gate behind it.
    template <class Body>
    __device__ void for_items(uint32_t n, const Body& body) {
        if (!is_good_) return;
        for (uint32_t i = threadIdx.x / 32u * gridDim.x + blockIdx.x; i < n; i += kGpuWarps * gridDim.x) body(i);
    }
    // The same, and then all blocks have done theirs, and see what the others stored. False: a block did not come.
    template <class Body>
    __device__ bool step(uint32_t n, const Body& body) {
        for_items(n, body);
        return gate();
    }
    // Of ranks: each begins with itself, so that no rank is everybody's first. Masked ones, too.
    template <class Body>
    __device__ void for_ranks(const Body& body) {
        const uint32_t n = common_.view.shape.n_ranks;
        for_items(n, [&](uint32_t i) { body((common_.view.rank + i) % n); });
    }

    // Behind the last step: a fault goes to the host.
    __device__ void end() {
        look();
        if (!is_good_ && threadIdx.x == 0) gpu_stop(common_, GpuStop::kFault, phase_);
    }

    __device__ bool gate() {
        __shared__ bool has_all;
        __syncthreads();  // what the block's threads stored happens before thread 0's fence
        if (threadIdx.x == 0) has_all = meet();
        look();
        return has_all;
    }

 private:
    __device__ bool meet() const {
        GpuGate* gate = &common_.words->gates[static_cast<uint32_t>(phase_)];
        const uint32_t lap = load_lap(gate);
        __threadfence();  // release: pairs with the acquire in load_lap() of the blocks that wait
        if (atomicAdd(&gate->come, 1u) + 1 == gridDim.x) {
            __threadfence();  // acquire: pairs with the others' fence above, through the sum
            gate->come = 0;
            order::store_release_gpu(&gate->lap, lap + 1);  // pairs with load_lap()
            return true;
        }
        const uint64_t deadline = clock_ns() + common_.gate_ns;
        for (uint32_t turn = 0; load_lap(gate) == lap; ++turn) {
            if ((turn & 255u) == 255u && clock_ns() > deadline) {
                gpu_stop(common_, GpuStop::kBlocks, phase_);
                return false;
            }
        }
        return true;
    }
    __device__ static uint32_t load_lap(const GpuGate* gate) {
        const uint32_t lap = order::load_relaxed_gpu(&gate->lap);
        __threadfence();  // with the load an acquire
        return lap;
    }
    // All threads of the block, with one answer.
    __device__ void look() {
        __shared__ bool is_good;
        __syncthreads();  // of the last look, all have read it; and has_all is there for all
        if (threadIdx.x == 0) is_good = order::load_relaxed_gpu(&common_.view.fault->is_set) == 0;
        __syncthreads();
        is_good_ = is_good;
    }

    const GpuCommon& common_;
    const LlPhase phase_;
    const WarpLanes lanes_;
    bool is_good_ = false;
};

// The epochs of this kernel's halves, as of its start: all blocks read them before the first gate, one thread changes them
// behind it. False: this call is out of order, which the host is told.
struct GpuTurn {
    uint64_t send, receive;
};
__device__ inline bool gpu_turn(const GpuCommon& common, LlPhase phase, int32_t phases, GpuTurn* turn) {
    const GpuEpochs& epochs = common.words->epochs[static_cast<uint32_t>(phase)];
    const uint64_t sent = epochs.sent, received = epochs.received;
    *turn = {sent + 1, received + 1};
    const bool is_sending = (phases & EP_SEND) != 0;
    const bool is_good = is_sending ? sent - received < 2 : sent > received;
    if (!is_good && blockIdx.x == 0 && threadIdx.x == 0) gpu_stop(common, GpuStop::kOrder, phase);
    return is_good;
}

// ---- what both phases do ----

// Who may be sent to, and that everything of this rank's earlier operations is complete: both before the first request.
__device__ inline bool gpu_begin_send(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch) {
    const LlView& view = common.view;
    return steps.step(view.shape.n_ranks + 1, [&](uint32_t i) {
        if (i == view.shape.n_ranks) {
            if (steps.lanes().rank() == 0) ll_settle(view, phase);
            __syncwarp();
        } else if (!is_masked(view, i)) {
            ll_wait_for_credit(view, steps.lanes(), phase, epoch, i);
        }
    });
}
__device__ inline void gpu_raise_flags(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch) {
    steps.for_ranks([&](uint32_t rank) {
        if (!by_network(common.view, rank) && !is_masked(common.view, rank)) ll_raise_flag(common.view, steps.lanes(), phase, epoch, rank);
    });
    if (steps.is_good() && steps.is_first_thread()) common.words->epochs[static_cast<uint32_t>(phase)].sent = epoch;
}
__device__ inline void gpu_give_credits(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch) {
    steps.for_ranks([&](uint32_t rank) {
        if (!is_masked(common.view, rank)) ll_give_credit(common.view, steps.lanes(), phase, epoch, rank);
    });
    if (steps.is_good() && steps.is_first_thread()) common.words->epochs[static_cast<uint32_t>(phase)].received = epoch;
}

}  // namespace nvshmem_efa::ep
