// SPDX-License-Identifier: Apache-2.0
// Device API, transfers: put and get, and single values. For nvcc, NVRTC and CPU threads.
//
// Common to the device API (docs/device-api.md):
//   * `state` is the plugin's (nvshmem_efa_device_state()); device.cuh has the same calls without it.
//   * Addresses of remote memory are the caller's own symmetric ones, as in NVSHMEM. Local ones are in the symmetric heap
//     or in a registered buffer.
//   * false: the call failed, or something before it did; an error record says what, and the host reports it by name.
//     Nothing traps, and nothing waits longer than the deadline.
//   * Nothing is ordered but by fence() and quiet() (wait.cuh). `_nbi`: the source must stay as it is until quiet().
//   * What the calling thread wrote before a put is in the put. No fence is needed: the one at the doorbell is
//     cumulative, whoever rings. `_warp` and `_block`: all threads of it call with the same arguments, and what any of
//     them wrote before is in it.
#pragma once

#include "nvshmem_efa/device_records.h"
#include "nvshmem_efa/device_scope.h"

namespace nvshmem_efa {

// ---- transfers of any length ----

NVSHMEM_EFA_HD inline bool put_nbi(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::transfer(state, SendOpcode::kRdmaWrite, device::address(dest), device::address(source), bytes, pe,
                            device::poster_number(), true);
}

// Reads `source` of the PE into `dest` here; there after quiet().
NVSHMEM_EFA_HD inline bool get_nbi(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::transfer(state, SendOpcode::kRdmaRead, device::address(source), device::address(dest), bytes, pe,
                            device::poster_number(), true);
}

// Complete when it returns, and so is all that others have posted to the same queue. It uses one rail.
NVSHMEM_EFA_HD inline bool put(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    const uint32_t poster = device::poster_number();
    return device::transfer(state, SendOpcode::kRdmaWrite, device::address(dest), device::address(source), bytes, pe, poster, false) &&
           device::drain_queue(state, device::route_of(state, poster).queue, static_cast<uint32_t>(pe));
}
NVSHMEM_EFA_HD inline bool get(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    const uint32_t poster = device::poster_number();
    return device::transfer(state, SendOpcode::kRdmaRead, device::address(source), device::address(dest), bytes, pe, poster, false) &&
           device::drain_queue(state, device::route_of(state, poster).queue, static_cast<uint32_t>(pe));
}

#if defined(__CUDACC__)
__device__ inline bool put_nbi_warp(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::by_warp([&] { return put_nbi(state, dest, source, bytes, pe); });
}
__device__ inline bool put_nbi_block(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::by_block([&] { return put_nbi(state, dest, source, bytes, pe); });
}
__device__ inline bool get_nbi_warp(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::by_warp([&] { return get_nbi(state, dest, source, bytes, pe); });
}
__device__ inline bool get_nbi_block(const DeviceState& state, void* dest, const void* source, size_t bytes, int pe) {
    return device::by_block([&] { return get_nbi(state, dest, source, bytes, pe); });
}
#endif

// ---- single values of 2, 4 or 8 bytes ----
// They travel as requests to the agent, which carry the value: a slot of 64 bytes has no room for an inline write, and a
// staging cell could be used again only when its own request is complete, which nobody can tell: completions come in any
// order and are only counted. So p() is dearer than a put of a registered value, and atomic with other AMOs.

template <class T>
NVSHMEM_EFA_HD inline bool p(const DeviceState& state, T* dest, T value, int pe) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "p() takes 2, 4 or 8 bytes; use put_nbi() for others");
    AgentRecord record;
    const device::WordCall call{WordOp::kSet, WordType::kInteger, sizeof(T), device::bits_of(value), 0};
    return device::make_record(state, device::address(dest), call, pe, false, &record) &&
           device::post_record(state, record, static_cast<uint32_t>(pe), device::poster_number());
}

// Waits for the value.
template <class T>
NVSHMEM_EFA_HD inline bool g(const DeviceState& state, T* value, const T* source, int pe) {
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8, "g() takes 2, 4 or 8 bytes; use get() for others");
    uint64_t bits = 0;
    device::WordCall call{WordOp::kFetch, WordType::kInteger, sizeof(T), 0, 0};
    if (!device::fetch_word(state, device::address(source), call, pe, &bits)) return false;
    *value = device::from_bits<T>(bits);
    return true;
}

}  // namespace nvshmem_efa
