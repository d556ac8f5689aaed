// SPDX-License-Identifier: Apache-2.0
// Device-initiated put and get: every scope, blocking and nbi, 1 B to 64 KiB at odd places, and p and g of every type.
#include "nvshmem_ops_rma.h"

namespace gpu_ops {
namespace {

enum class Scope { kThread, kWarp, kBlock };

template <Scope kScope, bool kNbi, bool kGet>
__device__ void transfer(void* dest, const void* source, size_t bytes, int pe) {
    if constexpr (kGet) {
        if constexpr (kScope == Scope::kThread) kNbi ? nvshmem_getmem_nbi(dest, source, bytes, pe) : nvshmem_getmem(dest, source, bytes, pe);
        if constexpr (kScope == Scope::kWarp) kNbi ? nvshmemx_getmem_nbi_warp(dest, source, bytes, pe) : nvshmemx_getmem_warp(dest, source, bytes, pe);
        if constexpr (kScope == Scope::kBlock) kNbi ? nvshmemx_getmem_nbi_block(dest, source, bytes, pe) : nvshmemx_getmem_block(dest, source, bytes, pe);
    } else {
        if constexpr (kScope == Scope::kThread) kNbi ? nvshmem_putmem_nbi(dest, source, bytes, pe) : nvshmem_putmem(dest, source, bytes, pe);
        if constexpr (kScope == Scope::kWarp) kNbi ? nvshmemx_putmem_nbi_warp(dest, source, bytes, pe) : nvshmemx_putmem_warp(dest, source, bytes, pe);
        if constexpr (kScope == Scope::kBlock) kNbi ? nvshmemx_putmem_nbi_block(dest, source, bytes, pe) : nvshmemx_putmem_block(dest, source, bytes, pe);
    }
}

template <Scope kScope, bool kNbi, bool kGet>
__global__ void run_plan(char* dest, const char* source, const Op* ops, int count, int pe, bool quiet) {
    const int lanes = kScope == Scope::kThread ? 1 : kScope == Scope::kWarp ? 32 : blockDim.x;
    const int group = (blockIdx.x * blockDim.x + threadIdx.x) / lanes;
    const int groups = gridDim.x * blockDim.x / lanes;
    for (int i = group; i < count; i += groups)
        transfer<kScope, kNbi, kGet>(dest + ops[i].dest, source + ops[i].source, ops[i].bytes, pe);
    if (quiet) nvshmem_quiet();
}

template <Scope kScope, bool kNbi, bool kGet>
void device_plan(Run& run) {
    check_plan(run, kGet, 400, 64 << 10, [&](const Round& round) {
        // Puts of odd rounds are not quieted by the kernel: the host barrier must wait for them.
        const bool quiet = kGet || round.shift % 2 == 0;
        const int blocks = kScope == Scope::kBlock ? 4 : 2, threads = kScope == Scope::kThread ? 32 : 128;
        run_plan<kScope, kNbi, kGet><<<blocks, threads, 0, run.job.stream>>>(round.dest, round.source, round.device_ops,
                                                                            round.count, round.pe, quiet);
        LAUNCH_CHECK();
    });
}

GPU_CASE(put_thread, "rma", 10, 60) { device_plan<Scope::kThread, false, false>(run); }
GPU_CASE(put_nbi_thread, "rma", 11, 60) { device_plan<Scope::kThread, true, false>(run); }
GPU_CASE(get_thread, "rma", 12, 60) { device_plan<Scope::kThread, false, true>(run); }
GPU_CASE(get_nbi_thread, "rma", 13, 60) { device_plan<Scope::kThread, true, true>(run); }
GPU_CASE(put_warp, "rma", 40, 60) { device_plan<Scope::kWarp, false, false>(run); }
GPU_CASE(put_nbi_warp, "rma", 41, 60) { device_plan<Scope::kWarp, true, false>(run); }
GPU_CASE(get_warp, "rma", 42, 60) { device_plan<Scope::kWarp, false, true>(run); }
GPU_CASE(get_nbi_warp, "rma", 43, 60) { device_plan<Scope::kWarp, true, true>(run); }
GPU_CASE(put_block, "rma", 44, 60) { device_plan<Scope::kBlock, false, false>(run); }
GPU_CASE(put_nbi_block, "rma", 45, 60) { device_plan<Scope::kBlock, true, false>(run); }
GPU_CASE(get_block, "rma", 46, 60) { device_plan<Scope::kBlock, false, true>(run); }
GPU_CASE(get_nbi_block, "rma", 47, 60) { device_plan<Scope::kBlock, true, true>(run); }

template <bool kNbi, bool kGet>
void device_large(Run& run) {
    check_large(run, kGet, [&](const Round& round) {
        run_plan<Scope::kBlock, kNbi, kGet><<<1, 128, 0, run.job.stream>>>(round.dest, round.source, round.device_ops, 1,
                                                                          round.pe, kGet || round.shift % 2 == 0);
        LAUNCH_CHECK();
    });
}
GPU_CASE(put_large, "large", 60, 90) { device_large<false, false>(run); }
GPU_CASE(put_nbi_large, "large", 61, 90) { device_large<true, false>(run); }
GPU_CASE(get_large, "large", 62, 90) { device_large<false, true>(run); }
GPU_CASE(get_nbi_large, "large", 63, 90) { device_large<true, true>(run); }

// p and g of every type: element i of the peer's array comes from element i of ours, in scrambled order.
constexpr int kElements = 257;

// Not here: signed char, int8, half and bfloat16. NVSHMEM declares their p and g, but the device library of 3.4.5 lacks them.
#define RMA_TYPES(X)                                                                                              \
    X(float, float) X(double, double) X(char, char) X(short, short) X(int, int) X(long, long)                      \
    X(longlong, long long) X(uchar, unsigned char) X(ushort, unsigned short) X(uint, unsigned int)                 \
    X(ulong, unsigned long) X(ulonglong, unsigned long long) X(int16, int16_t) X(int32, int32_t)                   \
    X(int64, int64_t) X(uint8, uint8_t) X(uint16, uint16_t) X(uint32, uint32_t) X(uint64, uint64_t)                \
    X(size, size_t) X(ptrdiff, ptrdiff_t)

#define P_AND_G(NAME, TYPE)                                                                                        \
    __global__ void p_##NAME(char* dest, const char* source, int pe) {                                             \
        for (int i = threadIdx.x; i < kElements; i += blockDim.x) {                                                \
            const int at = (i * 5) % kElements;                                                                    \
            nvshmem_##NAME##_p(reinterpret_cast<TYPE*>(dest) + at, reinterpret_cast<const TYPE*>(source)[at], pe); \
        }                                                                                                          \
        nvshmem_quiet();                                                                                           \
    }                                                                                                              \
    __global__ void g_##NAME(char* dest, const char* source, int pe) {                                             \
        for (int i = threadIdx.x; i < kElements; i += blockDim.x) {                                                \
            const int at = (i * 5) % kElements;                                                                    \
            reinterpret_cast<TYPE*>(dest)[at] = nvshmem_##NAME##_g(reinterpret_cast<const TYPE*>(source) + at, pe); \
        }                                                                                                          \
    }
