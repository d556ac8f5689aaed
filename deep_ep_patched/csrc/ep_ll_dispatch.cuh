// SPDX-License-Identifier: Apache-2.0
// Low-latency dispatch, step by step. A step is done by a group of lanes, or a team of such groups, for one rank, token, or
// expert; which takes which is the executor's business, and so is the order: the steps of one line must be over before the
// next.
//   send     ll_wait_for_credit (rank); ll_settle; dispatch_mark (choices)
//            dispatch_send_record (rank); dispatch_send_token (token); dispatch_clear_marks
//            ll_raise_flag (rank)
//   receive  dispatch_wait (rank)
//            dispatch_begin_rows (expert); dispatch_unpack (source, token)
//            ll_give_credit (rank)
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

// Tokens are numbered by marks: a bit for each token that names an expert, or goes to a rank. A token's number among them
// is the count of bits before its own, so all are numbered at once, and in their order. `key`: an expert, or E + rank.
NVSHMEM_EFA_HD inline uint32_t* marks_of(const LlView& view, uint64_t epoch, uint32_t key) {
    const LlShape& shape = view.shape;
    const uint64_t first = static_cast<uint64_t>(parity_of(epoch)) * (shape.n_experts + shape.n_ranks);
    return view.marks + (first + key) * shape.mark_words();
}
NVSHMEM_EFA_HD inline uint32_t marks_before(const uint32_t* marks, uint32_t token) {
    uint32_t n = 0;
    for (uint32_t word = 0; word < token / 32; ++word) n += bit_count(marks[word]);
    return token % 32 == 0 ? n : n + bit_count(marks[token / 32] & ((1u << token % 32) - 1));
}

// Of 32 choices of this rank's tokens, the `part`-th such. Pre: the marks of this parity are all 0.
inline constexpr uint32_t kMarkedAtOnce = 32;
NVSHMEM_EFA_HD inline uint32_t mark_parts(const ep_ll_dispatch_args& args) {
    return (static_cast<uint32_t>(args.n_tokens) * static_cast<uint32_t>(args.n_topk) + kMarkedAtOnce - 1) / kMarkedAtOnce;
}
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_mark(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                         uint32_t part) {
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk), n = static_cast<uint32_t>(args.n_tokens) * n_topk;
    const uint32_t first = part * kMarkedAtOnce, end = n - first < kMarkedAtOnce ? n : first + kMarkedAtOnce;
    for (uint32_t i = first + lanes.rank(); i < end; i += lanes.size()) {
        const int64_t expert = args.topk_idx[i];
        if (!is_expert(view, expert)) continue;
        const uint32_t token = i / n_topk, key = static_cast<uint32_t>(expert);
        order::or_relaxed_gpu(marks_of(view, epoch, key) + token / 32, 1u << token % 32);
        const uint32_t rank_key = view.shape.n_experts + owner_of(view, static_cast<int32_t>(key));
        order::or_relaxed_gpu(marks_of(view, epoch, rank_key) + token / 32, 1u << token % 32);
    }
}
// The marks of the next operation, which the one before this left: nobody looks at them now.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_clear_marks(const LlView& view, const Lanes& lanes, uint64_t epoch) {
    uint32_t* const marks = marks_of(view, epoch + 1, 0);
    const uint64_t n = static_cast<uint64_t>(view.shape.n_experts + view.shape.n_ranks) * view.shape.mark_words();
    for (uint64_t i = lanes.rank(); i < n; i += lanes.size()) marks[i] = 0;
}

