// SPDX-License-Identifier: Apache-2.0
// Packets leave here: peers in turn, the messages of one peer a segment each in turn, as the wire has room.
#include <algorithm>

#include "device.h"
#include "log.h"

namespace nvshmem_efa::soft {
namespace {

constexpr int kPacketsPerTurn = 64;  // to one peer, so that none waits for another's bulk
constexpr uint32_t kSegmentAlign = 4096;

uint64_t sge_addr(const Sge& sge) { return sge.addr_lo | (static_cast<uint64_t>(sge.addr_hi) << 32); }

uint64_t segment_length(uint64_t bytes, uint32_t n, uint64_t least, uint64_t most) {
    const uint64_t even = (bytes + n - 1) / n;
    const uint64_t aligned = (even + kSegmentAlign - 1) / kSegmentAlign * kSegmentAlign;
    return std::min(std::max(aligned, least), most);
}

}  // namespace

void Device::list_peer(uint32_t index) {
    if (peers_[index].is_listed) return;
    peers_[index].is_listed = true;
    busy_peers_.push_back(index);
}

void Device::emit_all() {
    std::swap(busy_peers_, busy_scratch_);
    for (uint32_t index : busy_scratch_) {
        peers_[index].is_listed = false;
        emit_peer(index);
        const Peer& peer = peers_[index];
        if (!peer.outgoing.empty() || !peer.answers.empty() || !peer.ready.empty()) list_peer(index);
    }
    busy_scratch_.clear();
}

void Device::emit_peer(uint32_t index) {
    Peer& peer = peers_[index];
    while (!peer.outgoing.empty()) {
        Outgoing& packet = outgoing_[peer.outgoing.head];
        if (!send_packet(packet.header, packet.bounce)) return;
        if (packet.bounce) bounce_.give(packet.bounce);
        outgoing_.give(list_pop(outgoing_, peer.outgoing));
    }
    for (int turn = 0; turn < kPacketsPerTurn && (!peer.answers.empty() || !peer.ready.empty()); ++turn) {
        if (options_.use_timing && link_free_ns_ > now_ns_) return;
        bool is_done = false;
        if (!peer.answers.empty() && (peer.ready.empty() || (turn & 1) == 0)) {
            const uint32_t answer = peer.answers.head;
            if (!emit_answer(index, answers_[answer], &is_done)) return;
            list_pop(answers_, peer.answers);
            if (is_done) {
                answers_.give(answer);
            } else {
                list_push(answers_, peer.answers, answer);
            }
            continue;
        }
        const uint32_t op = peer.ready.head;
        if (!emit_op(index, op, &is_done)) return;
        list_pop(ops_, peer.ready);
        if (!is_done) {
            list_push(ops_, peer.ready, op);
        } else if (ops_[op].is_live) {
            wait_for_answer(op);
        } else {
            ops_.give(op);
        }
    }
}

// Sends the op's next packet. False when there was no room; then nothing has changed.
bool Device::emit_op(uint32_t peer_index, uint32_t op_index, bool* is_done) {
    Op& op = ops_[op_index];
    *is_done = true;
    if (!op.is_live) return true;  // flushed meanwhile
    for (int i = 0; i < op.n_sges; ++i) {
        const uint32_t access = op.opcode == SendOpcode::kRdmaRead ? kAccessLocalWrite : 0;
        const CqeStatus status = check_sge(qps_[op.qp], op.sges[i], access);
        if (status != CqeStatus::kOk) {  // deregistered since the doorbell
            complete_op(op_index, status);
            return true;
        }
    }
    const Peer& peer = peers_[peer_index];
    if (op.n_segments == 0) plan_segments(peer, op);
    PacketHeader header = op_header(op, op_index, peer.gid);
    if (op.opcode == SendOpcode::kRdmaRead) return send_packet(header, nullptr);
    const bool is_sent =
        op.opcode == SendOpcode::kSend ? emit_send(peer_index, op, header) : emit_segment(peer_index, op, header);
    if (!is_sent) return false;
    ++op.next_segment;
    *is_done = op.next_segment == op.n_segments;
    return true;
}

void Device::plan_segments(const Peer& peer, Op& op) {
    op.by_reference = false;
    op.segment_bytes = static_cast<uint32_t>(op.bytes);
    if (op.opcode == SendOpcode::kRdmaWrite && !op.is_inline) {
        const Region* region = regions_.by_lkey(op.sges[0].lkey);
        PeerBytes reference;
        op.by_reference = can_refer(peer, region->here(sge_addr(op.sges[0])), op.bytes, &reference);
        const uint64_t most = op.by_reference ? UINT32_MAX : options_.payload_max;
        op.segment_bytes =
            static_cast<uint32_t>(segment_length(op.bytes, segments_max(op.by_reference), caps().mtu, most));
    }
    op.n_segments = op.bytes == 0 ? 1 : static_cast<uint32_t>((op.bytes + op.segment_bytes - 1) / op.segment_bytes);
    if (op.opcode != SendOpcode::kRdmaWrite) op.n_segments = 1;
}

PacketHeader Device::op_header(const Op& op, uint32_t op_index, const Gid& to) const {
    PacketHeader header;
    switch (op.opcode) {
        case SendOpcode::kSend: header.type = PacketType::kSend; break;
        case SendOpcode::kRdmaRead: header.type = PacketType::kReadRequest; break;
        case SendOpcode::kRdmaWrite: header.type = PacketType::kWrite; break;
    }
    const QpSlot& qp = qps_[op.qp];
    header.flags = static_cast<uint8_t>((op.has_imm ? kPacketHasImm : 0) |
                                        (qp.attr.unsolicited_recv ? kPacketUnsolicited : 0));
    header.attempt = op.attempt;
    header.src_gid = options_.gid;
    header.dst_gid = to;
    header.src_qp_num = qp.qp_num;
    header.dst_qp_num = op.dest_qp_num;
    header.qkey = op.qkey;
    header.message = (static_cast<uint64_t>(op.generation) << 32) | op_index;
    header.message_bytes = op.bytes;
    header.n_segments = op.n_segments;
    header.immediate = op.immediate;
    header.rkey = op.rkey;
    header.remote_addr = op.remote_addr;
    return header;
}

bool Device::emit_send(uint32_t peer_index, const Op& op, PacketHeader& header) {
    header.segment_bytes = header.payload_bytes = static_cast<uint32_t>(op.bytes);
    if (op.is_inline) return send_packet(header, op.inline_bytes);
    Piece pieces[kSendSgesMax];
    bool is_host = true;
    for (int i = 0; i < op.n_sges; ++i) {
        pieces[i].from = regions_.by_lkey(op.sges[i].lkey)->here(sge_addr(op.sges[i]));
        pieces[i].bytes = op.sges[i].length;
        is_host = is_host && pieces[i].from.kind == MemoryKind::kHost;
    }
    if (!is_host) return fetch(peer_index, header, pieces, op.n_sges);
    if (op.n_sges == 1) return send_packet(header, reinterpret_cast<const void*>(pieces[0].from.addr));
    size_t at = 0;
    for (int i = 0; i < op.n_sges; ++i) {
        std::memcpy(gather_.data() + at, reinterpret_cast<const void*>(pieces[i].from.addr), pieces[i].bytes);
        at += pieces[i].bytes;
    }
    return send_packet(header, gather_.data());
}

bool Device::emit_segment(uint32_t peer_index, Op& op, PacketHeader& header) {
    // Within groups of eight, segments leave in an order of the message's own.
    uint32_t segment = op.next_segment;
    if ((segment | 7u) < op.n_segments) segment ^= op.shuffle;
    header.segment_offset = static_cast<uint64_t>(segment) * op.segment_bytes;
    header.segment_bytes = static_cast<uint32_t>(std::min<uint64_t>(op.segment_bytes, op.bytes - header.segment_offset));
    if (op.is_inline) {
        header.payload_bytes = header.segment_bytes;
        return send_packet(header, op.inline_bytes);
    }
    const MemoryAddr from = regions_.by_lkey(op.sges[0].lkey)->here(sge_addr(op.sges[0]) + header.segment_offset);
    PeerBytes reference;
    if (op.by_reference && can_refer(peers_[peer_index], from, header.segment_bytes, &reference)) {
        header.flags |= kPacketByReference;
        header.ref_process = reference.process;
        header.ref_export = reference.export_id;
        header.ref_offset = reference.offset;
        return send_packet(header, nullptr);
    }
    if (op.by_reference && header.segment_bytes > options_.payload_max) {
        // The peer refused this memory while the message was under way: what is left goes in smaller pieces.
        const uint32_t answer_index = answers_.take();
        if (answer_index == kNone) return false;
        Answer& answer = answers_[answer_index];
        answer = Answer{};
        answer.header = header;
        answer.at = header.segment_offset;
        answer.end = header.segment_offset + header.segment_bytes;
        answer.addr = sge_addr(op.sges[0]);
        answer.lkey = op.sges[0].lkey;
        answer.segment_bytes = options_.payload_max;
        answer.is_read = false;
        list_push(answers_, peers_[peer_index].answers, answer_index);
        return true;
    }
    return emit_bytes(peer_index, header, from);
}

// A range of a peer's read, or of a write whose reference the peer could not resolve.
bool Device::emit_answer(uint32_t peer_index, Answer& answer, bool* is_done) {
    const Region* region = regions_.by_lkey(answer.lkey);
    *is_done = true;
    if (!region || !region->covers(answer.addr + answer.at, answer.end - answer.at)) {  // deregistered meanwhile
        if (answer.is_read) {
            acknowledge(answer.header, peer_index, CqeStatus::kRemoteBadAddress);
        } else if (op_of_message(answer.header.message)) {
            complete_op(static_cast<uint32_t>(answer.header.message), CqeStatus::kInvalidLkey);
        }
        return true;
    }
    PacketHeader header = answer.header;
    header.segment_offset = answer.at;
    header.segment_bytes = static_cast<uint32_t>(std::min<uint64_t>(answer.segment_bytes, answer.end - answer.at));
    const MemoryAddr from = region->here(answer.addr + answer.at);
    PeerBytes reference;
    bool is_sent;
    if (answer.by_reference && can_refer(peers_[peer_index], from, header.segment_bytes, &reference)) {
        header.flags |= kPacketByReference;
        header.ref_process = reference.process;
        header.ref_export = reference.export_id;
        header.ref_offset = reference.offset;
        is_sent = send_packet(header, nullptr);
    } else {
        answer.by_reference = false;
        answer.segment_bytes = std::min(answer.segment_bytes, options_.payload_max);
        header.segment_bytes = std::min(header.segment_bytes, options_.payload_max);
        is_sent = emit_bytes(peer_index, header, from);
    }
    if (!is_sent) return false;
    if (answer.is_read) stats_.read_response_bytes += header.segment_bytes;
    answer.at += header.segment_bytes;
    *is_done = answer.at >= answer.end;
    if (*is_done && answer.is_read) {
        const uint32_t qp = qp_index(answer.header.src_qp_num);
        if (qp != kNone) count(qps_[qp], kCountRemoteRead, false);
    }
    return true;
}

// A segment with its payload: straight from host memory, or through a bounce buffer from GPU memory.
bool Device::emit_bytes(uint32_t peer_index, const PacketHeader& header, MemoryAddr from) {
    PacketHeader with_payload = header;
    with_payload.payload_bytes = header.segment_bytes;
    if (from.kind == MemoryKind::kHost) return send_packet(with_payload, reinterpret_cast<const void*>(from.addr));
    const Piece piece{from, header.segment_bytes};
    return fetch(peer_index, with_payload, &piece, 1);
}

// Starts to copy pieces (some in GPU memory) into a bounce buffer; the packet leaves when they are there. The pieces
// were checked.
bool Device::fetch(uint32_t peer_index, const PacketHeader& header, const Piece* pieces, int n) {
    if (bounce_.room() == 0 || outgoing_.room() == 0) return false;
    const uint32_t index = outgoing_.take();
    Outgoing& packet = outgoing_[index];
    packet.bounce = bounce_.take();
    if (!packet.bounce) {
        outgoing_.give(index);
        return false;
    }
    packet.header = header;
    packet.peer = peer_index;
    uint64_t at = reinterpret_cast<uint64_t>(packet.bounce);
    for (int i = 0; i < n; ++i) {
        const MemoryPort::Ticket ticket =
            start_copy(MemoryAddr{MemoryKind::kHost, at}, pieces[i].from, pieces[i].bytes);
        if (ticket != 0 || i == 0) packet.ticket = ticket;  // the last one that takes its time ends last
        at += pieces[i].bytes;
    }
    list_push(outgoing_, fetching_, index);
    return true;
}

void Device::poll_fetches() {
    while (!fetching_.empty() && memory_->done(outgoing_[fetching_.head].ticket)) {
        const uint32_t index = list_pop(outgoing_, fetching_);
        const uint32_t peer = outgoing_[index].peer;
        list_push(outgoing_, peers_[peer].outgoing, index);
        list_peer(peer);
    }
}

bool Device::send_packet(const PacketHeader& header, const void* payload) {
    if (is_dead()) return true;  // planned fault: nothing leaves any more
    if (!wire_->send(header, payload)) {
        is_blocked_ = true;
        return false;
    }
    ++stats_.packets_sent;
    ++work_done_;
    stats_.bytes_sent += header.segment_bytes;
    if (options_.use_timing && options_.profile.timing.bytes_per_us != 0) {
        link_free_ns_ = std::max(link_free_ns_, now_ns_) +
                        static_cast<uint64_t>(header.segment_bytes) * 1000 / options_.profile.timing.bytes_per_us;
    }
    return true;
}

// Packets without payload: at once if nothing is before them, else in turn.
void Device::send_control(uint32_t peer_index, const PacketHeader& header) {
    Peer& peer = peers_[peer_index];
    if (peer.outgoing.empty() && send_packet(header, nullptr)) return;
    const uint32_t index = outgoing_.take();
    if (index == kNone) {
        EFA_LOG(kError, "soft", "%s: an acknowledgement was dropped, %u wait for the wire", name().c_str(),
                outgoing_.used());
        return;
    }
    Outgoing& packet = outgoing_[index];
    packet.header = header;
    packet.bounce = nullptr;
    packet.peer = peer_index;
    list_push(outgoing_, peer.outgoing, index);
    list_peer(peer_index);
}

bool Device::can_refer(const Peer& peer, MemoryAddr from, size_t bytes, PeerBytes* reference) const {
    if (from.kind != MemoryKind::kCuda || bytes == 0 || !memory_->reference_of(from, bytes, reference)) return false;
    const uint64_t* end = peer.refused_exports + std::min<uint32_t>(peer.n_refused, std::size(peer.refused_exports));
    return std::find(peer.refused_exports, end, reference->export_id) == end;
}

void Device::wait_for_answer(uint32_t index) {
    Op& op = ops_[index];
    op.is_in_network = true;
    op.deadline_ns = now_ns_ + options_.unresponsive_ns;
    op.wait_prev = waiting_tail_;
    op.wait_next = kNone;
    if (waiting_tail_ == kNone) {
        waiting_head_ = index;
    } else {
        ops_[waiting_tail_].wait_next = index;
    }
    waiting_tail_ = index;
}

void Device::stop_waiting(uint32_t index) {
    Op& op = ops_[index];
    (op.wait_prev == kNone ? waiting_head_ : ops_[op.wait_prev].wait_next) = op.wait_next;
    (op.wait_next == kNone ? waiting_tail_ : ops_[op.wait_next].wait_prev) = op.wait_prev;
    op.is_in_network = false;
}

}  // namespace nvshmem_efa::soft
