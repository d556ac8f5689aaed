// SPDX-License-Identifier: Apache-2.0
// The inside of the device API: which queue, which keys, and when a request may go out. Users include put.cuh and its
// companions.
#pragma once

#include "nvshmem_efa/device_drain.h"

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
#if defined(__CUDA_ARCH__)
__device__ inline uint32_t ones_in(uint32_t word) { return __popc(word); }
#else
NVSHMEM_EFA_HD inline uint32_t ones_in(uint32_t word) { return __builtin_popcount(word); }
#endif
// Neighbours take different rails, then different queues of a rail. `step` > 0: the rails after the poster's own.
NVSHMEM_EFA_HD inline Route route_of(const DeviceState& state, uint32_t poster, uint32_t step = 0) {
    const uint32_t n_rails = order::load_fixed(&state.n_rails), n_queues = order::load_fixed(&state.queues_per_rail);
    if (is_power_of_two(n_rails) && is_power_of_two(n_queues)) {  // the usual case, without two divisions
        const uint32_t rail = (poster + step) & (n_rails - 1);
        return {rail, rail * n_queues + (poster >> ones_in(n_rails - 1) & (n_queues - 1))};
    }
    const uint32_t rail = (poster + step) % n_rails;
    return {rail, rail * n_queues + (poster / n_rails) % n_queues};
}

NVSHMEM_EFA_HD inline WqeTarget target_of(const DeviceState& state, uint32_t pe, uint32_t rail) {
    const DeviceTarget target = order::load_fixed(order::load_fixed(&state.targets) + pe * order::load_fixed(&state.n_rails) + rail);
    return {target.ahn, target.qp_num, target.qkey};
}

// ---- which memory ----

// What is at an address, and how far it goes.
struct Span {
    uint64_t addr;         // 0: nothing
    uint64_t left;         // bytes from there on
    const uint32_t* keys;  // [rail]
};

// What every search begins with: the count of chunks and the first of them, on their way together.
struct HeapLook {
    uint32_t n_chunks;
    DeviceChunk first;
};
NVSHMEM_EFA_HD inline HeapLook heap_look(const DeviceState& state) {
    // Not by load_fixed(), here and below: a chunk that is registered while a kernel runs may be a neighbour of one that
    // the L1 cache holds, and only plain loads are behind the synchronisation by which the kernel learned of it.
    return {order::load_count(&state.n_chunks), order::load_fixed(&state.chunks)[0]};
}
// The chunk that is so far from the start of the heap, and the place in it; none: n_chunks.
struct ChunkPlace {
    uint32_t index;
    uint64_t at;
    uint64_t left;
};
NVSHMEM_EFA_HD inline ChunkPlace chunk_of(const DeviceState& state, const HeapLook& look, uint64_t offset) {
    for (uint32_t i = 0; i < look.n_chunks; ++i) {
        const DeviceChunk chunk = i == 0 ? look.first : order::load_fixed(&state.chunks)[i];
        const uint64_t at = offset - chunk.offset;
        if (at < chunk.bytes) return {i, at, chunk.bytes - at};
    }
    return {look.n_chunks, 0, 0};
}

// Where the PE has the symmetric address `addr` of ours.
NVSHMEM_EFA_HD inline Span find_remote(const DeviceState& state, const HeapLook& look, uint64_t addr, uint32_t pe) {
    const ChunkPlace place = chunk_of(state, look, addr - order::load_fixed(&state.heap_base));
    if (place.index == look.n_chunks) return {};
    const uint32_t entry = place.index * static_cast<uint32_t>(order::load_fixed(&state.n_pes)) + pe;
    const uint64_t base = order::load_fixed(&state.remote_bases)[entry];
    return {base == 0 ? 0 : base + place.at, place.left, order::load_fixed(&state.rkeys) + entry * order::load_fixed(&state.n_rails)};
}
NVSHMEM_EFA_HD inline Span find_remote(const DeviceState& state, uint64_t addr, uint32_t pe) {
    return find_remote(state, heap_look(state), addr, pe);
}

