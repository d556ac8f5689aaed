// SPDX-License-Identifier: Apache-2.0
#include "words.h"

#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "check.h"

using namespace nvshmem_efa;

namespace {

uint64_t apply(WordOp op, uint8_t bytes, uint64_t before, uint64_t operand, uint64_t compare = 0,
               WordType type = WordType::kInteger) {
    WordRequest request;
    request.op = op, request.bytes = bytes, request.operand = operand, request.compare = compare, request.type = type;
    return word_apply(request, before);
}

#if defined(__x86_64__)
// The processor's own conversions: an oracle that shares nothing with ours.
__attribute__((target("f16c"))) float hardware_to_float(uint16_t half) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}
__attribute__((target("f16c"))) uint16_t hardware_to_half(float value) {
    return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), 0)));
}
#endif

bool is_half_nan(uint64_t half) { return (half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0; }

}  // namespace

TEST(every_integer_operation_gives_its_result_in_every_size) {
    for (uint8_t bytes : {2, 4, 8}) {
        const uint64_t mask = bytes == 8 ? ~0ull : (1ull << (8 * bytes)) - 1;
        const uint64_t a = 0xfedcba9876543210ull, b = 0x1122334455667788ull;
        CHECK_EQ(apply(WordOp::kFetch, bytes, a, b), a & mask);
        CHECK_EQ(apply(WordOp::kSet, bytes, a, b), b & mask);
        CHECK_EQ(apply(WordOp::kSwap, bytes, a, b), b & mask);
        CHECK_EQ(apply(WordOp::kAdd, bytes, a, b), (a + b) & mask);
        CHECK_EQ(apply(WordOp::kAdd, bytes, mask, 1), uint64_t{0});
        CHECK_EQ(apply(WordOp::kAnd, bytes, a, b), a & b & mask);
        CHECK_EQ(apply(WordOp::kOr, bytes, a, b), (a | b) & mask);
        CHECK_EQ(apply(WordOp::kXor, bytes, a, b), (a ^ b) & mask);
        CHECK_EQ(apply(WordOp::kCompareSwap, bytes, a, b, a), b & mask);
        CHECK_EQ(apply(WordOp::kCompareSwap, bytes, a, b, a ^ 1), a & mask);
    }
}

TEST(upper_bytes_of_operand_and_compare_do_not_count) {
    CHECK_EQ(apply(WordOp::kCompareSwap, 4, 0xffffffff00000005ull, 0xaaaaaaaa00000009ull, 0x1234567800000005ull),
             uint64_t{9});
    CHECK_EQ(apply(WordOp::kAdd, 2, 0xffff0001, 0xeeee0002), uint64_t{3});
}

TEST(single_and_double_add_as_the_language_does) {
    std::mt19937_64 random(7);
    for (int i = 0; i < 20000; ++i) {
        const uint64_t a = random(), b = random();
        const float sum = std::bit_cast<float>(static_cast<uint32_t>(a)) + std::bit_cast<float>(static_cast<uint32_t>(b));
        if (!std::isnan(sum))
            CHECK_EQ(apply(WordOp::kAdd, 4, a, b, 0, WordType::kFloat), uint64_t{std::bit_cast<uint32_t>(sum)});
        const double wide = std::bit_cast<double>(a) + std::bit_cast<double>(b);
        if (!std::isnan(wide))
            CHECK_EQ(apply(WordOp::kAdd, 8, a, b, 0, WordType::kFloat), std::bit_cast<uint64_t>(wide));
    }
}

TEST(half_adds_match_values_worked_out_by_hand) {
    auto add = [](uint16_t a, uint16_t b) { return apply(WordOp::kAdd, 2, a, b, 0, WordType::kFloat); };
    CHECK_EQ(add(0x3c00, 0x3c00), uint64_t{0x4000});  // 1 + 1 = 2
    CHECK_EQ(add(0x3c00, 0xbc00), uint64_t{0x0000});  // 1 - 1 = +0
    CHECK_EQ(add(0x7bff, 0x4c00), uint64_t{0x7c00});  // 65504 + 16: half way, ties to even, infinity
    CHECK_EQ(add(0x7bff, 0x4b80), uint64_t{0x7bff});  // 65504 + 15 stays
    CHECK_EQ(add(0x6800, 0x3c00), uint64_t{0x6800});  // 2048 + 1 = 2049: ties to the even 2048
    CHECK_EQ(add(0x6801, 0x3c00), uint64_t{0x6802});  // 2050 + 1 = 2051: ties to the even 2052
    CHECK_EQ(add(0x0001, 0x0001), uint64_t{0x0002});  // subnormals
    CHECK_EQ(add(0x03ff, 0x0001), uint64_t{0x0400});  // the largest subnormal plus the smallest: the smallest normal
    CHECK_EQ(add(0x8000, 0x8000), uint64_t{0x8000});  // -0 - 0 = -0
    CHECK(is_half_nan(add(0x7c00, 0xfc00)));          // infinity minus infinity
}