// Tells the rank the counts: beside the tokens, so that the two latencies do not add up. Each word of a record is whole and
// carries the epoch; nothing orders it with anything.
template <class Team>
NVSHMEM_EFA_HD inline bool dispatch_send_record(const LlView& view, const Team& team, const ep_ll_dispatch_args& args, uint64_t epoch,
                                                uint32_t rank) {
    if (is_masked(view, rank)) return true;
    const auto all = team.all();
    const uint32_t local = view.local, n_tokens = static_cast<uint32_t>(args.n_tokens);
    const uint64_t to = view.at.records_in + (parity_of(epoch) * view.shape.n_ranks + view.rank) * view.at.record_bytes;
    const uint64_t from = view.at.records_out + (parity_of(epoch) * view.shape.n_ranks + rank) * view.at.record_bytes;
    const bool is_far = by_network(view, rank);
    uint64_t* words = is_far ? word_at(view.base, from, 0) : word_at(view.stores[rank], to, 0);
    for (uint32_t i = all.rank(); i <= local; i += all.size()) {
        const uint32_t n = marks_before(marks_of(view, epoch, i == 0 ? view.shape.n_experts + rank : rank * local + i - 1), n_tokens);
        // Seen by dispatch_wait_for_record(), which needs nothing but the word.
        order::store_relaxed_sys(words + i, record_word(epoch, i == 0 ? dispatch_shape_tag(view.shape, args.format) << 16 | n : n));
    }
    if (!is_far) return true;
    team.sync();
    return team.warp() != 0 || ll_put(view, team.lanes(), LlPhase::kDispatch, word_at(view.base, to, 0), words, 8 * (1 + local), rank);
}

// Header and content of a token, plain.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_write(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                          uint32_t token, uint8_t* at) {
    const uint32_t hidden = static_cast<uint32_t>(args.hidden), n_topk = static_cast<uint32_t>(args.n_topk);
    const int64_t* experts = args.topk_idx + static_cast<size_t>(token) * n_topk;
    const uint16_t* x = static_cast<const uint16_t*>(args.x) + static_cast<size_t>(token) * hidden;
    LlHeader* header = reinterpret_cast<LlHeader*>(at);
    if (lanes.rank() == 0) {
        header->token = token;
        header->epoch = static_cast<uint32_t>(epoch);
    }
    // By the last lanes, as the first have more to cast.
    for (uint32_t k = lanes.size() - 1 - lanes.rank(); k < kLlTopkMax; k += lanes.size()) {
        const int64_t expert = k < n_topk ? experts[k] : -1;
        const bool is_one = is_expert(view, expert);
        header->experts[k] = static_cast<uint16_t>(is_one ? expert : kLlNoExpert);
        header->slots[k] = static_cast<uint16_t>(is_one ? marks_before(marks_of(view, epoch, static_cast<uint32_t>(expert)), token) : 0);
    }
    uint8_t* values = at + sizeof(LlHeader);
    if (is_fp8(args.format)) cast_token(lanes, x, hidden, args.format, values, values + hidden);
    else copy_rows(lanes, values, x, 2 * static_cast<size_t>(hidden));
    lanes.sync();
}

// Where a source's tokens arrive, from a buffer's start.
NVSHMEM_EFA_HD inline uint64_t tokens_from(const LlView& view, uint64_t epoch, uint32_t source) {
    return view.at.tokens_in + (parity_of(epoch) * view.shape.n_ranks + source) * view.shape.max_tokens * view.at.token_bytes;
}
// The place of a token there: it is one of those for the rank, in their order.
NVSHMEM_EFA_HD inline uint64_t place_at(const LlView& view, uint64_t epoch, uint32_t token, uint32_t rank) {
    const uint32_t ordinal = marks_before(marks_of(view, epoch, view.shape.n_experts + rank), token);
    return tokens_from(view, epoch, view.rank) + ordinal * view.at.token_bytes;
}

// Whom a token goes to, masked or not: of its choices, a bit for the first one of each rank.
struct LlTargets {
    uint32_t near, far;
};
template <class Lanes>
NVSHMEM_EFA_HD inline LlTargets targets_of(const LlView& view, const Lanes& lanes, const int64_t* experts, uint32_t n_topk) {
    const int64_t local = view.local;
    LlTargets mine{};
    for (uint32_t k = lanes.rank(); k < n_topk; k += lanes.size()) {
        if (!is_expert(view, experts[k])) continue;
        const uint32_t rank = owner_of(view, static_cast<int32_t>(experts[k]));
        bool is_first = true;
        for (uint32_t j = 0; j < k; ++j) is_first = is_first && !(experts[j] >= rank * local && experts[j] < (rank + 1) * local);
        if (is_first) (by_network(view, rank) ? mine.far : mine.near) |= 1u << k;
    }
    return {lanes.unite(mine.near), lanes.unite(mine.far)};
}

