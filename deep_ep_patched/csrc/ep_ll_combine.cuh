// SPDX-License-Identifier: Apache-2.0
// Low-latency combine, step by step, as ep_ll_dispatch.cuh. Nobody sends counts: a source knows what it asked for.
//   send     ll_wait_for_credit (rank); ll_settle
//            combine_send (expert, source), or combine_send_row (row)
//            ll_raise_flag (rank)
//   receive  combine_wait (rank)
//            combine_reduce (token); ll_settle
//            ll_give_credit (rank)
#pragma once

#include "ep_ll_view.cuh"

namespace nvshmem_efa::ep {

NVSHMEM_EFA_HD inline uint8_t* row_out(const LlView& view, uint64_t epoch, uint32_t expert, uint32_t row) {
    const uint64_t first = static_cast<uint64_t>(parity_of(epoch)) * view.local + expert;
    return view.base + view.at.rows_out + (first * view.shape.rows_max() + row) * view.at.row_bytes;
}
// Where the row of a token's choice arrives, from the buffer's start.
NVSHMEM_EFA_HD inline uint64_t row_in(const LlView& view, uint64_t epoch, uint32_t token, uint32_t choice) {
    const uint64_t index = parity_of(epoch) * static_cast<uint64_t>(view.shape.max_tokens) + token;
    return view.at.rows_in + (index * view.shape.topk_max() + choice) * view.at.row_bytes;
}

// The rows of a local expert that belong to a source.
struct LlRows {
    uint32_t begin, count;
};
NVSHMEM_EFA_HD inline LlRows rows_of(const LlView& view, const ep_ll_combine_args& args, uint32_t expert, uint32_t source) {
    const uint64_t range = static_cast<uint64_t>(args.recv_layout_range[static_cast<size_t>(expert) * view.shape.n_ranks + source]);
    return {static_cast<uint32_t>(range >> 32), static_cast<uint32_t>(range)};
}

// A row of a local expert, to the source that it belongs to; or a share of it, where all are reached by stores.
struct LlRowShare {
    uint32_t expert, row, source;
    uint32_t part, parts;
};
NVSHMEM_EFA_HD inline const uint8_t* row_of(const LlView& view, const ep_ll_combine_args& args, uint64_t epoch, uint32_t expert, uint32_t row) {
    if (args.zero_copy) return row_out(view, epoch, expert, row);
    return static_cast<const uint8_t*>(args.x) + (expert * static_cast<uint64_t>(view.shape.rows_max()) + row) * 2 * view.shape.hidden;
}
template <class Lanes>
NVSHMEM_EFA_HD inline bool combine_send_row(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                            const LlRowShare& of) {
    const uint64_t rows_max = view.shape.rows_max(), bytes = 2 * static_cast<uint64_t>(view.shape.hidden), at = of.expert * rows_max + of.row;
    const int32_t token = args.recv_src_info[at], choice = args.recv_src_info[view.local * rows_max + at];
    uint8_t* out = row_out(view, epoch, of.expert, of.row);
    const uint8_t* from = row_of(view, args, epoch, of.expert, of.row);
    const uint64_t to = row_in(view, epoch, static_cast<uint32_t>(token), static_cast<uint32_t>(choice));
    if (!by_network(view, of.source)) {
        if (row_step(view) == kLineContent) copy_part(lanes, view.stores[of.source] + to, from, bytes, of.part, of.parts);
        else copy_blocks(lanes, view.stores[of.source] + to, kLineBytes, from, kLineContent, bytes, epoch);
        return true;
    }
    if (!args.zero_copy) copy_rows(lanes, out, from, bytes);
    if (view.has_lines) expand_to_lines(lanes, out, bytes, epoch);
    return ll_put_content(view, lanes, LlPhase::kCombine, epoch, view.base + to, out, bytes, of.source);
}

// The rows of one local expert that belong to one source.
template <class Lanes>
NVSHMEM_EFA_HD inline bool combine_send(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                        uint32_t expert, uint32_t source) {
    if (is_masked(view, source)) return true;
    const LlRows rows = rows_of(view, args, expert, source);
    for (uint32_t row = rows.begin; row < rows.begin + rows.count; ++row)
        if (!combine_send_row(view, lanes, args, epoch, {expert, row, source, 0, 1})) return false;
    return true;
}
// Whose a row of an expert is. Pre: it is somebody's.
template <class Lanes>
NVSHMEM_EFA_HD inline uint32_t source_of(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint32_t expert, uint32_t row) {
    uint32_t found = 0;
    for (uint32_t source = lanes.rank(); source < view.shape.n_ranks; source += lanes.size()) {
        const LlRows rows = rows_of(view, args, expert, source);
        if (row - rows.begin < rows.count) found = source;
    }
    return lanes.unite(found);  // one has it, the others have 0
}

// Waits until all rows of this rank's tokens that the experts of `rank` work on are here.
template <class Lanes>
NVSHMEM_EFA_HD inline bool combine_wait(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                        uint32_t rank) {
    constexpr LlPhase kPhase = LlPhase::kCombine;
    const uint64_t start = clock_ns(), bytes = 2 * static_cast<uint64_t>(view.shape.hidden);
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk), n = static_cast<uint32_t>(args.n_tokens) * n_topk;
    const uint64_t local = view.local;
    const auto is_of_rank = [&](uint32_t i) { return static_cast<uint64_t>(args.topk_idx[i]) - rank * local < local; };  // -1 is no rank's
    LlEnd end = is_masked(view, rank) ? LlEnd::kMasked : LlEnd::kThere;
    if (end == LlEnd::kThere && !by_network(view, rank)) {
        end = ll_agree(lanes, lanes.rank() == 0 ? ll_wait_for_flag(view, kPhase, epoch, rank) : LlEnd::kThere);
    } else if (end == LlEnd::kThere && view.has_lines) {
        for (uint32_t i = 0; i < n && end == LlEnd::kThere; ++i) {
            const uint8_t* row = view.base + row_in(view, epoch, i / n_topk, i % n_topk);
            if (is_of_rank(i)) end = ll_wait_for_lines(view, lanes, kPhase, epoch, rank, row, bytes);
        }
    } else if (end == LlEnd::kThere) {
        uint32_t rows = 0;
        for (uint32_t i = lanes.rank(); i < n; i += lanes.size()) rows += is_of_rank(i) ? 1 : 0;
        end = ll_wait_for_counts(view, lanes, kPhase, epoch, rank, lanes.sum(rows), bytes);
    }
    if (args.wait_stats && lanes.rank() == 0) args.wait_stats[rank] += static_cast<int64_t>(clock_ns() - start);
    return end != LlEnd::kFailed;
}

