// SPDX-License-Identifier: Apache-2.0
// What issue_rate.cu times of the device API: calls of one thread on a state with one PE, which is itself.
#pragma once

#include "issue_rate_methods.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/wait.cuh"

namespace issue_rate {

inline constexpr uint32_t kApiRails = 2, kApiQueuesPerRail = 4;
inline constexpr uint64_t kApiHeap = 0x1000;          // where the heap is: nobody reads or writes it
inline constexpr uint64_t kApiHeapBytes = 1 << 20;
inline constexpr uint64_t kApiRemote = 1ull << 32;    // where it is at the PE
inline constexpr uint32_t kApiRkey = 5, kApiLkey = 6;

// A put of 64 bytes, whose request is what number_request() makes of the others.
struct ApiPut {
    static constexpr const char* kName = "put_nbi";
    __device__ static void prepare(const DeviceState&, int) {}
    __device__ static bool call(const DeviceState& state, int i) {
        return put_nbi(state, reinterpret_cast<void*>(kApiHeap + i), reinterpret_cast<const void*>(kApiHeap), 64, 0);
    }
};

// A quiet with so many queues in whose last request is not known to be complete.
template <int kDirty>
struct ApiQuiet {
    static constexpr const char* kName = kDirty == 0 ? "quiet_0" : kDirty == 1 ? "quiet_1" : "quiet_8";
    __device__ static void prepare(const DeviceState& state, int i) {
        for (int poster = 0; poster < kDirty; ++poster)
            device::transfer(state, SendOpcode::kRdmaWrite, kApiHeap + i, kApiHeap, 64, 0, poster, false);
    }
    __device__ static bool call(const DeviceState& state, int) { return quiet(state); }
};

}  // namespace issue_rate
