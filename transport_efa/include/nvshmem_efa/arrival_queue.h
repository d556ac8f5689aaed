// SPDX-License-Identifier: Apache-2.0
// The inside of counted puts where no counter of the device counts them: each is a write with immediate, which names source
// and slot, and whoever waits reads the completions of the queue that it arrives at. Users include counted.cuh.
#pragma once

#include "nvshmem_efa/device_post.h"

namespace nvshmem_efa::device {

// The immediate of a counted put: PE in the upper 24 bits, slot in the lower 8.
inline constexpr uint32_t kImmediateSlotBits = 8;
NVSHMEM_EFA_HD inline uint32_t arrival_immediate(uint32_t pe, uint32_t slot) { return pe << kImmediateSlotBits | slot; }

// Index, in the tables of arrivals, of the first rail; those of the others follow.
NVSHMEM_EFA_HD inline uint32_t arrival_index(const DeviceState& state, uint32_t pe, uint32_t slot) {
    return (pe * state.arrival_slots + slot) * state.n_rails;
}

// Whether the device has written entry number `index`. Acquire pairs with its write of the phase bit, which comes last
// (soft device: cq_push()): the entry's payload is placed.
NVSHMEM_EFA_HD inline bool arrival_is_there(const ArrivalQueue& queue, uint32_t index) {
    const uint8_t* at = queue.cq_entries + static_cast<size_t>(index & (queue.cq_depth - 1)) * queue.cq_entry_bytes;
    const uint8_t flags = order::load_acquire_sys(at + kCqeFlagsAt);
    return (flags & kCqePhase) == (((index >> queue.cq_depth_log2) & 1u) ^ 1u);
}

// Adds one entry to its count. False: no PE of this job sends such a thing. Pre: the queue's lock is held.
NVSHMEM_EFA_HD inline bool arrival_count(const DeviceState& state, const ArrivalQueue& queue, uint32_t rail, uint32_t index) {
    const uint8_t* at = queue.cq_entries + static_cast<size_t>(index & (queue.cq_depth - 1)) * queue.cq_entry_bytes;
    RxCqe entry;
    memcpy(&entry, at, sizeof entry);
    const uint32_t pe = entry.immediate >> kImmediateSlotBits, slot = entry.immediate & ((1u << kImmediateSlotBits) - 1);
    if (entry.status != static_cast<uint8_t>(CqeStatus::kOk) || !(entry.flags & kCqeHasImm) ||
        pe >= static_cast<uint32_t>(state.n_pes) || slot >= state.arrival_slots) {
        order::store_relaxed_gpu(&queue.state->has_failed, 1);
        return fail(state, {DeviceWait::kStrayArrival, pe, slot, entry.immediate, 0, entry.status});
    }
    uint64_t* count = queue.counts + arrival_index(state, pe, slot) + rail;
    // Release pairs with the load in arrivals(): the payload is placed. The lock is held: nobody else writes the word.
    order::store_release_gpu(count, (order::load_acquire_gpu(count) + 1) & kCounterMask31);
    return true;
}

// Takes what the queue holds, unless somebody else is at it. The lock is held while entries are there, never across a wait.
NVSHMEM_EFA_COLD inline bool arrivals_read(const DeviceState& state, uint32_t rail) {
    const ArrivalQueue queue = state.arrival_queues[rail];
    if (order::load_relaxed_gpu(&queue.state->has_failed) != 0) return false;
    // Acquire pairs with the release below: `consumed` and the counts of whoever read before.
    if (order::exchange_acquire_gpu(&queue.state->lock, 1) != 0) return true;
    const uint32_t first = queue.state->consumed;
    uint32_t index = first;
    bool is_good = true;
    while (is_good && index - first < queue.cq_depth && arrival_is_there(queue, index)) is_good = arrival_count(state, queue, rail, index++);
    if (index != first) {
        queue.state->consumed = index;
        // Every entry used a receive descriptor; all are alike, so that the ring needs no store. The device may fill their
        // entries again: the doorbell's release comes behind our loads.
        if (queue.recv_depth) order::store_doorbell(queue.recv_doorbell, (queue.recv_depth + index) & 0xffffu);
    }
    order::store_release_gpu(&queue.state->lock, 0u);  // pairs with the exchange above
    return is_good;
}

NVSHMEM_EFA_HD inline bool arrivals_read_all(const DeviceState& state) {
    bool is_good = true;
    for (uint32_t rail = 0; rail < state.n_rails; ++rail) is_good = arrivals_read(state, rail) && is_good;
    return is_good;
}

// Whether the device went over entries that nobody had read, which it does without a word. Then the next entry to read has
// the phase of the lap after it, as if it were still to come, while one behind it is there. For who has waited in vain.
NVSHMEM_EFA_COLD inline bool arrivals_are_lost(const DeviceState& state, uint32_t rail) {
    const ArrivalQueue queue = state.arrival_queues[rail];
    if (order::exchange_acquire_gpu(&queue.state->lock, 1) != 0) return false;  // as in arrivals_read()
    const uint32_t next = queue.state->consumed;
    uint32_t behind = 1;
    while (behind < queue.cq_depth && !arrival_is_there(queue, next + behind)) ++behind;
    // Entries are written in order: what is behind is there, so that the next one was, or is now.
    const bool are_lost = behind < queue.cq_depth && !arrival_is_there(queue, next);
    order::store_release_gpu(&queue.state->lock, 0u);  // pairs with the exchange above
    return are_lost;
}

}  // namespace nvshmem_efa::device
