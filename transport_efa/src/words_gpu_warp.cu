// SPDX-License-Identifier: Apache-2.0
// The atomics warp: takes batches of word requests from pinned host memory and executes them as system-scope atomics,
// so that they are atomic with the GPU's own atomics on the same words. Compiled to PTX text for old drivers by
// words_gpu_warp_regenerate.sh; the build does not need nvcc.
#include "words_gpu_warp_ring.h"

using nvshmem_efa::kWarpBatches;
using nvshmem_efa::kWarpIdleNs;
using nvshmem_efa::kWarpStop;
using nvshmem_efa::WarpAnswer;
using nvshmem_efa::WarpBatch;
using nvshmem_efa::WarpRequest;
using nvshmem_efa::WarpRing;

namespace {

// PTX ISA 9.7.9 "ld", "st"; 9.7.13 "atom": acquire, release and system scope, since sm_70.
__device__ uint64_t load_acquire(const uint64_t* addr) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(addr) : "memory");
    return value;
}

__device__ void store_release(uint64_t* addr, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(addr), "l"(value) : "memory");
}

__device__ void store_relaxed(uint64_t* addr, uint64_t value) {
    asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(addr), "l"(value) : "memory");
}

#define ATOM(NAME, OP, CONSTRAINT, TYPE)                                                       \
    __device__ TYPE NAME(uint64_t addr, TYPE operand) {                                        \
        TYPE before;                                                                           \
        asm volatile("atom.acq_rel.sys.global." OP " %0, [%1], %2;"                            \
                     : "=" CONSTRAINT(before)                                                  \
                     : "l"(addr), CONSTRAINT(operand)                                          \
                     : "memory");                                                              \
        return before;                                                                         \
    }
ATOM(add_u32, "add.u32", "r", uint32_t)
ATOM(and_u32, "and.b32", "r", uint32_t)
ATOM(or_u32, "or.b32", "r", uint32_t)
ATOM(xor_u32, "xor.b32", "r", uint32_t)
ATOM(swap_u32, "exch.b32", "r", uint32_t)
ATOM(add_u64, "add.u64", "l", uint64_t)
ATOM(and_u64, "and.b64", "l", uint64_t)
ATOM(or_u64, "or.b64", "l", uint64_t)
ATOM(xor_u64, "xor.b64", "l", uint64_t)
ATOM(swap_u64, "exch.b64", "l", uint64_t)
ATOM(add_f16, "add.noftz.f16", "h", uint16_t)
ATOM(add_f32, "add.f32", "f", float)
ATOM(add_f64, "add.f64", "d", double)
#undef ATOM

#define CAS(NAME, OP, CONSTRAINT, TYPE)                                                        \
    __device__ TYPE NAME(uint64_t addr, TYPE compare, TYPE operand) {                          \
        TYPE before;                                                                           \
        asm volatile("atom.acq_rel.sys.global.cas." OP " %0, [%1], %2, %3;"                    \
                     : "=" CONSTRAINT(before)                                                  \
                     : "l"(addr), CONSTRAINT(compare), CONSTRAINT(operand)                     \
                     : "memory");                                                              \
        return before;                                                                         \
    }
CAS(cas_u16, "b16", "h", uint16_t)
CAS(cas_u32, "b32", "r", uint32_t)
CAS(cas_u64, "b64", "l", uint64_t)
#undef CAS

