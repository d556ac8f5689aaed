// SPDX-License-Identifier: Apache-2.0
// fp8 e4m3 by its list of values and a search for the nearest: knows nothing of how the library does it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

namespace ep_oracle {

// OCP 8-bit floating point: sign, 4 bits of exponent with bias 7, 3 bits of fraction; no infinity, 0x7f is the NaN.
inline double e4m3_value(uint32_t byte) {
    const uint32_t exponent = byte >> 3 & 15u, fraction = byte & 7u;
    const double size = exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8.0 + fraction, static_cast<int>(exponent) - 10);
    return byte & 0x80u ? -size : size;
}

inline uint8_t e4m3(float value) {
    static const std::array<double, 127> values = [] {
        std::array<double, 127> all{};
        for (uint32_t byte = 0; byte < all.size(); ++byte) all[byte] = e4m3_value(byte);
        return all;
    }();
    const uint8_t sign = std::signbit(value) ? 0x80 : 0;
    if (std::isnan(value)) return sign | 0x7f;
    const double size = std::fabs(static_cast<double>(value));
    if (size >= 448.0) return sign | 0x7e;
    const size_t above = static_cast<size_t>(std::upper_bound(values.begin(), values.end(), size) - values.begin());
    const double to_lower = size - values[above - 1], to_upper = values[above] - size;
    const bool is_upper = to_upper < to_lower || (to_upper == to_lower && above % 2 == 0);
    return sign | static_cast<uint8_t>(is_upper ? above : above - 1);
}

inline float power_at_least(float value) {
    double power = std::ldexp(1.0, -60);
    while (power < value) power *= 2;
    return static_cast<float>(power);
}

// What a block of 128 values is divided by.
inline float scale(const float* values, bool is_power) {
    float amax = 0;
    for (int i = 0; i < 128; ++i) amax = std::max(amax, std::fabs(values[i]));
    const float plain = std::max(amax, 1e-4f) / 448.0f;
    return is_power ? power_at_least(plain) : plain;
}

}  // namespace ep_oracle
