// SPDX-License-Identifier: Apache-2.0
// Low-latency mode: where everything lies in the symmetric buffer, the same on all ranks. For host and device.
//
// Two phases (dispatch, combine) count their operations 1, 2, 3, ...: the epoch. What an operation uses lies there twice,
// by the parity of its epoch. `_in` is written by peers, `_out` is what this rank sends from.
#pragma once

#include "ep_api.h"
#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kLlTopkMax = 11;
inline constexpr uint32_t kLlHiddenMax = 16384;
inline constexpr uint32_t kLlTokensMax = 8192;
inline constexpr uint32_t kLlExpertsMax = 4096;

enum class LlPhase : uint32_t { kDispatch = 0, kCombine = 1 };

// A line: 120 bytes of content and the epoch, the unit that some devices place whole and once.
inline constexpr uint32_t kLineBytes = 128;
inline constexpr uint32_t kLineContent = 120;
NVSHMEM_EFA_HD constexpr uint64_t lines_of(uint64_t bytes) { return (bytes + kLineContent - 1) / kLineContent; }
// Where byte `at` of a content is when its blocks of 120 bytes begin every `step` bytes (120: it is plain).
NVSHMEM_EFA_HD constexpr uint64_t stepped(uint64_t at, uint32_t step) { return at / kLineContent * step + at % kLineContent; }

// What is before a token's values in its message: the same for all receivers, so a token is sent from one place. Each
// finds the experts that are its own; the place in `experts` is the choice.
inline constexpr uint16_t kLlNoExpert = 0xffff;
struct alignas(64) LlHeader {
    uint32_t token;                // index at the source
    uint32_t epoch;                // of the dispatch
    uint16_t experts[kLlTopkMax];  // of all ranks' numbering; kLlNoExpert: none
    uint16_t slots[kLlTopkMax];    // how many of the source's tokens before this one go to that expert: its row there
    uint32_t reserved[3];
};
static_assert(sizeof(LlHeader) == 64, "receivers read it at fixed places");
static_assert(2 * kLlExpertsMax <= kLlNoExpert && kLlTokensMax <= 0xffff, "the header's numbers of 16 bits");

struct LlShape {
    uint32_t max_tokens;  // M
    uint32_t hidden;      // H
    uint32_t n_experts;   // E
    uint32_t n_ranks;     // R
    NVSHMEM_EFA_HD uint32_t local_experts() const { return n_experts / n_ranks; }
    NVSHMEM_EFA_HD constexpr uint32_t topk_max() const { return n_experts < kLlTopkMax ? n_experts : kLlTopkMax; }
    NVSHMEM_EFA_HD uint32_t mark_words() const { return (max_tokens + 31) / 32; }  // a bit for each token
    NVSHMEM_EFA_HD uint32_t rows_max() const { return n_ranks * max_tokens; }  // of a local expert
    NVSHMEM_EFA_HD constexpr bool is_same(const LlShape& other) const {
        return max_tokens == other.max_tokens && hidden == other.hidden && n_experts == other.n_experts && n_ranks == other.n_ranks;
    }
};

// Bytes of a token's message after the header: values, then scales.
NVSHMEM_EFA_HD constexpr uint32_t ll_value_bytes(uint32_t hidden, int32_t format) { return format == EP_LL_BF16 ? 2 * hidden : hidden; }
NVSHMEM_EFA_HD constexpr uint32_t ll_scale_bytes(uint32_t hidden, int32_t format) {
    return format == EP_LL_BF16 ? 0 : format == EP_LL_FP8_UE8M0 ? hidden / 128 : hidden / 128 * 4;
}
NVSHMEM_EFA_HD constexpr uint32_t ll_message_bytes(uint32_t hidden, int32_t format) {
    return (64 + ll_value_bytes(hidden, format) + ll_scale_bytes(hidden, format) + 15) & ~15u;  // copies go by 16 bytes
}

// Offsets in bytes from the buffer's start. A record is 1 + El words of 8 bytes, each (epoch << 32 | value): tokens, then
// rows of each local expert. Each word is its own flag.
struct LlLayout {
    uint64_t record_bytes, token_bytes, row_bytes;  // distance from one to the next
    uint64_t records_in, records_out;  // [parity][rank]
    uint64_t flags_in;                 // [phase][parity][rank]: epoch, when all that the rank stores is there
    uint64_t credits_in, credits_out;  // [phase][parity][rank]: epoch that the rank has consumed
    uint64_t epochs_in, epochs_out;    // [rank]: for ll_clean: epochs agreed on
    uint64_t control_bytes;            // all of the above, from the start
    uint64_t tokens_out;               // [parity][M]
    uint64_t tokens_in;                // [parity][rank][M]: of a source, in the order of its tokens
    uint64_t rows_in;                  // [parity][M][topk_max()]: of a token's choices
    uint64_t rows_out;                 // [parity][El][R * M]; last, as it is large and seldom touched as a whole
    uint64_t bytes;
};

namespace layout_detail {
NVSHMEM_EFA_HD constexpr uint64_t up(uint64_t bytes) { return (bytes + 127) & ~127ull; }
NVSHMEM_EFA_HD constexpr uint64_t take(uint64_t& end, uint64_t bytes) {
    const uint64_t at = end;
    end += up(bytes);
    return at;
}
}  // namespace layout_detail

NVSHMEM_EFA_HD constexpr LlLayout ll_layout(const LlShape& shape) {
    using layout_detail::take;
    LlLayout at{};
    const uint64_t ranks = shape.n_ranks, tokens = shape.max_tokens;
    at.record_bytes = layout_detail::up(8 * (1 + static_cast<uint64_t>(shape.n_experts / shape.n_ranks)));
    at.token_bytes = lines_of(64 + 2 * static_cast<uint64_t>(shape.hidden)) * kLineBytes;
    at.row_bytes = lines_of(2 * static_cast<uint64_t>(shape.hidden)) * kLineBytes;
    uint64_t end = 0;
    at.records_in = take(end, 2 * ranks * at.record_bytes);
    at.records_out = take(end, 2 * ranks * at.record_bytes);
    at.flags_in = take(end, 4 * ranks * 8);
    at.credits_in = take(end, 4 * ranks * 8);
    at.credits_out = take(end, 4 * ranks * 8);
    at.epochs_in = take(end, ranks * 8);
    at.epochs_out = take(end, 8);
    at.control_bytes = end;
    at.tokens_out = take(end, 2 * tokens * at.token_bytes);
    at.tokens_in = take(end, 2 * ranks * tokens * at.token_bytes);
    at.rows_in = take(end, 2 * tokens * shape.topk_max() * at.row_bytes);
    at.rows_out = take(end, 2 * static_cast<uint64_t>(shape.n_experts) * tokens * at.row_bytes);
    at.bytes = end;
    return at;
}

}  // namespace nvshmem_efa::ep
