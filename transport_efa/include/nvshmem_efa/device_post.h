// SPDX-License-Identifier: Apache-2.0
// The inside of the device API: which queue, which keys, when a request may go out, and how a queue is drained. Users
// include put.cuh and its companions.
#pragma once

#include "nvshmem_efa/device_order.h"
#include "nvshmem_efa/device_state.h"
#include "nvshmem_efa/gpu_queue_shared.h"

namespace nvshmem_efa::device {

// ---- failure ----

struct Failure {
    DeviceWait what;
    uint32_t pe;
    uint32_t seq;
    uint64_t addr;
    uint64_t wanted;
    uint64_t seen;
};

// Fills the error record that belongs to no queue, unless an earlier failure has. Always false.
NVSHMEM_EFA_COLD inline bool fail(const DeviceState& state, Failure what) {
    // Acquire: none needed; the exchange only picks the first.
    if (order::exchange_acquire_gpu(&state.shared->failed, 1) != 0) return false;
    GpuQueueError& record = state.errors[state.n_rails * state.queues_per_rail];
    record.qp_num = 0;
    record.pe = what.pe;
    record.slot = what.seq;
    record.remote_addr = what.addr;
    record.opcode = 0;
    record.status = 0;
    record.waited = static_cast<GpuQueueWait>(what.what);
    record.posted = what.wanted;
    record.completed = what.seen;
    order::store_release_sys(&record.is_set, 1);  // pairs with the host's acquire load, in gpu_queue_error()
    return false;
}

// ---- which queue ----

#if defined(__CUDA_ARCH__)
// The same for all lanes of a warp.
__device__ inline uint32_t poster_number() {
    const uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const uint32_t thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    return block * ((blockDim.x * blockDim.y * blockDim.z + 31) / 32) + thread / 32;
}
#elif !defined(__CUDACC_RTC__)
inline thread_local uint32_t cpu_poster = 0;  // CPU threads that post number themselves, to use different queues
NVSHMEM_EFA_HD inline uint32_t poster_number() { return cpu_poster; }
#else
uint32_t poster_number();
#endif

struct Route {
    uint32_t rail;
    uint32_t queue;  // index in DeviceState::queues
};
// Neighbours take different rails, then different queues of a rail. `step` > 0: the rails after the poster's own.
NVSHMEM_EFA_HD inline Route route_of(const DeviceState& state, uint32_t poster, uint32_t step = 0) {
    const uint32_t rail = (poster + step) % state.n_rails;
    return {rail, rail * state.queues_per_rail + (poster / state.n_rails) % state.queues_per_rail};
}

NVSHMEM_EFA_HD inline WqeTarget target_of(const DeviceState& state, uint32_t pe, uint32_t rail) {
    const DeviceTarget target = state.targets[pe * state.n_rails + rail];
    return {target.ahn, target.qp_num, target.qkey};
}

// ---- which memory ----

// What is at an address, and how far it goes.
struct Span {
    uint64_t addr;         // 0: nothing
    uint64_t left;         // bytes from there on
    const uint32_t* keys;  // [rail]
};

// Where the PE has the symmetric address `addr` of ours.
NVSHMEM_EFA_HD inline Span find_remote(const DeviceState& state, uint64_t addr, uint32_t pe) {
    const uint32_t n = order::load_count(&state.n_chunks);
    for (uint32_t i = 0; i < n; ++i) {
        const DeviceChunk chunk = state.chunks[i];
        const uint64_t at = addr - state.heap_base - chunk.offset;
        if (at >= chunk.bytes) continue;
        const uint32_t entry = i * static_cast<uint32_t>(state.n_pes) + pe;
        const uint64_t base = state.remote_bases[entry];
        return {base == 0 ? 0 : base + at, chunk.bytes - at, state.rkeys + entry * state.n_rails};
    }
    return {};
}

// Memory of this PE: heap, or a registered buffer.
NVSHMEM_EFA_HD inline Span find_local(const DeviceState& state, uint64_t addr) {
    const uint32_t n_chunks = order::load_count(&state.n_chunks);
    for (uint32_t i = 0; i < n_chunks; ++i) {
        const DeviceChunk chunk = state.chunks[i];
        const uint64_t at = addr - state.heap_base - chunk.offset;
        if (at < chunk.bytes) return {addr, chunk.bytes - at, state.lkeys + i * state.n_rails};
    }
    const uint32_t n_locals = order::load_count(&state.n_locals);
    for (uint32_t i = 0; i < n_locals; ++i) {
        // Word by word, past the L1: the host may take a buffer back, and give its entry to another, while we look.
        const uint64_t bytes = order::load_before_branch_gpu(&state.locals[i].bytes);
        const uint64_t at = addr - order::load_before_branch_gpu(&state.locals[i].base);
        if (at < bytes) return {addr, bytes - at, state.local_lkeys + i * state.n_rails};
    }
    return {};
}

// ---- draining ----

// Nothing is in flight, as far as posters know already: no look at the device. The count first, then the head (see
// shared_quiet()). Acquire pairs with the release of `completed`: the payloads are placed.
NVSHMEM_EFA_HD inline bool queue_is_idle(const GpuQueue& queue) {
    const uint64_t completed = order::load_acquire_gpu(&queue.state->completed);
    return static_cast<uint32_t>(completed) == order::load_relaxed_gpu(&queue.state->head);
}

// Waits until nothing is in flight; see shared_quiet().
NVSHMEM_EFA_COLD inline bool drain_queue(const DeviceState& state, uint32_t index, uint32_t pe) {
    const GpuQueue queue = state.queues[index];
    return shared_quiet(queue, pe);
}

// All queues that have something in flight; the others cost two loads from GPU memory each.
NVSHMEM_EFA_COLD inline bool drain_queues(const DeviceState& state, uint32_t pe) {
    bool is_good = true;
    for (uint32_t i = 0; i < state.n_rails * state.queues_per_rail; ++i) {
        if (gpu_queue_has_failed(state.queues[i])) is_good = false;
        else if (!queue_is_idle(state.queues[i])) is_good = drain_queue(state, i, pe) && is_good;
    }
    return is_good;
}

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

// ---- when a request may go out ----

// The program learned that something arrived. It may now legally write again what it knows to be placed, while a device
// still waits for the acknowledgement and may place the old payload once more: rule 1 of docs/ordering.md. So the next
// post waits until what is in flight by now is complete.
NVSHMEM_EFA_HD inline void note_arrival(const DeviceState& state) {
    if (state.flags & kWritesOnce) return;
    // Behind the branch on the word that was waited for. Pairs with the load of `arrivals` in settle(): whoever deals
    // with this arrival sees the slots that were taken before it.
    order::add_behind_branch_gpu(&state.shared->arrivals, 1);
}

NVSHMEM_EFA_COLD inline bool settle(const DeviceState& state, uint32_t pe) {
    DeviceShared& shared = *state.shared;
    const uint64_t arrivals = order::load_acquire_gpu(&shared.arrivals);  // pairs with note_arrival()
    if (!drain_queues(state, pe)) return false;
    order::max_release_gpu(&shared.settled, arrivals);  // pairs with the load in gate_load()
    return true;
}

// What a call must know before its first request goes out. It is loaded when the call begins, so that the way to memory
// and back is over when it is looked at.
struct Gate {
    uint64_t settled;
    uint64_t arrivals;
};
// Relaxed on the GPU: an arrival that concerns the caller's request is one that it knows of.
NVSHMEM_EFA_HD inline Gate gate_load(const DeviceState& state) {
    const uint64_t settled = order::load_before_branch_gpu(&state.shared->settled);
    return {settled, order::load_before_branch_gpu(&state.shared->arrivals)};
}
// Waits until the call's requests may go out. False: a deadline has passed or a queue failed.
NVSHMEM_EFA_HD inline bool gate_pass(const DeviceState& state, const Gate& gate, uint32_t pe) {
    return gate.settled >= gate.arrivals || settle(state, pe);
}

// ---- posting ----

#if defined(__CUDA_ARCH__)
// The lanes that are here together and name the same queue: they share a reservation and a doorbell.
__device__ inline SomeLanes posters_here(const GpuQueue* queue) { return lanes_with(queue, __activemask()); }
#else
NVSHMEM_EFA_HD inline OneThread posters_here(const GpuQueue*) { return {}; }
#endif

// Pre, of both: the call has passed its gate.
NVSHMEM_EFA_HD inline bool post(const DeviceState& state, uint32_t index, const SendWqe& wqe, uint32_t pe) {
    const GpuQueue queue = state.queues[index];  // a copy: every fence below would have it loaded again
    return shared_post(queue, posters_here(state.queues + index), wqe, pe);
}

// What shared_reserve() asks of a group: how many slots it is for.
struct SlotCount {
    uint32_t n;
    NVSHMEM_EFA_HD uint32_t size() const { return n; }
};

// Two requests of each member in one reservation, with one doorbell for all.
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post_two(const GpuQueue& queue, const Group& group, const SendWqe& first,
                                           const SendWqe& second, uint32_t pe) {
    const uint32_t n = 2 * group.size();
    if (n > queue.batch) return shared_post(queue, group, first, pe) && shared_post(queue, group, second, pe);
    SharedReservation got{};
    if (group.rank() == 0) got = shared_reserve(queue, SlotCount{n}, n, pe);
    const uint64_t shared = group.share(static_cast<uint64_t>(got.is_good) << 32 | got.first);
    if ((shared >> 32) == 0) return false;
    const uint32_t slot = static_cast<uint32_t>(shared) + 2 * group.rank();
    slot_write(queue, slot, slot_template(first), pe);
    slot_write(queue, slot + 1, slot_template(second), pe);
    group.join();  // the members' slots before rank 0's doorbell or its passing of the turn
    bool is_good = true;
    if (group.rank() == 0) {
        is_good = shared_publish(queue, got, n, pe);
        if (is_good && got.is_held) is_good = shared_wait_for_hold(queue, pe, got.first);
    }
    return group.share(is_good) != 0;
}

NVSHMEM_EFA_HD inline bool post_two(const DeviceState& state, uint32_t index, const SendWqe& first, const SendWqe& second,
                                    uint32_t pe) {
    const GpuQueue queue = state.queues[index];
    return shared_post_two(queue, posters_here(state.queues + index), first, second, pe);
}

// ---- transfers ----

// One request's worth of a transfer.
struct Piece {
    Span there;
    Span here;
    uint32_t bytes;
};

NVSHMEM_EFA_HD inline bool pe_is_good(const DeviceState& state, int pe, uint64_t addr) {
    if (pe >= 0 && pe < state.n_pes) return true;
    return fail(state, {DeviceWait::kBadArgument, static_cast<uint32_t>(pe), 0, addr, 0, 0});
}

// The next piece, at most `limit` bytes. It ends where registered memory does, here or there.
NVSHMEM_EFA_HD inline bool cut_piece(const DeviceState& state, uint64_t there, uint64_t here, uint64_t bytes, uint64_t limit,
                                     uint32_t pe, Piece* piece) {
    piece->there = find_remote(state, there, pe);
    piece->here = find_local(state, here);
    if (piece->there.addr == 0) return fail(state, {DeviceWait::kUnregistered, pe, 0, there, bytes, 0});
    if (piece->here.addr == 0) return fail(state, {DeviceWait::kUnregistered, pe, 0, here, bytes, 0});
    uint64_t n = bytes < limit ? bytes : limit;
    if (n > piece->there.left) n = piece->there.left;
    if (n > piece->here.left) n = piece->here.left;
    piece->bytes = static_cast<uint32_t>(n);
    return true;
}

NVSHMEM_EFA_HD inline SendWqe piece_wqe(const DeviceState& state, SendOpcode opcode, const Piece& piece, uint32_t rail, uint32_t pe) {
    SendWqe wqe;
    wqe_begin(wqe, opcode, target_of(state, pe, rail), 0, false, 0);  // id and phase are the queue's to set
    wqe_set_remote(wqe, piece.there.addr, piece.bytes, piece.there.keys[rail]);
    wqe_set_local(wqe, piece.here.addr, piece.bytes, piece.here.keys[rail]);
    return wqe;
}

// Posts all pieces of a put or get. `is_spread`: long ones use all rails.
NVSHMEM_EFA_HD inline bool transfer(const DeviceState& state, SendOpcode opcode, uint64_t there, uint64_t here, uint64_t bytes,
                                    int pe, uint32_t poster, bool is_spread) {
    if (!pe_is_good(state, pe, there)) return false;
    const Gate gate = gate_load(state);
    uint64_t limit = state.segment_bytes;
    const bool is_striped = is_spread && state.n_rails > 1 && bytes >= 2 * state.stripe_bytes;
    if (is_striped) {
        uint64_t stripes = bytes / state.stripe_bytes;
        if (stripes > state.n_rails) stripes = state.n_rails;
        const uint64_t stripe = ((bytes + stripes - 1) / stripes + 127) & ~127ull;
        if (stripe < limit) limit = stripe;
    }
    for (uint32_t step = 0; bytes != 0; ++step) {
        Piece piece{};
        if (!cut_piece(state, there, here, bytes, limit, static_cast<uint32_t>(pe), &piece)) return false;
        const Route route = route_of(state, poster, is_striped ? step : 0);
        const SendWqe wqe = piece_wqe(state, opcode, piece, route.rail, static_cast<uint32_t>(pe));
        if (step == 0 && !gate_pass(state, gate, static_cast<uint32_t>(pe))) return false;
        if (!post(state, route.queue, wqe, static_cast<uint32_t>(pe))) return false;
        there += piece.bytes;
        here += piece.bytes;
        bytes -= piece.bytes;
    }
    return true;
}

}  // namespace nvshmem_efa::device