// A token goes once to each rank that has an expert of it. It is cast once, into the place from which the network sends it.
// Then the team's groups share the ranks, or a few ranks' bytes.
template <class Team>
NVSHMEM_EFA_HD inline bool dispatch_send_token(const LlView& view, const Team& team, const ep_ll_dispatch_args& args, uint64_t epoch,
                                               uint32_t token) {
    const uint32_t n_topk = static_cast<uint32_t>(args.n_topk);
    const int64_t* experts = args.topk_idx + static_cast<size_t>(token) * n_topk;
    const auto lanes = team.lanes();
    prefetch(team.all(), static_cast<const uint16_t*>(args.x) + static_cast<size_t>(token) * static_cast<uint32_t>(args.hidden),
             2 * static_cast<size_t>(args.hidden));
    const LlTargets to = targets_of(view, lanes, experts, n_topk);
    if ((to.near | to.far) == 0) return true;
    uint8_t* out = view.base + view.at.tokens_out + (parity_of(epoch) * view.shape.max_tokens + token) * view.at.token_bytes;
    const uint32_t bytes = ll_message_bytes(static_cast<uint32_t>(args.hidden), args.format);
    struct Way {
        uint32_t rank;
        bool is_open;
        uint64_t place;
    };
    const auto way_of = [&](uint32_t choice) -> Way {
        const uint32_t rank = owner_of(view, static_cast<int32_t>(experts[choice]));
        return {rank, !is_masked(view, rank), place_at(view, epoch, token, rank)};
    };
    const uint32_t n_near = bit_count(to.near), parts = n_near != 0 && n_near < team.warps() ? team.warps() / n_near : 1;
    Way way{};  // the first one's is looked up before the cast, so that the loads' times do not add up
    if (n_near != 0) way = way_of(nth_bit(to.near, team.warp() % n_near));
    dispatch_write(view, team.all(), args, epoch, token, out);
    for (uint32_t i = team.warp(); i < n_near * parts; i += team.warps()) {
        if (i != team.warp()) way = way_of(nth_bit(to.near, i % n_near));
        if (way.is_open) copy_part(lanes, view.stores[way.rank] + way.place, out, bytes, i / n_near, parts);
    }
    if (to.far == 0) return true;
    if (view.has_lines) {
        team.sync();  // plain content is read no more
        if (team.warp() == 0) expand_to_lines(lanes, out, bytes, epoch);
        team.sync();
    }
    bool is_good = true;
    for (uint32_t i = team.warp(); i < bit_count(to.far); i += team.warps()) {
        const Way far = way_of(nth_bit(to.far, i));
        if (!far.is_open) continue;
        // What other groups wrote is before it by the team's sync(); the request's doorbell is cumulative over that.
        is_good = ll_put_content(view, lanes, LlPhase::kDispatch, epoch, view.base + far.place, out, bytes, far.rank) && is_good;
    }
    return is_good;
}

// ---- receive ----

// One lane's wait for its words of a record, and for what the first of them says. A masked source has sent none.
template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd dispatch_wait_for_record(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args,
                                                     uint64_t epoch, uint32_t source) {
    constexpr LlPhase kPhase = LlPhase::kDispatch;
    const uint32_t n_words = 1 + view.local;
    const uint64_t at = view.at.records_in + (parity_of(epoch) * view.shape.n_ranks + source) * view.at.record_bytes;
    const uint64_t* words = word_at(view.base, at, 0);
    uint32_t* counts = view.counts + source * n_words;
    uint32_t word = lanes.rank(), first = 0;
    const bool is_out = is_masked(view, source);  // looked at last, so that the two loads' times do not add up
    const LlEnd end = ll_wait_alone(view, {LlWait::kRecord, kPhase, source, epoch}, [&](uint64_t* seen) {
        for (; word < n_words; word += lanes.size()) {
            // Its own flag, and all that it tells: from the device's placement, or dispatch_send_record()'s store.
            *seen = order::load_relaxed_sys(words + word);
            if (*seen >> 32 != (epoch & 0xffffffffu)) return false;
            if (word == 0) first = static_cast<uint32_t>(*seen);
            counts[word] = static_cast<uint32_t>(*seen) & (word == 0 ? 0xffffu : ~0u);
        }
        return true;
    });
    if (is_out || end != LlEnd::kThere || lanes.rank() != 0) return is_out ? LlEnd::kMasked : end;
    const uint32_t tag = first >> 16, n = first & 0xffffu, mine = dispatch_shape_tag(view.shape, args.format);
    if (tag != mine) return ll_fail(view.fault, LlWait::kShape, kPhase, source, mine, tag);
    if (n > view.shape.max_tokens) return ll_fail(view.fault, LlWait::kContent, kPhase, source, view.shape.max_tokens, n);
    return end;
}

