// SPDX-License-Identifier: Apache-2.0
// Who posts together: one thread, or lanes of a warp that share one reservation and one doorbell. A group has
//   size(), rank()      of the caller in it; rank 0 acts for all
//   share(v)            v of rank 0, for all; what rank 0 saw before is seen by all after
//   join()              what every member stored before is seen by every member after
//   kIsFullWarp         32 lanes, known when compiled
#pragma once

#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa {

struct OneThread {
    static constexpr bool kIsFullWarp = false;
    NVSHMEM_EFA_HD uint32_t size() const { return 1; }
    NVSHMEM_EFA_HD uint32_t rank() const { return 0; }
    NVSHMEM_EFA_HD uint64_t share(uint64_t value) const { return value; }
    NVSHMEM_EFA_HD void join() const {}
};

// How many members take part in the next step, when `done` have and a step takes at most `most`.
template <class Group>
NVSHMEM_EFA_HD inline uint32_t group_part(const Group& group, uint32_t done, uint32_t most) {
    const uint32_t left = group.size() - done;
    return group.size() == 1 || left < most ? left : most;
}

#if defined(__CUDACC__)
// All 32 lanes, converged.
struct FullWarp {
    static constexpr bool kIsFullWarp = true;
    uint32_t lane;
    __device__ uint32_t size() const { return 32; }
    __device__ uint32_t rank() const { return lane; }
    __device__ uint64_t share(uint64_t value) const {
        value = __shfl_sync(0xffffffffu, static_cast<unsigned long long>(value), 0);
        __syncwarp();  // the shuffle alone orders no memory
        return value;
    }
    __device__ void join() const { __syncwarp(); }
};

// Some lanes of a warp.
struct SomeLanes {
    static constexpr bool kIsFullWarp = false;
    uint32_t mask;
    uint32_t place;
    __device__ uint32_t size() const { return __popc(mask); }
    __device__ uint32_t rank() const { return place; }
    __device__ uint64_t share(uint64_t value) const {
        value = __shfl_sync(mask, static_cast<unsigned long long>(value), __ffs(mask) - 1);
        __syncwarp(mask);  // the shuffle alone orders no memory
        return value;
    }
    __device__ void join() const { __syncwarp(mask); }
};

__device__ inline uint32_t lane_number() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z) & 31u; }
__device__ inline FullWarp full_warp() { return {lane_number()}; }
// The lanes of `mask` (all of them call this); `mask` from __activemask() or the caller's own knowledge.
__device__ inline SomeLanes lanes_of(uint32_t mask) {
    return {mask, static_cast<uint32_t>(__popc(mask & ((1u << lane_number()) - 1u)))};
}
// Those of `mask` that name the same queue.
__device__ inline SomeLanes lanes_with(const void* queue, uint32_t mask) {
    return lanes_of(__match_any_sync(mask, reinterpret_cast<unsigned long long>(queue)));
}
#endif

}  // namespace nvshmem_efa
