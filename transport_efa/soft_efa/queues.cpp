// SPDX-License-Identifier: Apache-2.0
// Control calls for completion queues and queue pairs.
#include "device.h"

namespace nvshmem_efa::soft {
namespace {

constexpr uint32_t kQpIndexBits = 10;
constexpr uint32_t kQpIndexMask = (1u << kQpIndexBits) - 1;
constexpr uint32_t kDoorbellStride = 64;

uint32_t round_up_power_of_two(uint32_t value) {
    uint32_t power = 1;
    while (power < value) power <<= 1;
    return power;
}

}  // namespace

Status Device::create_cq(const CqAttr& attr, Cq* out) {
    const uint32_t depth = attr.depth <= caps().max_cq_depth ? round_up_power_of_two(attr.depth) : 0;
    if (attr.depth == 0 || depth == 0)
        return Status::error(Code::kInvalidArgument, "ask for fewer entries",
                             "%s: a completion queue of %u entries; the device has 1 to %u", name().c_str(),
                             attr.depth, caps().max_cq_depth);
    CqState cq;
    cq.entry_bytes = options_.profile.cqe_bytes;
    cq.depth = depth;
    cq.depth_log2 = log2_exact(depth);
    cq.entries = static_cast<uint8_t*>(memory_->alloc_host(static_cast<size_t>(depth) * cq.entry_bytes));
    cq.consumer = static_cast<uint32_t*>(memory_->alloc_host(kDoorbellStride));
    if (!cq.entries || !cq.consumer) {
        memory_->free_host(cq.entries);
        memory_->free_host(cq.consumer);
        return Status::error(Code::kResource, "free memory", "%s: no memory for a completion queue", name().c_str());
    }
    std::memset(cq.entries, 0, static_cast<size_t>(depth) * cq.entry_bytes);
    *cq.consumer = kCqConsumerUnused;
    EFA_TRY(add_cq(cq, &out->handle));
    out->entries = cq.entries;
    out->entry_bytes = cq.entry_bytes;
    out->depth = depth;
    out->consumer = cq.consumer;
    return Status();
}

Status Device::create_cq(const CqEntries& ring, uint64_t* handle) {
    if (!ring.entries || (ring.entry_bytes != sizeof(TxCqe) && ring.entry_bytes != sizeof(RxCqeEx)) ||
        !is_power_of_two(ring.depth) || ring.depth > caps().max_cq_depth)
        return Status::error(Code::kInvalidArgument, "give 16- or 32-byte entries, a power of two of them",
                             "%s: a completion ring of %u entries of %u bytes; the device has up to %u entries",
                             name().c_str(), ring.depth, ring.entry_bytes, caps().max_cq_depth);
    CqState cq;
    cq.is_callers = true;
    cq.entries = ring.entries;
    cq.entry_bytes = ring.entry_bytes;
    cq.depth = ring.depth;
    cq.depth_log2 = log2_exact(ring.depth);
    return add_cq(cq, handle);
}

Status Device::add_cq(const CqState& cq, uint64_t* handle) {
    size_t index = 0;
    while (index < cqs_.size() && cqs_[index].is_live) ++index;
    if (index == cqs_.size()) cqs_.emplace_back();
    cqs_[index] = cq;
    cqs_[index].is_live = true;
    *handle = index + 1;
    return Status();
}

uint32_t Device::cq_written(uint64_t handle) const { return is_cq(handle) ? cqs_[handle - 1].written : 0; }

Status Device::destroy_cq(uint64_t handle) {
    if (!is_cq(handle))
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such completion queue", name().c_str());
    CqState& cq = cqs_[handle - 1];
    if (cq.users != 0)
        return Status::error(Code::kInvalidArgument, "destroy its queue pairs first",
                             "%s: a completion queue is still used by %u queue pairs", name().c_str(), cq.users);
    if (!cq.is_callers) {
        memory_->free_host(cq.entries);
        memory_->free_host(cq.consumer);
    }
    cq = CqState{};
    return Status();
}

Status Device::check_qp_attr(const QpAttr& attr) const {
    if (!is_cq(attr.send_cq) || !is_cq(attr.recv_cq))
        return Status::error(Code::kInvalidArgument, nullptr, "%s: a queue pair needs two completion queues",
                             name().c_str());
    if ((attr.large_slots && caps().max_inline_large == 0) || (attr.unsolicited_recv && !caps().unsolicited_write_recv) ||
        (attr.req_id_64 && !caps().req_id_64))
        return Status::error(Code::kUnsupported, "look at the device's capabilities first",
                             "%s (%s) cannot do large slots, unsolicited receive or 64-bit ids as asked",
                             name().c_str(), options_.profile.name);
    const uint32_t sq_max = attr.large_slots ? caps().max_sq_depth / 2 : caps().max_sq_depth;
    if (!is_power_of_two(attr.sq_depth) || attr.sq_depth > sq_max)
        return Status::error(Code::kInvalidArgument, "use a power of two within the limit",
                             "%s: a send queue of %u slots; the device has up to %u", name().c_str(), attr.sq_depth,
                             sq_max);
    if (attr.rq_depth != 0 && (!is_power_of_two(attr.rq_depth) || attr.rq_depth > caps().max_rq_depth))
        return Status::error(Code::kInvalidArgument, "use a power of two within the limit",
                             "%s: a receive queue of %u slots; the device has up to %u", name().c_str(), attr.rq_depth,
                             caps().max_rq_depth);
    return Status();
}

Status Device::allocate_rings(QpSlot& qp) {
    const size_t sq_bytes = static_cast<size_t>(qp.attr.sq_depth) * qp.slot_bytes;
    const size_t rq_bytes = static_cast<size_t>(qp.attr.rq_depth) * sizeof(RecvWqe);
    qp.sq = static_cast<uint8_t*>(memory_->alloc_host(sq_bytes));
    qp.sq_doorbell = static_cast<uint32_t*>(memory_->alloc_host(2 * kDoorbellStride));
    qp.rq = static_cast<uint8_t*>(memory_->alloc_host(rq_bytes + sizeof(RecvWqe)));
    if (!qp.sq || !qp.sq_doorbell || !qp.rq) {
        free_rings(qp);
        return Status::error(Code::kResource, "free memory", "%s: no memory for a queue pair", name().c_str());
    }
    qp.rq_doorbell = qp.sq_doorbell + kDoorbellStride / sizeof(uint32_t);
    std::memset(qp.sq, 0xff, sq_bytes);  // no slot has the first lap's phase
    std::memset(qp.rq, 0, rq_bytes);
    std::memset(qp.sq_doorbell, 0, 2 * kDoorbellStride);
    return Status();
}

void Device::free_rings(QpSlot& qp) {
    if (!qp.has_callers_rings) {
        memory_->free_host(qp.sq);
        memory_->free_host(qp.sq_doorbell);
        memory_->free_host(qp.rq);
    }
    qp.sq = qp.rq = nullptr;
    qp.sq_doorbell = qp.rq_doorbell = nullptr;
}

Status Device::create_qp(const QpAttr& attr, Qp* qp) { return add_qp(attr, nullptr, qp); }

Status Device::create_qp(const QpAttr& attr, const QpRings& rings, Qp* qp) {
    const bool is_whole = rings.sq && rings.sq_doorbell && (attr.rq_depth == 0 || (rings.rq && rings.rq_doorbell));
    if (!is_whole)
        return Status::error(Code::kInvalidArgument, "give rings and doorbells", "%s: a queue pair without its rings",
                             name().c_str());
    return add_qp(attr, &rings, qp);
}

Status Device::add_qp(const QpAttr& attr, const QpRings* rings, Qp* out) {
    EFA_TRY(check_qp_attr(attr));
    uint32_t index = 1;
    while (index < qps_.size() && qps_[index].state != QpState::kFree) ++index;
    if (index >= caps().max_qps)
        return Status::error(Code::kResource, "use fewer queue pairs", "%s: the device has no more queue pairs (%u)",
                             name().c_str(), caps().max_qps - 1);
    if (index == qps_.size()) qps_.emplace_back();
    QpSlot qp;
    qp.generation = static_cast<uint8_t>(qps_[index].generation + 1);
    qp.qp_num = static_cast<uint16_t>(index | (static_cast<uint32_t>(qp.generation) << kQpIndexBits));
    qp.attr = attr;
    qp.slot_bytes = attr.large_slots ? kSlotBytesLarge : kSlotBytesSmall;
    qp.depth_log2 = log2_exact(attr.sq_depth);
    qp.max_batch = caps().max_tx_batch_units * kSlotBytesSmall / qp.slot_bytes;
    if (rings) {
        qp.has_callers_rings = true;
        qp.domain = rings->domain;
        qp.is_ud = rings->is_ud;
        qp.sq = rings->sq;
        qp.sq_doorbell = rings->sq_doorbell;
        qp.rq = rings->rq;
        qp.rq_doorbell = rings->rq_doorbell;
    } else {
        EFA_TRY(allocate_rings(qp));
    }
    qp.state = rings ? QpState::kReset : QpState::kReady;
    qps_[index] = qp;
    live_qps_.push_back(static_cast<uint16_t>(index));
    ++cqs_[attr.send_cq - 1].users;
    ++cqs_[attr.recv_cq - 1].users;
    *out = Qp{};
    out->qp_num = qp.qp_num;
    out->qkey = attr.qkey;
    out->sq_slots = qp.sq;
    out->sq_doorbell = qp.sq_doorbell;
    out->sq_slot_bytes = qp.slot_bytes;
    out->sq_depth = attr.sq_depth;
    out->sq_max_batch = qp.max_batch;
    out->req_id_64 = attr.req_id_64;
    out->rq_slots = qp.rq;
    out->rq_doorbell = qp.rq_doorbell;
    out->rq_depth = attr.rq_depth;
    out->handle = qp.qp_num;
    return Status();
}

uint32_t Device::qp_index(uint64_t handle) const {
    const uint32_t index = static_cast<uint32_t>(handle) & kQpIndexMask;
    const bool is_live = handle <= 0xffff && index < qps_.size() && qps_[index].state != QpState::kFree &&
                         qps_[index].qp_num == handle;
    return is_live ? index : kNone;
}

Status Device::destroy_qp(uint64_t handle) {
    const uint32_t index = qp_index(handle);
    if (index == kNone)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such queue pair", name().c_str());
    QpSlot& qp = qps_[index];
    poll_doorbells();  // what was posted is outstanding, whether or not a step has seen it
    flush_qp(qp);
    for (uint32_t counter : qp.counters) {
        if (counter != kNone) --counters_[counter].users;
    }
    --cqs_[qp.attr.send_cq - 1].users;
    --cqs_[qp.attr.recv_cq - 1].users;
    free_rings(qp);
    qp.state = QpState::kFree;
    std::erase(live_qps_, static_cast<uint16_t>(index));
    return Status();
}

Status Device::set_qp_state(uint64_t handle, QpState state) {
    const uint32_t index = qp_index(handle);
    if (index == kNone || state == QpState::kFree)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such queue pair or state", name().c_str());
    QpSlot& qp = qps_[index];
    if (state == qp.state) return Status();
    if (state == QpState::kReady && qp.state == QpState::kError)
        return Status::error(Code::kInvalidArgument, "reset it first", "%s: queue pair %u is in error", name().c_str(),
                             qp.qp_num);
    if (qp.state == QpState::kReady) poll_doorbells();  // what was posted is outstanding, seen or not
    qp.state = state;
    if (state == QpState::kError) flush_qp(qp);
    if (state == QpState::kReset) {
        forget_ops(qp);
        qp.parsed = qp.completed = qp.received = 0;
        qp.diagnosis.clear();
        // Relaxed: the program that rings these words next was told of the reset by whoever called us.
        __atomic_store_n(qp.sq_doorbell, 0, __ATOMIC_RELAXED);
        if (qp.rq_doorbell) __atomic_store_n(qp.rq_doorbell, 0, __ATOMIC_RELAXED);
    }
    return Status();
}

Status Device::set_qp_options(uint64_t handle, uint32_t qkey, uint8_t rnr_retry) {
    const uint32_t index = qp_index(handle);
    if (index == kNone || rnr_retry > kRnrRetryForever)
        return Status::error(Code::kInvalidArgument, "retries are 0 to 7", "%s: no such queue pair, or %u RNR retries",
                             name().c_str(), rnr_retry);
    qps_[index].attr.qkey = qkey;
    qps_[index].rnr_retry = rnr_retry;
    return Status();
}

// Work requests that nobody waits for any more. If a queue of the device still holds one, that queue's owner frees it.
void Device::forget_ops(const QpSlot& qp) {
    const auto qp_at = static_cast<uint16_t>(&qp - qps_.data());
    for (uint32_t i = 0; i < ops_.size(); ++i) {
        if (!ops_[i].is_live || ops_[i].qp != qp_at) continue;
        const bool is_in_network = ops_[i].is_in_network;
        if (is_in_network) stop_waiting(i);
        ops_[i].is_live = false;
        if (is_in_network) ops_.give(i);
    }
}

std::string Device::diagnosis(uint64_t qp_handle) const {
    const uint32_t index = qp_index(qp_handle);
    return index == kNone ? "" : qps_[index].diagnosis;
}

QpState Device::qp_state(uint64_t qp_handle) const {
    const uint32_t index = qp_index(qp_handle);
    return index == kNone ? QpState::kFree : qps_[index].state;
}

}  // namespace nvshmem_efa::soft
