// SPDX-License-Identifier: Apache-2.0
// Low-latency dispatch, step by step. A step is done by a group of lanes for one rank, token, or (expert, source); which
// group takes which is the executor's business, and so is the order: the steps of one line must be over before the next.
//   send     ll_wait_for_credit (rank); ll_settle; dispatch_plan (rank); dispatch_send_token (token); ll_raise_flag (rank)
//   receive  dispatch_wait (rank); dispatch_begin_rows (expert); dispatch_unpack (expert, source); ll_give_credit (rank)
#pragma once

#include "ep_ll_view.cuh"

namespace nvshmem_efa::ep {

// ---- send ----

// In each record: what both sides must agree on, so that a difference is told and not read as data.
NVSHMEM_EFA_HD inline uint32_t dispatch_shape_tag(const LlShape& shape, int32_t format) {
    const uint32_t mixed = (shape.max_tokens * 0x9e3779b1u) ^ (shape.hidden * 0x85ebca77u) ^ (shape.n_experts * 0xc2b2ae3du) ^
                           static_cast<uint32_t>(format);
    return (mixed ^ mixed >> 16) & 0xffffu;
}
NVSHMEM_EFA_HD inline uint64_t record_word(uint64_t epoch, uint32_t value) { return epoch << 32 | value; }

NVSHMEM_EFA_HD inline bool token_goes_to(const LlView& view, const ep_ll_dispatch_args& args, uint32_t token, uint32_t rank) {
    const int64_t* experts = args.topk_idx + static_cast<size_t>(token) * static_cast<uint32_t>(args.n_topk);
    for (int32_t k = 0; k < args.n_topk; ++k)
        if (experts[k] >= 0 && owner_of(view, static_cast<int32_t>(experts[k])) == rank) return true;
    return false;
}

NVSHMEM_EFA_HD inline uint32_t rows_for(const ep_ll_dispatch_args& args, int64_t expert) {
    const int32_t n = args.n_tokens * args.n_topk;
    uint32_t rows = 0;
    for (int32_t i = 0; i < n; ++i) rows += args.topk_idx[i] == expert ? 1 : 0;
    return rows;
}

// Numbers the tokens for the rank, and tells it the counts: now, beside the tokens, so that the two latencies do not add up.
// Each word of a record is whole and carries the epoch; nothing orders it with anything.
template <class Lanes>
NVSHMEM_EFA_HD inline bool dispatch_plan(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                         uint32_t rank) {
    const uint32_t n_tokens = static_cast<uint32_t>(args.n_tokens), local = view.shape.local_experts();
    const bool is_left_out = is_masked(view, rank);
    uint32_t n = 0;
    for (uint32_t first = 0; first < n_tokens; first += lanes.size()) {
        const uint32_t token = first + lanes.rank();
        const bool goes = token < n_tokens && !is_left_out && token_goes_to(view, args, token, rank);
        const uint32_t ordinal = n + members_before(lanes, goes);
        if (token < n_tokens) view.ordinals[token * view.shape.n_ranks + rank] = goes ? static_cast<int32_t>(ordinal) : -1;
        n += lanes.sum(goes);
    }
    if (is_left_out) return true;
    const uint64_t to = view.at.records_in + (parity_of(epoch) * view.shape.n_ranks + view.rank) * view.at.record_bytes;
    const bool is_far = by_network(view, rank);
    const uint64_t from = view.at.records_out + (parity_of(epoch) * view.shape.n_ranks + rank) * view.at.record_bytes;
    uint64_t* words = is_far ? word_at(view.base, from, 0) : word_at(view.stores[rank], to, 0);
    for (uint32_t i = lanes.rank(); i <= local; i += lanes.size()) {
        const uint32_t value = i == 0 ? dispatch_shape_tag(view.shape, args.format) << 16 | n
                                      : rows_for(args, static_cast<int64_t>(rank) * local + i - 1);
        order::store_release_sys(words + i, record_word(epoch, value));  // pairs with dispatch_wait_for_record()
    }
    return !is_far || ll_put(view, lanes, LlPhase::kDispatch, word_at(view.base, to, 0), words, 8 * (1 + local), rank);
}

// Header and content of a token, plain.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_write(const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch, uint32_t token,
                                          uint8_t* at) {
    const uint32_t hidden = static_cast<uint32_t>(args.hidden), n_topk = static_cast<uint32_t>(args.n_topk);
    const int64_t* experts = args.topk_idx + static_cast<size_t>(token) * n_topk;
    const uint16_t* x = static_cast<const uint16_t*>(args.x) + static_cast<size_t>(token) * hidden;
    LlHeader* header = reinterpret_cast<LlHeader*>(at);
    if (lanes.rank() == 0) {
        header->token = token;
        header->epoch = static_cast<uint32_t>(epoch);
    }
    for (uint32_t k = lanes.rank(); k < kLlTopkMax; k += lanes.size())
        header->experts[k] = k < n_topk ? static_cast<int32_t>(experts[k]) : -1;
    uint8_t* values = at + sizeof(LlHeader);
    if (is_fp8(args.format)) cast_token(lanes, x, hidden, args.format, values, values + hidden);
    else copy_rows(lanes, values, x, 2 * static_cast<size_t>(hidden));
    lanes.sync();
}

