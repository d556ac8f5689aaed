// SPDX-License-Identifier: Apache-2.0
// Who posts together: one thread, or lanes of a warp that share one reservation and one doorbell. A group has
//   size(), rank()      of the caller in it; rank 0 acts for all
//   share(v)            v of rank 0, for all; what rank 0 saw before is seen by all after
//   join()              what every member stored before is seen by every member after
//   kIsOfWarp           its members are lanes of one warp of a GPU, in their order; mask() tells which
#pragma once

#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa {

struct OneThread {
    static constexpr bool kIsOfWarp = false;
    NVSHMEM_EFA_HD uint32_t size() const { return 1; }
    NVSHMEM_EFA_HD uint32_t rank() const { return 0; }
    NVSHMEM_EFA_HD uint64_t share(uint64_t value) const { return value; }
    NVSHMEM_EFA_HD void join() const {}
};

#if defined(__CUDACC__)
// All 32 lanes, converged.
struct FullWarp {
    static constexpr bool kIsOfWarp = true;
    uint32_t lane;
    __device__ uint32_t mask() const { return 0xffffffffu; }
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
    static constexpr bool kIsOfWarp = true;
    uint32_t lanes;
    uint32_t place;
    // One lane needs no shuffle and no barrier, which cost a hundred cycles where the compiler does not know the mask.
    __device__ bool is_alone() const { return (lanes & (lanes - 1)) == 0; }
    __device__ uint32_t mask() const { return lanes; }
    __device__ uint32_t size() const { return __popc(lanes); }
    __device__ uint32_t rank() const { return place; }
    __device__ uint64_t share(uint64_t value) const {
        if (is_alone()) return value;
        value = __shfl_sync(lanes, static_cast<unsigned long long>(value), __ffs(lanes) - 1);
        __syncwarp(lanes);  // the shuffle alone orders no memory
        return value;
    }
    __device__ void join() const {
        if (!is_alone()) __syncwarp(lanes);
    }
};

__device__ inline uint32_t lane_number() {
    uint32_t lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    __builtin_assume(lane < 32);
    return lane;
}
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
