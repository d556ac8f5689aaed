// SPDX-License-Identifier: Apache-2.0
// Posting to a queue that any number of posters share. A poster takes slot numbers with one atomic add, writes its slots
// beside the others, and publishes them in slot order: GpuQueueState::turn goes from poster to poster, and whoever has
// it rings for all before it, or leaves that to a poster who already waits behind. Nobody waits while others wait for
// a lock of his: who has the turn never waits for another poster.
#pragma once

#include "nvshmem_efa/gpu_queue_completions.h"

namespace nvshmem_efa {

inline constexpr uint32_t kLooksBeforeHold = 4;  // of a quiet, once as many are complete as were posted when it began

struct SharedReservation {
    uint32_t first;
    Turn turn;  // as last seen; exact when it is ours
    bool is_good;
    bool is_held;   // a quiet asks us to pause after this post
    bool is_clear;  // nothing is in the way: there is room, the turn is ours, and neither a failure nor a pause
    bool has_room;  // the slots may be written
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
// Pairs with the loads of `turn` in shared_take(), shared_wait_for_room() and shared_wait_for_turn().
NVSHMEM_EFA_HD inline void shared_pass(const GpuQueue& queue, const Turn& turn) {
    order::store_release_gpu(&queue.state->turn, turn_pack(turn));
}

// Caller has the turn. The one system-wide release of this doorbell orders three things:
//  * all slots before turn.written, ours and those whose turn we acquired, before the doorbell; pairs with the device's
//    fetch of the slots after it sees the doorbell (soft device: acquire load in Device::poll_doorbells());
//  * the doorbell before this one, by us or by a former holder, before this one: the device's counter never goes back;
//  * that former doorbell before every store after it: it is out, so its slots no longer count as a batch.
NVSHMEM_EFA_HD inline Turn shared_ring(const GpuQueue& queue, const Turn& turn) {
    order::store_doorbell(queue.doorbell, turn.written);
    return {turn.written, 0, queue.max_batch == 0 ? 0 : turn.unrung};
}

// The slow way to room for [first, end): completions, and whoever has the turn rings what others left, as they may be
// what keeps the ring full. Returns the reservation with the turn as last seen.
NVSHMEM_EFA_COLD inline SharedReservation shared_wait_for_room(GpuQueue queue, SharedReservation got, uint32_t end,
                                                               uint32_t pe) {
    WaitClock clock;
    for (uint32_t looks = 0;; ++looks) {
        Turn turn = turn_unpack(order::load_acquire_gpu(&queue.state->turn));
        bool has_batch = shared_batch_has_room(queue, turn, end);
        const bool has_ring = shared_ring_has_room(queue, order::load_before_branch_gpu(&queue.state->completed), end);
        if (turn.written == got.first && turn.unrung != 0 && !(has_batch && has_ring)) {
            turn = shared_ring(queue, turn);
            shared_pass(queue, turn);  // not on: we still have it, but others see how far it was rung
            has_batch = shared_batch_has_room(queue, turn, end);
        }
        if (turn.written == got.first && !has_batch) {
            // All is rung, so the last doorbell alone is in the way (max_batch 1 or odd): one more fence puts it out,
            // before any later slot. Pairs with the device's look at slots beyond its limit.
            order::fence_sys();
            turn.unsettled = 0;
            shared_pass(queue, turn);
            has_batch = true;
        }
        got.turn = turn;
        got.is_good = !gpu_queue_has_failed(queue);
        if (has_batch && has_ring) return got;
        got.is_good = completions_refresh(queue);
        if (got.is_good && clock.has_passed(queue.wait_ticks))
            got.is_good = fail_wait(queue, has_ring ? GpuQueueWait::kBatch : GpuQueueWait::kCredits, pe, got.first);
        if (!got.is_good) return got;
        order::pause_longer(looks);
    }
}

// Takes `n` slots (at most queue.batch). One round trip to memory: none of the loads waits for another.
NVSHMEM_EFA_HD inline SharedReservation shared_take(const GpuQueue& queue, uint32_t n) {
    SharedReservation got;
    // Relaxed: the number alone matters; what orders our slots against others' is `turn`.
    got.first = n == 1 ? order::fetch_increment_relaxed_gpu(&queue.state->head, ~(queue.depth >> 16))
                       : order::fetch_add_relaxed_gpu(&queue.state->head, n);
    // The turn orders stores: doorbells that count as out are before our slots, and if it is ours, the slots and the
    // doorbell of the poster before us are before our doorbell. Pairs with shared_pass().
    const uint64_t turn = order::load_before_branch_gpu(&queue.state->turn);
    const uint64_t completed = order::load_before_branch_gpu(&queue.state->completed);
    const order::Triple gate = order::load_triple_relaxed_gpu(&queue.state->failed);
    got.turn = turn_unpack(turn);
    got.is_good = gate.first == 0;
    got.is_held = (gate.second | gate.third) != 0;
    const uint32_t end = got.first + n;
    const bool has_ring = shared_ring_has_room(queue, completed, end);
    got.has_room = shared_batch_has_room(queue, got.turn, end) & has_ring;
    // The same in as few steps as it takes: no request leaves before this is known. Slots before ours are all written.
    const uint32_t open_max = queue.max_batch == 0 ? kGpuQueueDepthMax * 2 : queue.max_batch;
    got.is_clear = has_ring & (got.turn.written == got.first) & (got.turn.unsettled + n <= open_max) &
                   ((gate.first | gate.second | gate.third) == 0);
    return got;
}

// Until the poster before has passed the turn to the owner of slot `first`.
NVSHMEM_EFA_COLD inline bool shared_wait_for_turn(GpuQueue queue, uint32_t first, uint32_t pe) {
    WaitClock clock;
    while (static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->turn)) != first) {
        if (gpu_queue_has_failed(queue)) return false;
        if (clock.has_passed(queue.wait_ticks)) return fail_wait(queue, GpuQueueWait::kTurn, pe, first);
        order::pause();
    }
    return true;
}