// Where a source's tokens arrive, from a buffer's start.
NVSHMEM_EFA_HD inline uint64_t tokens_from(const LlView& view, uint64_t epoch, uint32_t source) {
    return view.at.tokens_in + (parity_of(epoch) * view.shape.n_ranks + source) * view.shape.max_tokens * view.at.token_bytes;
}

// A token goes once to each rank that has an expert of it. It is cast once, into the place from which the network sends it.
template <class Lanes>
NVSHMEM_EFA_HD inline bool dispatch_send_token(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                               uint32_t token) {
    const int32_t* ordinals = view.ordinals + token * view.shape.n_ranks;
    const uint64_t in = tokens_from(view, epoch, view.rank);
    uint8_t* out = view.base + view.at.tokens_out + (parity_of(epoch) * view.shape.max_tokens + token) * view.at.token_bytes;
    const uint32_t bytes = ll_message_bytes(static_cast<uint32_t>(args.hidden), args.format);
    bool is_written = false, is_far = false;
    for (uint32_t rank = 0; rank < view.shape.n_ranks; ++rank) {
        if (ordinals[rank] < 0) continue;
        if (!is_written) dispatch_write(lanes, args, epoch, token, out);
        is_written = true;
        if (by_network(view, rank)) is_far = true;
        else copy_rows(lanes, view.stores[rank] + in + static_cast<uint32_t>(ordinals[rank]) * view.at.token_bytes, out, bytes);
    }
    if (!is_far) return true;
    if (view.has_lines) expand_to_lines(lanes, out, bytes, epoch);
    for (uint32_t rank = 0; rank < view.shape.n_ranks; ++rank) {
        if (ordinals[rank] < 0 || !by_network(view, rank)) continue;
        uint8_t* there = view.base + in + static_cast<uint32_t>(ordinals[rank]) * view.at.token_bytes;
        if (!ll_put_content(view, lanes, LlPhase::kDispatch, epoch, there, out, bytes, rank)) return false;
    }
    return true;
}

// ---- receive ----

template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd dispatch_wait_for_record(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args,
                                                     uint64_t epoch, uint32_t source) {
    constexpr LlPhase kPhase = LlPhase::kDispatch;
    const uint32_t n_words = 1 + view.shape.local_experts();
    const uint64_t at = view.at.records_in + (parity_of(epoch) * view.shape.n_ranks + source) * view.at.record_bytes;
    const uint64_t* words = word_at(view.base, at, 0);
    uint32_t* counts = view.counts + source * n_words;
    uint32_t word = 0;
    LlEnd end = ll_wait(view, lanes, {LlWait::kRecord, kPhase, source, epoch}, [&](uint64_t* seen) {
        for (; word < n_words; ++word) {
            *seen = flag_load(words + word);  // its own flag: pairs with the device's placement, or dispatch_plan()'s store
            if (*seen >> 32 != (epoch & 0xffffffffu)) return false;
            counts[word] = static_cast<uint32_t>(*seen);
        }
        return true;
    });
    if (end != LlEnd::kThere) return end;
    const uint32_t tag = counts[0] >> 16, mine = dispatch_shape_tag(view.shape, args.format);
    lanes.sync();  // all have read it before it is changed
    if (tag != mine) return ll_fail(view.fault, LlWait::kShape, kPhase, source, mine, tag);
    if (lanes.rank() == 0) counts[0] &= 0xffffu;
    lanes.sync();
    if (counts[0] <= view.shape.max_tokens) return end;
    return ll_fail(view.fault, LlWait::kContent, kPhase, source, view.shape.max_tokens, counts[0]);
}

NVSHMEM_EFA_HD inline const uint8_t* token_in(const LlView& view, uint64_t epoch, uint32_t source, uint32_t ordinal) {
    return view.base + tokens_from(view, epoch, source) + ordinal * view.at.token_bytes;
}

// Waits until all of a source's tokens are here. A masked source has sent none.
template <class Lanes>
NVSHMEM_EFA_HD inline bool dispatch_wait(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                         uint32_t source) {
    const uint64_t start = clock_ns();
    uint32_t* counts = view.counts + source * (1 + view.shape.local_experts());
    LlEnd end = is_masked(view, source) ? LlEnd::kMasked : dispatch_wait_for_record(view, lanes, args, epoch, source);
    const uint32_t bytes = ll_message_bytes(static_cast<uint32_t>(args.hidden), args.format);
    if (end == LlEnd::kThere && !by_network(view, source)) {
        end = ll_wait_for_flag(view, lanes, LlPhase::kDispatch, epoch, source);
    } else if (end == LlEnd::kThere && view.has_lines) {
        for (uint32_t i = 0; i < counts[0] && end == LlEnd::kThere; ++i)
            end = ll_wait_for_lines(view, lanes, LlPhase::kDispatch, epoch, source, token_in(view, epoch, source, i), bytes);
    } else if (end == LlEnd::kThere) {
        end = ll_wait_for_counts(view, lanes, LlPhase::kDispatch, epoch, source, counts[0], bytes);
    }
    if (end == LlEnd::kMasked)
        for (uint32_t i = lanes.rank(); i <= view.shape.local_experts(); i += lanes.size()) counts[i] = 0;
    if (args.wait_stats && lanes.rank() == 0) args.wait_stats[source] += static_cast<int64_t>(clock_ns() - start);
    return end != LlEnd::kFailed;
}

