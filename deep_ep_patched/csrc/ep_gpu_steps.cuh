// SPDX-License-Identifier: Apache-2.0
// A kernel as a row of steps: each is done by all warps of the grid, an item a warp or a team, and is over before the next
// begins. There is no cooperative launch: blocks wait for each other in GPU memory, so all must run at once (the host launches at
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

static_assert(kGpuThreads == 2 * kTeamThreads, "the teams' barriers");

class GridSteps {
 public:
    __device__ GridSteps(const GpuCommon& common, LlPhase phase) : common_(common), phase_(phase), lanes_{threadIdx.x % 32u} {
        is_good_ = __syncthreads_or(order::load_relaxed_gpu(&common.view.fault->is_set) != 0) == 0;
    }

    __device__ const WarpLanes& lanes() const { return lanes_; }
    __device__ bool is_first_thread() const { return blockIdx.x == 0 && threadIdx.x == 0; }
    __device__ uint32_t warps() const { return kGpuWarps * gridDim.x; }  // of the grid

    // body(i) for i < n, by one warp each; neighbours go to different blocks. No gate behind it. Bodies say whether they did
    // well. After a fault they are left out and gates are passed, so that no block waits for one that has given up.
    template <class Body>
    __device__ void for_items(uint32_t n, const Body& body) {
        if (!is_good_) return;
        for (uint32_t i = threadIdx.x / 32u * gridDim.x + blockIdx.x; i < n; i += warps()) note(body(i));
    }
    // body(team, i) for i < n, by one team each.
    template <class Body>
    __device__ void for_teams(uint32_t n, const Body& body) {
        if (!is_good_) return;
        const uint32_t teams = blockDim.x / kTeamThreads;
        for (uint32_t i = threadIdx.x / kTeamThreads * gridDim.x + blockIdx.x; i < n; i += teams * gridDim.x) note(body(WarpTeam{}, i));
    }

    // All blocks have done theirs, and see what the others stored. False: a block did not come.
    __device__ bool gate() {
        enum : uint32_t { kGood, kBad, kLate };
        __shared__ uint32_t seen;
        const bool is_bad = has_faults();  // and what the block's threads stored happens before thread 0's fence
        if (threadIdx.x == 0) {
            uint32_t lap = 0;
            seen = !meet(is_bad, &lap) ? kLate : lap % 2 != 0 ? kBad : kGood;
        }
        __syncthreads();
        is_good_ = is_good_ && seen == kGood;
        return seen != kLate;
    }

    // The end of a half: the last block to come does body(warp), which says whether it did well, for all that all blocks
    // stored; the others go on. A fault goes to the host.
    template <class Body>
    __device__ void end(uint32_t half, const Body& body) {
        enum : uint32_t { kNotLast, kGood, kBad };
        __shared__ uint32_t seen;
        const bool is_bad = has_faults();
        if (threadIdx.x == 0) {
            uint32_t* const ended = &common_.words->ended[static_cast<uint32_t>(phase_)][half];
            const uint32_t come = arrive(ended, is_bad);
            const bool is_last = (come & 0xffffu) == gridDim.x;
            if (is_last) *ended = 0;  // for the next kernel
            seen = !is_last ? kNotLast : come >> 16 != 0 ? kBad : kGood;
        }
        __syncthreads();
        if (seen == kNotLast) return;
        const bool is_done = seen == kGood && body(threadIdx.x / 32u);
        if (__syncthreads_or(!is_done) != 0 && threadIdx.x == 0) gpu_stop(common_, GpuStop::kFault, phase_);
    }

    // Which of many small heaps an item lies in: heap(i) has what of(i) says, for i < n. Fills a table of the block. Returns
    // how many items there are.
    template <class Of>
    __device__ uint32_t number(uint32_t n, const Of& of) {
        __shared__ uint32_t of_warps[kGpuWarps];
        uint32_t sum = 0;
        __syncthreads();  // the table of before is read no more
        for (uint32_t first = 0; first < n; first += kGpuThreads) {
            const uint32_t i = first + threadIdx.x, count = i < n ? of(i) : 0, before = lanes_.sum_before(count);
            if (lanes_.lane == 31) of_warps[threadIdx.x / 32u] = before + count;
            __syncthreads();
            uint32_t begin = sum + before;
            for (uint32_t warp = 0; warp < kGpuWarps; ++warp) {
                if (warp < threadIdx.x / 32u) begin += of_warps[warp];
                sum += of_warps[warp];
            }
            if (i < n) begins()[i] = begin;
            __syncthreads();
        }
        return sum;
    }
    // The heap of an item, and its number there.
    struct Found {
        uint32_t heap, number;
    };
    __device__ static Found find(uint32_t n, uint32_t item) {
        uint32_t low = 0, high = n;  // begins()[low] <= item, and item < begins()[high], if there is one
        while (high - low > 1) {
            const uint32_t middle = (low + high) / 2;
            (begins()[middle] <= item ? low : high) = middle;
        }
        return {low, item - begins()[low]};
    }

 private:
    __device__ void note(bool is_good) { has_failed_ = has_failed_ || !is_good; }
    // For all threads of the block, which it syncs.
    __device__ bool has_faults() {
        const bool is_bad = __syncthreads_or(has_failed_ || !is_good_) != 0;
        is_good_ = is_good_ && !is_bad;
        return is_bad;
    }
    __device__ static uint32_t* begins() {
        __shared__ uint32_t table[kLlExpertsMax];
        return table;
    }