// As below, when the turn was ours all the time: nobody's slots are left to be rung, and nobody waits behind us yet.
NVSHMEM_EFA_HD inline void shared_publish_alone(const GpuQueue& queue, const Turn& turn, uint32_t n) {
    shared_pass(queue, shared_ring(queue, {turn.written + n, turn.unrung + n, queue.max_batch == 0 ? 0 : turn.unsettled + n}));
}

// The slots of `got` are written (and joined to the caller): tells the device, or leaves that to who waits behind.
NVSHMEM_EFA_HD inline bool shared_publish(const GpuQueue& queue, const SharedReservation& got, uint32_t n, uint32_t pe) {
    Turn turn = got.turn;
    bool has_follower = false;
    if (NVSHMEM_EFA_RARE(turn.written != got.first)) {
        if (!shared_wait_for_turn(queue, got.first, pe)) return false;
        // Pairs with shared_pass() of the poster before us: its slots, and those that it took over, are before what we
        // store. Ours since the wait, so it is the word that the wait has seen.
        turn = turn_unpack(order::load_before_branch_gpu(&queue.state->turn));
        // A follower that we see, with a relaxed load, has taken its slots and will publish them, or fail the queue.
        has_follower = order::load_relaxed_gpu(&queue.state->head) != got.first + n;
    }
    turn = {turn.written + n, turn.unrung + n, queue.max_batch == 0 ? 0 : turn.unsettled + n};
    if (!has_follower || turn.unrung >= queue.ring_at) turn = shared_ring(queue, turn);
    shared_pass(queue, turn);
    return true;
}

// After a post, when a quiet had asked for a pause: waits for its end, so that it finds a moment with nothing in flight.
// After and not before, because a look before the slots are taken would cost each post one more round trip to memory;
// so a poster posts at most twice more, once unaware and once told, and a quiet still ends when those are complete.
NVSHMEM_EFA_COLD inline bool shared_wait_for_hold(GpuQueue queue, uint32_t pe, uint32_t slot) {
    WaitClock clock;
    while (true) {
        const order::Triple gate = order::load_triple_relaxed_gpu(&queue.state->failed);
        if (gate.first != 0) return false;
        if ((gate.second | gate.third) == 0) return true;
        if (clock.has_passed(queue.wait_ticks)) return fail_wait(queue, GpuQueueWait::kHold, pe, slot);
        order::pause();
    }
}

// What a call posts: one request of each member done..done+n-1.
struct OneEach {
    SlotBytes bytes;
    uint32_t done, n;
    template <class Group>
    NVSHMEM_EFA_HD void write(const GpuQueue& queue, uint32_t first, const Group& group, uint32_t pe) const {
        slots_write(queue, first, group, done, n, bytes, pe);
    }
};

// The slow way from rank 0's reservation of `n` slots on. All members call it.
template <class Group, class Requests>
NVSHMEM_EFA_COLD inline bool shared_post_slowly(GpuQueue queue, Group group, SharedReservation got, uint32_t n,
                                                Requests requests, uint32_t pe) {
    if (group.rank() == 0 && got.is_good && !got.has_room) got = shared_wait_for_room(queue, got, got.first + n, pe);
    const uint64_t shared = group.share(static_cast<uint64_t>(got.is_good) << 32 | got.first);
    if (shared >> 32 == 0) return false;
    requests.write(queue, static_cast<uint32_t>(shared), group, pe);
    group.join();  // the members' slots before rank 0's doorbell or its passing of the turn
    bool is_good = true;
    if (group.rank() == 0) {
        is_good = shared_publish(queue, got, n, pe);
        if (is_good && got.is_held) is_good = shared_wait_for_hold(queue, pe, got.first);
    }
    return group.share(is_good) != 0;
}