// Where each source's rows of a local expert go: by rank, one behind the other.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_begin_rows(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint32_t expert) {
    if (lanes.rank() != 0) return;
    const uint32_t n_ranks = view.shape.n_ranks, n_words = 1 + view.shape.local_experts();
    uint32_t begin = 0;
    for (uint32_t source = 0; source < n_ranks; ++source) {
        const uint32_t count = view.counts[source * n_words + 1 + expert];
        const uint64_t range = static_cast<uint64_t>(begin) << 32 | count;
        args.recv_layout_range[static_cast<size_t>(expert) * n_ranks + source] = static_cast<int64_t>(range);
        begin += count;
    }
    args.recv_count[expert] = static_cast<int32_t>(begin);
    if (args.cumulative_stats) args.cumulative_stats[expert] += static_cast<int32_t>(begin);
}

// One row: values, scales, source.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_unpack_row(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args,
                                               const uint8_t* message, uint32_t step, uint64_t expert, uint64_t row) {
    const uint32_t hidden = static_cast<uint32_t>(args.hidden), value_bytes = ll_value_bytes(hidden, args.format);
    const uint64_t rows_max = view.shape.rows_max();
    uint8_t* values = static_cast<uint8_t*>(args.recv_x) + (expert * rows_max + row) * value_bytes;
    // The header fills 64 of the first block's 120 bytes; from there on blocks are whole.
    constexpr uint32_t kFirst = kLineContent - sizeof(LlHeader);
    if (step == kLineContent) {
        copy_rows(lanes, values, message + sizeof(LlHeader), value_bytes);
    } else {
        copy_blocks(lanes, values, kLineContent, message + sizeof(LlHeader), step, kFirst, 0);
        copy_blocks(lanes, values + kFirst, kLineContent, message + step, step, value_bytes - kFirst, 0);
    }
    if (!is_fp8(args.format)) return;
    const uint32_t n = ll_scale_bytes(hidden, args.format) / 4;  // floats, or four bytes of UE8M0, each in one block
    uint32_t* scales = static_cast<uint32_t*>(args.recv_scales);
    for (uint32_t i = lanes.rank(); i < n; i += lanes.size()) {
        const uint64_t at = stepped(sizeof(LlHeader) + value_bytes + 4 * static_cast<uint64_t>(i), step);
        scales[(expert * n + i) * rows_max + row] = *reinterpret_cast<const uint32_t*>(message + at);
    }
}

// The rows of one source for one local expert, in the order of its tokens and choices.
template <class Lanes>
NVSHMEM_EFA_HD inline bool dispatch_unpack(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                           uint32_t expert, uint32_t source) {
    const auto is_wrong = [&](uint64_t wanted, uint64_t seen) {
        ll_fail(view.fault, LlWait::kContent, LlPhase::kDispatch, source, wanted, seen);
        return false;
    };
    const uint32_t local = view.shape.local_experts(), n_tokens = view.counts[source * (1 + local)];
    const int32_t global = static_cast<int32_t>(view.rank * local + expert);
    const uint64_t range = static_cast<uint64_t>(args.recv_layout_range[static_cast<size_t>(expert) * view.shape.n_ranks + source]);
    const uint32_t begin = static_cast<uint32_t>(range >> 32), end = begin + static_cast<uint32_t>(range);
    const uint64_t rows_max = view.shape.rows_max();
    uint32_t row = begin;
    for (uint32_t i = 0; i < n_tokens; ++i) {
        const uint8_t* message = token_in(view, epoch, source, i);
        const LlHeader* header = reinterpret_cast<const LlHeader*>(message);
        if (header->epoch != static_cast<uint32_t>(epoch)) return is_wrong(epoch, header->epoch);
        for (uint32_t k = 0; k < kLlTopkMax; ++k) {
            if (header->experts[k] != global) continue;
            if (row == end) return is_wrong(end, row + 1);
            dispatch_unpack_row(view, lanes, args, message, token_step(view, source), expert, row);
            if (lanes.rank() == 0) {
                args.recv_src_info[expert * rows_max + row] = static_cast<int32_t>(header->token);
                args.recv_src_info[(static_cast<uint64_t>(local) + expert) * rows_max + row] = static_cast<int32_t>(k);
            }
            ++row;
        }
    }
    return row == end || is_wrong(end, row);
}

}  // namespace nvshmem_efa::ep
