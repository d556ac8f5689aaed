// SPDX-License-Identifier: Apache-2.0
// The inside of the device API: records to agents. Numbers, the window, fetched values, acknowledgements.
#pragma once

#include "nvshmem_efa/device_post.h"

namespace nvshmem_efa::device {

// Nothing more may go to that PE: its agent waits for a record that will not come, or has refused one. Always false.
// Somebody has filled an error record before, of a queue or of the state.
NVSHMEM_EFA_HD inline bool fail_peer(const DeviceState& state, uint32_t pe) {
    order::store_relaxed_gpu(&state.peers[pe].failed, 1);
    return false;
}

// Brings `acked` up to date by a look at the word that the PE's agent writes. False: it has refused a record.
NVSHMEM_EFA_COLD inline bool refresh_acks(const DeviceState& state, uint32_t pe) {
    DevicePeer& peer = state.peers[pe];
    const uint64_t known = order::load_acquire_gpu(&peer.acked);  // pairs with the release below
    // Acquire pairs with the device's placement of the word: what the records did is visible at the PE.
    const uint64_t word = order::load_acquire_sys(&state.acks[pe]);
    if (word & kAckRefused) {
        fail(state, {DeviceWait::kRefused, pe, ack_applied(word), 0, 0, 0});
        return fail_peer(state, pe);
    }
    const uint32_t fresh = ack_applied(word) - static_cast<uint32_t>(known);
    // More than a window ahead: a look older than `known`.
    if (fresh != 0 && fresh <= state.window) order::max_release_gpu(&peer.acked, known + fresh);
    return true;
}

// Waits until all records before number `end` are acknowledged.
NVSHMEM_EFA_COLD inline bool wait_for_acks(const DeviceState& state, uint32_t pe, uint32_t end, DeviceWait what) {
    DevicePeer& peer = state.peers[pe];
    PeerWait wait;
    while (true) {
        const auto acked = static_cast<uint32_t>(order::load_acquire_gpu(&peer.acked));  // pairs with refresh_acks()
        if (static_cast<int32_t>(acked - end) >= 0) return true;
        if (order::load_relaxed_gpu(&peer.failed) != 0 || !refresh_acks(state, pe)) return false;
        const PeerWait::Turn turn = wait.next(state, state.wait_ticks);
        if (turn == PeerWait::Turn::kGoOn) continue;
        if (turn == PeerWait::Turn::kPassed) fail(state, {what, pe, end, 0, end, acked});
        return fail_peer(state, pe);
    }
}

// The caller's number for a record to the PE, and room for it in the window. Whoever has a number must post its record,
// or fail the peer: all later records wait for it. Nobody waits here who holds a slot, and who waits for slots does not
// wait for numbers, so that the two never wait for each other.
NVSHMEM_EFA_HD inline bool take_number(const DeviceState& state, uint32_t pe, uint32_t* seq) {
    DevicePeer& peer = state.peers[pe];
    // Three loads on their way together. A number that is drawn from a failed peer is missed by nobody.
    *seq = order::fetch_add_relaxed_gpu(&peer.next_seq, 1);
    const uint32_t has_failed = order::load_relaxed_gpu(&peer.failed);
    const auto acked = static_cast<uint32_t>(order::load_before_branch_gpu(&peer.acked));
    if (has_failed != 0) return false;
    const bool is_good = *seq - acked < state.window || wait_for_acks(state, pe, *seq - state.window + 1, DeviceWait::kWindow);
    // Counted behind the number: pairs with the load in quiet_records(), which looks at numbers after the count.
    order::add_behind_branch_gpu(&state.shared->records, 1);
    return is_good;
}

NVSHMEM_EFA_HD inline SendWqe record_wqe(const DeviceState& state, const AgentRecord& record, uint32_t rail, uint32_t pe) {
    SendWqe wqe;
    wqe_begin(wqe, SendOpcode::kSend, target_of(state, pe, rail), 0, false, 0);
    wqe_set_send_inline(wqe, &record, sizeof record);
    return wqe;
}

// What is done to a word of another PE.
struct WordCall {
    WordOp op;
    WordType type;
    uint8_t bytes;  // 2, 4 or 8
    uint64_t operand;
    uint64_t compare;
};

// The record for a word at our symmetric address `addr`, its number still open.
NVSHMEM_EFA_HD inline bool make_record(const DeviceState& state, uint64_t addr, const WordCall& call, int pe, bool is_fetch,
                                       AgentRecord* record) {
    if (!pe_is_good(state, pe, addr)) return false;
    const auto at = static_cast<uint32_t>(pe);
    if (addr % call.bytes != 0) return fail(state, {DeviceWait::kBadArgument, at, 0, addr, call.bytes, 0});
    const Span word = find_remote(state, addr, at);
    if (word.addr == 0 || word.left < call.bytes) return fail(state, {DeviceWait::kUnregistered, at, 0, addr, call.bytes, 0});
    *record = AgentRecord{};
    record->addr = word.addr;
    record->operand = call.operand;
    record->compare = call.compare;
    record->op = static_cast<uint8_t>(call.op) & 0xf;
    record->bytes_log2 = (call.bytes == 8 ? 3 : call.bytes == 4 ? 2 : 1) & 0xf;
    record->flags = static_cast<uint8_t>((is_fetch ? kRecordFetch : 0) | (call.type == WordType::kFloat ? kRecordFloat : 0));
    return true;
}

// Posts a record by itself. False: nothing more may go to the PE. A call, as the next: programs have many atomics, and
// each would be a copy of all posting code.
NVSHMEM_EFA_COLD inline bool post_record(const DeviceState& state, AgentRecord record, uint32_t pe, uint32_t poster) {
    const Gate gate = gate_load(state);
    if (!take_number(state, pe, &record.seq) || !gate_pass(state, gate, pe)) return fail_peer(state, pe);
    const Route route = route_of(state, poster);
    return post(state, route.queue, record_wqe(state, record, route.rail, pe), pe) || fail_peer(state, pe);
}

// ---- fetched values ----

// The place for the reply of record `seq`, once who used it before has read his.
NVSHMEM_EFA_COLD inline bool take_reply_place(const DeviceState& state, uint32_t pe, uint32_t seq) {
    uint32_t* busy = &state.reply_busy[pe * state.window + (seq & (state.window - 1))];
    WaitClock clock;
    // Acquire pairs with the release in wait_for_reply(): the value before has been read.
    while (order::load_acquire_gpu(busy) != 0) {
        if (clock.has_passed(state.wait_ticks)) return fail(state, {DeviceWait::kReply, pe, seq, 0, 1, 0});
        if (order::load_relaxed_gpu(&state.peers[pe].failed) != 0) return false;
        order::pause();
    }
    // Nobody else takes it: the next number with this place needs our record's acknowledgement first, and so, by way of
    // our doorbell and that acknowledgement, sees this store.
    order::store_relaxed_gpu(busy, 1);
    return true;
}

NVSHMEM_EFA_COLD inline bool wait_for_reply(const DeviceState& state, uint32_t pe, uint32_t seq, uint64_t* value) {
    const uint32_t place = pe * state.window + (seq & (state.window - 1));
    PeerWait wait;
    while (!reply_decode(state.replies[place], seq, value)) {
        // A refused record has no reply.
        if (order::load_relaxed_gpu(&state.peers[pe].failed) != 0 || !refresh_acks(state, pe)) return false;
        const PeerWait::Turn turn = wait.next(state, state.wait_ticks);
        if (turn == PeerWait::Turn::kPassed) return fail(state, {DeviceWait::kReply, pe, seq, 0, 1, 0});
        if (turn == PeerWait::Turn::kQueueFailed) return false;
    }
    // Release: the place has been read; pairs with the acquire in take_reply_place().
    order::store_release_gpu(&state.reply_busy[place], 0u);
    return true;
}

// Sends a record that returns the word's old value, and waits for it.
NVSHMEM_EFA_COLD inline bool fetch_word(const DeviceState& state, uint64_t addr, WordCall call, int pe, uint64_t* value) {
    AgentRecord record;
    if (!make_record(state, addr, call, pe, true, &record)) return false;
    const auto at = static_cast<uint32_t>(pe);
    const Gate gate = gate_load(state);
    if (!take_number(state, at, &record.seq) || !take_reply_place(state, at, record.seq)) return fail_peer(state, at);
    if (!gate_pass(state, gate, at)) return fail_peer(state, at);
    const Route route = route_of(state, poster_number());
    if (!post(state, route.queue, record_wqe(state, record, route.rail, at), at)) return fail_peer(state, at);
    if (!wait_for_reply(state, at, record.seq, value)) return fail_peer(state, at);
    note_arrival(state);  // the caller may have learned from the value what arrived
    return true;
}

// ---- quiet ----

NVSHMEM_EFA_HD inline bool quiet_peer(const DeviceState& state, uint32_t pe) {
    // The caller's own records are among these. Others' are waited for too, also those that have a number only.
    const uint32_t end = order::load_relaxed_gpu(&state.peers[pe].next_seq);
    const auto acked = static_cast<uint32_t>(order::load_acquire_gpu(&state.peers[pe].acked));  // pairs with refresh_acks()
    if (order::load_relaxed_gpu(&state.peers[pe].failed) != 0) return false;
    return static_cast<int32_t>(acked - end) >= 0 || wait_for_acks(state, pe, end, DeviceWait::kAcks);
}

// Waits until the first `records` that were posted, to whatever PE, are acknowledged.
NVSHMEM_EFA_COLD inline bool quiet_records(const DeviceState& state, uint64_t records) {
    bool is_good = true;
    for (uint32_t pe = 0; pe < static_cast<uint32_t>(state.n_pes); ++pe) is_good = quiet_peer(state, pe) && is_good;
    if (is_good) order::max_release_gpu(&state.shared->records_quiet, records);  // pairs with the load below
    return is_good;
}

// All that was posted, to all PEs.
NVSHMEM_EFA_COLD inline bool quiet_all(const DeviceState& state) {
    const DeviceShared* shared = order::load_fixed(&state.shared);
    // Acquires by the fence in busy_queues(), with whose loads these are on their way. The first pairs with take_number(),
    // the second with the release above: the acknowledgements were seen.
    const uint64_t records = order::load_before_fence_gpu(&shared->records);
    const uint64_t records_quiet = order::load_before_fence_gpu(&shared->records_quiet);
    const bool data = drain_all(state, 0);
    return (records_quiet >= records || quiet_records(state, records)) && data;
}

}  // namespace nvshmem_efa::device