    // Counts this block; what it stored happens before what the last one does. How many have come, with this one.
    __device__ static uint32_t arrive(uint32_t* come, bool is_bad) {
        const uint32_t one = is_bad ? 0x10001u : 1u;
        order::fence_gpu();  // release: pairs with the fence below of the block that comes last, through the sum
        const uint32_t sum = atomicAdd(come, one) + one;
        if ((sum & 0xffffu) == gridDim.x) order::fence_gpu();  // acquire: pairs with the others' fence above
        return sum;
    }
    __device__ bool meet(bool is_bad, uint32_t* now) const {
        GpuGate* gate = &common_.words->gates[static_cast<uint32_t>(phase_)];
        const uint32_t lap = order::load_relaxed_gpu(&gate->lap);
        const uint32_t come = arrive(&gate->come, is_bad);
        if ((come & 0xffffu) == gridDim.x) {
            gate->come = 0;
            *now = (lap / 2 + 1) * 2 + (come >> 16 != 0 ? 1 : 0);
            order::store_release_gpu(&gate->lap, *now);  // pairs with the fence below
            return true;
        }
        const uint64_t deadline = clock_ns() + common_.gate_ns;
        for (uint32_t turn = 0; (*now = order::load_relaxed_gpu(&gate->lap)) / 2 == lap / 2; ++turn) {
            if ((turn & 255u) == 255u && clock_ns() > deadline) {
                gpu_stop(common_, GpuStop::kBlocks, phase_);
                return false;
            }
        }
        order::fence_gpu();  // acquire: with the load that saw the lap; pairs with the release above
        return true;
    }

    const GpuCommon& common_;
    const LlPhase phase_;
    const WarpLanes lanes_;
    bool is_good_ = false;      // no fault was known at the last gate: the same for all threads of a block
    bool has_failed_ = false;   // a body of this thread's
};

// The epochs of this kernel's halves, as of its start: all blocks read them before the first gate, one thread changes them
// behind it. False: this call is out of order, which the host is told.
struct GpuTurn {
    uint64_t send, receive;
    bool is_good;
};
__device__ inline GpuTurn gpu_turn(const GpuCommon& common, LlPhase phase, int32_t phases) {
    const GpuEpochs& epochs = common.words->epochs[static_cast<uint32_t>(phase)];
    const uint64_t sent = epochs.sent, received = epochs.received;
    const bool is_sending = (phases & EP_SEND) != 0;
    const bool is_good = is_sending ? sent - received < 2 : sent > received;
    if (!is_good && blockIdx.x == 0 && threadIdx.x == 0) gpu_stop(common, GpuStop::kOrder, phase);
    return {sent + 1, received + 1, is_good};
}

// ---- what both phases do ----

// Who may be sent to, and that everything of this rank's earlier operations is complete: both before the first request.
// Beside it body(i) for i < n. False: a block did not come.
template <class Body>
__device__ inline bool gpu_begin_send(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch, uint32_t n, const Body& body) {
    const LlView& view = common.view;
    const uint32_t n_ranks = view.shape.n_ranks;
    steps.for_items(n_ranks + 1 + n, [&](uint32_t i) {
        if (i > n_ranks) return body(i - n_ranks - 1);
        if (i < n_ranks) return ll_wait_for_credit(view, steps.lanes(), phase, epoch, i) != LlEnd::kFailed;
        const bool is_settled = steps.lanes().rank() != 0 || ll_settle(view, phase);
        __syncwarp();
        return is_settled;
    });
    return steps.gate();
}
// Each warp's ranks: the first is the own one, so that no rank is everybody's first.
template <class Body>
__device__ inline bool gpu_for_ranks(const LlView& view, uint32_t warp, const Body& body) {
    bool is_good = true;
    for (uint32_t i = warp; i < view.shape.n_ranks; i += kGpuWarps) {
        const uint32_t rank = (view.rank + i) % view.shape.n_ranks;
        if (!is_masked(view, rank)) is_good = body(rank) && is_good;
    }
    return is_good;
}
__device__ inline void gpu_end_send(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch) {
    steps.end(0, [&](uint32_t warp) {
        gpu_for_ranks(common.view, warp, [&](uint32_t rank) {
            if (!by_network(common.view, rank)) ll_raise_flag(common.view, steps.lanes(), phase, epoch, rank);
            return true;
        });
        if (threadIdx.x == 0) common.words->epochs[static_cast<uint32_t>(phase)].sent = epoch;
        return true;
    });
}
__device__ inline void gpu_end_receive(const GpuCommon& common, GridSteps& steps, LlPhase phase, uint64_t epoch) {
    steps.end(1, [&](uint32_t warp) {
        const auto give = [&](uint32_t rank) { return ll_give_credit(common.view, steps.lanes(), phase, epoch, rank); };
        if (threadIdx.x == 0) common.words->epochs[static_cast<uint32_t>(phase)].received = epoch;
        return gpu_for_ranks(common.view, warp, give);
    });
}

}  // namespace nvshmem_efa::ep
