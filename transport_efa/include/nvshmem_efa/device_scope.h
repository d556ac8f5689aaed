// SPDX-License-Identifier: Apache-2.0
// The inside of the device API: warps and blocks as callers, and values as bits.
#pragma once

#include "nvshmem_efa/lane_group.h"

namespace nvshmem_efa::device {

NVSHMEM_EFA_HD inline uint64_t address(const void* of) { return reinterpret_cast<uint64_t>(of); }

// A value of at most 8 bytes in the low bytes of a word, the rest zero.
template <class T>
NVSHMEM_EFA_HD inline uint64_t bits_of(const T& value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
NVSHMEM_EFA_HD inline T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#if defined(__CUDACC__)
// All 32 lanes call, lane 0 acts. The first barrier puts what the lanes wrote before what lane 0 posts; the shuffle's
// barrier puts what lane 0 learned before what the lanes do next.
template <class Action>
__device__ inline bool by_warp(const Action& action) {
    __syncwarp();
    const FullWarp warp = full_warp();
    const bool is_good = warp.lane == 0 ? action() : true;
    return warp.share(is_good) != 0;
}

// All threads of the block call, thread 0 acts; the barriers as above.
template <class Action>
__device__ inline bool by_block(const Action& action) {
    __syncthreads();
    bool is_good = true;
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) is_good = action();
    return __syncthreads_and(is_good) != 0;
}
#endif

}  // namespace nvshmem_efa::device
