// SPDX-License-Identifier: Apache-2.0
// Packets in: seeded disorder and the target's checks.
#include <algorithm>

#include "device.h"
#include "log.h"

namespace nvshmem_efa::soft {
namespace {

constexpr uint32_t kPlaceAtOnceBytes = 16u << 10;  // longer payloads mostly skip the window: one copy less

uint64_t sge_addr(const Sge& sge) { return sge.addr_lo | (static_cast<uint64_t>(sge.addr_hi) << 32); }

}  // namespace

// Bytes from the wire: nothing is believed before it was checked here.
bool Device::is_valid(const PacketHeader& header, const void* payload) const {
    if (header.magic != kPacketMagic || !(header.dst_gid == options_.gid)) return false;
    const bool by_reference = header.flags & kPacketByReference;
    const bool has_segment = header.type == PacketType::kSend || header.type == PacketType::kWrite ||
                             header.type == PacketType::kReadResponse;
    if (header.payload_bytes != 0 && (!payload || !has_segment || by_reference)) return false;
    if (header.payload_bytes > std::max(options_.payload_max, caps().mtu)) return false;
    switch (header.type) {
        case PacketType::kSend:
            return !by_reference && header.message_bytes <= caps().mtu && header.segment_offset == 0 &&
                   header.segment_bytes == header.message_bytes && header.payload_bytes == header.message_bytes;
        case PacketType::kWrite:
        case PacketType::kReadResponse:
        case PacketType::kNeedPayload:
            if (header.message_bytes > caps().max_rdma_bytes || header.segment_bytes > header.message_bytes ||
                header.segment_offset > header.message_bytes - header.segment_bytes)
                return false;
            if (header.segment_bytes == 0 && header.message_bytes != 0) return false;
            if (header.type == PacketType::kNeedPayload) return true;
            return by_reference ? header.segment_bytes != 0 : header.payload_bytes == header.segment_bytes;
        case PacketType::kReadRequest: return header.message_bytes <= caps().max_rdma_bytes;
        case PacketType::kAck: return header.status < kStatusCodes;
    }
    return false;
}

void Device::receive(const PacketHeader& header, const void* payload, uint64_t now_ns) {
    if (is_dead()) return;
    ++stats_.packets_received;
    ++work_done_;
    const uint32_t peer = is_valid(header, payload) ? peers_.find_or_add(header.src_gid) : kNone;
    const uint32_t index = peer == kNone ? kNone : arrivals_.take();
    if (index == kNone) {
        ++stats_.packets_refused;
        return;
    }
    now_ns_ = std::max(now_ns_, now_ns);
    Arrival& arrival = arrivals_[index];
    arrival.header = header;
    arrival.peer = peer;
    arrival.order = ++peers_[peer].arrivals;
    arrival.buffer = nullptr;
    arrival.payload = static_cast<const uint8_t*>(payload);
    arrival.torn_left = 0;
    arrival.is_repeat = false;
    arrival.will_repeat = header.type == PacketType::kWrite && !caps().data_polling_128 && header.segment_bytes != 0 &&
                          prng_.one_in_million(options_.faults.duplicate_ppm);
    arrival.message = kNone;
    arrival.target_bytes = UINT32_MAX;
    const uint64_t delay_ns = draw_delay(header);
    const bool at_once = header.payload_bytes > kPlaceAtOnceBytes && !options_.use_timing && !arrival.will_repeat &&
                         (delay_ns == 0 || (prng_.next() & 7u) != 0);
    if (at_once) {
        handle(index);
    } else if (keep_payload(arrival)) {
        due_.push(now_ns_ + delay_ns, index);
    } else {
        arrivals_.give(index);  // out of buffers: the wire handed over more than room()
        ++stats_.packets_refused;
    }
}

uint64_t Device::draw_delay(const PacketHeader& header) {
    const Faults& faults = options_.faults;
    uint64_t delay_ns = prng_.below(faults.reorder_ns + 1);
    if (options_.use_timing) {
        const Timing& timing = options_.profile.timing;
        delay_ns += timing.one_way_ns + prng_.below(timing.jitter_ns + 1);
        if (header.type == PacketType::kAck) delay_ns += timing.ack_extra_ns;
    }
    if (prng_.one_in_million(faults.delay_ppm)) {
        ++stats_.delays;
        const uint64_t far_ns = faults.far_delay_ns ? faults.far_delay_ns : 50 * faults.reorder_ns + 20'000;
        delay_ns += prng_.below(far_ns + 1);
    }
    return delay_ns;
}

// Copies the payload out of the wire's memory. False when there is no buffer.
bool Device::keep_payload(Arrival& arrival) {
    const uint32_t bytes = arrival.header.payload_bytes;
    if (bytes == 0) return true;
    uint8_t* to = arrival.small;
    if (bytes > kArrivalInline) {
        arrival.buffer = to = bytes <= mtu_buffers_.bytes() ? mtu_buffers_.take() : segment_buffers_.take();
        if (!to) return false;
    }
    std::memcpy(to, arrival.payload, bytes);
    arrival.payload = to;
    return true;
}

void Device::drop_arrival(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    if (arrival.buffer) {
        (arrival.header.payload_bytes <= mtu_buffers_.bytes() ? mtu_buffers_ : segment_buffers_).give(arrival.buffer);
        arrival.buffer = nullptr;
    }
    arrivals_.give(index);
}

void Device::arrive_again(uint32_t index, uint64_t within_ns) {
    due_.push(now_ns_ + 1 + prng_.below(within_ns + 1), index);
}

void Device::refuse(uint32_t index, CqeStatus status) {
    acknowledge(arrivals_[index].header, arrivals_[index].peer, status);
    drop_arrival(index);
}

void Device::handle(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    if (arrival.is_repeat || arrival.torn_left != 0) {
        place(index);
        return;
    }
    Peer& peer = peers_[arrival.peer];
    peer.last_heard_ns = now_ns_;
    if (arrival.order < peer.newest_handled) {
        ++stats_.out_of_order;
    } else {
        peer.newest_handled = arrival.order;
    }
    const PacketHeader& header = arrival.header;
    trace(2 + (static_cast<uint64_t>(header.type) << 8), header.message, header.segment_offset);
    switch (header.type) {
        case PacketType::kAck:
            handle_ack(header);
            drop_arrival(index);
            break;
        case PacketType::kWrite:
        case PacketType::kSend: {
            const CqeStatus status = header.type == PacketType::kWrite ? check_write(arrival) : check_send(arrival);
            if (status == CqeStatus::kOk) {
                place(index);
            } else if (status == CqeStatus::kRnr && qps_[arrival.qp].is_ud) {
                refuse(index, CqeStatus::kOk);  // dropped, and nobody is told
            } else {
                refuse(index, status);
            }
            break;
        }
        case PacketType::kReadRequest: handle_read_request(index); break;
        case PacketType::kReadResponse: handle_read_response(index); break;
        case PacketType::kNeedPayload: handle_need_payload(index); break;
    }
}

CqeStatus Device::check_queue(const PacketHeader& header, uint32_t* qp) const {
    *qp = qp_index(header.dst_qp_num);
    if (*qp == kNone || qps_[*qp].attr.qkey != header.qkey) return CqeStatus::kBadDestQpn;
    return qps_[*qp].state == QpState::kReady ? CqeStatus::kOk : CqeStatus::kRemoteAbort;
}

// Null when the message may not go there.
const Region* Device::target_of(const PacketHeader& header, const QpSlot& qp, uint32_t access) const {
    const Region* region = regions_.by_rkey(header.rkey);
    const bool is_good = region && region->domain == qp.domain && (region->access & access) &&
                         region->covers(header.remote_addr, header.message_bytes);
    return is_good ? region : nullptr;
}

CqeStatus Device::check_write(Arrival& arrival) {
    const PacketHeader& header = arrival.header;
    if (peers_[arrival.peer].handles == 0) return CqeStatus::kUnknownPeer;
    const CqeStatus status = check_queue(header, &arrival.qp);
    if (status != CqeStatus::kOk) return status;
    if (qps_[arrival.qp].is_ud) return CqeStatus::kBadDestQpn;
    const bool sender_is_unsolicited = header.flags & kPacketUnsolicited;
    if ((header.flags & kPacketHasImm) && sender_is_unsolicited != qps_[arrival.qp].attr.unsolicited_recv)
        return CqeStatus::kFeatureMismatch;
    const Region* region = target_of(header, qps_[arrival.qp], kAccessRemoteWrite);
    if (!region) return CqeStatus::kRemoteBadAddress;
    arrival.target = region->here(header.remote_addr + header.segment_offset);
    return CqeStatus::kOk;
}

// A SEND takes its receive descriptor here, so that two of them never share one while payload is being placed.
CqeStatus Device::check_send(Arrival& arrival) {
    const PacketHeader& header = arrival.header;
    const CqeStatus status = check_queue(header, &arrival.qp);
    if (status != CqeStatus::kOk) return status;
    QpSlot& qp = qps_[arrival.qp];
    const bool is_forced = header.attempt == 0 && prng_.one_in_million(options_.faults.rnr_ppm);
    if (is_forced || !take_receive(qp, &arrival.recv_index)) {
        ++stats_.rnr;
        return CqeStatus::kRnr;
    }
    const Receive receive = take_rest(qp, arrival.recv_index);
    const uint32_t header_bytes = qp.is_ud ? kUdHeaderBytes : 0;
    if (header.message_bytes + header_bytes > receive.bytes || receive.pieces[0].length < header_bytes) {
        qp.received -= receive.n;  // the descriptors stay for a message that fits
        return CqeStatus::kRemoteBadLength;
    }
    MemoryAddr targets[kRecvSgesMax];
    bool is_good = receive.is_whole;
    for (uint32_t i = 0; i < receive.n && is_good; ++i) {
        const RecvWqe& piece = receive.pieces[i];
        const uint64_t addr = piece.addr_lo | (static_cast<uint64_t>(piece.addr_hi) << 32);
        const Region* region = regions_.by_lkey(piece.lkey_ctrl & kLkeyMask);
        is_good = region && region->domain == qp.domain && region->covers(addr, piece.length) &&
                  (region->access & kAccessLocalWrite);
        if (is_good) targets[i] = region->here(addr);
    }
    if (!is_good) {
        deliver_send(arrival, CqeStatus::kInvalidLkey);
        return CqeStatus::kRemoteAbort;
    }
    if (qp.is_ud) write_ud_header(arrival, targets[0]);
    arrival.target = MemoryAddr{targets[0].kind, targets[0].addr + header_bytes};
    arrival.target_bytes = receive.n > 1 ? receive.pieces[0].length - header_bytes : UINT32_MAX;
    arrival.more = targets[1];
    return CqeStatus::kOk;
}

// As InfiniBand's global routing header: what programs read of it are the two addresses.
void Device::write_ud_header(const Arrival& arrival, MemoryAddr to) {
    constexpr size_t kSourceAt = 8, kDestinationAt = 24;
    uint8_t header[kUdHeaderBytes] = {0x60};  // version 6
    std::memcpy(header + kSourceAt, arrival.header.src_gid.raw, sizeof arrival.header.src_gid.raw);
    std::memcpy(header + kDestinationAt, arrival.header.dst_gid.raw, sizeof arrival.header.dst_gid.raw);
    if (to.kind == MemoryKind::kHost)
        (void)memory_->copy(to, MemoryAddr{MemoryKind::kHost, reinterpret_cast<uint64_t>(header)}, sizeof header);
}

void Device::handle_read_request(uint32_t index) {
    const Arrival& arrival = arrivals_[index];
    const PacketHeader& header = arrival.header;
    uint32_t qp;
    CqeStatus status = peers_[arrival.peer].handles == 0 ? CqeStatus::kUnknownPeer : check_queue(header, &qp);
    if (status == CqeStatus::kOk && qps_[qp].is_ud) status = CqeStatus::kBadDestQpn;
    const Region* region = status == CqeStatus::kOk ? target_of(header, qps_[qp], kAccessRemoteRead) : nullptr;
    if (status == CqeStatus::kOk && !region) status = CqeStatus::kRemoteBadAddress;
    const uint32_t answer_index = status == CqeStatus::kOk ? answers_.take() : kNone;
    if (answer_index == kNone) {
        refuse(index, status == CqeStatus::kOk ? CqeStatus::kRemoteAbort : status);
        return;
    }
    Answer& answer = answers_[answer_index];
    answer = Answer{};
    answer.header = header;
    answer.header.type = PacketType::kReadResponse;
    answer.header.flags = 0;
    std::swap(answer.header.src_gid, answer.header.dst_gid);
    std::swap(answer.header.src_qp_num, answer.header.dst_qp_num);
    answer.end = header.message_bytes;
    answer.addr = header.remote_addr;
    answer.lkey = region->lkey;
    PeerBytes reference;
    answer.by_reference = can_refer(peers_[arrival.peer], region->here(answer.addr), answer.end, &reference);
    const uint32_t segments = segments_max(answer.by_reference);
    const uint64_t even = (answer.end + segments - 1) / segments;
    const uint64_t aligned = std::max<uint64_t>((even + 4095) / 4096 * 4096, caps().mtu);
    answer.segment_bytes =
        static_cast<uint32_t>(answer.by_reference ? aligned : std::min<uint64_t>(aligned, options_.payload_max));
    list_push(answers_, peers_[arrival.peer].answers, answer_index);
    list_peer(arrival.peer);
    drop_arrival(index);
}

void Device::handle_read_response(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    const PacketHeader& header = arrival.header;
    const Op* op = op_of_message(header.message);
    const bool is_ours = op && op->opcode == SendOpcode::kRdmaRead && op->bytes == header.message_bytes &&
                         peers_.by_ahn(op->ahn) == arrival.peer;
    if (!is_ours) {
        drop_arrival(index);  // completed with an error meanwhile, or never asked for
        return;
    }
    const CqeStatus status = check_sge(qps_[op->qp], op->sges[0], kAccessLocalWrite);
    if (status != CqeStatus::kOk) {
        complete_op(static_cast<uint32_t>(header.message), status);
        drop_arrival(index);
        return;
    }
    arrival.target = regions_.by_lkey(op->sges[0].lkey)->here(sge_addr(op->sges[0]) + header.segment_offset);
    place(index);
}

// The peer cannot reach memory that we referred to: its bytes follow in packets, now and for this export from now on.
void Device::handle_need_payload(uint32_t index) {
    const Arrival arrival = arrivals_[index];
    drop_arrival(index);
    const PacketHeader& header = arrival.header;
    Peer& peer = peers_[arrival.peer];
    peer.refused_exports[peer.n_refused++ % std::size(peer.refused_exports)] = header.ref_export;
    Answer answer;
    answer.is_read = static_cast<PacketType>(header.status) == PacketType::kReadResponse;
    answer.header = header;
    answer.header.status = 0;
    std::swap(answer.header.src_gid, answer.header.dst_gid);
    std::swap(answer.header.src_qp_num, answer.header.dst_qp_num);
    if (answer.is_read) {
        const Region* region = regions_.by_rkey(header.rkey);
        if (peer.handles == 0 || !region || !region->covers(header.remote_addr, header.message_bytes) ||
            !(region->access & kAccessRemoteRead)) {
            acknowledge(header, arrival.peer, CqeStatus::kRemoteBadAddress);
            return;
        }
        answer.header.type = PacketType::kReadResponse;
        answer.addr = header.remote_addr;
        answer.lkey = region->lkey;
    } else {
        const Op* op = op_of_message(header.message);
        if (!op || op->opcode != SendOpcode::kRdmaWrite || op->is_inline || op->bytes != header.message_bytes ||
            peers_.by_ahn(op->ahn) != arrival.peer)
            return;
        answer.header.type = PacketType::kWrite;
        answer.addr = sge_addr(op->sges[0]);
        answer.lkey = op->sges[0].lkey;
    }
    answer.at = header.segment_offset;
    answer.end = header.segment_offset + header.segment_bytes;
    answer.segment_bytes = options_.payload_max;
    const uint32_t answer_index = answers_.take();
    if (answer_index == kNone) return;
    answers_[answer_index] = answer;
    list_push(answers_, peer.answers, answer_index);
    list_peer(arrival.peer);
}

void Device::ask_for_payload(const Arrival& arrival) {
    PacketHeader header = arrival.header;
    header.type = PacketType::kNeedPayload;
    header.status = static_cast<uint8_t>(arrival.header.type);
    header.flags &= static_cast<uint8_t>(~kPacketByReference);
    std::swap(header.src_gid, header.dst_gid);
    std::swap(header.src_qp_num, header.dst_qp_num);
    ++stats_.payload_requests;
    send_control(arrival.peer, header);
}

}  // namespace nvshmem_efa::soft
