// SPDX-License-Identifier: Apache-2.0
// Control calls, the step, and what happens when nobody answers.
#include "device.h"

#include <algorithm>

#include "log.h"

namespace nvshmem_efa::soft {
namespace {

constexpr uint32_t kOpsMax = 1u << 20;
constexpr uint32_t kOutgoingMax = 1u << 18;  // acks that wait for the wire; bounded in truth by the peers' queues
constexpr uint32_t kAnswersMax = 1u << 18;
constexpr uint32_t kArrivalsMax = 8192;
constexpr uint32_t kIncomingMax = 1u << 18;
constexpr uint32_t kIncomingHeads = 256;
constexpr uint32_t kMtuBuffers = 512;
constexpr uint32_t kSegmentBuffers = 32;
constexpr uint32_t kBounceBuffers = 16;
constexpr uint32_t kQpIndexBits = 10;
constexpr uint32_t kQpIndexMask = (1u << kQpIndexBits) - 1;
constexpr uint32_t kDoorbellStride = 64;
constexpr uint64_t kExpiryTurnNs = 5'000'000;

uint32_t round_up_power_of_two(uint32_t value) {
    uint32_t power = 1;
    while (power < value) power <<= 1;
    return power;
}

}  // namespace

Device::Device(const DeviceOptions& options)
    : options_(options),
      memory_(options.memory),
      wire_(options.wire),
      prng_(options.seed),
      regions_(options.profile.caps.max_mrs),
      qps_(1),
      ops_(kOpsMax),
      outgoing_(kOutgoingMax),
      answers_(kAnswersMax),
      bounce_(options.memory, options.payload_max, kBounceBuffers),
      arrivals_(kArrivalsMax),
      mtu_buffers_(options.memory, options.profile.caps.mtu, kMtuBuffers),
      segment_buffers_(options.memory, options.payload_max, kSegmentBuffers),
      incoming_(kIncomingMax),
      incoming_heads_(kIncomingHeads, kNone) {
    gather_.resize(caps().mtu);
}

Device::~Device() {
    for (QpSlot& qp : qps_) free_rings(qp);
    for (CqState& cq : cqs_) {
        memory_->free_host(cq.entries);
        memory_->free_host(cq.consumer);
    }
    memory_->free_host(counter_staging_);
}

uint64_t Device::step(uint64_t now_ns) {
    now_ns_ = now_ns;
    is_blocked_ = false;
    poll_doorbells();
    uint32_t index;
    while (departures_.pop_due(now_ns, &index)) {
        const uint32_t peer = peers_.by_ahn(ops_[index].ahn);
        if (peer == kNone || !ops_[index].is_live) {
            if (ops_[index].is_live) complete_op(index, CqeStatus::kInvalidAh);
            ops_.give(index);
            continue;
        }
        list_push(ops_, peers_[peer].ready, index);
        list_peer(peer);
    }
    while (due_.pop_due(now_ns, &index)) handle(index);
    if (!placing_.empty()) poll_placements();
    if (!fetching_.empty()) poll_fetches();
    if (!busy_peers_.empty()) emit_all();
    if (!dirty_counters_.empty()) write_gpu_counters();
    if (has_copies_) end_copies();
    if (now_ns >= next_expiry_ns_) expire(now_ns);
    return next_event_ns();
}

uint64_t Device::next_event_ns() const {
    if (is_blocked_ || is_copying() || !busy_peers_.empty()) {
        const bool waits_for_link = options_.use_timing && link_free_ns_ > now_ns_ && !is_blocked_;
        return waits_for_link ? std::min({link_free_ns_, due_.next_ns(), departures_.next_ns()}) : now_ns_;
    }
    const uint64_t event = std::min(due_.next_ns(), departures_.next_ns());
    return waiting_head_ == kNone ? event : std::min(event, next_expiry_ns_);
}

// Copies that concern GPU memory; those within host memory may go to the port directly.
MemoryPort::Ticket Device::start_copy(MemoryAddr to, MemoryAddr from, size_t bytes) {
    has_copies_ = true;
    const MemoryPort::Ticket ticket = memory_->copy(to, from, bytes);
    if (ticket != 0) last_copy_ = ticket;
    return ticket;
}

// A copy that failed leaves memory that is not what completions said. No queue pair goes on after that.
void Device::end_copies() {
    memory_->flush();
    has_copies_ = false;
    const Status status = memory_->error();
    if (status.ok()) return;
    EFA_LOG(kError, "soft", "%s stops: %s", name().c_str(), status.message());
    for (uint16_t index : live_qps_) fail_qp(qps_[index], status.message());
}

uint32_t Device::room() {
    return std::min({arrivals_.room(), mtu_buffers_.room(), segment_buffers_.room()});
}

void Device::expire(uint64_t now_ns) {
    next_expiry_ns_ = now_ns + std::min(kExpiryTurnNs, options_.unresponsive_ns / 4);
    for (uint32_t index = waiting_head_; index != kNone;) {
        Op& op = ops_[index];
        const uint32_t next = op.wait_next;
        const uint32_t peer = peers_.by_ahn(op.ahn);
        const bool is_gone = peer == kNone || wire_->is_gone(peers_[peer].gid);
        if (is_gone) {
            complete_op(index, CqeStatus::kUnrespRemote);
        } else if (op.deadline_ns <= now_ns) {
            // A peer that works through a backlog is alive; but nobody waits for ever.
            const uint64_t heard_until_ns = peers_[peer].last_heard_ns + options_.unresponsive_ns;
            if (heard_until_ns > now_ns && op.started_ns + 4 * options_.unresponsive_ns > now_ns) {
                op.deadline_ns = heard_until_ns;
            } else {
                complete_op(index, CqeStatus::kUnrespRemote);
            }
        }
        index = next;
    }
    for (uint32_t& head : incoming_heads_) {
        uint32_t index = head;
        while (index != kNone) {
            const uint32_t next = incoming_[index].next;
            if (incoming_[index].touched_ns + 4 * options_.unresponsive_ns < now_ns &&
                incoming_[index].repeats_due == 0) {
                remove_incoming(index);
            }
            index = next;
        }
    }
}

Status Device::register_memory(const MemoryAttr& attr, MemoryRegion* region) {
    if (attr.addr == nullptr || attr.bytes == 0)
        return Status::error(Code::kInvalidArgument, "register at least one byte", "%s: empty memory region",
                             name().c_str());
    const Region* added = regions_.add(attr, static_cast<uint8_t>(prng_.next()));
    if (!added)
        return Status::error(Code::kResource, "register fewer, larger regions",
                             "%s: the device has no more memory regions (%u in use)", name().c_str(), caps().max_mrs);
    region->lkey = added->lkey;
    region->rkey = added->rkey;
    region->handle = added->lkey;
    return Status();
}

Status Device::deregister_memory(uint32_t lkey) {
    if (regions_.remove(lkey)) return Status();
    return Status::error(Code::kInvalidArgument, nullptr, "%s: no memory region has lkey 0x%x", name().c_str(), lkey);
}

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
    cq.is_live = true;
    size_t index = 0;
    while (index < cqs_.size() && cqs_[index].is_live) ++index;
    if (index == cqs_.size()) cqs_.emplace_back();
    cqs_[index] = cq;
    out->entries = cq.entries;
    out->entry_bytes = cq.entry_bytes;
    out->depth = depth;
    out->handle = index + 1;
    out->consumer = cq.consumer;
    return Status();
}

