// SPDX-License-Identifier: Apache-2.0
// Ends of messages: what the target reports to its program and to the sender, and the sender's completions.
#include <algorithm>

#include "device.h"
#include "log.h"

namespace nvshmem_efa::soft {
namespace {

constexpr uint64_t kRepeatWithinNs = 20'000;  // and four windows
constexpr uint64_t kRnrFirstWaitNs = 10'000;
constexpr uint32_t kRnrWaitDoublings = 7;

size_t incoming_chain(uint32_t peer, uint64_t message, size_t heads) { return (mix64(message) + peer) & (heads - 1); }

}  // namespace

// A segment of a write lies in memory. The message is delivered with its last one; a repeat may still follow, and only
// then is it acknowledged.
void Device::write_placed(uint32_t index) {
    Arrival& arrival = arrivals_[index];
    const PacketHeader& header = arrival.header;
    if (arrival.is_repeat) {
        ++stats_.duplicates;
        if (arrival.message == kNone) {
            acknowledge(header, arrival.peer, CqeStatus::kOk);
        } else {
            --incoming_[arrival.message].repeats_due;
            retire_incoming(arrival.message, header);
        }
        drop_arrival(index);
        return;
    }
    stats_.write_recv_bytes += header.segment_bytes;
    CqeStatus status = CqeStatus::kOk;
    if (header.segment_bytes == header.message_bytes) {
        status = deliver_write(arrival);
        if (!arrival.will_repeat || status != CqeStatus::kOk) {
            refuse(index, status);
            return;
        }
    } else {
        arrival.message = find_incoming(arrival);
        if (arrival.message == kNone) {
            refuse(index, CqeStatus::kRemoteAbort);
            return;
        }
        Incoming& incoming = incoming_[arrival.message];
        incoming.placed += header.segment_bytes;
        incoming.repeats_due += arrival.will_repeat ? 1 : 0;
        if (incoming.placed >= header.message_bytes && !incoming.is_delivered) {
            incoming.status = deliver_write(arrival);
            incoming.is_delivered = true;
        }
        if (!arrival.will_repeat) {
            retire_incoming(arrival.message, header);
            drop_arrival(index);
            return;
        }
    }
    arrival.is_repeat = true;
    arrive_again(index, 4 * options_.faults.reorder_ns + kRepeatWithinNs);
}

uint32_t Device::find_incoming(const Arrival& arrival) {
    uint32_t& head = incoming_heads_[incoming_chain(arrival.peer, arrival.header.message, incoming_heads_.size())];
    uint32_t index = head;
    while (index != kNone &&
           (incoming_[index].peer != arrival.peer || incoming_[index].message != arrival.header.message)) {
        index = incoming_[index].next;
    }
    if (index == kNone) {
        index = incoming_.take();
        if (index == kNone) return kNone;
        incoming_[index] = Incoming{};
        incoming_[index].peer = arrival.peer;
        incoming_[index].message = arrival.header.message;
        incoming_[index].next = head;
        head = index;
    }
    incoming_[index].touched_ns = now_ns_;
    return index;
}

void Device::remove_incoming(uint32_t index) {
    const Incoming& incoming = incoming_[index];
    uint32_t* link = &incoming_heads_[incoming_chain(incoming.peer, incoming.message, incoming_heads_.size())];
    while (*link != index) link = &incoming_[*link].next;
    *link = incoming.next;
    incoming_.give(index);
}

void Device::retire_incoming(uint32_t index, const PacketHeader& header) {
    const Incoming& incoming = incoming_[index];
    if (!incoming.is_delivered || incoming.repeats_due != 0) return;
    acknowledge(header, incoming.peer, incoming.status);
    remove_incoming(index);
}

bool Device::take_receive(QpSlot& qp, uint32_t* index) {
    if (qp.attr.rq_depth == 0) return false;
    // Acquire pairs with the release store in recv_ring_ring().
    const uint32_t doorbell = __atomic_load_n(qp.rq_doorbell, __ATOMIC_ACQUIRE);
    const auto posted = static_cast<uint16_t>(doorbell - qp.received);
    if (posted == 0 || posted > qp.attr.rq_depth) return false;
    *index = qp.received++;
    return true;
}

// A copy: a program may change its slot between our looks at it.
RecvWqe Device::receive_slot(const QpSlot& qp, uint32_t index) const {
    RecvWqe wqe;
    std::memcpy(&wqe, qp.rq + static_cast<size_t>(index & (qp.attr.rq_depth - 1)) * sizeof wqe, sizeof wqe);
    return wqe;
}

// The descriptors of a receive whose first one was taken.
Receive Device::take_rest(QpSlot& qp, uint32_t first) {
    Receive receive;
    uint32_t index = first;
    do {
        RecvWqe& piece = receive.pieces[receive.n++] = receive_slot(qp, index);
        receive.bytes += piece.length;
        receive.is_whole = (receive.pieces[0].lkey_ctrl & kRecvFirst) && (piece.lkey_ctrl & kRecvLast);
    } while (!(receive.pieces[receive.n - 1].lkey_ctrl & kRecvLast) && receive.n < kRecvSgesMax &&
             take_receive(qp, &index));
    return receive;
}

RxCqeEx Device::receive_entry(const Arrival& arrival, const QpSlot& qp, CqeStatus status) const {
    const PacketHeader& header = arrival.header;
    const Peer& peer = peers_[arrival.peer];
    const auto opcode = header.type == PacketType::kWrite ? SendOpcode::kRdmaWrite : SendOpcode::kSend;
    RxCqeEx entry{};
    entry.base.status = static_cast<uint8_t>(status);
    entry.base.flags = static_cast<uint8_t>((static_cast<uint8_t>(CqeQueue::kRecv) << kCqeQueueShift) |
                                            (static_cast<uint8_t>(opcode) << kCqeOpShift) |
                                            (header.flags & kPacketHasImm ? kCqeHasImm : 0));
    entry.base.qp_num = qp.qp_num;
    entry.base.length = static_cast<uint16_t>(header.message_bytes);
    const bool is_known = peer.is_known_in(qp.domain);
    entry.base.ah = is_known ? peer.ahn : kAhUnknown;
    entry.base.src_qp_num = header.src_qp_num;
    entry.base.immediate = header.flags & kPacketHasImm ? header.immediate : 0;
    if (opcode == SendOpcode::kRdmaWrite) {
        entry.length_hi = static_cast<uint16_t>(header.message_bytes >> 16);
    } else if (!is_known && caps().cq_sgid) {
        std::memcpy(entry.src_gid, header.src_gid.raw, sizeof entry.src_gid);
    }
    return entry;
}

// The whole message lies in memory: counters, and the receive completion of an immediate.
CqeStatus Device::deliver_write(const Arrival& arrival) {
    const PacketHeader& header = arrival.header;
    uint32_t qp_at;
    const CqeStatus status = check_queue(header, &qp_at);  // it may have gone since the segment was checked
    if (status != CqeStatus::kOk) return status;
    QpSlot& qp = qps_[qp_at];
    if (header.flags & kPacketHasImm) {
        RxCqeEx entry = receive_entry(arrival, qp, CqeStatus::kOk);
        if (qp.attr.unsolicited_recv) {
            entry.base.flags |= kCqeUnsolicited;
        } else {
            uint32_t index;
            const bool is_forced = header.attempt == 0 && prng_.one_in_million(options_.faults.rnr_ppm);
            if (is_forced || !take_receive(qp, &index)) {
                ++stats_.rnr;
                return CqeStatus::kRnr;
            }
            entry.base.req_id = take_rest(qp, index).pieces[0].req_id;
        }
        push_cqe(qp, qp.attr.recv_cq, entry);
        count(qp, kCountRecv, false);
    }
    count(qp, kCountRemoteWrite, false);
    return CqeStatus::kOk;
}

void Device::deliver_send(const Arrival& arrival, CqeStatus status) {
    const uint32_t qp_at = qp_index(arrival.header.dst_qp_num);
    // Destroyed or reset while the payload was being placed.
    if (qp_at == kNone || qps_[qp_at].state == QpState::kReset) return;
    QpSlot& qp = qps_[qp_at];
    RxCqeEx entry = receive_entry(arrival, qp, status);
    entry.base.req_id = receive_slot(qp, arrival.recv_index).req_id;
    if (qp.is_ud) entry.base.length = static_cast<uint16_t>(entry.base.length + kUdHeaderBytes);
    push_cqe(qp, qp.attr.recv_cq, entry);
    count(qp, kCountRecv, status != CqeStatus::kOk);
    if (status != CqeStatus::kOk) return;
    ++stats_.recvs;
    stats_.recv_bytes += arrival.header.message_bytes;
}

void Device::acknowledge(const PacketHeader& to, uint32_t peer, CqeStatus status) {
    PacketHeader ack;
    ack.type = PacketType::kAck;
    ack.status = static_cast<uint8_t>(status);
    ack.src_gid = options_.gid;
    ack.dst_gid = peers_[peer].gid;
    // `to` may be a packet of the peer's or a template of ours: the initiator's queue is told by its message number.
    ack.src_qp_num = to.dst_qp_num;
    ack.dst_qp_num = to.src_qp_num;
    ack.message = to.message;
    send_control(peer, ack);
}

Op* Device::op_of_message(uint64_t message) {
    const auto index = static_cast<uint32_t>(message);
    if (index >= ops_.size()) return nullptr;
    Op& op = ops_[index];
    return op.is_live && op.generation == static_cast<uint32_t>(message >> 32) ? &op : nullptr;
}

void Device::handle_ack(const PacketHeader& header) {
    Op* op = op_of_message(header.message);
    if (!op) return;  // flushed or failed already
    const uint32_t peer = peers_.by_ahn(op->ahn);
    if (peer == kNone || !(peers_[peer].gid == header.src_gid)) return;
    const auto index = static_cast<uint32_t>(header.message);
    const auto status = static_cast<CqeStatus>(header.status);
    const uint8_t retries = qps_[op->qp].rnr_retry;
    const bool may_retry = status == CqeStatus::kRnr && caps().rnr_retry && op->is_in_network &&
                           (retries == kRnrRetryForever || op->attempt < retries) &&
                           now_ns_ < op->started_ns + options_.unresponsive_ns;
    if (!may_retry) {
        complete_op(index, status);
        return;
    }
    stop_waiting(index);
    if (op->attempt < UINT8_MAX) ++op->attempt;
    schedule_op(index, kRnrFirstWaitNs << std::min<uint32_t>(op->attempt - 1u, kRnrWaitDoublings));
}

// Ends a work request. If a queue of the device still holds it, that queue's owner frees it.
void Device::complete_op(uint32_t index, CqeStatus status) {
    Op& op = ops_[index];
    const bool is_in_network = op.is_in_network;
    if (is_in_network) stop_waiting(index);
    op.is_live = false;
    const uint64_t req_id = op.req_id;
    const SendOpcode opcode = op.opcode;
    QpSlot& qp = qps_[op.qp];
    if (is_in_network) ops_.give(index);
    complete_slot(qp, req_id, opcode, status);
}

void Device::complete_slot(QpSlot& qp, uint64_t req_id, SendOpcode opcode, CqeStatus status) {
    TxCqe tx{};
    tx.req_id = static_cast<uint16_t>(req_id);
    tx.status = static_cast<uint8_t>(status);
    tx.flags = static_cast<uint8_t>((static_cast<uint8_t>(CqeQueue::kSend) << kCqeQueueShift) |
                                    ((static_cast<uint8_t>(opcode) & kCqeOpMask) << kCqeOpShift));
    tx.qp_num = qp.qp_num;
    if (qp.attr.req_id_64) {
        for (int i = 0; i < 3; ++i) tx.req_id_ex[i] = static_cast<uint16_t>(req_id >> (16 * (i + 1)));
    }
    ++qp.completed;
    ++stats_.completions;
    ++stats_.by_status[std::min<uint8_t>(tx.status, kStatusCodes - 1)];
    trace(4, req_id, tx.status);
    if (status != CqeStatus::kOk && status != CqeStatus::kFlushed)
        EFA_LOG(kDebug, "soft", "%s qp %u: request %llu ended with status %u", name().c_str(), qp.qp_num,
                static_cast<unsigned long long>(req_id), tx.status);
    const bool is_error = status != CqeStatus::kOk;
    if (is_error && opcode == SendOpcode::kRdmaRead) ++stats_.read_errors;
    if (is_error && opcode == SendOpcode::kRdmaWrite) ++stats_.write_errors;
    RxCqeEx entry{};
    std::memcpy(&entry, &tx, sizeof tx);
    push_cqe(qp, qp.attr.send_cq, entry);
    if (opcode == SendOpcode::kSend) count(qp, kCountSend, is_error);
    if (opcode == SendOpcode::kRdmaRead) count(qp, kCountRead, is_error);
    if (opcode == SendOpcode::kRdmaWrite) count(qp, kCountWrite, is_error);
}

void Device::push_cqe(QpSlot& qp, uint64_t cq_handle, const RxCqeEx& entry) {
    CqState& cq = cqs_[cq_handle - 1];
    if (cq_push(cq, entry)) return;
    ++stats_.cq_overruns;
    if (qp.state == QpState::kError) return;
    fail_qp(qp, "completion queue overrun: its " + std::to_string(cq.depth) +
                    " entries were written and not read; completions are lost");
}

}  // namespace nvshmem_efa::soft
