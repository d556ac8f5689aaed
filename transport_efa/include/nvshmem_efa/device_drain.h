// SPDX-License-Identifier: Apache-2.0
// The inside of the device API: how queues are waited for. Users include wait.cuh.
#pragma once

#include "nvshmem_efa/device_order.h"
#include "nvshmem_efa/device_state.h"
#include "nvshmem_efa/gpu_queue_shared.h"

namespace nvshmem_efa::device {

// A copy: every fence would have what is behind a reference loaded again.
NVSHMEM_EFA_HD inline GpuQueue queue_at(const DeviceState& state, uint32_t index) {
    return order::load_fixed(order::load_fixed(&state.queues) + index);
}

// Nothing is in flight, as far as posters know already: no look at the device. The count first, then the head (see
// shared_quiet()). Acquire pairs with the release of `completed`: the payloads are placed.
NVSHMEM_EFA_HD inline bool queue_is_idle(const GpuQueue& queue) {
    const uint64_t completed = order::load_acquire_gpu(&queue.state->completed);
    return static_cast<uint32_t>(completed) == order::load_relaxed_gpu(&queue.state->head);
}

// Waits until nothing is in flight; see shared_quiet().
NVSHMEM_EFA_COLD inline bool drain_queue(const DeviceState& state, uint32_t index, uint32_t pe) {
    return shared_quiet(queue_at(state, index), pe);
}

// ---- several queues together ----
// So many, whose loads are on their way at a time. Masks have a bit for each.
inline constexpr uint32_t kQueuesTogether = 8;

// Which of the queues `first`..`first + n - 1` are not idle. Two round trips to GPU memory for all of them.
NVSHMEM_EFA_HD inline uint32_t busy_queues(const DeviceState& state, uint32_t first, uint32_t n, bool* is_good) {
    const GpuQueue* queues = order::load_fixed(&state.queues) + first;
    const GpuQueueState* at[kQueuesTogether];
    uint32_t completed[kQueuesTogether], head[kQueuesTogether], failed[kQueuesTogether];
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) at[i] = order::load_fixed(&queues[i < n ? i : 0].state);
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i)
        completed[i] = static_cast<uint32_t>(order::load_before_fence_gpu(&at[i]->completed));
    // The counts first, then the heads, see shared_quiet(), and whether an error was among what is counted. Pairs with the
    // releases of `completed`: the payloads are placed.
    order::fence_acquire_gpu();
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        head[i] = order::load_relaxed_gpu(&at[i]->head);
        failed[i] = order::load_relaxed_gpu(&at[i]->failed);
    }
    uint32_t busy = 0, bad = 0;
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        bad |= failed[i];
        busy |= (completed[i] != head[i] && failed[i] == 0 && i < n ? 1u : 0u) << i;
    }
    *is_good = *is_good && bad == 0;
    return busy;
}

// One look at the counters of those queues of `busy` whose lock (see completions_read_counter_alone()) is free: all looks
// cross the bus together. completed[i]: what is known then. False: a queue has counted errors.
NVSHMEM_EFA_HD inline bool look_together(const GpuQueue* queues, uint32_t busy, uint32_t (&completed)[kQueuesTogether]) {
    uint64_t known[kQueuesTogether];
    uint32_t is_taken[kQueuesTogether], counter[kQueuesTogether], errors[kQueuesTogether];
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        is_taken[i] = 1;
        known[i] = counter[i] = errors[i] = 0;
        if (busy >> i & 1u) {
            GpuQueueState* state = order::load_fixed(&queues[i].state);
            known[i] = order::load_before_fence_gpu(&state->completed);
            is_taken[i] = order::exchange_before_fence_gpu(&state->cq_lock, 1);
        }
    }
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        if (is_taken[i] != 0) continue;
        errors[i] = static_cast<uint32_t>(order::load_relaxed_sys(order::load_fixed(&queues[i].errors)));
        counter[i] = static_cast<uint32_t>(order::load_before_fence_sys(order::load_fixed(&queues[i].completions)));
    }
    // For all of them: pairs with the devices' writes of their counters (soft device: Device::count()), and with the
    // releases of `completed` by others: the payloads are placed. And it is the release of what is stored below.
    order::fence_acquire_sys();
    bool is_good = true;
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        if (is_taken[i] == 0) {
            GpuQueueState* state = order::load_fixed(&queues[i].state);
            const uint32_t fresh =
                (counter[i] - order::load_fixed(&queues[i].counter_bias) - static_cast<uint32_t>(known[i])) & kCounterMask31;
            // More than can be in flight: see completions_read_counter().
            if (fresh != 0 && fresh <= order::load_fixed(&queues[i].depth)) {
                known[i] += fresh;
                order::max_behind_fence_gpu(&state->completed, known[i]);
            }
            order::store_behind_fence_gpu(&state->cq_lock, 0u);
            if (((errors[i] - order::load_fixed(&queues[i].errors_before)) & kCounterMask31) != 0)
                is_good = completions_read_error(order::load_fixed(&queues[i]), static_cast<uint32_t>(known[i])) && is_good;
        }
        completed[i] = static_cast<uint32_t>(known[i]);
    }
    return is_good;
}

