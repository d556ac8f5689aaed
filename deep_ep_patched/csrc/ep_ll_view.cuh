// SPDX-License-Identifier: Apache-2.0
// Low-latency mode: what all of its steps work on, waits, credits and flags. For nvcc, NVRTC and CPU threads.
// docs/ep-low-latency.md has the protocol, and why it is right on a network that orders nothing.
#pragma once

#include "ep_ll_blocks.cuh"
#include "ep_team.h"
#include "nvshmem_efa/counted.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/wait.cuh"

namespace nvshmem_efa::ep {

enum class LlWait : uint32_t {
    kNone = 0,
    kCredit,   // the rank has not yet consumed what was sent to it two operations ago
    kRecord,   // its counts
    kTokens,   // its tokens, of a dispatch
    kRows,     // its rows, of a combine
    kNetwork,  // no wait: a queue failed, or a request could not be posted; the device state's error record says which
    kShape,    // no wait: the rank sends in another shape or format
    kContent,  // no wait: a message is not what its record said: a bug
};

// The first failure. The host makes an error of it.
struct LlFault {
    uint32_t is_set;
    LlWait what;
    uint32_t rank;
    uint32_t phase;
    uint64_t wanted;
    uint64_t seen;
};

struct LlView {
    const DeviceState* state;  // null: nobody is reached by the network
    uint8_t* base;             // the symmetric buffer
    uint8_t* const* stores;    // [R]: a rank's buffer, where stores reach it (the own, too); null: by the network
    int32_t* masks;            // [R]: 1: the rank is left out, both ways
    uint64_t* sent;            // [phase][parity][R]: last epoch that this rank sent there; 0: none
    uint32_t* arrived;         // [phase][parity][R]: arrivals from there that are accounted for, modulo 2^31
    uint32_t* marks;           // [parity][E + R][mark_words()]: which tokens name the expert, go to the rank: a bit each
    uint32_t* counts;          // [R][1 + El]: what the ranks' records say, as of this receive
    LlFault* fault;
    LlShape shape;
    LlLayout at;
    uint32_t rank;
    uint32_t local;            // experts of a rank: shape.local_experts(), which is a division
    uint64_t timeout_ns;
    bool has_lines;            // arrivals by lines; else by counts
    bool is_shrink;            // a rank that is late is masked
};

enum class LlEnd : uint32_t { kThere, kMasked, kFailed };

NVSHMEM_EFA_HD inline uint32_t parity_of(uint64_t epoch) { return static_cast<uint32_t>(epoch & 1); }
// Index in [phase][parity][R], and without a rank the arrival slot of (phase, parity).
NVSHMEM_EFA_HD inline uint32_t slot_of(LlPhase phase, uint64_t epoch) { return static_cast<uint32_t>(phase) * 2 + parity_of(epoch); }
NVSHMEM_EFA_HD inline uint32_t place_of(const LlView& view, LlPhase phase, uint64_t epoch, uint32_t rank) {
    return slot_of(phase, epoch) * view.shape.n_ranks + rank;
}
NVSHMEM_EFA_HD inline uint64_t* word_at(uint8_t* buffer, uint64_t offset, uint64_t index) {
    return reinterpret_cast<uint64_t*>(buffer + offset) + index;
}
NVSHMEM_EFA_HD inline bool is_masked(const LlView& view, uint32_t rank) {
    return order::load_relaxed_gpu(reinterpret_cast<const uint32_t*>(view.masks) + rank) != 0;
}
NVSHMEM_EFA_HD inline bool by_network(const LlView& view, uint32_t rank) { return view.stores[rank] == nullptr; }
NVSHMEM_EFA_HD inline uint32_t owner_of(const LlView& view, int32_t expert) {
    return static_cast<uint32_t>(expert) / view.local;
}
// Whether a choice names an expert; -1 names none, and the GPU's choices nobody has looked at.
NVSHMEM_EFA_HD inline bool is_expert(const LlView& view, int64_t expert) { return static_cast<uint64_t>(expert) < view.shape.n_experts; }
// Blocks of the rows that a combine leaves: lines, if anybody's rows may come as lines, as one slot takes rows of any rank.
NVSHMEM_EFA_HD inline uint32_t row_step(const LlView& view) { return view.has_lines ? kLineBytes : kLineContent; }
NVSHMEM_EFA_HD inline uint32_t token_step(const LlView& view, uint32_t source) {
    return view.has_lines && by_network(view, source) ? kLineBytes : kLineContent;
}

// ---- failure and waits ----

NVSHMEM_EFA_COLD inline LlEnd ll_fail(LlFault* fault, LlWait what, LlPhase phase, uint32_t rank, uint64_t wanted, uint64_t seen) {
    if (order::exchange_acquire_gpu(&fault->is_set, 1) != 0) return LlEnd::kFailed;  // an earlier one stands
    fault->what = what;
    fault->rank = rank;
    fault->phase = static_cast<uint32_t>(phase);
    fault->wanted = wanted;
    fault->seen = seen;
    return LlEnd::kFailed;
}

// A rank that did not answer in time.
NVSHMEM_EFA_COLD inline LlEnd ll_late(const LlView& view, LlWait what, LlPhase phase, uint32_t rank, uint64_t wanted, uint64_t seen) {
    if (view.state && !device::queues_are_good(*view.state)) return ll_fail(view.fault, LlWait::kNetwork, phase, rank, wanted, seen);
    if (!view.is_shrink || rank == view.rank) return ll_fail(view.fault, what, phase, rank, wanted, seen);
    // Relaxed: whoever reads a mask early or late only waits, or does not wait, for that rank once more.
    order::exchange_acquire_gpu(reinterpret_cast<uint32_t*>(view.masks) + rank, 1);
    return LlEnd::kMasked;
}

struct LlWaitFor {
    LlWait what;
    LlPhase phase;
    uint32_t rank;
    uint64_t wanted;
};

// One lane's wait until `look(&seen)` is true.
template <class Look>
NVSHMEM_EFA_HD inline LlEnd ll_wait_alone(const LlView& view, const LlWaitFor& wait, const Look& look) {
    uint64_t seen = 0, deadline = 0;
    for (uint32_t turn = 0; !look(&seen); ++turn) {
        if (is_masked(view, wait.rank)) return LlEnd::kMasked;  // by another wait, or by the program
        if ((turn & 15u) == 15u) {
            const uint64_t now = clock_ns();
            if (deadline == 0) deadline = now + view.timeout_ns;
            if (now > deadline && !look(&seen)) return ll_late(view, wait.what, wait.phase, wait.rank, wait.wanted, seen);
            if (view.state && (turn & 1023u) == 1023u && !device::queues_are_good(*view.state))
                return ll_fail(view.fault, LlWait::kNetwork, wait.phase, wait.rank, wait.wanted, seen);
        }
        wait_turn(turn);
    }
    return LlEnd::kThere;
}

// Rank 0 of the lanes waits. All get the same answer, and see what the look made known: looks are acquires.
template <class Lanes, class Look>
NVSHMEM_EFA_HD inline LlEnd ll_wait(const LlView& view, const Lanes& lanes, const LlWaitFor& wait, const Look& look) {
    LlEnd end = LlEnd::kThere;
    if (lanes.rank() == 0) end = ll_wait_alone(view, wait, look);
    end = static_cast<LlEnd>(lanes.share(static_cast<uint64_t>(end)));
    lanes.sync();
    return end;
}
// One answer of what the lanes have each waited for: that all of it is there.
template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd ll_agree(const Lanes& lanes, LlEnd end) {
    if (lanes.any(end == LlEnd::kFailed)) return LlEnd::kFailed;
    return lanes.any(end == LlEnd::kMasked) ? LlEnd::kMasked : LlEnd::kThere;
}
template <class Lanes, class Look>
NVSHMEM_EFA_HD inline LlEnd ll_wait_each(const LlView& view, const Lanes& lanes, const LlWaitFor& wait, const Look& look) {
    return ll_agree(lanes, ll_wait_alone(view, wait, look));
}

// ---- requests ----

struct LlPut {
    void* there;
    const void* here;
    uint64_t bytes;
    uint32_t rank;
};
inline constexpr uint32_t kLlNotCounted = ~0u;

// Never inlined: it is most of a kernel's code, and its call costs little beside a doorbell.
NVSHMEM_EFA_COLD inline bool ll_post(const LlView& view, const LlPut& put, LlPhase phase, uint32_t slot) {
    const int pe = static_cast<int>(put.rank);
    const bool is_good = slot == kLlNotCounted ? put_nbi(*view.state, put.there, put.here, put.bytes, pe)
                                               : put_counted_nbi(*view.state, put.there, put.here, put.bytes, pe, slot);
    if (!is_good) ll_fail(view.fault, LlWait::kNetwork, phase, put.rank, 0, 0);
    return is_good;
}

// Lane 0 posts what all members stored. `there` and `here` are addresses in the own buffer.
template <class Lanes>
NVSHMEM_EFA_HD inline bool ll_put(const LlView& view, const Lanes& lanes, LlPhase phase, void* there, const void* here, uint64_t bytes,
                                  uint32_t rank) {
    lanes.sync();  // the request's doorbell is a release, cumulative over what this made known to lane 0
    bool is_good = true;
    if (lanes.rank() == 0) {
        is_good = ll_post(view, {there, here, bytes, rank}, phase, kLlNotCounted);
    }
    return lanes.share(is_good) != 0;
}

// The same, for tokens and rows: counted at the target, unless its lines tell of themselves.
template <class Lanes>
NVSHMEM_EFA_HD inline bool ll_put_content(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, void* there,
                                          const void* here, uint64_t bytes, uint32_t rank) {
    if (view.has_lines) return ll_put(view, lanes, phase, there, here, lines_of(bytes) * kLineBytes, rank);
    lanes.sync();  // as above
    bool is_good = true;
    if (lanes.rank() == 0) {
        is_good = ll_post(view, {there, here, bytes, rank}, phase, slot_of(phase, epoch));
    }
    return lanes.share(is_good) != 0;
}

// Waits until `n` contents of `bytes` have been counted, beyond those accounted for. Exact: the rank sends nothing more to
// this slot before it has our credit for these (rule 3 of docs/ordering.md).
template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd ll_wait_for_counts(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, uint32_t rank,
                                               uint32_t n, uint64_t bytes) {
    const uint32_t slot = slot_of(phase, epoch), place = place_of(view, phase, epoch, rank);
    const uint32_t requests = static_cast<uint32_t>((bytes + view.state->segment_bytes - 1) / view.state->segment_bytes);
    const uint32_t wanted = (view.arrived[place] + n * requests) & kCounterMask31;
    const LlWait what = phase == LlPhase::kDispatch ? LlWait::kTokens : LlWait::kRows;
    const LlEnd end = ll_wait(view, lanes, {what, phase, rank, wanted}, [&](uint64_t* seen) {
        // Acquire, inside: what is counted is placed.
        const uint32_t now = arrivals(*view.state, static_cast<int>(rank), slot);
        *seen = now;
        return device::has_arrived(now, wanted);
    });
    if (end == LlEnd::kThere && lanes.rank() == 0) view.arrived[place] = wanted;
    return end;
}

// Waits until all lines of a content carry the epoch.
template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd ll_wait_for_lines(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, uint32_t rank,
                                              const uint8_t* at, uint64_t bytes) {
    const LlWait what = phase == LlPhase::kDispatch ? LlWait::kTokens : LlWait::kRows;
    const uint64_t n = lines_of(bytes);
    uint64_t line = lanes.rank();
    return ll_wait_each(view, lanes, {what, phase, rank, epoch}, [&](uint64_t* seen) {
        // Acquire pairs with the device's placement of the line, which is whole and, in it, in order: the tag is last.
        for (; line < n; line += lanes.size()) {
            *seen = flag_load(reinterpret_cast<const uint64_t*>(at + line * kLineBytes + kLineContent));
            if (*seen != epoch) return false;
        }
        return true;
    });
}

// ---- who may send, who has got all ----

// Before anything of `epoch` is sent to the rank: it has consumed what it was sent in these places before. Of a masked rank
// nothing is noted, as nothing will be sent to it.
template <class Lanes>
NVSHMEM_EFA_HD inline LlEnd ll_wait_for_credit(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, uint32_t rank) {
    const uint32_t place = place_of(view, phase, epoch, rank);
    const uint64_t wanted = view.sent[place];
    const bool is_out = is_masked(view, rank);  // looked at last, so that the two loads' times do not add up
    const uint64_t* credit = word_at(view.base, view.at.credits_in, place);
    const LlEnd end = ll_wait(view, lanes, {LlWait::kCredit, phase, rank, wanted}, [&](uint64_t* seen) {
        *seen = flag_load(credit);  // pairs with the rank's ll_give_credit(): it reads nothing there any more
        return *seen >= wanted;
    });
    if (end == LlEnd::kThere && !is_out && lanes.rank() == 0) view.sent[place] = epoch;
    return end;
}

// Everything this rank posted before is complete. Nothing in this waits for a peer's program. Once, between the credits and
// the first request of an operation: so no place is written while an earlier write of ours to it is un-acknowledged (a late
// second copy could undo the new bytes), and no source of an earlier request is overwritten. And in a combine before the
// credits: places for rows belong to no rank, so the next to write one may be another. All wait for all credits; ours
// then says that no late copy of our rows can come.
NVSHMEM_EFA_COLD inline bool ll_settle(const LlView& view, LlPhase phase) {
    if (!view.state) return true;
#if !defined(__CUDACC__)
    // quiet() waits as a GPU does. Here the device's thread may need this processor, so the wait gives it away.
    const uint64_t deadline = clock_ns() + view.timeout_ns;
    for (uint32_t i = 0; i < view.state->n_rails * view.state->queues_per_rail; ++i) {
        const GpuQueue& queue = view.state->queues[i];
        for (uint32_t turn = 0; !device::queue_is_idle(queue) && completions_refresh(queue) && clock_ns() < deadline; ++turn) wait_turn(turn);
    }
#endif
    if (quiet(*view.state)) return true;
    ll_fail(view.fault, LlWait::kNetwork, phase, view.rank, 0, 0);
    return false;
}

// To a rank that is reached by stores: all that this rank has for it is there. Pre: all that was stored to it happened
// before, for these lanes.
template <class Lanes>
NVSHMEM_EFA_HD inline void ll_raise_flag(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, uint32_t rank) {
    uint64_t* flag = word_at(view.stores[rank], view.at.flags_in, place_of(view, phase, epoch, view.rank));
    flag_store(lanes, flag, epoch);  // pairs with ll_wait_for_flag()
}
// One lane's wait.
NVSHMEM_EFA_HD inline LlEnd ll_wait_for_flag(const LlView& view, LlPhase phase, uint64_t epoch, uint32_t rank) {
    const uint64_t* flag = word_at(view.base, view.at.flags_in, place_of(view, phase, epoch, rank));
    const LlWait what = phase == LlPhase::kDispatch ? LlWait::kTokens : LlWait::kRows;
    return ll_wait_alone(view, {what, phase, rank, epoch}, [&](uint64_t* seen) {
        *seen = flag_load(flag);  // pairs with ll_raise_flag()
        return *seen == epoch;
    });
}

// This rank reads nothing any more of what `rank` sent in `epoch`. By the network it is one word, and not written again
// before its last write is complete: ll_settle() of a later send comes between.
template <class Lanes>
NVSHMEM_EFA_HD inline bool ll_give_credit(const LlView& view, const Lanes& lanes, LlPhase phase, uint64_t epoch, uint32_t rank) {
    const uint32_t place = place_of(view, phase, epoch, view.rank);
    if (!by_network(view, rank)) {
        flag_store(lanes, word_at(view.stores[rank], view.at.credits_in, place), epoch);  // pairs with ll_wait_for_credit()
        return true;
    }
    uint64_t* from = word_at(view.base, view.at.credits_out, place_of(view, phase, epoch, rank));
    if (lanes.rank() == 0) *from = epoch;
    return ll_put(view, lanes, phase, word_at(view.base, view.at.credits_in, place), from, 8, rank);
}

}  // namespace nvshmem_efa::ep
