// SPDX-License-Identifier: Apache-2.0
// Loads and atomics that the device API needs beyond memory_order.h, by the same rules and names.
#pragma once

#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa::order {

#if defined(__CUDA_ARCH__)

// A count of table entries that only grows. Relaxed: who knows an address in a new entry learned it from the host, after
// the host stored entry and count, and by synchronisation of the program's own, which orders our loads behind it.
__device__ inline uint32_t load_count(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline uint32_t load_acquire_sys(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline uint32_t load_acquire_gpu(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline void store_relaxed_gpu(uint32_t* to, uint32_t value) {
    asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// An add that is ordered behind an atomic whose returned value was branched on: the GPU issues nothing behind a branch
// before it is decided, and both act where all of the GPU sees them. The CPU's race detector knows no such rule and gets
// a release.
__device__ inline void add_behind_branch_gpu(uint64_t* at, uint64_t value) {
    asm volatile("red.add.relaxed.gpu.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

#else  // the CPU

NVSHMEM_EFA_HD inline uint32_t load_count(const uint32_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
NVSHMEM_EFA_HD inline uint32_t load_acquire_sys(const uint32_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
NVSHMEM_EFA_HD inline uint32_t load_acquire_gpu(const uint32_t* from) { return load_acquire_sys(from); }
NVSHMEM_EFA_HD inline void store_relaxed_gpu(uint32_t* to, uint32_t value) {
    NVSHMEM_EFA_STEP();
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline void add_behind_branch_gpu(uint64_t* at, uint64_t value) {
    NVSHMEM_EFA_STEP();
    __atomic_fetch_add(at, value, __ATOMIC_RELEASE);
}

#endif  // __CUDA_ARCH__

}  // namespace nvshmem_efa::order