RMA_TYPES(P_AND_G)
#undef P_AND_G

struct TypedKernel {
    const char* type;
    size_t bytes;
    void (*p)(char*, const char*, int);
    void (*g)(char*, const char*, int);
};
#define TYPED_KERNEL(NAME, TYPE) {#NAME, sizeof(TYPE), p_##NAME, g_##NAME},
const TypedKernel kTyped[] = {RMA_TYPES(TYPED_KERNEL)};
#undef TYPED_KERNEL

void check_typed(Run& run, bool get) {
    const Job& job = run.job;
    const size_t room = 8192;
    Symmetric<char> dest(room), source(room);
    Device<char> expected(room);
    DeviceTrouble trouble;
    for (int shift = 0; shift < job.npes; ++shift) {  // shift 0: to itself
        for (const TypedKernel& typed : kTyped) {
            const uint64_t seed = mix2(run.seed, shift * 1000 + (&typed - kTyped));
            const size_t bytes = kElements * typed.bytes, at = 16 + 16 * (&typed - kTyped);
            const int owner = get ? run.peer(shift) : run.peer(-shift);
            fill(job, source.get(), room, pattern_key(seed, job.pe));
            fill(job, dest.get(), room, pattern_key(seed, kPoisonPe));
            fill(job, expected.get(), room, pattern_key(seed, kPoisonPe));
            fill(job, expected.get() + at, bytes, pattern_key(seed, owner), at);
            meet(job, typed.type);
            (get ? typed.g : typed.p)<<<1, 64, 0, job.stream>>>(dest.get() + at, source.get() + at, run.peer(shift));
            LAUNCH_CHECK();
            meet(job, typed.type);
            compare(job, dest.get(), expected.get(), room, trouble.get());
            run.check(trouble, typed.type);
            run.add_digest(digest(job, dest.get(), room));
            meet(job, typed.type);
        }
    }
}
GPU_CASE(p_device, "rma", 14, 60) { check_typed(run, false); }
GPU_CASE(g_device, "rma", 15, 60) { check_typed(run, true); }

__global__ void strided_kernel(int* dest, const int* source, ptrdiff_t dst, ptrdiff_t sst, size_t count, int pe, bool get) {
    if (get) nvshmem_int_iget(dest, source, dst, sst, count, pe);
    else nvshmem_int_iput(dest, source, dst, sst, count, pe);
    nvshmem_quiet();
}

GPU_CASE(strided_device, "strided", 90, 60) {
    // NVSHMEM's own device code refuses strided transfers without P2P ("not implemented over remote network transports").
    if (!run.job.p2p) throw Skip{"NVSHMEM's device iput and iget work over P2P only"};
    check_strided(run, [&](int* dest, const int* source, ptrdiff_t dst, ptrdiff_t sst, size_t count, int pe, bool get) {
        strided_kernel<<<1, 1, 0, run.job.stream>>>(dest, source, dst, sst, count, pe, get);
        LAUNCH_CHECK();
    });
}

}  // namespace
}  // namespace gpu_ops
