// SPDX-License-Identifier: Apache-2.0
// Posting to a queue that any number of posters share. A poster takes slot numbers with one atomic add, writes its slots
// beside the others, and publishes them in slot order: GpuQueueState::turn goes from poster to poster, and whoever has
// it rings for all before it, or leaves that to a poster who already waits behind. Nobody waits while others wait for
// a lock of his: who has the turn never waits for another poster.
#pragma once

#include "nvshmem_efa/gpu_queue_completions.h"

namespace nvshmem_efa {

struct SharedReservation {
    uint32_t first;
    Turn turn;  // as last seen; exact when it is ours
    bool is_good;
};

// Whether `end` slots leave the device's batch limit and the ring's depth respected. Only doorbells that are known to
// be out count for the limit: a store after a doorbell may reach the device before it.
NVSHMEM_EFA_HD inline bool shared_batch_has_room(const GpuQueue& queue, const Turn& turn, uint32_t end) {
    return queue.max_batch == 0 || end - (turn.written - turn.unsettled) <= queue.max_batch;
}
NVSHMEM_EFA_HD inline bool shared_ring_has_room(const GpuQueue& queue, uint64_t completed, uint32_t end) {
    return end - static_cast<uint32_t>(completed) <= queue.depth;
}

// Passes the turn on. Release: the slots, and the doorbell if there was one, come before what the next holder does.
// Pairs with the acquire loads of `turn` in shared_reserve(), shared_wait_for_room() and shared_wait_for_turn().
NVSHMEM_EFA_HD inline void shared_pass(const GpuQueue& queue, const Turn& turn) {
    order::store_release_gpu(&queue.state->turn, turn_pack(turn));
}

// Caller has the turn. The one system fence of this doorbell (in store_doorbell()) orders three things:
//  * all slots before turn.written, ours and those whose turn we acquired, before the doorbell; pairs with the device's
//    fetch of the slots after it sees the doorbell (soft device: acquire load in Device::poll_doorbells());
//  * the doorbell before this one, by us or by a former holder, before this one: the device's counter never goes back;
//  * that former doorbell before every store after it: it is out, so its slots no longer count as a batch.
NVSHMEM_EFA_HD inline Turn shared_ring(const GpuQueue& queue, const Turn& turn) {
    order::store_doorbell(queue.doorbell, turn.written);
    return {turn.written, 0, queue.max_batch == 0 ? 0 : turn.unrung};
}

// The slow way to room for [first, end): completions, and whoever has the turn rings what others left, as they may be
// what keeps the ring full. Leaves the turn as seen in *turn.
NVSHMEM_EFA_HD inline bool shared_wait_for_room(const GpuQueue& queue, uint32_t first, uint32_t end, uint32_t pe, Turn* seen) {
    WaitClock clock;
    while (true) {
        Turn turn = turn_unpack(order::load_acquire_gpu(&queue.state->turn));
        bool has_batch = shared_batch_has_room(queue, turn, end);
        const bool has_ring = shared_ring_has_room(queue, order::load_before_branch_gpu(&queue.state->completed), end);
        if (turn.written == first && turn.unrung != 0 && !(has_batch && has_ring)) {
            turn = shared_ring(queue, turn);
            shared_pass(queue, turn);  // not on: we still have it, but others see how far it was rung
            has_batch = shared_batch_has_room(queue, turn, end);
        }
        if (turn.written == first && !has_batch) {
            // All is rung, so the last doorbell alone is in the way (max_batch 1 or odd): one more fence puts it out,
            // before any later slot. Pairs with the device's look at slots beyond its limit.
            order::fence_sys();
            turn.unsettled = 0;
            shared_pass(queue, turn);
            has_batch = true;
        }
        *seen = turn;
        if (has_batch && has_ring) return !gpu_queue_has_failed(queue);
        if (!completions_refresh(queue)) return false;
        if (clock.has_passed(queue.wait_ticks))
            return fail_wait(queue, has_ring ? GpuQueueWait::kBatch : GpuQueueWait::kCredits, pe, first);
        order::pause();
    }
}

// Takes `n` slots (at most queue.batch) and waits until they may be written.
NVSHMEM_EFA_HD inline SharedReservation shared_reserve(const GpuQueue& queue, uint32_t n, uint32_t pe) {
    SharedReservation got;
    // Relaxed: the number alone matters; what orders our slots against others' is `turn`.
    got.first = order::fetch_add_relaxed_gpu(&queue.state->head, n);
    const bool has_failed = gpu_queue_has_failed(queue);
    const uint64_t completed = order::load_before_branch_gpu(&queue.state->completed);
    // Acquire pairs with shared_pass(): doorbells that count as out are before our slots.
    got.turn = turn_unpack(order::load_acquire_gpu(&queue.state->turn));
    const uint32_t end = got.first + n;
    got.is_good = !has_failed;
    if (has_failed) return got;
    if (shared_batch_has_room(queue, got.turn, end) && shared_ring_has_room(queue, completed, end)) return got;
    got.is_good = shared_wait_for_room(queue, got.first, end, pe, &got.turn);
    return got;
}

NVSHMEM_EFA_HD inline bool shared_wait_for_turn(const GpuQueue& queue, uint32_t first, uint32_t pe, Turn* turn, uint32_t* head) {
    WaitClock clock;
    while (true) {
        *head = order::load_relaxed_gpu(&queue.state->head);  // on its way together with the next load
        // Acquire pairs with shared_pass() of the poster before us: its slots, and those it acquired, are before ours.
        *turn = turn_unpack(order::load_acquire_gpu(&queue.state->turn));
        if (turn->written == first) return true;
        if (gpu_queue_has_failed(queue)) return false;
        if (clock.has_passed(queue.wait_ticks)) return fail_wait(queue, GpuQueueWait::kTurn, pe, first);
        order::pause();
    }
}

// The slots of `got` are written (and joined to the caller): tells the device, or leaves that to who waits behind.
NVSHMEM_EFA_HD inline bool shared_publish(const GpuQueue& queue, const SharedReservation& got, uint32_t n, uint32_t pe) {
    Turn turn = got.turn;
    bool has_follower = false;
    if (turn.written != got.first) {
        uint32_t head = 0;
        if (!shared_wait_for_turn(queue, got.first, pe, &turn, &head)) return false;
        // A follower that we see, with a relaxed load, has taken its slots and will publish them, or fail the queue.
        has_follower = head != got.first + n;
    }
    turn = {turn.written + n, turn.unrung + n, queue.max_batch == 0 ? 0 : turn.unsettled + n};
    if (!has_follower || turn.unrung >= queue.ring_at) turn = shared_ring(queue, turn);
    shared_pass(queue, turn);
    return true;
}

// Posts one ready request of each member: 64 bytes, built with wqe.h; the phase bit and the request id are the queue's
// to set. All members call it and get the same answer. True: the requests are in the ring and the device knows of them,
// or learns of them from a poster behind. False: the queue has failed, see its error record.
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post(const GpuQueue& queue, const Group& group, const SendWqe& wqe, uint32_t pe) {
    for (uint32_t done = 0; done < group.size(); done += queue.batch) {
        const uint32_t left = group.size() - done;
        const uint32_t n = left < queue.batch ? left : queue.batch;
        SharedReservation got{};
        if (group.rank() == 0) got = shared_reserve(queue, n, pe);
        const uint64_t shared = group.share(static_cast<uint64_t>(got.is_good) << 32 | got.first);
        if ((shared >> 32) == 0) return false;
        const uint32_t place = group.rank() - done;
        if (place < n) slot_write(queue, static_cast<uint32_t>(shared) + place, wqe, pe);
        group.join();  // the members' slots before rank 0's doorbell or its passing of the turn
        bool is_good = true;
        if (group.rank() == 0) is_good = shared_publish(queue, got, n, pe);
        if (group.share(is_good) == 0) return false;
    }
    return true;
}

// Waits until nothing is in flight: all requests posted before are complete, whoever posted them. It needs a moment in
// which that holds; posters that never pause can keep it waiting until its deadline.
NVSHMEM_EFA_HD inline bool shared_quiet(const GpuQueue& queue, uint32_t pe) {
    WaitClock clock;
    while (true) {
        if (!completions_refresh(queue)) return false;
        // The count first, then the head: if nothing was taken beyond what is complete, all of it is complete. The
        // other way round, late completions of new requests would pass for those of old ones. Acquire pairs with the
        // release of `completed` by whoever read the counter: the payloads are placed.
        const uint64_t completed = order::load_acquire_gpu(&queue.state->completed);
        const uint32_t head = order::load_relaxed_gpu(&queue.state->head);
        if (static_cast<uint32_t>(completed) == head) return true;
        if (clock.has_passed(queue.wait_ticks)) return fail_wait(queue, GpuQueueWait::kQuiet, pe, head);
        order::pause();
    }
}

}  // namespace nvshmem_efa
