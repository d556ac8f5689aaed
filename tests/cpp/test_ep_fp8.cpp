// SPDX-License-Identifier: Apache-2.0
// fp8 and bf16 conversions against an oracle that knows only the values of the format and searches the nearest.
#include "../../deep_ep_patched/csrc/ep_fp8.h"

#include <cmath>
#include <limits>

#include "check.h"
#include "ep_fp8_oracle.h"
#include "soft_efa/prng.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

namespace {

void check_e4m3(float value) { CHECK_EQ(float_to_e4m3(value), ep_oracle::e4m3(value)); }

}  // namespace

TEST(every_fp8_value_and_the_floats_around_each_midpoint_round_to_the_nearest) {
    for (uint32_t byte = 0; byte < 0x7f; ++byte) {
        const float value = static_cast<float>(ep_oracle::e4m3_value(byte));
        CHECK_EQ(float_to_e4m3(value), byte);
        const float next = static_cast<float>(byte == 0x7e ? 480.0 : ep_oracle::e4m3_value(byte + 1));
        const float middle = value + (next - value) / 2;
        for (const float at : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
            check_e4m3(at);
            check_e4m3(-at);
        }
    }
}

TEST(random_floats_of_all_sizes_round_as_the_oracle_says) {
    soft::Prng random(7);
    for (int i = 0; i < 40000; ++i) {
        check_e4m3(float_of_bits(static_cast<uint32_t>(random.next())));
        check_e4m3(std::ldexp(static_cast<float>(random.below(1u << 24)), static_cast<int>(random.below(24)) - 36));
    }
}

TEST(what_exceeds_the_format_saturates_and_a_nan_stays_one) {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK_EQ(float_to_e4m3(464.0f), 0x7e);
    CHECK_EQ(float_to_e4m3(1e30f), 0x7e);
    CHECK_EQ(float_to_e4m3(-infinity), 0xfe);
    CHECK_EQ(float_to_e4m3(std::nanf("")), 0x7f);
    CHECK_EQ(float_to_e4m3(-0.0f), 0x80);
}

TEST(bf16_rounds_to_nearest_even_and_comes_back) {
    for (uint32_t high = 0; high < 0x10000u; high += 3) {
        const float value = float_of_bits(high << 16);
        if (std::isnan(value)) {
            CHECK(std::isnan(bf16_to_float(bf16_of_float(value))));
            CHECK(std::isnan(bf16_to_float(bf16_of_float(float_of_bits(high << 16 | 1)))));
            continue;
        }
        CHECK_EQ(bf16_of_float(value), high);
        if (std::isinf(value)) continue;
        CHECK_EQ(bf16_of_float(float_of_bits(high << 16 | 0x7fff)), high);
        CHECK_EQ(bf16_of_float(float_of_bits(high << 16 | 0x8000)), high + (high & 1));
        CHECK_EQ(bf16_of_float(float_of_bits(high << 16 | 0x8001)), high + 1);
        CHECK_EQ(bf16_to_float(static_cast<uint16_t>(high)), value);
    }
}

TEST(scales_follow_amax_with_a_floor_and_may_be_powers_of_two) {
    soft::Prng random(11);
    CHECK_EQ(scale_of(0, false), 1e-4f / 448.0f);
    CHECK_EQ(scale_of(448.0f, false), 1.0f);
    CHECK_EQ(scale_of(448.0f, true), 1.0f);  // already a power of two
    CHECK_EQ(scale_of(448.1f, true), 2.0f);
    for (int i = 0; i < 4000; ++i) {
        const float amax = std::ldexp(static_cast<float>(random.below(1u << 24)), static_cast<int>(random.below(40)) - 40);
        const float plain = std::max(amax, 1e-4f) / 448.0f;
        CHECK_EQ(scale_of(amax, false), plain);
        CHECK_EQ(scale_of(amax, true), ep_oracle::power_at_least(plain));
        const uint8_t byte = scale_to_ue8m0(scale_of(amax, true));
        CHECK_EQ(std::ldexp(1.0f, byte - 127), scale_of(amax, true));
    }
}

TEST_MAIN()