// Memory of this PE in a registered buffer outside the heap.
NVSHMEM_EFA_COLD inline Span find_registered(const DeviceState& state, uint64_t addr) {
    const uint32_t n_locals = order::load_count(&state.n_locals);
    for (uint32_t i = 0; i < n_locals; ++i) {
        // Word by word, past the L1: the host may take a buffer back, and give its entry to another, while we look.
        const uint64_t bytes = order::load_before_branch_gpu(&state.locals[i].bytes);
        const uint64_t at = addr - order::load_before_branch_gpu(&state.locals[i].base);
        if (at < bytes) return {addr, bytes - at, state.local_lkeys + i * state.n_rails};
    }
    return {};
}
// Memory of this PE: heap, or a registered buffer.
NVSHMEM_EFA_HD inline Span find_local(const DeviceState& state, const HeapLook& look, uint64_t addr) {
    const ChunkPlace place = chunk_of(state, look, addr - order::load_fixed(&state.heap_base));
    if (place.index == look.n_chunks) return find_registered(state, addr);
    return {addr, place.left, order::load_fixed(&state.lkeys) + place.index * order::load_fixed(&state.n_rails)};
}
NVSHMEM_EFA_HD inline Span find_local(const DeviceState& state, uint64_t addr) {
    return find_local(state, heap_look(state), addr);
}

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
    const DeviceShared* shared = order::load_fixed(&state.shared);
    const uint64_t settled = order::load_before_branch_gpu(&shared->settled);
    return {settled, order::load_before_branch_gpu(&shared->arrivals)};
}
// Waits until the call's requests may go out. False: a deadline has passed or a queue failed.
NVSHMEM_EFA_HD inline bool gate_pass(const DeviceState& state, const Gate& gate, uint32_t pe) {
    return gate.settled >= gate.arrivals || settle(state, pe);
}

// ---- posting ----

// Two requests of each member.
struct TwoEach {
    SlotBytes first, second;
    template <class Group>
    NVSHMEM_EFA_HD void write(const GpuQueue& queue, uint32_t at, const Group& group, uint32_t pe) const {
        slot_write(queue, at + 2 * group.rank(), first, pe);
        slot_write(queue, at + 2 * group.rank() + 1, second, pe);
    }
};

// In one reservation, with one doorbell for all.
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post_pair(const GpuQueue& queue, const Group& group, const TwoEach& pair, uint32_t pe) {
    const uint32_t n = 2 * group.size();
    if (NVSHMEM_EFA_RARE(n > queue.batch))
        return shared_post_bytes(queue, group, pair.first, pe) && shared_post_bytes(queue, group, pair.second, pe);
    return shared_post_part(queue, group, n, pair, pe);
}
template <class Group>
NVSHMEM_EFA_HD inline bool shared_post_two(const GpuQueue& queue, const Group& group, const SendWqe& first,
                                           const SendWqe& second, uint32_t pe) {
    return shared_post_pair(queue, group, {slot_template(first), slot_template(second)}, pe);
}

#if defined(__CUDA_ARCH__)
// The lanes of `mask` that name the same queue share a reservation and a doorbell. Calls, so that the way of a thread that
// posts alone stays short: one more matters less to many.
NVSHMEM_EFA_COLD inline bool post_among(GpuQueue queue, uint32_t index, uint32_t mask, SlotBytes bytes, uint32_t pe) {
    return shared_post_bytes(queue, lanes_of(__match_any_sync(mask, index)), bytes, pe);
}
NVSHMEM_EFA_COLD inline bool post_pair_among(GpuQueue queue, uint32_t index, uint32_t mask, TwoEach pair, uint32_t pe) {
    return shared_post_pair(queue, lanes_of(__match_any_sync(mask, index)), pair, pe);
}
// The lanes that are here together, if there are several, else 0.
__device__ inline uint32_t company() {
    const uint32_t mask = __activemask();
    return (mask & (mask - 1)) == 0 ? 0 : mask;
}
#else
NVSHMEM_EFA_HD inline bool post_among(const GpuQueue&, uint32_t, uint32_t, const SlotBytes&, uint32_t) { return false; }
NVSHMEM_EFA_HD inline bool post_pair_among(const GpuQueue&, uint32_t, uint32_t, const TwoEach&, uint32_t) { return false; }
NVSHMEM_EFA_HD inline uint32_t company() { return 0; }
#endif

// To queue number `index`, which is `queue`. Pre, of both: the call has passed its gate.
NVSHMEM_EFA_HD inline bool post_to(const GpuQueue& queue, uint32_t index, const SendWqe& wqe, uint32_t pe) {
    const uint32_t mask = company();
    if (mask != 0) return post_among(queue, index, mask, slot_template(wqe), pe);
    return shared_post(queue, OneThread{}, wqe, pe);
}
NVSHMEM_EFA_HD inline bool post(const DeviceState& state, uint32_t index, const SendWqe& wqe, uint32_t pe) {
    return post_to(queue_at(state, index), index, wqe, pe);
}
NVSHMEM_EFA_HD inline bool post_two(const DeviceState& state, uint32_t index, const SendWqe& first, const SendWqe& second,
                                    uint32_t pe) {
    const uint32_t mask = company();
    const TwoEach pair{slot_template(first), slot_template(second)};
    if (mask != 0) return post_pair_among(queue_at(state, index), index, mask, pair, pe);
    return shared_post_pair(queue_at(state, index), OneThread{}, pair, pe);
}

// ---- transfers ----

// One request's worth of a transfer.
struct Piece {
    Span there;
    Span here;
    uint32_t bytes;
};

