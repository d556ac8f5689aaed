// SPDX-License-Identifier: Apache-2.0
// Loads, stores and fences by name of scope and order: PTX on the GPU, builtins of the compiler on the CPU, so that the
// code above is one text for both. `_gpu`: among posters, all on one GPU (CPU: all threads). `_sys`: towards the device
// and the host. PTX ISA 8.0, sections "ld", "st", "atom", "red", "membar/fence". All pointers are to global memory, where
// generic and global addresses are equal.
#pragma once

#include "nvshmem_efa/ring.h"

// A test's scheduler: called before every access below, on the CPU, so that it can let other posters run in between.
#if defined(NVSHMEM_EFA_STEP_HOOK) && !defined(__CUDA_ARCH__)
#define NVSHMEM_EFA_STEP() NVSHMEM_EFA_STEP_HOOK()
#else
#define NVSHMEM_EFA_STEP() static_cast<void>(0)
#endif

namespace nvshmem_efa::order {

// 16 bytes that are stored at once.
struct alignas(16) Bytes16 {
    uint64_t low;
    uint64_t high;
};
struct Triple {
    uint32_t first;
    uint32_t second;
    uint32_t third;
};

#if defined(__CUDA_ARCH__)

__device__ inline uint32_t load_relaxed_gpu(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}
// Three neighbours, of four, 16-byte aligned: one load.
__device__ inline Triple load_triple_relaxed_gpu(const uint32_t* from) {
    Triple words;
    asm volatile("{ .reg .b32 last;\n\tld.relaxed.gpu.global.v4.u32 {%0, %1, %2, last}, [%3]; }"
                 : "=r"(words.first), "=r"(words.second), "=r"(words.third) : "l"(from) : "memory");
    return words;
}
__device__ inline uint64_t load_acquire_gpu(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
// Acquire towards stores that come after a branch on the value. An acquire is the same load and then drops what the L1
// cache holds (SASS: CCTL.IVALL), which matters to loads; a GPU issues no store before its branch, so stores need no
// more than a relaxed load. The CPU's race detector knows no such rule and gets an acquire.
__device__ inline uint64_t load_before_branch_gpu(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline void store_release_gpu(uint64_t* to, uint64_t value) {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void store_release_gpu(uint32_t* to, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline uint32_t fetch_add_relaxed_gpu(uint32_t* at, uint32_t value) {
    uint32_t before;
    asm volatile("atom.add.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
    return before;
}
// The same by one. `all_ones` is 0xffffffff, in a way that the compiler cannot know: additions it gathers from the lanes
// of the warp, by some ten instructions that a lane alone waits for; an increment that might wrap elsewhere it does not.
__device__ inline uint32_t fetch_increment_relaxed_gpu(uint32_t* at, uint32_t all_ones) {
    uint32_t before;
    asm volatile("atom.inc.relaxed.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(all_ones) : "memory");
    return before;
}
__device__ inline uint32_t exchange_acquire_gpu(uint32_t* at, uint32_t value) {
    uint32_t before;
    asm volatile("atom.exch.acquire.gpu.global.b32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
    return before;
}
__device__ inline void max_release_gpu(uint64_t* at, uint64_t value) {
    asm volatile("red.max.release.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}
__device__ inline uint64_t load_relaxed_sys(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline uint64_t load_acquire_sys(const uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
}
__device__ inline uint8_t load_acquire_sys(const uint8_t* from) {
    uint32_t value;
    asm volatile("ld.acquire.sys.global.u8 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return static_cast<uint8_t>(value);
}
// The word alone: nothing else is ordered by it.
__device__ inline void store_relaxed_sys(uint64_t* to, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void or_relaxed_gpu(uint32_t* at, uint32_t bits) {
    asm volatile("red.or.relaxed.gpu.global.b32 [%0], %1;" ::"l"(at), "r"(bits) : "memory");
}
__device__ inline void store_release_sys(uint32_t* to, uint32_t value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline void store_release_sys(uint64_t* to, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }  // cheaper than __threadfence(), which is fence.sc
__device__ inline void fence_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }
// A release, which compiles to MEMBAR.SYS and the store: the MEMBAR ends when all earlier stores of the thread, and those
// it has seen of others, are out; nothing after it is issued before. A fence and a relaxed store are the same MEMBAR,
// and drop the L1 cache besides.
__device__ inline void store_doorbell(uint32_t* doorbell, uint32_t value) { store_release_sys(doorbell, value); }
__device__ inline void store_bytes16(void* to, const Bytes16& bytes) {
    asm volatile("st.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(bytes.low), "l"(bytes.high) : "memory");
}
// Four stores with nothing between them: stores that are apart leave the GPU as more and shorter bus writes.
__device__ inline void store_four(void* const (&to)[4], const Bytes16 (&bytes)[4]) {
    asm volatile(
        "st.global.v2.u64 [%0], {%4, %5};\n\tst.global.v2.u64 [%1], {%6, %7};\n\t"
        "st.global.v2.u64 [%2], {%8, %9};\n\tst.global.v2.u64 [%3], {%10, %11};" ::"l"(to[0]),
        "l"(to[1]), "l"(to[2]), "l"(to[3]), "l"(bytes[0].low), "l"(bytes[0].high), "l"(bytes[1].low), "l"(bytes[1].high),
        "l"(bytes[2].low), "l"(bytes[2].high), "l"(bytes[3].low), "l"(bytes[3].high)
        : "memory");
}
__device__ inline void store_note(Bytes16* to, const Bytes16& bytes) { store_bytes16(to, bytes); }
__device__ inline Bytes16 load_note(const Bytes16* from) {
    Bytes16 bytes;
    asm volatile("ld.global.v2.u64 {%0, %1}, [%2];" : "=l"(bytes.low), "=l"(bytes.high) : "l"(from) : "memory");
    return bytes;
}
__device__ inline void pause() { __nanosleep(20); }
// Of a wait whose looks cross the bus: ever longer, so that a thousand waiting threads leave the bus to those waited for.
__device__ inline void pause_longer(uint32_t turn) { __nanosleep(turn < 5 ? 20u << turn : 640u); }
__device__ inline uint64_t clock_ticks() { return static_cast<uint64_t>(clock64()); }

#else  // the CPU

NVSHMEM_EFA_HD inline uint32_t load_relaxed_gpu(const uint32_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline Triple load_triple_relaxed_gpu(const uint32_t* from) {
    NVSHMEM_EFA_STEP();
    return {__atomic_load_n(from, __ATOMIC_RELAXED), __atomic_load_n(from + 1, __ATOMIC_RELAXED), __atomic_load_n(from + 2, __ATOMIC_RELAXED)};
}
NVSHMEM_EFA_HD inline uint64_t load_acquire_gpu(const uint64_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
NVSHMEM_EFA_HD inline uint64_t load_before_branch_gpu(const uint64_t* from) { return load_acquire_gpu(from); }
NVSHMEM_EFA_HD inline void store_release_gpu(uint64_t* to, uint64_t value) {
    NVSHMEM_EFA_STEP();
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
NVSHMEM_EFA_HD inline void store_release_gpu(uint32_t* to, uint32_t value) {
    NVSHMEM_EFA_STEP();
    __atomic_store_n(to, value, __ATOMIC_RELEASE);
}
NVSHMEM_EFA_HD inline uint32_t fetch_add_relaxed_gpu(uint32_t* at, uint32_t value) {
    NVSHMEM_EFA_STEP();
    return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline uint32_t fetch_increment_relaxed_gpu(uint32_t* at, uint32_t) {
    return fetch_add_relaxed_gpu(at, 1);
}
NVSHMEM_EFA_HD inline uint32_t exchange_acquire_gpu(uint32_t* at, uint32_t value) {
    NVSHMEM_EFA_STEP();
    return __atomic_exchange_n(at, value, __ATOMIC_ACQUIRE);
}
NVSHMEM_EFA_HD inline void max_release_gpu(uint64_t* at, uint64_t value) {
    NVSHMEM_EFA_STEP();
    uint64_t seen = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (seen < value && !__atomic_compare_exchange_n(at, &seen, value, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    }
}
NVSHMEM_EFA_HD inline uint64_t load_relaxed_sys(const uint64_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline uint64_t load_acquire_sys(const uint64_t* from) { return load_acquire_gpu(from); }
NVSHMEM_EFA_HD inline uint8_t load_acquire_sys(const uint8_t* from) {
    NVSHMEM_EFA_STEP();
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
NVSHMEM_EFA_HD inline void store_relaxed_sys(uint64_t* to, uint64_t value) {
    NVSHMEM_EFA_STEP();
    __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline void or_relaxed_gpu(uint32_t* at, uint32_t bits) {
    NVSHMEM_EFA_STEP();
    __atomic_fetch_or(at, bits, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline void store_release_sys(uint32_t* to, uint32_t value) { store_release_gpu(to, value); }
NVSHMEM_EFA_HD inline void store_release_sys(uint64_t* to, uint64_t value) { store_release_gpu(to, value); }
NVSHMEM_EFA_HD inline void fence_sys() {
    NVSHMEM_EFA_STEP();
    wc_flush();
}
NVSHMEM_EFA_HD inline void store_doorbell(uint32_t* doorbell, uint32_t value) {
    fence_sys();
    __atomic_store_n(doorbell, value, __ATOMIC_RELEASE);
}
NVSHMEM_EFA_HD inline void store_bytes16(void* to, const Bytes16& bytes) {
    NVSHMEM_EFA_STEP();
    memcpy(__builtin_assume_aligned(to, 16), &bytes, sizeof bytes);
}
NVSHMEM_EFA_HD inline void store_four(void* const (&to)[4], const Bytes16 (&bytes)[4]) {
    for (int i = 0; i < 4; ++i) store_bytes16(to[i], bytes[i]);
}
// Notes are read when something went wrong, perhaps while their slot is used again: two words, each whole.
NVSHMEM_EFA_HD inline void store_note(Bytes16* to, const Bytes16& bytes) {
    __atomic_store_n(&to->low, bytes.low, __ATOMIC_RELAXED);
    __atomic_store_n(&to->high, bytes.high, __ATOMIC_RELAXED);
}
NVSHMEM_EFA_HD inline Bytes16 load_note(const Bytes16* from) {
    return {__atomic_load_n(&from->low, __ATOMIC_RELAXED), __atomic_load_n(&from->high, __ATOMIC_RELAXED)};
}
NVSHMEM_EFA_HD inline void pause() {
    NVSHMEM_EFA_STEP();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}
NVSHMEM_EFA_HD inline void pause_longer(uint32_t /*turn*/) { pause(); }
// Ticks of the time-stamp counter, or of the generic timer.
NVSHMEM_EFA_HD inline uint64_t clock_ticks() {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    asm volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#endif
}

#endif  // __CUDA_ARCH__

}  // namespace nvshmem_efa::order