// What a token's sum is made of: a bit for each choice that has a row, those of masked ranks left out; and of WarpLanes the
// lane's own choice's weight.
struct LlTerms {
    uint32_t choices;
    float weight;
};
template <class Lanes>
NVSHMEM_EFA_HD inline LlTerms terms_of(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint32_t token) {
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk);
    const size_t first = static_cast<size_t>(token) * n_topk;
    LlTerms mine{};
    for (uint32_t k = lanes.rank(); k < n_topk; k += lanes.size()) {
        mine.weight = args.topk_weights[first + k];
        const int64_t expert = args.topk_idx[first + k];
        if (is_expert(view, expert) && !is_masked(view, owner_of(view, static_cast<int32_t>(expert)))) mine.choices |= 1u << k;
    }
    return {lanes.unite(mine.choices), mine.weight};
}

// The weighted sum of a token's rows, by choice, in single precision, rounded once: that of one CPU thread.
NVSHMEM_EFA_HD inline void combine_reduce(const LlView& view, const OneLane& lane, const ep_ll_combine_args& args, uint64_t epoch,
                                          uint32_t token) {
    const uint32_t hidden = view.shape.hidden, step = row_step(view), choices = terms_of(view, lane, args, token).choices;
    const float* weights = args.topk_weights + static_cast<size_t>(token) * static_cast<uint32_t>(args.n_topk);
    uint16_t* out = static_cast<uint16_t*>(args.combined_x) + static_cast<size_t>(token) * hidden;
    constexpr uint32_t kBlock = kLineContent / 2;
    for (uint32_t block = 0; block * kBlock < hidden; ++block) {
        const uint32_t left = hidden - block * kBlock, values = left < kBlock ? left : kBlock;
        float sums[kBlock] = {};
        for (uint32_t bits = choices; bits != 0; bits &= bits - 1) {
            const uint32_t k = lowest_bit(bits);
            const auto row = reinterpret_cast<const uint16_t*>(view.base + row_in(view, epoch, token, k) + static_cast<uint64_t>(block) * step);
            for (uint32_t i = 0; i < values; ++i) sums[i] = add_weighted(sums[i], weights[k], bf16_to_float(row[i]));
        }
        for (uint32_t i = 0; i < values; ++i) out[block * kBlock + i] = bf16_of_float(sums[i]);
    }
}

