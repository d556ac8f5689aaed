// SPDX-License-Identifier: Apache-2.0
// fp8 e4m3 as bits, and the scale of a block of 128 values. For host and device; the same bits on both, as every step is
// an IEEE operation of its own (no contraction: nothing here is a product and a sum).
#pragma once

#include "ep_api.h"
#include "ep_lanes.h"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kScaleBlock = 128;  // values that share a scale
inline constexpr float kFp8Max = 448.0f;
inline constexpr float kAmaxMin = 1e-4f;

// To nearest, ties to even; beyond 448 it stays at 448, a NaN is 0x7f (with the sign).
NVSHMEM_EFA_HD inline uint8_t float_to_e4m3(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
    const uint32_t size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return sign | 0x7f;
    if (size >= 0x43e00000u) return sign | 0x7e;  // 448 and more
    if (size < 0x3c800000u) {
        // Below 2^-6 the steps are 2^-9, which is the last place of 2^14 in single precision: the sum rounds to a step.
        const float sum = float_of_bits(size) + 16384.0f;
        return sign | static_cast<uint8_t>(bits_of_float(sum) - 0x46800000u);
    }
    // Three of 23 bits of the fraction stay; the exponent's bias goes from 127 to 7. A carry runs into the exponent.
    const uint32_t rounded = size + 0x7ffffu + (size >> 20 & 1u);
    return sign | static_cast<uint8_t>((rounded >> 20) - (120u << 3));
}

// The factor by which a block's fp8 values are multiplied to get them back. `amax` >= 0; `is_power`: a power of two.
NVSHMEM_EFA_HD inline float scale_of(float amax, bool is_power) {
    const float scale = (amax < kAmaxMin ? kAmaxMin : amax) / kFp8Max;
    if (!is_power) return scale;
    const uint32_t bits = bits_of_float(scale);  // a normal number: at least 1e-4 / 448
    return float_of_bits((bits + 0x7fffffu) & 0x7f800000u);
}
// Of a power of two: its exponent byte, UE8M0.
NVSHMEM_EFA_HD inline uint8_t scale_to_ue8m0(float scale) { return static_cast<uint8_t>(bits_of_float(scale) >> 23); }

NVSHMEM_EFA_HD constexpr bool is_fp8(int32_t format) { return format != EP_LL_BF16; }
NVSHMEM_EFA_HD constexpr bool has_power_scales(int32_t format) { return format == EP_LL_FP8_ROUND || format == EP_LL_FP8_UE8M0; }

}  // namespace nvshmem_efa::ep
