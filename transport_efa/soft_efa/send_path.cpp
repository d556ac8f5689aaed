// SPDX-License-Identifier: Apache-2.0
// From the doorbell to a checked work request: the only reader of the send ring's bytes.
#include <algorithm>

#include "device.h"
#include "log.h"

namespace nvshmem_efa::soft {

void Device::poll_doorbells() {
    for (uint16_t index : live_qps_) {
        QpSlot& qp = qps_[index];
        if (qp.state == QpState::kReset) continue;
        // Acquire pairs with the release store in send_ring_ring() and with the GPU's release before its doorbell.
        const uint32_t doorbell = __atomic_load_n(qp.sq_doorbell, __ATOMIC_ACQUIRE);
        // The device looks at 16 bits: host code rings with 16, GPU code with 32.
        const auto n = static_cast<uint16_t>(doorbell - qp.parsed);
        if (n != 0) {
            ++stats_.doorbells;
            take_slots(qp, n);
        }
        if (options_.check_batches && qp.max_batch != 0 && qp.max_batch < qp.attr.sq_depth &&
            qp.state == QpState::kReady && qp.parsed - qp.completed + qp.max_batch < qp.attr.sq_depth) {
            // This slot may be written only after another doorbell.
            const uint32_t beyond = qp.parsed + qp.max_batch;
            const uint8_t* slot = qp.sq + static_cast<size_t>(beyond & (qp.attr.sq_depth - 1)) * qp.slot_bytes;
            const uint8_t ctrl2 = slot[offsetof(TxMeta, ctrl2)];
            const bool is_valid = slot[offsetof(TxMeta, ctrl1)] & kCtrl1MetaDesc && !(ctrl2 & kCtrl2Reserved);
            if (is_valid && (ctrl2 & kCtrl2Phase) == ((beyond >> qp.depth_log2) & 1u))
                fail_qp(qp, "more than max_batch (" + std::to_string(qp.max_batch) +
                                ") slots were written without a doorbell");
        }
    }
}

void Device::take_slots(QpSlot& qp, uint32_t n) {
    const uint32_t credits = qp.attr.sq_depth - std::min(qp.parsed - qp.completed, qp.attr.sq_depth);
    const uint32_t first = qp.parsed;
    uint32_t taken = 0;
    if (n > credits && qp.state == QpState::kReady) {
        const std::string where = "the doorbell went from " + std::to_string(first) + " to " +
                                  std::to_string(first + n) + ", but only " + std::to_string(credits) +
                                  " slots were free";
        const SendWqe& slot = *reinterpret_cast<const SendWqe*>(
            qp.sq + static_cast<size_t>(first & (qp.attr.sq_depth - 1)) * qp.slot_bytes);
        complete_slot(qp, slot.meta.req_id, static_cast<SendOpcode>(slot.meta.ctrl1 & kCtrl1OpcodeMask),
                      CqeStatus::kQpInternal);
        fail_qp(qp, where);
        taken = 1;
    }
    const uint32_t end = std::min(n, qp.attr.sq_depth);
    for (; taken < end; ++taken) take_slot(qp, first + taken);
    qp.parsed = first + n;
    // Completions of slots that were never there do not count as credits.
    if (n > end) qp.completed += n - end;
}

// One slot: its bytes become an Op, or a completion with an error. Counts it as parsed.
bool Device::take_slot(QpSlot& qp, uint32_t index) {
    SendWqe wqe{};
    std::memcpy(&wqe, qp.sq + static_cast<size_t>(index & (qp.attr.sq_depth - 1)) * qp.slot_bytes, qp.slot_bytes);
    ++qp.parsed;
    ++stats_.work_requests;
    trace(1, index, wqe.meta.req_id);
    uint64_t req_id = wqe.meta.req_id;
    if (qp.attr.req_id_64) {
        for (int i = 0; i < 3; ++i) req_id |= static_cast<uint64_t>(wqe.meta.req_id_ex[i]) << (16 * (i + 1));
    }
    const auto opcode = static_cast<SendOpcode>(wqe.meta.ctrl1 & kCtrl1OpcodeMask);
    if (qp.state == QpState::kError) {
        complete_slot(qp, req_id, opcode, CqeStatus::kFlushed);
        return false;
    }
    if (const char* violation = check_protocol(qp, index, wqe)) {
        complete_slot(qp, req_id, opcode, CqeStatus::kQpInternal);
        fail_qp(qp, "slot " + std::to_string(index) + ": " + violation);
        return false;
    }
    const uint32_t op_index = ops_.take();
    if (op_index == kNone) {
        complete_slot(qp, req_id, opcode, CqeStatus::kQpInternal);
        return false;
    }
    Op& op = ops_[op_index];
    const uint32_t generation = op.generation + 1;
    op = Op{};
    op.generation = generation;
    op.qp = static_cast<uint16_t>(&qp - qps_.data());
    op.req_id = req_id;
    op.opcode = opcode;
    const CqeStatus status = fill_op(qp, wqe, op);
    if (status != CqeStatus::kOk) {
        complete_slot(qp, req_id, opcode, status);
        ops_.give(op_index);
        return false;
    }
    op.is_live = true;
    op.started_ns = now_ns_;
    const bool is_send = opcode == SendOpcode::kSend, is_read = opcode == SendOpcode::kRdmaRead;
    ++(is_send ? stats_.sends : is_read ? stats_.reads : stats_.writes);
    (is_send ? stats_.send_bytes : is_read ? stats_.read_bytes : stats_.write_bytes) += op.bytes;
    schedule_op(op_index, 0);
    return true;
}

// What hardware answers by stopping the queue pair. Null when the descriptor is well formed.
const char* Device::check_protocol(const QpSlot& qp, uint32_t index, const SendWqe& wqe) const {
    const TxMeta& meta = wqe.meta;
    if ((meta.ctrl2 & kCtrl2Phase) != ((index >> qp.depth_log2) & 1u)) return "wrong phase bit (slot not written?)";
    if (!(meta.ctrl1 & kCtrl1MetaDesc)) return "meta_desc is not set";
    if (meta.ctrl1 & kCtrl1MetaExt) return "meta_ext is set";
    if (meta.ctrl2 & kCtrl2Reserved) return "reserved bits of ctrl2 are set";
    if (!(meta.ctrl2 & kCtrl2First) || !(meta.ctrl2 & kCtrl2Last)) return "first and last must both be set";
    if (!(meta.ctrl2 & kCtrl2CompReq)) return "comp_req must be set: EFA has no unsignalled requests";
    if ((meta.ctrl3 & ~kCtrl3HintMask) || meta.reserved0) return "reserved bits after the address handle are set";
    for (uint8_t byte : meta.reserved1) {
        if (byte) return "reserved bytes after the qkey are set";
    }
    if (!qp.attr.req_id_64 && (meta.req_id_ex[0] || meta.req_id_ex[1] || meta.req_id_ex[2]))
        return "upper bits of the request id on a queue with 16-bit ids";
    if (meta.ctrl1 & kCtrl1Inline) return nullptr;
    const bool is_send = (meta.ctrl1 & kCtrl1OpcodeMask) == static_cast<uint8_t>(SendOpcode::kSend);
    const uint32_t n_sges = std::min<uint32_t>(meta.length, is_send ? kSendSgesMax : 1);
    const Sge* sges = is_send ? wqe.send_sges : &wqe.rdma.local;
    for (uint32_t i = 0; i < n_sges; ++i) {
        if (sges[i].lkey & ~kLkeyMask) return "bits 31:24 of an lkey are set";
    }
    return nullptr;
}

CqeStatus Device::fill_op(const QpSlot& qp, const SendWqe& wqe, Op& op) const {
    op.ahn = wqe.meta.ah;
    op.dest_qp_num = wqe.meta.dest_qp_num;
    op.qkey = wqe.meta.qkey;
    op.has_imm = wqe.meta.ctrl1 & kCtrl1HasImm;
    op.is_inline = wqe.meta.ctrl1 & kCtrl1Inline;
    op.immediate = wqe.meta.immediate;
    CqeStatus status = CqeStatus::kUnsupportedOp;
    if (op.opcode == SendOpcode::kSend) {
        status = fill_send(qp, wqe, op);
    } else if (qp.is_ud) {
        return status;
    } else if ((op.opcode == SendOpcode::kRdmaRead && caps().rdma_read && !op.is_inline && !op.has_imm) ||
               (op.opcode == SendOpcode::kRdmaWrite && caps().rdma_write)) {
        status = fill_rdma(qp, wqe, op);
    }
    const uint32_t peer = peers_.by_ahn(op.ahn);
    const bool is_known = peer != kNone && peers_[peer].is_known_in(qp.domain);
    return status == CqeStatus::kOk && !is_known ? CqeStatus::kInvalidAh : status;
}

CqeStatus Device::fill_send(const QpSlot& qp, const SendWqe& wqe, Op& op) const {
    if (op.is_inline) {
        const uint32_t max = qp.attr.large_slots ? caps().max_inline_large : caps().max_inline_small;
        if (wqe.meta.length > max) return CqeStatus::kBadLength;
        op.bytes = wqe.meta.length;
        std::memcpy(op.inline_bytes, wqe.send_inline, op.bytes);
        return CqeStatus::kOk;
    }
    if (wqe.meta.length > kSendSgesMax) return CqeStatus::kBadLength;
    op.n_sges = static_cast<uint8_t>(wqe.meta.length);
    for (int i = 0; i < op.n_sges; ++i) {
        op.sges[i] = wqe.send_sges[i];
        op.bytes += op.sges[i].length;
    }
    if (op.bytes > caps().mtu) return CqeStatus::kBadLength;
    for (int i = 0; i < op.n_sges; ++i) {
        const CqeStatus status = check_sge(qp, op.sges[i], 0);
        if (status != CqeStatus::kOk) return status;
    }
    return CqeStatus::kOk;
}

CqeStatus Device::fill_rdma(const QpSlot& qp, const SendWqe& wqe, Op& op) const {
    const RemoteAddr& remote = wqe.rdma.remote;
    op.remote_addr = remote.addr_lo | (static_cast<uint64_t>(remote.addr_hi) << 32);
    op.rkey = remote.rkey;
    op.bytes = remote.length;
    if (op.is_inline) {
        if (!caps().inline_write || !qp.attr.large_slots) return CqeStatus::kUnsupportedOp;
        if (wqe.meta.length > caps().max_inline_large || wqe.meta.length != remote.length) return CqeStatus::kBadLength;
        std::memcpy(op.inline_bytes, wqe.rdma.write_inline, op.bytes);
        return CqeStatus::kOk;
    }
    if (wqe.meta.length != 1 || wqe.rdma.local.length != remote.length) return CqeStatus::kBadLength;
    if (op.bytes > caps().max_rdma_bytes) return CqeStatus::kBadLength;
    op.n_sges = 1;
    op.sges[0] = wqe.rdma.local;
    return check_sge(qp, op.sges[0], op.opcode == SendOpcode::kRdmaRead ? kAccessLocalWrite : 0);
}

CqeStatus Device::check_sge(const QpSlot& qp, const Sge& sge, uint32_t access) const {
    const Region* region = regions_.by_lkey(sge.lkey);
    const uint64_t addr = sge.addr_lo | (static_cast<uint64_t>(sge.addr_hi) << 32);
    const bool is_good = region && region->domain == qp.domain && region->covers(addr, sge.length) &&
                         (region->access & access) == access;
    return is_good ? CqeStatus::kOk : CqeStatus::kInvalidLkey;
}

// The payload is fetched when the packets leave, which is later than the doorbell: a program that reuses its source
// before the completion is caught.
void Device::schedule_op(uint32_t index, uint64_t extra_ns) {
    Op& op = ops_[index];
    uint64_t leave_ns = now_ns_ + extra_ns;
    if (options_.use_timing) {
        engine_free_ns_ = std::max(engine_free_ns_, leave_ns) + options_.profile.timing.per_request_ns;
        leave_ns = engine_free_ns_;
    }
    leave_ns += prng_.below(options_.faults.reorder_ns / 2 + 1);
    op.shuffle = options_.faults.reorder_ns ? static_cast<uint8_t>(prng_.next() & 7u) : 0;
    op.next_segment = 0;
    op.n_segments = 0;
    if (leave_ns <= now_ns_) {
        const uint32_t peer = peers_.by_ahn(op.ahn);
        list_push(ops_, peers_[peer].ready, index);
        list_peer(peer);
    } else {
        departures_.push(leave_ns, index);
    }
}

void Device::fail_qp(QpSlot& qp, const std::string& why) {
    last_diagnosis_ = name() + " qp " + std::to_string(qp.qp_num) + ": " + why;
    EFA_LOG(kWarn, "soft", "queue pair stopped: %s", last_diagnosis_.c_str());
    if (qp.state == QpState::kError) return;
    qp.state = QpState::kError;
    qp.diagnosis = why;
    flush_qp(qp);
}

// Completes all that is outstanding, sends and receives, as flushed.
void Device::flush_qp(QpSlot& qp) {
    const auto qp_at = static_cast<uint16_t>(&qp - qps_.data());
    for (uint32_t i = 0; i < ops_.size(); ++i) {
        if (!ops_[i].is_live || ops_[i].qp != qp_at) continue;
        complete_op(i, CqeStatus::kFlushed);
    }
    uint32_t index;
    while (take_receive(qp, &index)) {
        RxCqeEx entry{};
        entry.base.req_id = take_rest(qp, index).pieces[0].req_id;
        entry.base.status = static_cast<uint8_t>(CqeStatus::kFlushed);
        entry.base.flags = static_cast<uint8_t>(CqeQueue::kRecv) << kCqeQueueShift;
        entry.base.qp_num = qp.qp_num;
        entry.base.ah = kAhUnknown;
        push_cqe(qp, qp.attr.recv_cq, entry);
    }
}

}  // namespace nvshmem_efa::soft
