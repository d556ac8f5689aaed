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
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
// For several accesses on their way together that one fence behind them turns into acquires, and into the release of what
// is stored behind it. The CPU's race detector does not know fences: there each has its own order, and the fence none.
__device__ inline uint64_t load_before_fence_gpu(const uint64_t* from) { return load_before_branch_gpu(from); }
__device__ inline uint64_t load_before_fence_sys(const uint64_t* from) { return load_relaxed_sys(from); }
__device__ inline uint32_t exchange_before_fence_gpu(uint32_t* at, uint32_t value) {
    uint32_t before;
    asm volatile("atom.exch.relaxed.gpu.global.b32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
    return before;
}
__device__ inline void fence_acquire_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
__device__ inline void fence_acquire_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
__device__ inline void max_behind_fence_gpu(uint64_t* at, uint64_t value) {
    asm volatile("red.max.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ inline void store_behind_fence_gpu(uint32_t* to, uint32_t value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// What nobody changes while a kernel runs: the compiler may load it early, once, and behind fences again or not.
template <class T>
__device__ inline T load_fixed(const T* from) {
    static_assert(sizeof(T) % 8 == 0 || sizeof(T) == 4, "whole words");
    T value;
    if constexpr (sizeof(T) == 4) {
        const uint32_t word = __ldg(reinterpret_cast<const uint32_t*>(from));
        memcpy(&value, &word, 4);
    } else {
        unsigned long long words[sizeof(T) / 8];
        NVSHMEM_EFA_UNROLL
        for (uint32_t i = 0; i < sizeof(T) / 8; ++i) words[i] = __ldg(reinterpret_cast<const unsigned long long*>(from) + i);
        memcpy(&value, words, sizeof(T));
    }
    return value;
}
// The value is loaded by here, as far as the compiler is concerned, and not only where it is used: so are loads that wait
// for nothing put on their way together.
template <class T>
__device__ inline void pin(const T& value) {
    if constexpr (sizeof(T) % 8 == 0) {
        unsigned long long words[sizeof(T) / 8];
        memcpy(words, &value, sizeof(T));
        NVSHMEM_EFA_UNROLL
        for (uint32_t i = 0; i < sizeof(T) / 8; ++i) asm volatile("" ::"l"(words[i]));
    } else {
        static_assert(sizeof(T) == 4, "whole words");
        uint32_t word;
        memcpy(&word, &value, 4);
        asm volatile("" ::"r"(word));
    }
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
NVSHMEM_EFA_HD inline uint64_t load_before_fence_gpu(const uint64_t* from) { return load_acquire_gpu(from); }
NVSHMEM_EFA_HD inline uint64_t load_before_fence_sys(const uint64_t* from) { return load_acquire_sys(from); }
NVSHMEM_EFA_HD inline uint32_t exchange_before_fence_gpu(uint32_t* at, uint32_t value) { return exchange_acquire_gpu(at, value); }
NVSHMEM_EFA_HD inline void fence_acquire_gpu() {}
NVSHMEM_EFA_HD inline void fence_acquire_sys() {}
NVSHMEM_EFA_HD inline void max_behind_fence_gpu(uint64_t* at, uint64_t value) { max_release_gpu(at, value); }
NVSHMEM_EFA_HD inline void store_behind_fence_gpu(uint32_t* to, uint32_t value) { store_release_gpu(to, value); }
template <class T>
NVSHMEM_EFA_HD inline void pin(const T&) {}
template <class T>
NVSHMEM_EFA_HD inline T load_fixed(const T* from) {
    return *from;
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