NVSHMEM_EFA_HD inline const uint8_t* token_in(const LlView& view, uint64_t epoch, uint32_t source, uint32_t ordinal) {
    return view.base + tokens_from(view, epoch, source) + ordinal * view.at.token_bytes;
}

// Waits until all of a source's tokens are here. A masked source has sent none. One group of the team has the answer.
template <class Team>
NVSHMEM_EFA_HD inline bool dispatch_wait(const LlView& view, const Team& team, const ep_ll_dispatch_args& args, uint64_t epoch,
                                         uint32_t source) {
    const uint64_t start = clock_ns();
    uint32_t* counts = view.counts + source * (1 + view.local);
    const auto all = team.all();
    LlEnd end = dispatch_wait_for_record(view, all, args, epoch, source);
    // One waits for the flag at the same time: another than the first, where there is one.
    const bool is_near = !by_network(view, source);
    if (is_near && end == LlEnd::kThere && all.rank() == all.size() - 1) end = ll_wait_for_flag(view, LlPhase::kDispatch, epoch, source);
    end = ll_agree(all, end);
    if (team.warp() != 0) return end != LlEnd::kFailed;
    const auto lanes = team.lanes();
    const uint32_t bytes = ll_message_bytes(static_cast<uint32_t>(args.hidden), args.format);
    if (end == LlEnd::kThere && !is_near && view.has_lines) {
        for (uint32_t i = 0; i < counts[0] && end == LlEnd::kThere; ++i)
            end = ll_wait_for_lines(view, lanes, LlPhase::kDispatch, epoch, source, token_in(view, epoch, source, i), bytes);
    } else if (end == LlEnd::kThere && !is_near) {
        end = ll_wait_for_counts(view, lanes, LlPhase::kDispatch, epoch, source, counts[0], bytes);
    }
    if (end == LlEnd::kMasked)
        for (uint32_t i = lanes.rank(); i <= view.local; i += lanes.size()) counts[i] = 0;
    if (args.wait_stats && lanes.rank() == 0) args.wait_stats[source] += static_cast<int64_t>(clock_ns() - start);
    return end != LlEnd::kFailed;
}

// Rows that the sources before this one have for a local expert: by rank, one behind the other.
template <class Lanes>
NVSHMEM_EFA_HD inline uint32_t rows_before(const LlView& view, const Lanes& lanes, uint32_t source, uint32_t expert) {
    const uint32_t n_words = 1 + view.local;
    uint32_t n = 0;
    for (uint32_t i = lanes.rank(); i < source; i += lanes.size()) n += view.counts[i * n_words + 1 + expert];
    return lanes.sum(n);
}

// What the caller learns of a local expert's rows.
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_begin_rows(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint32_t expert) {
    const uint32_t n_ranks = view.shape.n_ranks, n_words = 1 + view.local;
    uint32_t end = 0;
    for (uint32_t first = 0; first < n_ranks; first += lanes.size()) {
        const uint32_t source = first + lanes.rank(), count = source < n_ranks ? view.counts[source * n_words + 1 + expert] : 0;
        const uint64_t begin = end + lanes.sum_before(count);
        if (source < n_ranks) args.recv_layout_range[static_cast<size_t>(expert) * n_ranks + source] = static_cast<int64_t>(begin << 32 | count);
        end += lanes.sum(count);
    }
    if (lanes.rank() != 0) return;
    args.recv_count[expert] = static_cast<int32_t>(end);
    if (args.cumulative_stats) args.cumulative_stats[expert] += static_cast<int32_t>(end);
}