Status Device::destroy_cq(uint64_t handle) {
    if (handle == 0 || handle > cqs_.size() || !cqs_[handle - 1].is_live)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such completion queue", name().c_str());
    CqState& cq = cqs_[handle - 1];
    if (cq.users != 0)
        return Status::error(Code::kInvalidArgument, "destroy its queue pairs first",
                             "%s: a completion queue is still used by %u queue pairs", name().c_str(), cq.users);
    memory_->free_host(cq.entries);
    memory_->free_host(cq.consumer);
    cq = CqState{};
    return Status();
}

Status Device::check_qp_attr(const QpAttr& attr) const {
    const auto is_cq = [this](uint64_t handle) {
        return handle != 0 && handle <= cqs_.size() && cqs_[handle - 1].is_live;
    };
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
    memory_->free_host(qp.sq);
    memory_->free_host(qp.sq_doorbell);
    memory_->free_host(qp.rq);
    qp.sq = qp.rq = nullptr;
    qp.sq_doorbell = qp.rq_doorbell = nullptr;
}

Status Device::create_qp(const QpAttr& attr, Qp* out) {
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
    EFA_TRY(allocate_rings(qp));
    qp.state = QpState::kReady;
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

std::string Device::diagnosis(uint64_t qp_handle) const {
    const uint32_t index = qp_index(qp_handle);
    return index == kNone ? "" : qps_[index].diagnosis;
}

QpState Device::qp_state(uint64_t qp_handle) const {
    const uint32_t index = qp_index(qp_handle);
    return index == kNone ? QpState::kFree : qps_[index].state;
}

Status Device::create_address_handle(const Gid& gid, AddressHandle* ah) {
    const uint32_t peer = peers_.find_or_add(gid);
    if (peer == kNone || !peers_.add_handle(peer, options_.profile.ahs_max))
        return Status::error(Code::kResource, "use fewer peers per device",
                             "%s: the device has no more address handles (%u)", name().c_str(),
                             options_.profile.ahs_max);
    ah->ahn = peers_[peer].ahn;
    ah->handle = peers_[peer].ahn;
    return Status();
}

Status Device::destroy_address_handle(const AddressHandle& ah) {
    if (peers_.remove_handle(ah.ahn)) return Status();
    return Status::error(Code::kInvalidArgument, nullptr, "%s: no address handle %u", name().c_str(), ah.ahn);
}

}  // namespace nvshmem_efa::soft
