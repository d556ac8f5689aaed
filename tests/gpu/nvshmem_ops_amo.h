// SPDX-License-Identifier: Apache-2.0
// Which atomics NVSHMEM's device API offers for which type, and one struct per type that calls them.
#pragma once

#include <nvshmem.h>
#include <nvshmemx.h>

#include <cstddef>
#include <cstdint>

namespace gpu_ops {

#define AMO_ADD_TYPES(X)                                                                                         \
    X(int, int) X(long, long) X(uint, unsigned int) X(ulong, unsigned long) X(ulonglong, unsigned long long)      \
    X(int32, int32_t) X(uint32, uint32_t) X(uint64, uint64_t) X(size, size_t)
#define AMO_BIT_TYPES(X)                                                                                  \
    X(uint, unsigned int) X(ulong, unsigned long) X(ulonglong, unsigned long long) X(int32, int32_t)       \
    X(int64, int64_t) X(uint32, uint32_t) X(uint64, uint64_t)
#define AMO_COMPARE_TYPES(X)                                                                                       \
    X(int, int) X(long, long) X(longlong, long long) X(uint, unsigned int) X(ulong, unsigned long)                  \
    X(ulonglong, unsigned long long) X(int32, int32_t) X(int64, int64_t) X(uint32, uint32_t) X(uint64, uint64_t)     \
    X(size, size_t) X(ptrdiff, ptrdiff_t)
#define AMO_SWAP_TYPES(X) AMO_COMPARE_TYPES(X) X(float, float) X(double, double)

#define AMO_ADD_CALLS(NAME, TYPE)                                                                                        \
    struct Add_##NAME {                                                                                                  \
        using Type = TYPE;                                                                                               \
        static __device__ void add(TYPE* w, TYPE v, int pe) { nvshmem_##NAME##_atomic_add(w, v, pe); }                   \
        static __device__ void inc(TYPE* w, int pe) { nvshmem_##NAME##_atomic_inc(w, pe); }                              \
        static __device__ TYPE fetch_add(TYPE* w, TYPE v, int pe) { return nvshmem_##NAME##_atomic_fetch_add(w, v, pe); } \
        static __device__ TYPE fetch_inc(TYPE* w, int pe) { return nvshmem_##NAME##_atomic_fetch_inc(w, pe); }           \
    };
#define AMO_BIT_CALLS(NAME, TYPE)                                                                                        \
    struct Bits_##NAME {                                                                                                 \
        using Type = TYPE;                                                                                               \
        static __device__ void do_and(TYPE* w, TYPE v, int pe) { nvshmem_##NAME##_atomic_and(w, v, pe); }                \
        static __device__ void do_or(TYPE* w, TYPE v, int pe) { nvshmem_##NAME##_atomic_or(w, v, pe); }                  \
        static __device__ void do_xor(TYPE* w, TYPE v, int pe) { nvshmem_##NAME##_atomic_xor(w, v, pe); }                \
        static __device__ TYPE fetch_and(TYPE* w, TYPE v, int pe) { return nvshmem_##NAME##_atomic_fetch_and(w, v, pe); } \
        static __device__ TYPE fetch_or(TYPE* w, TYPE v, int pe) { return nvshmem_##NAME##_atomic_fetch_or(w, v, pe); }  \
        static __device__ TYPE fetch_xor(TYPE* w, TYPE v, int pe) { return nvshmem_##NAME##_atomic_fetch_xor(w, v, pe); } \
    };
#define AMO_SWAP_CALLS(NAME, TYPE)                                                                                       \
    struct Swap_##NAME {                                                                                                 \
        using Type = TYPE;                                                                                               \
        static __device__ TYPE fetch(TYPE* w, int pe) { return nvshmem_##NAME##_atomic_fetch(w, pe); }                   \
        static __device__ void set(TYPE* w, TYPE v, int pe) { nvshmem_##NAME##_atomic_set(w, v, pe); }                   \
        static __device__ TYPE swap(TYPE* w, TYPE v, int pe) { return nvshmem_##NAME##_atomic_swap(w, v, pe); }          \
    };
#define AMO_COMPARE_CALLS(NAME, TYPE)                                                            \
    struct Compare_##NAME {                                                                      \
        using Type = TYPE;                                                                       \
        static __device__ TYPE fetch(TYPE* w, int pe) { return nvshmem_##NAME##_atomic_fetch(w, pe); } \
        static __device__ TYPE compare_swap(TYPE* w, TYPE c, TYPE v, int pe) {                   \
            return nvshmem_##NAME##_atomic_compare_swap(w, c, v, pe);                            \
        }                                                                                        \
    };

AMO_ADD_TYPES(AMO_ADD_CALLS)
AMO_BIT_TYPES(AMO_BIT_CALLS)
AMO_SWAP_TYPES(AMO_SWAP_CALLS)
AMO_COMPARE_TYPES(AMO_COMPARE_CALLS)

}  // namespace gpu_ops
