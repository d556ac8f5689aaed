// SPDX-License-Identifier: Apache-2.0
// Device API, counted puts: each is counted at its target when its data is placed there, by the pair (source PE, slot).
// Neither an agent nor a further message takes part: one network hop. See put.cuh for what all calls share.
//
// A count says how many have arrived, not which: SRD lets a later put overtake an earlier one. It is exact for a closed
// set: n puts go to a slot, and none after them before the target has seen them all (docs/ordering.md, rule 3).
// NVSHMEM_EFA_ARRIVALS=n gives each PE n slots for every source PE.
#pragma once

#include "nvshmem_efa/arrival_queue.h"
#include "nvshmem_efa/device_scope.h"

namespace nvshmem_efa {

namespace device {

NVSHMEM_EFA_HD inline bool slot_is_good(const DeviceState& state, int pe, uint32_t slot, uint64_t addr) {
    if (!pe_is_good(state, pe, addr)) return false;
    if (slot < state.arrival_slots) return true;
    return fail(state, {DeviceWait::kBadSlot, static_cast<uint32_t>(pe), slot, addr, state.arrival_slots, slot});
}

NVSHMEM_EFA_HD inline SendWqe counted_wqe(const DeviceState& state, const Piece& piece, uint32_t rail, uint32_t pe, uint32_t slot) {
    const DeviceTarget target = state.arrival_targets[arrival_index(state, pe, slot) + rail];
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kRdmaWrite, {target.ahn, target.qp_num, target.qkey}, 0, false, 0);
    wqe_set_remote(wqe, piece.there.addr, piece.bytes, piece.there.keys[rail]);
    wqe_set_local(wqe, piece.here.addr, piece.bytes, piece.here.keys[rail]);
    if (state.arrival_queues) wqe_set_immediate(wqe, arrival_immediate(static_cast<uint32_t>(state.pe), slot));
    return wqe;
}

// As arrivals(), without a look at completions.
NVSHMEM_EFA_HD inline uint32_t arrivals_known(const DeviceState& state, uint32_t pe, uint32_t slot) {
    const uint32_t first = arrival_index(state, pe, slot);
    uint32_t sum = 0;
    for (uint32_t rail = 0; rail < state.n_rails; ++rail) {
        // Acquire pairs with the device's write of its counter (soft device: Device::count()), or with the release in
        // arrival_count(): what is counted is placed.
        sum += static_cast<uint32_t>(order::load_acquire_sys(state.arrival_counts + first + rail)) - state.arrival_biases[first + rail];
    }
    return sum & kCounterMask31;
}

// The deadline of a wait for arrivals has passed. Always false.
NVSHMEM_EFA_COLD inline bool fail_arrivals(const DeviceState& state, uint32_t pe, uint32_t slot, uint32_t count, uint32_t seen) {
    for (uint32_t rail = 0; state.arrival_queues && rail < state.n_rails; ++rail)
        if (arrivals_are_lost(state, rail))
            return fail(state, {DeviceWait::kLostArrivals, pe, slot, rail, state.arrival_queues[rail].cq_depth, 0});
    return fail(state, {DeviceWait::kArrivals, pe, slot, 0, count & kCounterMask31, seen});
}

// Whether `count` arrivals are among `seen`: counts wrap at 2^31.
NVSHMEM_EFA_HD inline bool has_arrived(uint32_t seen, uint32_t count) {
    return ((seen - count) & kCounterMask31) <= kCounterMask31 / 2;
}

}  // namespace device

// A put of any length which slot `slot` of the PE counts, as counted_requests() arrivals. It uses one rail.
NVSHMEM_EFA_HD inline bool put_counted_nbi(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe,
                                           uint32_t slot) {
    uint64_t there = device::address(dest), here = device::address(source);
    if (!device::slot_is_good(state, pe, slot, there)) return false;
    const auto at = static_cast<uint32_t>(pe);
    const device::Gate gate = device::gate_load(state);
    const device::Route route = device::route_of(state, device::poster_number());
    for (bool is_first = true; bytes != 0; is_first = false) {
        device::Piece piece{};
        if (!device::cut_piece(state, there, here, bytes, state.segment_bytes, at, &piece)) return false;
        const SendWqe wqe = device::counted_wqe(state, piece, route.rail, at, slot);
        if (is_first && !device::gate_pass(state, gate, at)) return false;
        if (!device::post(state, route.queue, wqe, at)) return false;
        there += piece.bytes;
        here += piece.bytes;
        bytes -= piece.bytes;
    }
    return true;
}