NVSHMEM_EFA_HD inline bool pe_is_good(const DeviceState& state, int pe, uint64_t addr) {
    if (pe >= 0 && pe < order::load_fixed(&state.n_pes)) return true;
    return fail(state, {DeviceWait::kBadArgument, static_cast<uint32_t>(pe), 0, addr, 0, 0});
}

// The next piece, at most `limit` bytes. It ends where registered memory does, here or there.
NVSHMEM_EFA_HD inline bool cut_piece(const DeviceState& state, uint64_t there, uint64_t here, uint64_t bytes, uint64_t limit,
                                     uint32_t pe, Piece* piece) {
    const HeapLook look = heap_look(state);
    piece->there = find_remote(state, look, there, pe);
    piece->here = find_local(state, look, here);
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

// Posts all pieces of a put or get: the slow way. `is_spread`: long ones use all rails.
NVSHMEM_EFA_COLD inline bool transfer_slowly(const DeviceState& state, SendOpcode opcode, uint64_t there, uint64_t here,
                                             uint64_t bytes, int pe, uint32_t poster, bool is_spread) {
    if (!pe_is_good(state, pe, there)) return false;
    const auto at = static_cast<uint32_t>(pe);
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
        if (!cut_piece(state, there, here, bytes, limit, at, &piece)) return false;
        const Route route = route_of(state, poster, is_striped ? step : 0);
        const SendWqe wqe = piece_wqe(state, opcode, piece, route.rail, at);
        if (step == 0 && !gate_pass(state, gate, at)) return false;
        if (!post(state, route.queue, wqe, at)) return false;
        there += piece.bytes;
        here += piece.bytes;
        bytes -= piece.bytes;
    }
    return true;
}

// The same. What fits one request between two chunks of the heap goes the usual way: all that it must know is on its way
// from memory before any of it is looked at.
NVSHMEM_EFA_HD inline bool transfer(const DeviceState& state, SendOpcode opcode, uint64_t there, uint64_t here, uint64_t bytes,
                                    int pe, uint32_t poster, bool is_spread) {
    const Gate gate = gate_load(state);
    const HeapLook look = heap_look(state);
    const Route route = route_of(state, poster);
    const bool is_pe = static_cast<uint32_t>(pe) < static_cast<uint32_t>(order::load_fixed(&state.n_pes));
    const uint32_t at = is_pe ? static_cast<uint32_t>(pe) : 0;
    const WqeTarget target = target_of(state, at, route.rail);
    const GpuQueue queue = queue_at(state, route.queue);
    const uint64_t stripe_bytes = order::load_fixed(&state.stripe_bytes), limit = order::load_fixed(&state.segment_bytes);
    const uint64_t heap_base = order::load_fixed(&state.heap_base);
    const uint64_t* const bases = order::load_fixed(&state.remote_bases);
    const uint32_t* const rkeys = order::load_fixed(&state.rkeys);
    const uint32_t* const lkeys = order::load_fixed(&state.lkeys);
    order::pin(queue);
    order::pin(target);
    order::pin(heap_base);
    order::pin(bases);
    order::pin(rkeys);
    order::pin(lkeys);
    order::pin(stripe_bytes);
    order::pin(limit);
    const ChunkPlace to = chunk_of(state, look, there - heap_base), from = chunk_of(state, look, here - heap_base);
    // Both or neither: where there is no chunk, `left` is 0.
    const bool is_one = is_pe & (bytes - 1 < to.left) & (bytes - 1 < from.left) & (to.left != 0) & (from.left != 0) &
                        (bytes <= limit) & (!is_spread | (bytes < 2 * stripe_bytes)) & (gate.settled >= gate.arrivals);
    if (NVSHMEM_EFA_RARE(!is_one)) return transfer_slowly(state, opcode, there, here, bytes, pe, poster, is_spread);
    const uint32_t n_rails = order::load_fixed(&state.n_rails);
    const uint32_t entry = to.index * static_cast<uint32_t>(order::load_fixed(&state.n_pes)) + at;
    const uint64_t base = bases[entry];
    const uint32_t rkey = rkeys[entry * n_rails + route.rail], lkey = lkeys[from.index * n_rails + route.rail];
    if (NVSHMEM_EFA_RARE(base == 0)) return transfer_slowly(state, opcode, there, here, bytes, pe, poster, is_spread);
    SendWqe wqe;
    wqe_begin(wqe, opcode, target, 0, false, 0);  // id and phase are the queue's to set
    wqe_set_remote(wqe, base + to.at, static_cast<uint32_t>(bytes), rkey);
    wqe_set_local(wqe, here, static_cast<uint32_t>(bytes), lkey);
    return post_to(queue, route.queue, wqe, at);
}

}  // namespace nvshmem_efa::device
