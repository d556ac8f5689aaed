// SPDX-License-Identifier: Apache-2.0
// Signals and atomics: records sent to the target's agent, and put_signal, whose data the agent counts.
#include "cuda_driver.h"
#include "lane.h"

namespace nvshmem_efa {

namespace {

constexpr uint32_t kCountedPiecesMax = 16;  // longer transfers gain nothing from one hop less

uint8_t log2_bytes(uint8_t bytes) { return bytes == 8 ? 3 : bytes == 4 ? 2 : 1; }

}  // namespace

Status LaneQueues::check_word(const AmoOp& op) const {
    if (op.bytes != 8 && op.bytes != 4 && !(op.bytes == 2 && op.type == WordType::kFloat)) {
        return Status::error(Code::kUnsupported, "use 4 or 8 bytes; 2 only for half-precision floats",
                             "%s: atomic on %u bytes", name(op.pe).c_str(), op.bytes);
    }
    if (op.remote % op.bytes) {
        return Status::error(Code::kInvalidArgument, "align the word to its size", "%s: atomic on %u bytes at %#llx",
                             name(op.pe).c_str(), op.bytes, static_cast<unsigned long long>(op.remote));
    }
    if (op.fetching && !op.result)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: fetching atomic without a result address", name(op.pe).c_str());
    return check_remote(op.pe, op.remote, op.bytes, op.remote_handle);
}

// Room in the window of records that the peer's agent has not acknowledged, among the immediates it must take in, and
// for the reply, if there will be one.
Status LaneQueues::wait_for_window(int pe, uint32_t immediates, bool is_fetching) {
    LanePeer& peer = peers_[static_cast<size_t>(pe)];
    const uint32_t immediates_max = 2 * job_->window;
    return wait(pe, "room in the window of signals and atomics", [&] {
        read_acks(peer);
        if (peer.next_seq - peer.ack_seen >= job_->window || peer.immediates + immediates > immediates_max) return false;
        // Acquire pairs with the agent's release when it has read the slot's last reply (agent.cpp, deliver_fetches).
        return !is_fetching || !peer.reply_busy[peer.next_seq & (job_->window - 1)].load(std::memory_order_acquire);
    });
}

void LaneQueues::expect_reply(const AmoOp& op, uint32_t seq) {
    LanePeer& peer = peers_[static_cast<size_t>(op.pe)];
    PendingFetch fetch;
    fetch.reply = &peer.replies[seq & (job_->window - 1)];
    fetch.seq = seq;
    fetch.bytes = op.bytes;
    fetch.result = static_cast<uint64_t*>(op.result);
    fetch.result_kind = cuda::memory_kind_of(op.result);
    fetch.flag = op.result_flag;
    fetch.outstanding = peer.fetches.get();
    fetch.slot_is_busy = &peer.reply_busy[seq & (job_->window - 1)];
    fetch.slot_is_busy->store(1, std::memory_order_relaxed);
    peer.fetches->fetch_add(1, std::memory_order_relaxed);
    board_->add(fetch);
}

// Pre: wait_for_window() and a place in the queue. The record's number is the lane's next for that PE.
Status LaneQueues::post_record(const AmoOp& op, uint32_t n_writes) {
    LanePeer& peer = peers_[static_cast<size_t>(op.pe)];
    const uint32_t seq = peer.next_seq;
    const size_t rail = seq % job_->n_rails;
    Endpoint& endpoint = endpoints_[rail];
    EFA_TRY(wait_for_room(endpoint, op.pe));
    AgentRecord record{};
    record.addr = op.remote;
    record.operand = op.operand;
    record.compare = op.compare;
    record.seq = seq;
    record.n_writes = static_cast<uint16_t>(n_writes);
    record.op = static_cast<uint8_t>(op.op) & 0xf;
    record.bytes_log2 = log2_bytes(op.bytes) & 0xf;
    record.flags = static_cast<uint8_t>((op.fetching ? kRecordFetch : 0) | (op.type == WordType::kFloat ? kRecordFloat : 0));
    peer.immediates_of[seq & (job_->window - 1)] = static_cast<uint16_t>(n_writes);
    peer.immediates += n_writes;
    ++peer.next_seq;
    ++peer.records_in_flight;
    open_records_.fetch_add(1, std::memory_order_relaxed);
    if (op.fetching) expect_reply(op, seq);
    Request request;
    request.kind = RequestKind::kRecord;
    request.owner = static_cast<uint32_t>(op.pe);
    endpoint.post_send_copy(job_->peers[request.owner].agent[rail], &record, sizeof record, request);
    endpoint.ring();
    return Status();
}

Status LaneQueues::amo(const AmoOp& op) {
    const std::lock_guard lock(mutex_);
    EFA_TRY(check_pe(op.pe));
    EFA_TRY(peer_status(op.pe));
    EFA_TRY(check_word(op));
    EFA_TRY(wait_for_fence(op.pe, true));
    EFA_TRY(wait_for_window(op.pe, 0, op.fetching));
    ++stats_.amos;
    return post_record(op, 0);
}

// One network hop: the data writes carry the record's number, and the agent applies the record when all have arrived.
Status LaneQueues::signal_by_count(const PutSignalOp& op, uint32_t pieces) {
    EFA_TRY(wait_for_window(op.signal.pe, pieces, false));
    const uint32_t seq = peers_[static_cast<size_t>(op.signal.pe)].next_seq;
    Status posted;
    for (size_t i = 0; i < op.n_puts && posted.ok(); ++i)
        if (op.puts[i].bytes) posted = post_rma(op.puts[i], &seq, nullptr);
    if (posted.ok()) posted = post_record(op.signal, pieces);
    // Data that was counted without its record would be counted for the next one: nothing more may go to that PE.
    if (!posted.ok()) fail_peer(op.signal.pe, posted.code(), posted.message());
    return posted;
}

// Two hops: the record leaves when the data has been acknowledged.
Status LaneQueues::signal_when_complete(const PutSignalOp& op) {
    Tracker tracker;
    Status posted;
    for (size_t i = 0; i < op.n_puts && posted.ok(); ++i)
        if (op.puts[i].bytes) posted = post_rma(op.puts[i], nullptr, &tracker);
    EFA_TRY(finish_blocking(op.signal.pe, &tracker, std::move(posted)));
    EFA_TRY(wait_for_window(op.signal.pe, 0, false));
    return post_record(op.signal, 0);
}

Status LaneQueues::put_signal(const PutSignalOp& op) {
    const std::lock_guard lock(mutex_);
    const int pe = op.signal.pe;
    EFA_TRY(check_pe(pe));
    EFA_TRY(peer_status(pe));
    EFA_TRY(check_word(op.signal));
    uint32_t pieces = 0;
    bool any_copied = false;
    for (size_t i = 0; i < op.n_puts; ++i) {
        const RmaOp& put = op.puts[i];
        if (put.pe != pe || put.kind != RmaKind::kPut)
            return Status::error(Code::kInvalidArgument, nullptr, "%s: a put_signal holds puts to one PE only", name(pe).c_str());
        if (put.bytes == 0) continue;
        EFA_TRY(check_remote(pe, put.remote, put.bytes, put.remote_handle));
        any_copied = any_copied || put.copy_source;
        pieces += cut(put.bytes).pieces;
        stats_.bytes_put += put.bytes;
    }
    EFA_TRY(wait_for_fence(pe, false));
    ++stats_.signals;
    const bool countable = pieces <= kCountedPiecesMax && pieces <= 2 * job_->window && !any_copied;
    return countable && !gated_signals_ ? signal_by_count(op, pieces) : signal_when_complete(op);
}

}  // namespace nvshmem_efa
