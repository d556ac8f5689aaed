// SPDX-License-Identifier: Apache-2.0
// Device API, waiting: fence, quiet, and waiting for words that other PEs change. See put.cuh for what all calls share.
#pragma once

#include "nvshmem_efa/device_records.h"
#include "nvshmem_efa/device_scope.h"

namespace nvshmem_efa {

// Everything that the caller posted (or ordered before this call) is complete: data placed at its targets, signals and
// atomics applied, gets here. Queues with nothing in flight cost no look at the device.
NVSHMEM_EFA_HD inline bool quiet(const DeviceState& state) {
    return device::quiet_all(state);
}

// The same towards one PE. Queues are shared by all PEs, so it waits for the data of all; for records to that PE only.
NVSHMEM_EFA_HD inline bool quiet(const DeviceState& state, int pe) {
    if (!device::pe_is_good(state, pe, 0)) return false;
    const bool data = device::drain_queues(state, static_cast<uint32_t>(pe));
    return device::quiet_peer(state, static_cast<uint32_t>(pe)) && data;
}

// What is posted later to the PE is ordered behind what was posted before. SRD has nothing cheaper than waiting.
NVSHMEM_EFA_HD inline bool fence(const DeviceState& state, int pe) { return quiet(state, pe); }
NVSHMEM_EFA_HD inline bool fence(const DeviceState& state) { return quiet(state); }

#if defined(__CUDACC__)
// For what all threads of the warp or block have posted.
__device__ inline bool quiet_warp(const DeviceState& state) { return device::by_warp([&] { return quiet(state); }); }
__device__ inline bool quiet_block(const DeviceState& state) { return device::by_block([&] { return quiet(state); }); }
#endif

// ---- words of this PE ----

enum class Cmp : uint8_t { kEq, kNe, kGt, kGe, kLt, kLe };

namespace device {

template <class T>
NVSHMEM_EFA_HD inline bool compare(T is, Cmp cmp, T value) {
    switch (cmp) {
        case Cmp::kEq: return is == value;
        case Cmp::kNe: return is != value;
        case Cmp::kGt: return is > value;
        case Cmp::kGe: return is >= value;
        case Cmp::kLt: return is < value;
        case Cmp::kLe: return is <= value;
    }
    return false;
}

// Acquire pairs with the agent's or the device's write of the word: what came with it is visible.
template <class T>
NVSHMEM_EFA_HD inline T load_word(const T* at) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "words to wait for have 4 or 8 bytes");
    if constexpr (sizeof(T) == 8) {
        return from_bits<T>(order::load_acquire_sys(reinterpret_cast<const uint64_t*>(at)));
    } else {
        return from_bits<T>(order::load_acquire_sys(reinterpret_cast<const uint32_t*>(at)));
    }
}

template <class T>
NVSHMEM_EFA_HD inline PeerWait::Turn wait_for_word(const DeviceState& state, const T* at, Cmp cmp, T value, uint64_t ticks, T* seen) {
    PeerWait wait;
    while (true) {
        *seen = load_word(at);
        if (compare(*seen, cmp, value)) break;
        const PeerWait::Turn turn = wait.next(state, ticks);
        if (turn != PeerWait::Turn::kGoOn) return turn;
    }
    note_arrival(state);
    return PeerWait::Turn::kGoOn;
}

}  // namespace device

// Waits until the word compares so. Waiting with these calls, and not with loops of one's own, is what makes it safe to
// write a buffer again after its reader has answered: see docs/ordering.md, rule 1. False: the deadline passed, which the
// host will report as an error, or a queue of ours has failed.
template <class T>
NVSHMEM_EFA_HD inline bool wait_until(const DeviceState& state, const T* word, Cmp cmp, T value) {
    T seen;
    const auto end = device::wait_for_word(state, word, cmp, value, state.wait_ticks, &seen);
    if (end == device::PeerWait::Turn::kGoOn) return true;
    if (end == device::PeerWait::Turn::kQueueFailed) return false;
    return device::fail(state, {DeviceWait::kWord, static_cast<uint32_t>(state.pe), 0, device::address(word),
                                device::bits_of(value), device::bits_of(seen)});
}

// The same with a limit of the caller's, in ticks of clock64(); false when it passed, which is no error.
template <class T>
NVSHMEM_EFA_HD inline bool wait_until_for(const DeviceState& state, const T* word, Cmp cmp, T value, uint64_t ticks) {
    T seen;
    return device::wait_for_word(state, word, cmp, value, ticks, &seen) == device::PeerWait::Turn::kGoOn;
}

// Whether the word compares so now.
template <class T>
NVSHMEM_EFA_HD inline bool test(const DeviceState& state, const T* word, Cmp cmp, T value) {
    if (!device::compare(device::load_word(word), cmp, value)) return false;
    device::note_arrival(state);
    return true;
}

}  // namespace nvshmem_efa