__device__ uint64_t now_ns() {  // PTX ISA 10 "%globaltimer": nanoseconds, in steps of about a microsecond
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// The numbers of WordOp in words.h; words_gpu_warp.cpp asserts that they agree.
enum Op : uint32_t { kFetch, kSet, kAdd, kAnd, kOr, kXor, kSwap, kCompareSwap };

// 2-byte words have no integer atomics but compare-and-swap.
__device__ uint64_t apply_u16(const WarpRequest& request) {
    const uint16_t operand = static_cast<uint16_t>(request.operand);
    if (request.op == kAdd && request.is_float) return add_f16(request.addr, operand);
    if (request.op == kCompareSwap) return cas_u16(request.addr, static_cast<uint16_t>(request.compare), operand);
    uint16_t before = cas_u16(request.addr, 0, 0);
    while (request.op != kFetch) {
        uint16_t after = operand;
        if (request.op == kAdd) after = before + operand;
        if (request.op == kAnd) after = before & operand;
        if (request.op == kOr) after = before | operand;
        if (request.op == kXor) after = before ^ operand;
        const uint16_t seen = cas_u16(request.addr, before, after);
        if (seen == before) break;
        before = seen;
    }
    return before;
}

__device__ uint64_t apply_u32(const WarpRequest& request) {
    const uint32_t operand = static_cast<uint32_t>(request.operand);
    switch (request.op) {
        case kFetch: return or_u32(request.addr, 0);
        case kAdd:
            if (request.is_float) return __float_as_uint(add_f32(request.addr, __uint_as_float(operand)));
            return add_u32(request.addr, operand);
        case kAnd: return and_u32(request.addr, operand);
        case kOr: return or_u32(request.addr, operand);
        case kXor: return xor_u32(request.addr, operand);
        case kCompareSwap: return cas_u32(request.addr, static_cast<uint32_t>(request.compare), operand);
        default: return swap_u32(request.addr, operand);
    }
}

__device__ uint64_t apply_u64(const WarpRequest& request) {
    switch (request.op) {
        case kFetch: return or_u64(request.addr, 0);
        case kAdd:
            if (request.is_float)
                return __double_as_longlong(add_f64(request.addr, __longlong_as_double(request.operand)));
            return add_u64(request.addr, request.operand);
        case kAnd: return and_u64(request.addr, request.operand);
        case kOr: return or_u64(request.addr, request.operand);
        case kXor: return xor_u64(request.addr, request.operand);
        case kCompareSwap: return cas_u64(request.addr, request.compare, request.operand);
        default: return swap_u64(request.addr, request.operand);
    }
}

__device__ uint64_t apply(const WarpRequest& request) {
    if (request.bytes == 2) return apply_u16(request);
    if (request.bytes == 4) return apply_u32(request);
    return apply_u64(request);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32, 1) nvshmem_efa_atomics_warp(WarpRing* ring) {
    const uint32_t lane = threadIdx.x;
    const uint64_t launch = load_acquire(&ring->launch), first = load_acquire(&ring->first);
    if (lane == 0) store_release(&ring->hello, launch);  // pairs with the acquire in GpuWarpWords::start
    for (uint64_t n = first;; ++n) {
        WarpBatch* batch = &ring->batches[n % kWarpBatches];
        WarpAnswer* answer = &ring->answers[n % kWarpBatches];
        uint64_t sequence = 0;
        if (lane == 0) {
            const uint64_t idle_since = now_ns();
            do {
                sequence = load_acquire(&batch->sequence);  // pairs with the release in GpuWarpWords::post
            } while (sequence != n + 1 && sequence != kWarpStop && now_ns() - idle_since < kWarpIdleNs);
            if (sequence != n + 1) sequence = kWarpStop;
        }
        sequence = __shfl_sync(0xffffffffu, sequence, 0);
        __syncwarp();  // hands lane 0's acquire to the other lanes
        if (sequence == kWarpStop) break;
        const uint32_t count = static_cast<uint32_t>(*static_cast<volatile uint64_t*>(&batch->count));
        WarpRequest request = {};
        if (lane < count) {
            // Volatile: a slot is used again, and a cached line of its earlier use must not be read.
            const volatile uint64_t* words = reinterpret_cast<const volatile uint64_t*>(&batch->requests[lane]);
            request.addr = words[0];
            request.operand = words[1];
            request.compare = words[2];
            const uint64_t kind = words[3];
            request.op = static_cast<uint32_t>(kind);
            request.bytes = static_cast<uint16_t>(kind >> 32);
            request.is_float = static_cast<uint16_t>(kind >> 48);
        }
        // One lane after the other: requests take effect in order, also on different words (acq_rel, and syncwarp
        // carries it from lane to lane).
        for (uint32_t turn = 0; turn < count; ++turn) {
            if (lane == turn) store_relaxed(&answer->results[lane], apply(request));
            __syncwarp();
        }
        if (lane == 0) store_release(&answer->done, n + 1);  // pairs with the acquire in GpuWarpWords::collect
    }
    // Pairs with the acquires in GpuWarpWords::collect and stop: `done` of every batch that was taken is set.
    if (lane == 0) store_release(&ring->bye, launch);
}