// Posts `requests`, which fill `n` slots (at most queue.batch). All members call it. The usual way has one branch.
template <class Group, class Requests>
NVSHMEM_EFA_HD inline bool shared_post_part(const GpuQueue& queue, const Group& group, uint32_t n, const Requests& requests,
                                            uint32_t pe) {
    SharedReservation got{};
    if (group.rank() == 0) got = shared_take(queue, n);
    const uint64_t shared = group.share(static_cast<uint64_t>(got.is_clear) << 32 | got.first);
    if (NVSHMEM_EFA_RARE(shared >> 32 == 0)) return shared_post_slowly(queue, group, got, n, requests, pe);
    requests.write(queue, static_cast<uint32_t>(shared), group, pe);
    group.join();  // the members' slots before rank 0's doorbell
    if (group.rank() == 0) shared_publish_alone(queue, got.turn, n);
    group.join();
    return true;
}

// For more members than a batch has room for.
template <class Group>
NVSHMEM_EFA_COLD inline bool shared_post_in_parts(GpuQueue queue, Group group, SlotBytes bytes, uint32_t pe) {
    for (uint32_t left = group.size(), n; left != 0; left -= n) {
        n = left < queue.batch ? left : queue.batch;
        if (!shared_post_part(queue, group, n, OneEach{bytes, group.size() - left, n}, pe)) return false;
    }
    return true;
}

// shared_post() of a request in whole words.
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post_bytes(const GpuQueue& queue, const Group& group, const SlotBytes& bytes, uint32_t pe) {
    const uint32_t n = group.size();
    if (NVSHMEM_EFA_RARE(n != 1 && n > queue.batch)) return shared_post_in_parts(queue, group, bytes, pe);
    return shared_post_part(queue, group, n, OneEach{bytes, 0, n}, pe);
}

// Posts one ready request of each member: 64 bytes, built with wqe.h; the phase bit and the request id are the queue's
// to set. All members call it and get the same answer. True: the requests are in the ring and the device knows of them,
// or learns of them from a poster behind. False: the queue has failed, see its error record.
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post(const GpuQueue& queue, const Group& group, const SendWqe& wqe, uint32_t pe) {
    return shared_post_bytes(queue, group, slot_template(wqe), pe);
}

// A quiet's request to the posters to pause; several quiets may ask at a time. Relaxed: it orders nothing.
class SharedHold {
   public:
    NVSHMEM_EFA_HD explicit SharedHold(GpuQueueState* state) : state_(state) {}
    NVSHMEM_EFA_HD ~SharedHold() {
        if (is_set_) order::fetch_add_relaxed_gpu(&state_->hold, ~0u);
    }
    SharedHold(const SharedHold&) = delete;
    SharedHold& operator=(const SharedHold&) = delete;
    NVSHMEM_EFA_HD void set() {
        if (!is_set_) order::fetch_add_relaxed_gpu(&state_->hold, 1);
        is_set_ = true;
    }

   private:
    GpuQueueState* state_;
    bool is_set_ = false;
};

// Waits until nothing is in flight: all requests posted before are complete, whoever posted them. It needs a moment in
// which that holds; when others go on posting, it makes them pause (see shared_wait_for_hold()).
NVSHMEM_EFA_COLD inline bool shared_quiet(GpuQueue queue, uint32_t pe) {
    WaitClock clock;
    SharedHold hold(queue.state);
    uint32_t looks_late = 0;
    const uint32_t goal = order::load_relaxed_gpu(&queue.state->head);
    for (uint32_t looks = 0;; ++looks) {
        if (!completions_refresh(queue)) return false;
        // The count first, then the head: if nothing was taken beyond what is complete, all of it is complete. The
        // other way round, late completions of new requests would pass for those of old ones. Acquire pairs with the
        // release of `completed` by whoever read the counter: the payloads are placed.
        const auto completed = static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->completed));
        const uint32_t head = order::load_relaxed_gpu(&queue.state->head);
        // Another reader of the CQ may have found an error since the refresh: it fails the queue before it counts.
        if (completed == head) return !gpu_queue_has_failed(queue);
        if (clock.has_passed(queue.wait_ticks)) return fail_wait(queue, GpuQueueWait::kQuiet, pe, head);
        // As many are complete as there were at the start: without others' new requests we would be done.
        if (static_cast<int32_t>(completed - goal) >= 0 && ++looks_late >= kLooksBeforeHold) hold.set();
        order::pause_longer(looks);
    }
}

}  // namespace nvshmem_efa