#if defined(__CUDACC__)
// The same by a warp, or its share of it. A lane takes a Word at a time of each row: 16 bytes of plain rows, 8 of lines.
template <class Word>
__device__ inline void reduce_words(const LlView& view, const WarpLanes& lanes, const LlTerms& terms, const uint8_t* rows, uint16_t* out,
                                    uint32_t first, uint32_t end) {
    constexpr uint32_t kValues = sizeof(Word) / 2, kInFlight = 8;
    const uint32_t step = row_step(view);
    const bool is_wide = reinterpret_cast<uint64_t>(out) % sizeof(Word) == 0;
    for (uint32_t turn = first; turn < end; turn += 32) {
        const uint32_t word = turn + lanes.lane;
        const bool is_mine = word < end;
        const uint64_t at = static_cast<uint64_t>(word) * sizeof(Word);
        const uint8_t* const from = rows + (step == kLineContent ? at : stepped(at, step));
        float sums[kValues] = {};
        for (uint32_t bits = terms.choices; bits != 0;) {
            Word words[kInFlight];
            float weights[kInFlight];
            uint32_t n = 0;
#pragma unroll
            for (uint32_t j = 0; j < kInFlight; ++j) {
                if (bits == 0) continue;  // the same for all lanes
                const uint32_t k = lowest_bit(bits);
                bits &= bits - 1;
                weights[j] = __shfl_sync(0xffffffffu, terms.weight, static_cast<int>(k));
                if (is_mine) words[j] = *reinterpret_cast<const Word*>(from + k * view.at.row_bytes);
                n = j + 1;
            }
#pragma unroll
            for (uint32_t j = 0; j < kInFlight; ++j) {
                if (j >= n || !is_mine) continue;
                uint16_t values[kValues];
                memcpy(values, &words[j], sizeof(Word));
#pragma unroll
                for (uint32_t i = 0; i < kValues; ++i) sums[i] = add_weighted(sums[i], weights[j], bf16_to_float(values[i]));
            }
        }
        if (!is_mine) continue;
        uint16_t values[kValues];
#pragma unroll
        for (uint32_t i = 0; i < kValues; ++i) values[i] = bf16_of_float(sums[i]);
        if (is_wide) {
            Word packed;
            memcpy(&packed, values, sizeof(Word));
            *reinterpret_cast<Word*>(out + word * kValues) = packed;
        } else {
            for (uint32_t i = 0; i < kValues; ++i) out[word * kValues + i] = values[i];
        }
    }
}
__device__ inline void combine_reduce_share(const LlView& view, const WarpLanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                            uint32_t token, uint32_t part, uint32_t parts) {
    const uint8_t* const rows = view.base + row_in(view, epoch, token, 0);
    uint16_t* const out = static_cast<uint16_t*>(args.combined_x) + static_cast<size_t>(token) * view.shape.hidden;
    const uint32_t bytes = 2 * view.shape.hidden, word_bytes = row_step(view) == kLineContent ? sizeof(uint4) : sizeof(uint2);
    const uint32_t n = bytes / word_bytes, each = ((n + parts - 1) / parts + 31) / 32 * 32, first = part * each;
    const uint32_t end = first + each < n ? first + each : n;
    if (first >= end) return;
    // Of plain rows: while it is looked up which of them count.
    if (word_bytes == sizeof(uint4))
        for (int32_t k = 0; k < args.n_topk; ++k)
            prefetch(lanes, rows + k * view.at.row_bytes + first * sizeof(uint4), (end - first) * sizeof(uint4));
    const LlTerms terms = terms_of(view, lanes, args, token);
    if (word_bytes == sizeof(uint4)) reduce_words<uint4>(view, lanes, terms, rows, out, first, end);
    else reduce_words<uint2>(view, lanes, terms, rows, out, first, end);
}
#endif

}  // namespace nvshmem_efa::ep