TEST(half_adds_match_the_processor_for_all_values) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("f16c")) SKIP("this processor has no half conversions");
    std::mt19937 random(11);
    for (uint32_t a = 0; a < 65536; ++a) {
        for (int turn = 0; turn < 24; ++turn) {
            // Besides any value, one near in magnitude, where rounding and cancellation happen.
            const auto b = static_cast<uint16_t>(turn % 2 ? random() : a ^ (random() & 0x83ff));
            const uint64_t ours = apply(WordOp::kAdd, 2, a, b, 0, WordType::kFloat);
            const uint16_t theirs =
                hardware_to_half(hardware_to_float(static_cast<uint16_t>(a)) + hardware_to_float(b));
            if (is_half_nan(theirs)) {
                CHECK(is_half_nan(ours));
            } else {
                CHECK_EQ(ours, uint64_t{theirs});
            }
        }
    }
#else
    SKIP("half conversions of the processor are x86 only here");
#endif
}

TEST(cpu_engine_leaves_neighbours_alone_and_reports_what_was_there) {
    auto engine = make_cpu_words();
    CHECK_EQ(std::string(engine->name()), std::string("cpu"));
    alignas(8) uint8_t memory[64];
    uint8_t oracle[64];
    std::mt19937_64 random(3);
    for (size_t i = 0; i < sizeof memory; ++i) memory[i] = oracle[i] = static_cast<uint8_t>(random());
    for (int i = 0; i < 20000; ++i) {
        WordRequest request;
        request.bytes = static_cast<uint8_t>(2u << (random() % 3));
        const size_t at = random() % (sizeof memory / request.bytes) * request.bytes;
        request.addr = reinterpret_cast<uint64_t>(memory + at);
        request.op = static_cast<WordOp>(random() % 8);
        request.type = random() % 4 == 0 ? WordType::kFloat : WordType::kInteger;
        request.operand = random() % 2 ? random() : random() % 4;
        uint64_t before = 0;
        std::memcpy(&before, oracle + at, request.bytes);
        request.compare = random() % 2 ? before : random();
        request.needs_fetch = true;
        CHECK_OK(engine->apply(&request, 1));
        CHECK_EQ(request.fetched, before);
        const uint64_t after = word_apply(request, before);
        std::memcpy(oracle + at, &after, request.bytes);
        CHECK(std::memcmp(memory, oracle, sizeof memory) == 0);
    }
}

TEST(cpu_engine_loses_no_update_beside_the_programs_own_atomics) {
    auto engine = make_cpu_words();
    alignas(8) uint64_t word = 0;
    constexpr uint64_t kTurns = 200000;
    std::thread program([&] {
        for (uint64_t i = 0; i < kTurns; ++i) __atomic_fetch_add(&word, 1, __ATOMIC_RELAXED);
    });
    for (uint64_t i = 0; i < kTurns; ++i) {
        WordRequest request;
        request.addr = reinterpret_cast<uint64_t>(&word);
        request.op = WordOp::kAdd, request.operand = 1 << 20;
        CHECK_OK(engine->apply(&request, 1));
    }
    program.join();
    CHECK_EQ(word, kTurns + (kTurns << 20));
}

TEST(cpu_engine_refuses_bad_sizes_and_alignments_by_name) {
    auto engine = make_cpu_words();
    alignas(8) uint64_t words[2] = {};
    WordRequest good;
    good.addr = reinterpret_cast<uint64_t>(&words[0]);
    good.op = WordOp::kSet, good.operand = 5;
    WordRequest misaligned = good;
    misaligned.addr += 4;
    WordRequest requests[2] = {good, misaligned};
    CHECK_FAILS(engine->apply(requests, 2), Code::kInvalidArgument, "word request 1");
    CHECK_EQ(words[0], uint64_t{5});
    WordRequest odd = good;
    odd.bytes = 3;
    CHECK_FAILS(engine->apply(&odd, 1), Code::kInvalidArgument, "hint:");
    WordRequest unknown = good;
    unknown.op = static_cast<WordOp>(8);
    CHECK_FAILS(engine->apply(&unknown, 1), Code::kInvalidArgument, "operation 8");
}

TEST_MAIN()