// A share of one row: values; and with the first share scales and source.
struct LlRow {
    const uint8_t* message;
    uint32_t expert, row, choice;
    uint32_t part, parts;
};
template <class Lanes>
NVSHMEM_EFA_HD inline void dispatch_unpack_row(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint32_t step,
                                               const LlRow& of) {
    const uint32_t hidden = static_cast<uint32_t>(args.hidden), value_bytes = ll_value_bytes(hidden, args.format);
    const uint64_t rows_max = view.shape.rows_max(), row = of.expert * rows_max + of.row;
    uint8_t* values = static_cast<uint8_t*>(args.recv_x) + row * value_bytes;
    const uint8_t* const message = of.message;
    // The header fills 64 of the first block's 120 bytes; from there on blocks are whole.
    constexpr uint32_t kFirst = kLineContent - sizeof(LlHeader);
    if (step == kLineContent) {
        copy_part(lanes, values, message + sizeof(LlHeader), value_bytes, of.part, of.parts);
    } else {
        copy_blocks(lanes, values, kLineContent, message + sizeof(LlHeader), step, kFirst, 0);
        copy_blocks(lanes, values + kFirst, kLineContent, message + step, step, value_bytes - kFirst, 0);
    }
    if (of.part != 0) return;
    if (lanes.rank() == 0) {
        args.recv_src_info[row] = static_cast<int32_t>(reinterpret_cast<const LlHeader*>(message)->token);
        args.recv_src_info[view.local * rows_max + row] = static_cast<int32_t>(of.choice);
    }
    if (!is_fp8(args.format)) return;
    const uint32_t n = ll_scale_bytes(hidden, args.format) / 4;  // floats, or four bytes of UE8M0, each in one block
    uint32_t* scales = static_cast<uint32_t*>(args.recv_scales);
    for (uint32_t i = lanes.rank(); i < n; i += lanes.size()) {
        const uint64_t at = stepped(sizeof(LlHeader) + value_bytes + 4 * static_cast<uint64_t>(i), step);
        scales[(of.expert * static_cast<uint64_t>(n) + i) * rows_max + of.row] = *reinterpret_cast<const uint32_t*>(message + at);
    }
}

// The rows that one token of a source makes here, or a share of that work. A source's rows for an expert are in the order
// of its tokens.
template <class Lanes>
NVSHMEM_EFA_HD inline bool dispatch_unpack(const LlView& view, const Lanes& lanes, const ep_ll_dispatch_args& args, uint64_t epoch,
                                           const LlRow& share, uint32_t source) {
    const LlHeader* header = reinterpret_cast<const LlHeader*>(share.message);
    const uint32_t local = view.local, step = token_step(view, source);
    const auto is_wrong = [&](uint64_t wanted, uint64_t seen) {
        ll_fail(view.fault, LlWait::kContent, LlPhase::kDispatch, source, wanted, seen);
        return false;
    };
    if (header->epoch != static_cast<uint32_t>(epoch)) return is_wrong(epoch, header->epoch);
    uint32_t mine = 0;
    for (uint32_t k = lanes.rank(); k < kLlTopkMax; k += lanes.size())
        if (static_cast<uint32_t>(header->experts[k]) - view.rank * local < local) mine |= 1u << k;  // no expert is beyond all
    const uint32_t choices = lanes.unite(mine), n = bit_count(choices);
    const uint32_t each = step == kLineContent && n != 0 && share.parts > n ? share.parts / n : 1;  // shares of a row
    for (uint32_t i = share.part; i < n * each; i += share.parts) {
        const uint32_t choice = nth_bit(choices, i % n), expert = static_cast<uint32_t>(header->experts[choice]) - view.rank * local;
        const uint32_t count = view.counts[source * (1 + local) + 1 + expert], slot = header->slots[choice];
        if (slot >= count) return is_wrong(count, slot);
        const uint32_t row = rows_before(view, lanes, source, expert) + slot;
        dispatch_unpack_row(view, lanes, args, step, {share.message, expert, row, choice, i / n, each});
    }
    return true;
}

}  // namespace nvshmem_efa::ep
