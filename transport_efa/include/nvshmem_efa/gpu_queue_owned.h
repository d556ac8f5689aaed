// SPDX-License-Identifier: Apache-2.0
// Posting to a queue that one thread or one warp owns for a while: no atomics, the counters live in registers. Members of
// the owning group hold equal cursors and make the same calls. Between owned_end() and the next owned_begin() the queue
// may change hands, or be shared.
#pragma once

#include "nvshmem_efa/gpu_queue_completions.h"

namespace nvshmem_efa {

struct OwnedCursor {
    uint32_t posted;     // slots written
    uint32_t rung;       // last doorbell
    uint32_t settled;    // last doorbell that is known to be out
    uint32_t completed;  // at least so many are complete
    bool has_failed;
};

// What happened to the queue before must be ordered before this call (a kernel boundary, a barrier).
NVSHMEM_EFA_HD inline OwnedCursor owned_begin(const GpuQueue& queue) {
    const Turn turn = turn_unpack(order::load_acquire_gpu(&queue.state->turn));
    return {turn.written, turn.written - turn.unrung, turn.written - turn.unsettled,
            static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->completed)), gpu_queue_has_failed(queue)};
}

// One doorbell for all that was posted since the last. The one system-wide release of this doorbell orders the group's
// slots, joined to rank 0, before the doorbell, and the doorbell before this one before all that follows; pairs with the
// device's fetch of slots after it sees the doorbell (soft: Device::poll_doorbells()).
template <class Group>
NVSHMEM_EFA_HD inline void owned_ring(const GpuQueue& queue, OwnedCursor& cursor, const Group& group) {
    if (cursor.posted == cursor.rung) return;
    group.join();
    if (group.rank() == 0) order::store_doorbell(queue.doorbell, cursor.posted);
    group.join();  // later slots of all members come after the release, so `settled` holds for each of them
    cursor.settled = cursor.rung;
    cursor.rung = cursor.posted;
}

NVSHMEM_EFA_HD inline bool owned_ring_has_room(const GpuQueue& queue, const OwnedCursor& cursor, uint32_t n) {
    return cursor.posted + n - cursor.completed <= queue.depth;
}
NVSHMEM_EFA_HD inline bool owned_batch_has_room(const GpuQueue& queue, const OwnedCursor& cursor, uint32_t n) {
    return queue.max_batch == 0 || cursor.posted + n - cursor.settled <= queue.max_batch;
}

// Waits until at most `in_flight` requests are not complete. Rank 0 looks, all learn.
template <class Group>
NVSHMEM_EFA_COLD inline OwnedCursor owned_wait(GpuQueue queue, OwnedCursor cursor, Group group, uint32_t in_flight,
                                               GpuQueueWait what, uint32_t pe) {
    WaitClock clock;
    while (!cursor.has_failed && cursor.posted - cursor.completed > in_flight) {
        bool is_good = true;
        uint32_t completed = 0;
        if (group.rank() == 0) {
            is_good = completions_refresh_owned(queue);
            completed = static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->completed));
            const bool is_enough = cursor.posted - completed <= in_flight;
            if (is_good && !is_enough && clock.has_passed(queue.wait_ticks))
                is_good = fail_wait(queue, what, pe, cursor.posted);
            if (is_good && !is_enough) order::pause();
        }
        const uint64_t shared = group.share(static_cast<uint64_t>(is_good) << 32 | completed);
        cursor.has_failed = (shared >> 32) == 0;
        if (!cursor.has_failed) cursor.completed = static_cast<uint32_t>(shared);
    }
    return cursor;
}

// The slow way to room for `n` more slots (at most queue.batch): rings what is unrung if that is in the way, then waits.
template <class Group>
NVSHMEM_EFA_COLD inline OwnedCursor owned_make_room(GpuQueue queue, OwnedCursor cursor, Group group, uint32_t n,
                                                    uint32_t pe) {
    if (!owned_batch_has_room(queue, cursor, n)) {
        owned_ring(queue, cursor, group);
        if (!owned_batch_has_room(queue, cursor, n)) {
            // The last doorbell alone is in the way: one more fence puts it out before any later slot. Pairs with the
            // device's look at slots beyond its limit.
            if (group.rank() == 0) order::fence_sys();
            group.join();
            cursor.settled = cursor.rung;
        }
    }
    if (owned_ring_has_room(queue, cursor, n)) return cursor;
    owned_ring(queue, cursor, group);  // unrung slots never complete
    return owned_wait(queue, cursor, group, queue.depth - n, GpuQueueWait::kCredits, pe);
}

// The slow way to post: makes room first, and posts in parts what is more than a batch.
template <class Group>
NVSHMEM_EFA_COLD inline OwnedCursor owned_post_slowly(GpuQueue queue, OwnedCursor cursor, Group group, SlotBytes bytes,
                                                      uint32_t pe) {
    for (uint32_t left = group.size(), n; left != 0 && !cursor.has_failed; left -= n) {
        n = left < queue.batch ? left : queue.batch;
        if (!owned_batch_has_room(queue, cursor, n) || !owned_ring_has_room(queue, cursor, n))
            cursor = owned_make_room(queue, cursor, group, n, pe);
        if (cursor.has_failed) break;
        slots_write(queue, cursor.posted, group, group.size() - left, n, bytes, pe);
        cursor.posted += n;
    }
    return cursor;
}

// Posts one ready request of each member (see shared_post()). It is rung by owned_ring(), or before that when the batch
// is full. False: the queue has failed.
template <class Group>
NVSHMEM_EFA_HD inline bool owned_post(const GpuQueue& queue, OwnedCursor& cursor, const Group& group,
                                      const SendWqe& wqe, uint32_t pe) {
    const SlotBytes bytes = slot_template(wqe);
    const uint32_t n = group.size();
    // One condition and one branch: the usual way is short and straight.
    const bool is_one_part = n == 1 || n <= queue.batch;
    const bool has_room = owned_batch_has_room(queue, cursor, n) & owned_ring_has_room(queue, cursor, n);
    if (NVSHMEM_EFA_RARE(!(is_one_part & has_room & !cursor.has_failed))) {
        cursor = owned_post_slowly(queue, cursor, group, bytes, pe);
        return !cursor.has_failed;
    }
    slots_write(queue, cursor.posted, group, 0, n, bytes, pe);
    cursor.posted += n;
    return true;
}

// Rings, and waits until all that was posted is complete.
template <class Group>
NVSHMEM_EFA_HD inline bool owned_quiet(const GpuQueue& queue, OwnedCursor& cursor, const Group& group, uint32_t pe) {
    if (cursor.has_failed) return false;
    owned_ring(queue, cursor, group);
    cursor = owned_wait(queue, cursor, group, 0, GpuQueueWait::kQuiet, pe);
    return !cursor.has_failed;
}

// Rings what is left and gives the queue back.
template <class Group>
NVSHMEM_EFA_HD inline void owned_end(const GpuQueue& queue, OwnedCursor& cursor, const Group& group) {
    if (!cursor.has_failed) owned_ring(queue, cursor, group);
    group.join();
    if (group.rank() != 0) return;
    const uint32_t unsettled = queue.max_batch == 0 ? 0 : cursor.posted - cursor.settled;
    queue.state->head = cursor.posted;
    // Release pairs with the acquire in owned_begin() or shared_take() of who takes over.
    order::store_release_gpu(&queue.state->turn, turn_pack({cursor.posted, 0, unsettled}));
}

}  // namespace nvshmem_efa