// How many requests such a put makes; each is one arrival. One, where `bytes` is at most state.segment_bytes and each side
// lies in one chunk of the heap or in one registered buffer: so the target knows without asking. 0: nothing would be
// posted, or an address is in no registered memory.
NVSHMEM_EFA_HD inline uint32_t counted_requests(const DeviceState& state, const void* dest, const void* source, size_t bytes, int pe) {
    uint64_t there = device::address(dest), here = device::address(source);
    uint32_t n = 0;
    if (pe < 0 || pe >= state.n_pes) return 0;
    while (bytes != 0) {
        const device::Span to = device::find_remote(state, there, static_cast<uint32_t>(pe));
        const device::Span from = device::find_local(state, here);
        if (to.addr == 0 || from.addr == 0) return 0;
        uint64_t piece = bytes < state.segment_bytes ? bytes : state.segment_bytes;
        if (piece > to.left) piece = to.left;
        if (piece > from.left) piece = from.left;
        there += piece;
        here += piece;
        bytes -= piece;
        ++n;
    }
    return n;
}

// How many have arrived from the PE at our slot since the start, modulo 2^31, on all rails: one look. The data of those
// counted is visible to the caller. A program that acts on this alone, without wait_arrivals(), must call quiet() before
// it writes again what it knows from it to have arrived, or know its own puts complete: docs/ordering.md, rule 1.
// Pre: such a slot and PE exist.
NVSHMEM_EFA_HD inline uint32_t arrivals(const DeviceState& state, int pe, uint32_t slot) {
    if (state.arrival_queues) device::arrivals_read_all(state);
    return device::arrivals_known(state, static_cast<uint32_t>(pe), slot);
}

// Waits until `count` have arrived from the PE at our slot, counted from the start, modulo 2^31; it may be at most 2^30
// ahead of what has. False: the deadline passed, which the host will report with the PE's name, or a queue of ours failed.
NVSHMEM_EFA_HD inline bool wait_arrivals(const DeviceState& state, int pe, uint32_t slot, uint32_t count) {
    if (!device::slot_is_good(state, pe, slot, 0)) return false;
    const auto from = static_cast<uint32_t>(pe);
    device::PeerWait wait;
    while (true) {
        if (state.arrival_queues && !device::arrivals_read_all(state)) return false;
        const uint32_t seen = device::arrivals_known(state, from, slot);
        if (device::has_arrived(seen, count)) break;
        const device::PeerWait::Turn turn = wait.next(state, state.wait_ticks);
        if (turn == device::PeerWait::Turn::kGoOn) continue;
        return turn == device::PeerWait::Turn::kPassed ? device::fail_arrivals(state, from, slot, count, seen) : false;
    }
    device::note_arrival(state);
    return true;
}

#if defined(__CUDACC__)
__device__ inline bool put_counted_nbi_warp(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe,
                                            uint32_t slot) {
    return device::by_warp([&] { return put_counted_nbi(state, dest, source, bytes, pe, slot); });
}
__device__ inline bool put_counted_nbi_block(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe,
                                             uint32_t slot) {
    return device::by_block([&] { return put_counted_nbi(state, dest, source, bytes, pe, slot); });
}
// What arrived is visible to all lanes or threads when it returns.
__device__ inline bool wait_arrivals_warp(const DeviceState& state, int pe, uint32_t slot, uint32_t count) {
    return device::by_warp([&] { return wait_arrivals(state, pe, slot, count); });
}
__device__ inline bool wait_arrivals_block(const DeviceState& state, int pe, uint32_t slot, uint32_t count) {
    return device::by_block([&] { return wait_arrivals(state, pe, slot, count); });
}
#endif

}  // namespace nvshmem_efa
