// SPDX-License-Identifier: Apache-2.0
// Normal mode on GPUs: waits, stops, and copies of whole rows, for the kernels of csrc/kernels/normal_*.cu.
#pragma once

#include "ep_normal_gpu.h"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

// The first stop of all kernels goes to the host.
__device__ inline void normal_stop(const NormalCommon& common, NormalStop stop, int32_t rank, int32_t token, int64_t wanted, int64_t seen) {
    if (order::exchange_acquire_gpu(&common.words->is_told, 1) != 0) return;
    NormalReport* report = common.report;
    report->stop = stop;
    report->rank = rank;
    report->token = token;
    report->wanted = wanted;
    report->seen = seen;
    order::store_release_sys(&report->is_set, 1u);  // pairs with the host's acquire in GpuNormal::check()
}

// Until the word holds `epoch` or more; false, after a stop is told, when it did not come in time. One thread.
__device__ inline bool normal_wait(const NormalCommon& common, const uint64_t* word, NormalStop stop, int32_t rank) {
    if (flag_load(word) >= common.epoch) return true;  // pairs with the store by that rank's kernel
    const uint64_t deadline = clock_ns() + common.timeout_ns;
    for (uint32_t turn = 1;; ++turn) {
        const uint64_t seen = flag_load(word);  // the same
        if (seen >= common.epoch) return true;
        if ((turn & 63u) != 0) continue;
        // After one stop nobody waits long: what is waited for may be what the stopped part would have sent.
        const bool is_over = order::load_relaxed_gpu(&common.words->is_told) != 0;
        if (!is_over && clock_ns() < deadline) continue;
        normal_stop(common, stop, rank, -1, static_cast<int64_t>(common.epoch), static_cast<int64_t>(seen));
        return false;
    }
}

// This rank's stream has come here: what was freed before may be written by peers. Block 0, all threads.
__device__ inline void normal_tell_ready(const NormalCommon& common) {
    const int rank = static_cast<int>(threadIdx.x);
    // What earlier kernels of this stream read is read: they have ended. Release, for what they wrote.
    if (rank < common.n_ranks) order::store_release_sys(&common.flags[rank]->ready[common.rank], common.epoch);  // pairs with the next
}
// Until all peers' blocks may be written. All threads of the block, with one answer.
__device__ inline bool normal_wait_ready(const NormalCommon& common) {
    const int rank = static_cast<int>(threadIdx.x);
    bool is_good = true;
    // pairs with normal_tell_ready() there
    if (rank < common.n_ranks) is_good = normal_wait(common, &common.flags[common.rank]->ready[rank], NormalStop::kReady, rank);
    return __syncthreads_and(is_good ? 1 : 0) != 0;
}

// True for all threads of the block that comes last; it sees what the threads of all blocks stored before.
__device__ inline bool normal_is_last(const NormalCommon& common) {
    __shared__ bool is_last;
    __syncthreads();  // what the block's threads stored happens before thread 0's fence
    if (threadIdx.x == 0) {
        order::fence_sys();  // release, to peers too: the last block's flags tell of our rows. Pairs with the fence below
        is_last = order::fetch_add_relaxed_gpu(&common.words->come, 1) + 1 == gridDim.x;
        if (is_last) {
            order::fence_sys();  // acquire: pairs with the others' fence above, through the sum
            common.words->come = 0;
        }
    }
    __syncthreads();
    return is_last;
}

// ---- copies: eight loads in flight a lane, as one alone waits for memory most of the time ----

inline constexpr uint32_t kInFlight = 8;

// Of memory that nothing writes while the kernel runs, and that is read once.
__device__ inline uint4 load_once(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}
// Of rows that peers stored, behind the acquire of their flag.
__device__ inline uint4 load_row(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}
__device__ inline void store_row(uint4* to, const uint4& value) {
    asm volatile("st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
                 : "memory");
}

// Where a row goes: each(store) calls store(to) with the begin of every place.
struct OnePlace {
    uint4* at;
    template <class Store>
    __device__ void each(const Store& store) const {
        store(at);
    }
};

// One source to several places: each piece is loaded once.
template <class Places>
__device__ inline void copy_to_each(const WarpLanes& lanes, const void* from, uint32_t bytes, const Places& places) {
    const uint4* const in = static_cast<const uint4*>(from);
    const uint32_t n = bytes / 16;
    uint32_t first = 0;
    for (; first + kInFlight * 32 <= n; first += kInFlight * 32) {
        uint4 held[kInFlight];
#pragma unroll
        for (uint32_t i = 0; i < kInFlight; ++i) held[i] = load_once(in + first + i * 32 + lanes.rank());
        places.each([&](uint4* to) {
#pragma unroll
            for (uint32_t i = 0; i < kInFlight; ++i) store_row(to + first + i * 32 + lanes.rank(), held[i]);
        });
    }
    for (; first < n; first += 32) {
        const bool is_inside = first + lanes.rank() < n;
        uint4 held = {};
        if (is_inside) held = load_once(in + first + lanes.rank());
        places.each([&](uint4* to) {
            if (is_inside) store_row(to + first + lanes.rank(), held);
        });
    }
}

// ---- eight bf16 values at a time; the same results as add_piece() and bf16_of_float() ----

__device__ inline void add_eight(float (&sum)[8], const uint4& values) {
    const uint32_t pairs[] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        sum[2 * i] += __uint_as_float(pairs[i] << 16);
        sum[2 * i + 1] += __uint_as_float(pairs[i] & 0xffff0000u);
    }
}
// To nearest, ties to even; a NaN becomes 0x7fff (PTX ISA, "cvt").
__device__ inline uint32_t round_pair(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
__device__ inline uint4 round_eight(const float (&sum)[8]) {
    return {round_pair(sum[0], sum[1]), round_pair(sum[2], sum[3]), round_pair(sum[4], sum[5]), round_pair(sum[6], sum[7])};
}

}  // namespace nvshmem_efa::ep
