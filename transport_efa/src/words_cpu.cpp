// SPDX-License-Identifier: Apache-2.0
// What an operation does to a word, and the engine for words in host memory.
#include <bit>

#include "words.h"
#include "words_check.h"

namespace nvshmem_efa {
namespace {

// IEEE 754 binary16 <-> binary32. Adding in single and rounding once more to half is exact: 24 >= 2 * 11 + 2 bits.
float half_to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1fu;
    const uint32_t fraction = half & 0x3ffu;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormals
    return sign ? -magnitude : magnitude;
}

uint16_t float_to_half(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds beyond 65504: infinity
    uint32_t kept, dropped, half_way;
    if (magnitude >= 0x38800000u) {  // normal
        kept = (magnitude - 0x38000000u) >> 13;
        dropped = magnitude & 0x1fffu;
        half_way = 0x1000u;
    } else {  // subnormal, in units of 2^-24
        const uint32_t exponent = magnitude >> 23;
        if (exponent < 102) return static_cast<uint16_t>(sign);  // below half of the smallest subnormal
        const uint32_t shift = 126 - exponent;
        const uint32_t fraction = (magnitude & 0x7fffffu) | 0x800000u;
        kept = fraction >> shift;
        dropped = fraction & ((1u << shift) - 1);
        half_way = 1u << (shift - 1);
    }
    const bool up = dropped > half_way || (dropped == half_way && (kept & 1u));
    return static_cast<uint16_t>(sign | (kept + (up ? 1 : 0)));
}

uint64_t add_float(uint8_t bytes, uint64_t left, uint64_t right) {
    if (bytes == 2)
        return float_to_half(half_to_float(static_cast<uint16_t>(left)) + half_to_float(static_cast<uint16_t>(right)));
    if (bytes == 4)
        return std::bit_cast<uint32_t>(std::bit_cast<float>(static_cast<uint32_t>(left)) +
                                       std::bit_cast<float>(static_cast<uint32_t>(right)));
    return std::bit_cast<uint64_t>(std::bit_cast<double>(left) + std::bit_cast<double>(right));
}

// A compare-and-swap loop serves every operation: the agent is the only writer but for the program's own CPU atomics.
template <class Word>
void apply_to(WordRequest* request) {
    Word* word = reinterpret_cast<Word*>(request->addr);
    if (request->op == WordOp::kSet && !request->needs_fetch) {
        // pairs with the acquire of whoever waits on the word: what was placed before the signal is then visible
        __atomic_store_n(word, static_cast<Word>(request->operand), __ATOMIC_RELEASE);
        return;
    }
    Word before = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    if (request->op != WordOp::kFetch) {
        // pairs, as above, with the acquire of whoever waits on the word
        while (!__atomic_compare_exchange_n(word, &before, static_cast<Word>(word_apply(*request, before)), false,
                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        }
    }
    request->fetched = before;
}

class CpuWords final : public WordEngine {
   public:
    const char* name() const override { return "cpu"; }
    Status apply(WordRequest* requests, size_t count) override {
        for (size_t i = 0; i < count; ++i) {
            EFA_TRY(word_check(requests[i], i));
            switch (requests[i].bytes) {
                case 2: apply_to<uint16_t>(&requests[i]); break;
                case 4: apply_to<uint32_t>(&requests[i]); break;
                default: apply_to<uint64_t>(&requests[i]); break;
            }
        }
        return Status();
    }
};

}  // namespace

uint64_t word_mask(uint8_t bytes) { return bytes >= 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * bytes)) - 1; }

Status word_check(const WordRequest& request, size_t index) {
    const bool size_ok = request.bytes == 2 || request.bytes == 4 || request.bytes == 8;
    if (size_ok && request.addr != 0 && request.addr % request.bytes == 0 && request.op <= WordOp::kCompareSwap)
        return Status();
    return Status::error(Code::kInvalidArgument, "words are 2, 4 or 8 bytes and aligned to their size",
                         "word request %zu is not valid: operation %u on %u bytes at 0x%llx", index,
                         static_cast<unsigned>(request.op), request.bytes,
                         static_cast<unsigned long long>(request.addr));
}

uint64_t word_apply(const WordRequest& request, uint64_t before) {
    const uint64_t mask = word_mask(request.bytes);
    before &= mask;
    const uint64_t operand = request.operand & mask;
    switch (request.op) {
        case WordOp::kFetch: return before;
        case WordOp::kSet:
        case WordOp::kSwap: return operand;
        case WordOp::kAdd:
            if (request.type == WordType::kFloat) return add_float(request.bytes, before, operand);
            return (before + operand) & mask;
        case WordOp::kAnd: return before & operand;
        case WordOp::kOr: return before | operand;
        case WordOp::kXor: return before ^ operand;
        case WordOp::kCompareSwap: return before == (request.compare & mask) ? operand : before;
    }
    return before;
}

std::unique_ptr<WordEngine> make_cpu_words() { return std::make_unique<CpuWords>(); }

}  // namespace nvshmem_efa
