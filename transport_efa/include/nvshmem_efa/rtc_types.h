// SPDX-License-Identifier: Apache-2.0
// The few names of <cstdint>, <cstddef> and <cstring> that the public headers need, for NVRTC, which has no such headers.
#pragma once

#if defined(__CUDACC_RTC__)
using int32_t = int;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using size_t = decltype(sizeof(0));
#define NVSHMEM_EFA_LAYOUT(...) static_assert(true)  // no offsetof here; every other compiler checks the layouts
#else
#include <cstddef>
#include <cstdint>
#include <cstring>
#define NVSHMEM_EFA_LAYOUT(...) static_assert(__VA_ARGS__)
#endif

// In place of NVSHMEM_EFA_HD for what seldom runs: a call, so that the path beside it stays short and in registers.
// Arguments of such functions are passed by value: a reference would force the caller's copy into memory.
#if defined(__CUDACC__)
#define NVSHMEM_EFA_COLD __host__ __device__ __noinline__
#else
#define NVSHMEM_EFA_COLD [[gnu::noinline, gnu::cold]]
#endif
#if defined(__CUDA_ARCH__)
#define NVSHMEM_EFA_UNROLL _Pragma("unroll")  // arrays that a loop indexes stay in registers
#else
#define NVSHMEM_EFA_UNROLL
#endif
#define NVSHMEM_EFA_RARE(condition) __builtin_expect(static_cast<bool>(condition), false)
