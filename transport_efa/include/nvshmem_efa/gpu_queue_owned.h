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

// One doorbell for all that was posted since the last. The one system fence of this doorbell (in store_doorbell())
// orders the group's slots, joined to rank 0, before the doorbell, and the doorbell before this one before all that
// follows; pairs with the device's fetch of slots after it sees the doorbell (soft: Device::poll_doorbells()).
template <class Group>
NVSHMEM_EFA_HD inline void owned_ring(const GpuQueue& queue, OwnedCursor& cursor, const Group& group) {
    if (cursor.posted == cursor.rung) return;
    group.join();
    if (group.rank() == 0) order::store_doorbell(queue.doorbell, cursor.posted);
    group.join();  // later slots of all members come after the fence, so `settled` holds for each of them
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
NVSHMEM_EFA_HD inline bool owned_wait(const GpuQueue& queue, OwnedCursor& cursor, const Group& group, uint32_t in_flight,
                                      GpuQueueWait what, uint32_t pe) {
    WaitClock clock;
    while (cursor.posted - cursor.completed > in_flight) {
        bool is_good = true;
        uint32_t completed = 0;
        if (group.rank() == 0) {
            is_good = completions_refresh(queue);
            completed = static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->completed));
            const bool is_enough = cursor.posted - completed <= in_flight;
            if (is_good && !is_enough && clock.has_passed(queue.wait_ticks)) is_good = fail_wait(queue, what, pe, cursor.posted);
            if (is_good && !is_enough) order::pause();
        }
        const uint64_t shared = group.share(static_cast<uint64_t>(is_good) << 32 | completed);
        cursor.has_failed = (shared >> 32) == 0;
        if (cursor.has_failed) return false;
        cursor.completed = static_cast<uint32_t>(shared);
    }
    return true;
}

// Room for `n` more slots (at most queue.batch): rings what is unrung if that is in the way, then waits.
template <class Group>
NVSHMEM_EFA_HD inline bool owned_reserve(const GpuQueue& queue, OwnedCursor& cursor, const Group& group, uint32_t n, uint32_t pe) {
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
    if (owned_ring_has_room(queue, cursor, n)) return true;
    owned_ring(queue, cursor, group);  // unrung slots never complete
    return owned_wait(queue, cursor, group, queue.depth - n, GpuQueueWait::kCredits, pe);
}

#if defined(__CUDACC__)
// One of four by selects: an index would put the array into local memory.
__device__ inline order::Bytes16 pick4(const order::Bytes16 (&from)[4], uint32_t index) {
    const bool is_odd = index & 1u, is_high = index & 2u;
    const order::Bytes16 low{is_odd ? from[1].low : from[0].low, is_odd ? from[1].high : from[0].high};
    const order::Bytes16 high{is_odd ? from[3].low : from[2].low, is_odd ? from[3].high : from[2].high};
    return {is_high ? high.low : low.low, is_high ? high.high : low.high};
}

// 32 slots by 32 lanes, so that each store instruction covers 512 contiguous bytes: what a bus of 64-byte writes likes
// best (docs/gpu-queue.md). Lane 4k+q gives its request to slot 8q+k, and writes piece q of slots k, 8+k, 16+k, 24+k.
__device__ inline void slots_write_warp(const GpuQueue& queue, uint32_t first, uint32_t lane, const SendWqe& wqe, uint32_t pe) {
    const uint32_t quarter = lane & 3u, row = lane >> 2;
    const uint32_t mine = first + quarter * 8 + row;
    const SlotBytes bytes = slot_bytes(queue, mine, wqe, pe);
    note_write(queue, mine, wqe, pe);
    order::Bytes16 got[4];  // got[i]: piece `quarter` of lane quarter ^ i of the same four
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        got[i] = pick4(bytes.piece, quarter ^ i);  // the piece that that lane writes
        if (i == 0) continue;
        got[i].low = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(got[i].low), i);
        got[i].high = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(got[i].high), i);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i)
        order::store_bytes16(slot_at(queue, first + 8 * i + row) + quarter * 16, pick4(got, quarter ^ i));
}
#endif

// Writes `n` slots of members done..done+n-1.
template <class Group>
NVSHMEM_EFA_HD inline void owned_write(const GpuQueue& queue, const OwnedCursor& cursor, const Group& group, uint32_t done,
                                       uint32_t n, const SendWqe& wqe, uint32_t pe) {
#if defined(__CUDA_ARCH__)
    if constexpr (Group::kIsFullWarp) {
        if (n == 32) {
            slots_write_warp(queue, cursor.posted, group.rank(), wqe, pe);
            return;
        }
    }
#endif
    const uint32_t place = group.rank() - done;
    if (place < n) slot_write(queue, cursor.posted + place, wqe, pe);
}

// Posts one ready request of each member (see shared_post()). It is rung by owned_ring(), or before that when the batch is
// full. False: the queue has failed.
template <class Group>
NVSHMEM_EFA_HD inline bool owned_post(const GpuQueue& queue, OwnedCursor& cursor, const Group& group, const SendWqe& wqe, uint32_t pe) {
    if (cursor.has_failed) return false;
    for (uint32_t done = 0; done < group.size();) {
        const uint32_t left = group.size() - done;
        const uint32_t n = left < queue.batch ? left : queue.batch;
        if (!owned_reserve(queue, cursor, group, n, pe)) return false;
        owned_write(queue, cursor, group, done, n, wqe, pe);
        cursor.posted += n;
        done += n;
    }
    return true;
}

// Rings, and waits until all that was posted is complete.
template <class Group>
NVSHMEM_EFA_HD inline bool owned_quiet(const GpuQueue& queue, OwnedCursor& cursor, const Group& group, uint32_t pe) {
    if (cursor.has_failed) return false;
    owned_ring(queue, cursor, group);
    return owned_wait(queue, cursor, group, 0, GpuQueueWait::kQuiet, pe);
}

// Rings what is left and gives the queue back.
template <class Group>
NVSHMEM_EFA_HD inline void owned_end(const GpuQueue& queue, OwnedCursor& cursor, const Group& group) {
    if (!cursor.has_failed) owned_ring(queue, cursor, group);
    group.join();
    if (group.rank() != 0) return;
    const uint32_t unsettled = queue.max_batch == 0 ? 0 : cursor.posted - cursor.settled;
    queue.state->head = cursor.posted;
    // Release pairs with the acquire in owned_begin() or shared_reserve() of who takes over.
    order::store_release_gpu(&queue.state->turn, turn_pack({cursor.posted, 0, unsettled}));
}

}  // namespace nvshmem_efa
