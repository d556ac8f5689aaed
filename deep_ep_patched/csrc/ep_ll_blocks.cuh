// SPDX-License-Identifier: Apache-2.0
// Low-latency mode: what is done to the bytes of a token. A content lies plain, or in lines of 120 bytes and a tag
// (ep_ll_layout.h); "step" is the distance of its blocks of 120 bytes, 120 or 128.
#pragma once

#include "ep_fp8.h"
#include "ep_ll_layout.h"
#include "ep_team.h"

namespace nvshmem_efa::ep {

// ---- what lanes do together beyond ep_lanes.h ----

// How the lanes of a group share a block of 128 values.
template <class Lanes>
struct BlockShare {  // one CPU thread: all of it
    static constexpr uint32_t kLanesPerScale = 1;
};
NVSHMEM_EFA_HD inline float max_of_scale_lanes(const OneLane&, float value) { return value; }

#if defined(__CUDACC__)
template <>
struct BlockShare<WarpLanes> {
    static constexpr uint32_t kLanesPerScale = 16;
};
template <>
struct BlockShare<TeamLanes> : BlockShare<WarpLanes> {};
// Over the 16 lanes that share a scale. Whole warps take part.
template <class Lanes>
__device__ inline float max_of_scale_lanes(const Lanes&, float value) {
    for (uint32_t distance = 8; distance != 0; distance /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = other > value ? other : value;
    }
    return value;
}
#endif

// ---- copies ----

// `bytes` is a multiple of 8. With lines at `to`, each gets the tag behind its content.
template <class Lanes>
NVSHMEM_EFA_HD inline void copy_blocks(const Lanes& lanes, uint8_t* to, uint32_t to_step, const uint8_t* from, uint32_t from_step,
                                       uint64_t bytes, uint64_t tag) {
    if (to_step == from_step && to_step == kLineContent && bytes % 16 == 0) return copy_rows(lanes, to, from, bytes);
    for (uint64_t block = 0; block * kLineContent < bytes; ++block) {
        const uint64_t left = bytes - block * kLineContent;
        const uint32_t words = left < kLineContent ? static_cast<uint32_t>(left / 8) : kLineContent / 8;
        const auto in = reinterpret_cast<const uint64_t*>(from + block * from_step);
        const auto out = reinterpret_cast<uint64_t*>(to + block * to_step);
        for (uint32_t i = lanes.rank(); i < words; i += lanes.size()) out[i] = in[i];
        if (to_step == kLineBytes && lanes.rank() == 0) out[kLineContent / 8] = tag;
    }
}

// Plain content becomes lines where it lies, from the last to the first: a line's place holds only content of lines that
// are behind it in this order, or its own.
template <class Lanes>
NVSHMEM_EFA_HD inline void expand_to_lines(const Lanes& lanes, uint8_t* at, uint64_t bytes, uint64_t tag) {
    lanes.sync();
    for (uint64_t block = lines_of(bytes); block-- != 0;) {
        const auto in = reinterpret_cast<const uint64_t*>(at + block * kLineContent);
        const auto out = reinterpret_cast<uint64_t*>(at + block * kLineBytes);
        constexpr uint32_t kWords = kLineContent / 8;
        uint64_t content[kWords] = {};
        for (uint32_t i = lanes.rank(); i < kWords; i += lanes.size()) content[i] = in[i];
        lanes.sync();
        for (uint32_t i = lanes.rank(); i < kWords; i += lanes.size()) out[i] = content[i];
        if (lanes.rank() == 0) out[kWords] = tag;
        lanes.sync();
    }
}

// ---- the cast ----

struct alignas(16) EightBf16 {
    uint16_t value[8];
};
NVSHMEM_EFA_HD inline EightBf16 load_eight(const uint16_t* from) {
    EightBf16 eight;
    memcpy(&eight, __builtin_assume_aligned(from, 16), sizeof eight);
    return eight;
}

// Values of a token to fp8, with a scale for each 128: `scales` as floats, or as UE8M0 bytes. All plain.
template <class Lanes>
NVSHMEM_EFA_HD inline void cast_token(const Lanes& lanes, const uint16_t* x, uint32_t hidden, int32_t format, uint8_t* values,
                                      uint8_t* scales) {
    constexpr uint32_t kShare = BlockShare<Lanes>::kLanesPerScale, kEach = kScaleBlock / kShare;
    const uint32_t n_blocks = hidden / kScaleBlock;  // a multiple of 4: all lanes of a warp take part in each turn
    for (uint32_t block = lanes.rank() / kShare; block < n_blocks; block += lanes.size() / kShare) {
        const uint32_t first = block * kScaleBlock + lanes.rank() % kShare * kEach;
        EightBf16 mine[kEach / 8];
        float amax = 0;
        for (uint32_t i = 0; i < kEach / 8; ++i) {
            mine[i] = load_eight(x + first + 8 * i);
            for (const uint16_t bits : mine[i].value) {
                const float size = bf16_to_float(static_cast<uint16_t>(bits & 0x7fffu));
                amax = size > amax ? size : amax;
            }
        }
        const float scale = scale_of(max_of_scale_lanes(lanes, amax), has_power_scales(format));
        for (uint32_t i = 0; i < kEach / 8; ++i) {
            uint64_t packed = 0;
            for (uint32_t j = 0; j < 8; ++j)
                packed |= static_cast<uint64_t>(float_to_e4m3(bf16_to_float(mine[i].value[j]) / scale)) << (8 * j);
            memcpy(__builtin_assume_aligned(values + first + 8 * i, 8), &packed, sizeof packed);
        }
        if (lanes.rank() % kShare != 0) continue;
        if (format == EP_LL_FP8_UE8M0) scales[block] = scale_to_ue8m0(scale);
        else memcpy(__builtin_assume_aligned(scales + 4 * block, 4), &scale, sizeof scale);
    }
}

// ---- the sum ----

// sum += weight * value, each step rounded on its own: compilers must not make one operation of it, or CPU and GPU differ.
NVSHMEM_EFA_HD inline float add_weighted(float sum, float weight, float value) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(sum, __fmul_rn(weight, value));
#else
    return sum + weight * value;
#endif
}

}  // namespace nvshmem_efa::ep
