// SPDX-License-Identifier: Apache-2.0
// Low-latency combine, step by step, as ep_ll_dispatch.cuh. Nobody sends counts: a source knows what it asked for.
//   send     ll_wait_for_credit (rank); ll_settle; combine_send (expert, source); ll_raise_flag (rank)
//   receive  combine_wait (rank); combine_reduce (token); ll_settle; ll_give_credit (rank)
#pragma once

#include "ep_ll_view.cuh"

namespace nvshmem_efa::ep {

NVSHMEM_EFA_HD inline uint8_t* row_out(const LlView& view, uint64_t epoch, uint32_t expert, uint32_t row) {
    const uint64_t first = static_cast<uint64_t>(parity_of(epoch)) * view.shape.local_experts() + expert;
    return view.base + view.at.rows_out + (first * view.shape.rows_max() + row) * view.at.row_bytes;
}
// Where the row of a token's choice arrives, from the buffer's start.
NVSHMEM_EFA_HD inline uint64_t row_in(const LlView& view, uint64_t epoch, uint32_t token, uint32_t choice) {
    const uint64_t index = parity_of(epoch) * static_cast<uint64_t>(view.shape.max_tokens) + token;
    return view.at.rows_in + (index * view.shape.topk_max() + choice) * view.at.row_bytes;
}

// The rows of one local expert that belong to one source.
template <class Lanes>
NVSHMEM_EFA_HD inline bool combine_send(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                        uint32_t expert, uint32_t source) {
    if (is_masked(view, source)) return true;
    const uint64_t range = static_cast<uint64_t>(args.recv_layout_range[static_cast<size_t>(expert) * view.shape.n_ranks + source]);
    const uint32_t begin = static_cast<uint32_t>(range >> 32), end = begin + static_cast<uint32_t>(range);
    const uint64_t rows_max = view.shape.rows_max(), bytes = 2 * static_cast<uint64_t>(view.shape.hidden);
    const int32_t* tokens = args.recv_src_info + expert * rows_max;
    const int32_t* choices = tokens + view.shape.local_experts() * rows_max;
    for (uint32_t row = begin; row < end; ++row) {
        uint8_t* out = row_out(view, epoch, expert, row);
        const uint8_t* from = args.zero_copy ? out : static_cast<const uint8_t*>(args.x) + (expert * rows_max + row) * bytes;
        const uint64_t to = row_in(view, epoch, static_cast<uint32_t>(tokens[row]), static_cast<uint32_t>(choices[row]));
        if (!by_network(view, source)) {
            copy_blocks(lanes, view.stores[source] + to, row_step(view), from, kLineContent, bytes, epoch);
            continue;
        }
        if (!args.zero_copy) copy_rows(lanes, out, from, bytes);
        if (view.has_lines) expand_to_lines(lanes, out, bytes, epoch);
        if (!ll_put_content(view, lanes, LlPhase::kCombine, epoch, view.base + to, out, bytes, source)) return false;
    }
    return true;
}

// Waits until all rows of this rank's tokens that the experts of `rank` work on are here.
template <class Lanes>
NVSHMEM_EFA_HD inline bool combine_wait(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                        uint32_t rank) {
    constexpr LlPhase kPhase = LlPhase::kCombine;
    const uint64_t start = clock_ns(), bytes = 2 * static_cast<uint64_t>(view.shape.hidden);
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk), n = static_cast<uint32_t>(args.n_tokens) * n_topk;
    const auto is_of_rank = [&](uint32_t i) {
        return args.topk_idx[i] >= 0 && owner_of(view, static_cast<int32_t>(args.topk_idx[i])) == rank;
    };
    LlEnd end = is_masked(view, rank) ? LlEnd::kMasked : LlEnd::kThere;
    if (end == LlEnd::kThere && !by_network(view, rank)) {
        end = ll_wait_for_flag(view, lanes, kPhase, epoch, rank);
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

// The weighted sum of a token's rows, by choice, in single precision, rounded once. What masked ranks would have sent is
// left out.
template <class Lanes>
NVSHMEM_EFA_HD inline void combine_reduce(const LlView& view, const Lanes& lanes, const ep_ll_combine_args& args, uint64_t epoch,
                                          uint32_t token) {
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk), hidden = view.shape.hidden, step = row_step(view);
    const uint8_t* rows[kLlTopkMax];
    float weights[kLlTopkMax];
    uint32_t n = 0;
    for (uint32_t k = 0; k < n_topk; ++k) {
        const size_t at = static_cast<size_t>(token) * n_topk + k;
        const int64_t expert = args.topk_idx[at];
        if (expert < 0 || is_masked(view, owner_of(view, static_cast<int32_t>(expert)))) continue;
        rows[n] = view.base + row_in(view, epoch, token, k);
        weights[n++] = args.topk_weights[at];
    }
    uint16_t* out = static_cast<uint16_t*>(args.combined_x) + static_cast<size_t>(token) * hidden;
    constexpr uint32_t kBlock = kLineContent / 2, kEach = BlockShare<Lanes>::kValues;
    for (uint32_t block = 0; block * kBlock < hidden; ++block) {
        const uint32_t left = hidden - block * kBlock, values = left < kBlock ? left : kBlock;
        const uint32_t first = lanes.rank() * kEach;
        if (first >= values) continue;
        const uint32_t mine = values - first < kEach ? values - first : kEach;
        float sums[kEach] = {};
        for (uint32_t k = 0; k < n; ++k) {
            const uint16_t* row = reinterpret_cast<const uint16_t*>(rows[k] + static_cast<uint64_t>(block) * step) + first;
            for (uint32_t i = 0; i < mine; ++i) sums[i] = add_weighted(sums[i], weights[k], bf16_to_float(row[i]));
        }
        for (uint32_t i = 0; i < mine; ++i) out[block * kBlock + first + i] = bf16_of_float(sums[i]);
    }
}

}  // namespace nvshmem_efa::ep
