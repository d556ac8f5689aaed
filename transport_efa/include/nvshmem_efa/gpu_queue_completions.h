// SPDX-License-Identifier: Apache-2.0
// How many requests of a GpuQueue are complete: from the device's counters, or from a CQ that whoever waits reads.
#pragma once

#include "nvshmem_efa/gpu_queue_slots.h"

namespace nvshmem_efa {

// Adds pe and address of the request in `what.slot`, as far as they can be known. Slots are reused by count, so a
// request that completes late may find another in its place: the numbers are compared.
NVSHMEM_EFA_HD inline void describe_request(const GpuQueue& queue, GpuQueueError* what) {
    const uint32_t id_mask = queue.req_id_64 ? 0xffffffffu : 0xffffu;
    const uint32_t place = what->slot & (queue.depth - 1);
    if (queue.notes) {
        const GpuQueueNote note = order::load_note(queue.notes + place);
        if (((static_cast<uint32_t>(note.high) ^ what->slot) & id_mask) != 0) return;
        what->slot = static_cast<uint32_t>(note.high);
        what->pe = static_cast<uint32_t>(note.high >> 32) & 0xffffu;
        what->remote_addr = note.low;
    } else if (queue.slots_are_readable) {
        SendWqe wqe;
        memcpy(&wqe, slot_at(queue, what->slot), kSlotBytesSmall);
        if (wqe.meta.req_id != (what->slot & 0xffffu)) return;
        what->remote_addr = static_cast<uint64_t>(wqe.rdma.remote.addr_hi) << 32 | wqe.rdma.remote.addr_lo;
    }
}

NVSHMEM_EFA_HD inline bool fail_completion(const GpuQueue& queue, const TxCqe& entry) {
    GpuQueueError what{};
    const uint64_t id = cqe_req_id(entry, queue.req_id_64);
    what.status = entry.status;
    what.opcode = cqe_opcode(entry.flags);
    what.slot = static_cast<uint32_t>(id);
    what.pe = static_cast<uint32_t>(id >> 32) & 0xffffu;
    describe_request(queue, &what);
    return gpu_queue_fail(queue, what);
}

// The entry number `index` if the device has written it. The acquire pairs with the device's write of the phase bit,
// which it writes last (soft device: cq_push() in soft_efa/tables.cpp).
NVSHMEM_EFA_HD inline bool cq_entry_read(const GpuQueue& queue, uint32_t index, TxCqe* entry) {
    const uint8_t* at = queue.cq_entries + static_cast<size_t>(index & (queue.cq_depth - 1)) * queue.cq_entry_bytes;
    const uint8_t flags = order::load_acquire_sys(at + kCqeFlagsAt);
    if ((flags & kCqePhase) != (((index >> queue.cq_depth_log2) & 1u) ^ 1u)) return false;
    memcpy(entry, at, sizeof *entry);
    return true;
}

// Takes what the CQ holds, unless somebody else is at it. The lock is held while entries are there, never across a wait.
NVSHMEM_EFA_COLD inline bool completions_poll_cq(GpuQueue queue) {
    GpuQueueState& state = *queue.state;
    // Acquire pairs with the release below: cq_consumed and `completed` of whoever read the CQ before.
    if (order::exchange_acquire_gpu(&state.cq_lock, 1) != 0) return true;
    const uint32_t first = state.cq_consumed;
    uint32_t index = first;
    bool is_good = true;
    TxCqe entry;
    while (is_good && index - first < queue.depth && cq_entry_read(queue, index, &entry)) {
        ++index;
        if (entry.status != static_cast<uint8_t>(CqeStatus::kOk)) is_good = fail_completion(queue, entry);
    }
    if (index != first) {
        state.cq_consumed = index;
        // Pairs with cq_push() of the soft device.
        if (queue.cq_consumer) order::store_release_sys(queue.cq_consumer, index);
        // Release pairs with the posters' loads of `completed`: the entries have been read before their slots are reused.
        order::store_release_gpu(&state.completed, order::load_acquire_gpu(&state.completed) + (index - first));
    }
    order::store_release_gpu(&state.cq_lock, 0u);  // pairs with the exchange above
    return is_good;
}

// Errors were counted, after `completed` requests; looks for an entry of theirs among the CQ's newest, as far back as the
// device cannot yet have gone over.
NVSHMEM_EFA_COLD inline bool fail_counted_error(GpuQueue queue, uint32_t completed, uint32_t n_errors) {
    const uint32_t written = completed - queue.first_slot + n_errors;
    const uint32_t span = queue.cq_entries && queue.cq_depth > queue.depth ? queue.cq_depth - queue.depth : 0;
    TxCqe entry;
    for (uint32_t back = 1; back <= span && back <= written; ++back) {
        if (cq_entry_read(queue, written - back, &entry) && entry.status != static_cast<uint8_t>(CqeStatus::kOk))
            return fail_completion(queue, entry);
    }
    GpuQueueError what{};
    what.status = kStatusUnknown;
    return gpu_queue_fail(queue, what);
}

// The error counter has moved; reads both again, errors before completions, unlike completions_read_counter(): whatever
// was in flight when the error was counted then has its entry before `counter`.
NVSHMEM_EFA_COLD inline bool completions_read_error(GpuQueue queue, uint32_t known) {
    // Acquire pairs with the device's write of the error counter, which comes after the error's entry.
    const auto errors = static_cast<uint32_t>(order::load_acquire_sys(queue.errors));
    const auto counter = static_cast<uint32_t>(order::load_acquire_sys(queue.completions));
    const uint32_t fresh = (counter - queue.counter_bias - known) & kCounterMask31;
    return fail_counted_error(queue, fresh > queue.depth ? known : known + fresh, (errors - queue.errors_before) & kCounterMask31);
}

NVSHMEM_EFA_HD inline bool completions_read_counter(const GpuQueue& queue) {
    GpuQueueState& state = *queue.state;
    const uint64_t known = order::load_acquire_gpu(&state.completed);  // pairs with max_release_gpu() below
    // Relaxed, so that both loads cross the bus at the same time; an error that is missed now is seen by the next look.
    const auto errors = static_cast<uint32_t>(order::load_relaxed_sys(queue.errors));
    // Acquire pairs with the device's write of the counter (soft device: Device::count()): the payloads are placed.
    const auto counter = static_cast<uint32_t>(order::load_acquire_sys(queue.completions));
    if (((errors - queue.errors_before) & kCounterMask31) != 0)
        return completions_read_error(queue, static_cast<uint32_t>(known));
    const uint32_t fresh = (counter - queue.counter_bias - static_cast<uint32_t>(known)) & kCounterMask31;
    // More than can be in flight: a look older than `known`, which another poster's newer one has outrun on its way
    // over the bus (seen on an H200 about once in 10^6 looks). There is nothing to learn from it.
    if (fresh > queue.depth) return true;
    if (fresh != 0) order::max_release_gpu(&state.completed, known + fresh);  // pairs with the posters' loads
    return true;
}

// The same where many may wait: one of them looks, as each look crosses the bus twice, and a thousand threads that all
// look would keep it from the device. The lock is held for the look, never across a wait.
NVSHMEM_EFA_HD inline bool completions_read_counter_alone(const GpuQueue& queue) {
    GpuQueueState& state = *queue.state;
    // Acquire pairs with the release below: nothing here is read before the lock is ours.
    if (order::exchange_acquire_gpu(&state.cq_lock, 1) != 0) return true;
    const bool is_good = completions_read_counter(queue);
    order::store_release_gpu(&state.cq_lock, 0u);  // pairs with the exchange above
    return is_good;
}

// Brings `completed` up to date, or leaves that to another who is at it. False: the queue has failed.
NVSHMEM_EFA_HD inline bool completions_refresh(const GpuQueue& queue) {
    if (gpu_queue_has_failed(queue)) return false;
    return queue.completions ? completions_read_counter_alone(queue) : completions_poll_cq(queue);
}

// For a queue's owner: nobody else is at it.
NVSHMEM_EFA_HD inline bool completions_refresh_owned(const GpuQueue& queue) {
    if (gpu_queue_has_failed(queue)) return false;
    return queue.completions ? completions_read_counter(queue) : completions_poll_cq(queue);
}

}  // namespace nvshmem_efa
