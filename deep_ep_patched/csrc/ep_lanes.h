// SPDX-License-Identifier: Apache-2.0
// Who works together on a token: the lanes of a warp, or one CPU thread. Protocol code takes such a group as `lanes`:
//   rank(), size()   of the caller in it; rank 0 acts for all
//   sync()           what every member stored before is seen by every member after
//   share(v)         v of rank 0, for all
//   sum(v), unite(v) over all members, for all: the sum, all bits that any has
//   sum_before(v)    over the members of lower rank
//   any(v)           whether any member says so, for all; and a sync()
// Below it: copies, flags, waits and bf16 in terms of a group. Free of std::, for nvcc, NVRTC and the CPU.
#pragma once

#include "nvshmem_efa/memory_order.h"

#if !defined(__CUDACC__)
#include <sched.h>
#include <time.h>
#endif

namespace nvshmem_efa::ep {

struct OneLane {
    NVSHMEM_EFA_HD uint32_t rank() const { return 0; }
    NVSHMEM_EFA_HD uint32_t size() const { return 1; }
    NVSHMEM_EFA_HD void sync() const {}
    NVSHMEM_EFA_HD uint64_t share(uint64_t value) const { return value; }
    NVSHMEM_EFA_HD uint32_t sum(uint32_t value) const { return value; }
    NVSHMEM_EFA_HD uint32_t unite(uint32_t bits) const { return bits; }
    NVSHMEM_EFA_HD uint32_t sum_before(uint32_t) const { return 0; }
    NVSHMEM_EFA_HD bool any(bool value) const { return value; }
};

#if defined(__CUDACC__)
// All 32 lanes, converged.
struct WarpLanes {
    uint32_t lane;
    __device__ uint32_t rank() const { return lane; }
    __device__ uint32_t size() const { return 32; }
    __device__ void sync() const { __syncwarp(); }
    __device__ uint64_t share(uint64_t value) const {
        return __shfl_sync(0xffffffffu, static_cast<unsigned long long>(value), 0);
    }
    __device__ uint32_t sum(uint32_t value) const { return __reduce_add_sync(0xffffffffu, value); }
    __device__ uint32_t unite(uint32_t bits) const { return __reduce_or_sync(0xffffffffu, bits); }
    __device__ uint32_t sum_before(uint32_t value) const {
        uint32_t sum = value;
        for (uint32_t distance = 1; distance < 32; distance *= 2) {
            const uint32_t below = __shfl_up_sync(0xffffffffu, sum, distance);
            if (lane >= distance) sum += below;
        }
        return sum - value;
    }
    __device__ bool any(bool value) const {
        const bool is_one = __any_sync(0xffffffffu, value) != 0;
        __syncwarp();
        return is_one;
    }
};
#endif

// ---- copies ----

// `bytes` is a multiple of 16, both ends are 16-byte aligned. Other members' parts are there after sync().
template <class Lanes>
NVSHMEM_EFA_HD inline void copy_rows(const Lanes& lanes, void* to, const void* from, size_t bytes) {
#if defined(__CUDA_ARCH__)
    uint4* const out = static_cast<uint4*>(to);
    const uint4* const in = static_cast<const uint4*>(from);
    const size_t n = bytes / 16;
    // Eight loads in flight a lane, as one alone waits for memory most of the time.
    constexpr uint32_t kInFlight = 8;
    const size_t size = lanes.size();
    for (size_t i = lanes.rank(); i < n; i += kInFlight * size) {
        uint4 words[kInFlight];
#pragma unroll
        for (uint32_t j = 0; j < kInFlight; ++j)
            if (i + j * size < n) words[j] = in[i + j * size];
#pragma unroll
        for (uint32_t j = 0; j < kInFlight; ++j)
            if (i + j * size < n) out[i + j * size] = words[j];
    }
#else
    static_cast<void>(lanes);
    memcpy(to, from, bytes);
#endif
}

// Will be read soon. On the CPU nothing: it looks ahead by itself.
template <class Lanes>
NVSHMEM_EFA_HD inline void prefetch(const Lanes& lanes, const void* from, size_t bytes) {
#if defined(__CUDA_ARCH__)
    for (size_t at = 128 * static_cast<size_t>(lanes.rank()); at < bytes; at += 128 * static_cast<size_t>(lanes.size()))
        asm volatile("prefetch.global.L1 [%0];" ::"l"(static_cast<const uint8_t*>(from) + at));
#else
    static_cast<void>(lanes), static_cast<void>(from), static_cast<void>(bytes);
#endif
}

// The share of one of `parts` groups in such a copy.
template <class Lanes>
NVSHMEM_EFA_HD inline void prefetch_part(const Lanes& lanes, const void* from, size_t bytes, uint32_t part, uint32_t parts) {
    const size_t each = (bytes / 16 + parts - 1) / parts * 16, begin = part * each;
    if (begin < bytes) prefetch(lanes, static_cast<const uint8_t*>(from) + begin, bytes - begin < each ? bytes - begin : each);
}
template <class Lanes>
NVSHMEM_EFA_HD inline void copy_part(const Lanes& lanes, void* to, const void* from, size_t bytes, uint32_t part, uint32_t parts) {
    const size_t each = (bytes / 16 + parts - 1) / parts * 16, begin = part * each;
    if (begin >= bytes) return;
    copy_rows(lanes, static_cast<uint8_t*>(to) + begin, static_cast<const uint8_t*>(from) + begin, bytes - begin < each ? bytes - begin : each);
}

// ---- bits ----

NVSHMEM_EFA_HD inline uint32_t bit_count(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return static_cast<uint32_t>(__popc(bits));
#elif !defined(__CUDACC__)
    return static_cast<uint32_t>(__builtin_popcount(bits));
#else
    return 0;
#endif
}
// Of one that is not 0.
NVSHMEM_EFA_HD inline uint32_t lowest_bit(uint32_t bits) { return bit_count((bits & (0u - bits)) - 1); }
// The n-th of those that are set, from the lowest; there are more than n.
NVSHMEM_EFA_HD inline uint32_t nth_bit(uint32_t bits, uint32_t n) {
    for (; n != 0; --n) bits &= bits - 1;
    return lowest_bit(bits);
}

// ---- flags: words that one rank writes and another polls ----

// What all members stored before is there for whoever sees the value with flag_load().
template <class Lanes>
NVSHMEM_EFA_HD inline void flag_store(const Lanes& lanes, uint64_t* flag, uint64_t value) {
    lanes.sync();
    // pairs with the acquire in flag_load(); it is cumulative over what sync() made known to lane 0
    if (lanes.rank() == 0) order::store_release_sys(flag, value);
}

// pairs with the release in flag_store()
NVSHMEM_EFA_HD inline uint64_t flag_load(const uint64_t* flag) { return order::load_acquire_sys(flag); }

// ---- waits ----

// Nanoseconds since some moment, the same for all of this process (or GPU).
NVSHMEM_EFA_HD inline uint64_t clock_ns() {
#if defined(__CUDA_ARCH__)
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
#elif !defined(__CUDACC__)
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1000000000ull + static_cast<uint64_t>(now.tv_nsec);
#else
    return 0;
#endif
}

// One turn of a wait. CPU ranks may outnumber the processors, so a thread that waits soon gives its own away.
NVSHMEM_EFA_HD inline void wait_turn(uint32_t turn) {
#if defined(__CUDA_ARCH__)
    order::pause_longer(turn);
#elif !defined(__CUDACC__)
    if (turn < 64) {
        order::pause();
    } else if (turn < 2048) {
        sched_yield();
    } else {
        const timespec nap{0, 20000};
        nanosleep(&nap, nullptr);
    }
#endif
}

// Waits until the flag is at least `value`; false when `deadline_ns` (of clock_ns()) passed first. All members get the
// same answer, and see what was stored before the flag.
template <class Lanes>
NVSHMEM_EFA_HD inline bool flag_wait(const Lanes& lanes, const uint64_t* flag, uint64_t value, uint64_t deadline_ns) {
    bool is_there = true;
    if (lanes.rank() == 0) {
        for (uint32_t turn = 0; flag_load(flag) < value; ++turn) {
            if ((turn & 15u) == 15u && clock_ns() > deadline_ns) {
                is_there = flag_load(flag) >= value;
                break;
            }
            wait_turn(turn);
        }
    }
    is_there = lanes.share(is_there) != 0;
    lanes.sync();
    return is_there;
}

// ---- bf16 ----

NVSHMEM_EFA_HD inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
NVSHMEM_EFA_HD inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
NVSHMEM_EFA_HD inline float bf16_to_float(uint16_t value) { return float_of_bits(static_cast<uint32_t>(value) << 16); }
// To nearest, ties to even. A NaN becomes the quiet 0x7fff, whatever its payload.
NVSHMEM_EFA_HD inline uint16_t bf16_of_float(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace nvshmem_efa::ep