// Waits for all of `busy` at once, as shared_quiet() does for one. Returns those that need it: others go on posting to
// them, or they have no counters.
NVSHMEM_EFA_COLD inline uint32_t drain_together(const DeviceState& state, uint32_t first, uint32_t busy, uint32_t pe, bool* is_good) {
    const GpuQueue* queues = order::load_fixed(&state.queues) + first;
    WaitClock clock;
    uint32_t completed[kQueuesTogether], goal[kQueuesTogether], left = 0, looks_late = 0;
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < kQueuesTogether; ++i) {
        goal[i] = 0;
        if ((busy >> i & 1u) == 0) continue;
        goal[i] = order::load_relaxed_gpu(&order::load_fixed(&queues[i].state)->head);
        if (!order::load_fixed(&queues[i].completions)) left |= 1u << i;
    }
    busy &= ~left;
    for (uint32_t looks = 0; busy != 0; ++looks) {
        if (!look_together(queues, busy, completed)) *is_good = false;
        bool is_late = false;
        NVSHMEM_EFA_UNROLL
        for (uint32_t i = 0; i < kQueuesTogether; ++i) {
            if ((busy >> i & 1u) == 0) continue;
            const GpuQueueState* at = order::load_fixed(&queues[i].state);
            const uint32_t head = order::load_relaxed_gpu(&at->head);
            const bool has_failed = order::load_relaxed_gpu(&at->failed) != 0;
            if (has_failed) *is_good = false;
            if (has_failed || completed[i] == head) busy &= ~(1u << i);
            else is_late = is_late || static_cast<int32_t>(completed[i] - goal[i]) >= 0;
        }
        if (busy == 0) break;
        if (is_late && ++looks_late >= kLooksBeforeHold) break;
        if (clock.has_passed(order::load_fixed(&queues->wait_ticks))) {
            for (uint32_t i = 0; busy >> i != 0; ++i) {
                if ((busy >> i & 1u) == 0) continue;
                const GpuQueue queue = queue_at(state, first + i);
                *is_good = fail_wait(queue, GpuQueueWait::kQuiet, pe, order::load_relaxed_gpu(&queue.state->head));
            }
            return left;
        }
        order::pause_longer(looks);
    }
    return busy | left;
}

// All queues that have something in flight; what the others cost stands above.
NVSHMEM_EFA_HD inline bool drain_all(const DeviceState& state, uint32_t pe) {
    bool is_good = true;
    const uint32_t n_queues = order::load_fixed(&state.n_rails) * order::load_fixed(&state.queues_per_rail);
    for (uint32_t first = 0; first < n_queues; first += kQueuesTogether) {
        const uint32_t n = n_queues - first < kQueuesTogether ? n_queues - first : kQueuesTogether;
        uint32_t busy = busy_queues(state, first, n, &is_good);
        if (busy != 0) busy = drain_together(state, first, busy, pe, &is_good);
        for (uint32_t i = 0; busy >> i != 0; ++i)
            if (busy >> i & 1u) is_good = drain_queue(state, first + i, pe) && is_good;
    }
    return is_good;
}

// The same as a call.
NVSHMEM_EFA_COLD inline bool drain_queues(const DeviceState& state, uint32_t pe) { return drain_all(state, pe); }

// For waits on other PEs: a queue's error is why nothing comes. Every so many turns it looks at the queues that have
// something in flight. False: one of them has failed.
inline constexpr uint32_t kTurnsBetweenLooks = 1024;
NVSHMEM_EFA_COLD inline bool queues_are_good(const DeviceState& state) {
    bool is_good = true;
    for (uint32_t i = 0; i < state.n_rails * state.queues_per_rail; ++i) {
        const GpuQueue queue = state.queues[i];
        is_good = (queue_is_idle(queue) ? !gpu_queue_has_failed(queue) : completions_refresh(queue)) && is_good;
    }
    return is_good;
}
struct PeerWait {
    WaitClock clock;
    uint32_t turns = 0;
    enum class Turn : uint8_t { kGoOn, kPassed, kQueueFailed };
    // One turn of a wait of at most `ticks`. A queue's failure is also told when the deadline has passed.
    NVSHMEM_EFA_HD Turn next(const DeviceState& state, uint64_t ticks) {
        const bool has_passed = clock.has_passed(ticks);
        if ((has_passed || ++turns % kTurnsBetweenLooks == 0) && !queues_are_good(state)) return Turn::kQueueFailed;
        if (!has_passed) order::pause_longer(turns);
        return has_passed ? Turn::kPassed : Turn::kGoOn;
    }
};

}  // namespace nvshmem_efa::device
