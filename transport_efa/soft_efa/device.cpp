// SPDX-License-Identifier: Apache-2.0
// The step, what happens when nobody answers, and the control calls for memory and address handles.
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
constexpr uint64_t kExpiryTurnNs = 5'000'000;

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
        if (cq.is_callers) continue;
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
    return register_memory(attr, static_cast<uint8_t*>(attr.addr), region);
}

Status Device::register_memory(const MemoryAttr& attr, uint8_t* here, MemoryRegion* region, uint16_t domain) {
    if (here == nullptr || attr.bytes == 0)
        return Status::error(Code::kInvalidArgument, "register at least one byte", "%s: empty memory region",
                             name().c_str());
    const uint64_t to_here = reinterpret_cast<uint64_t>(here) - reinterpret_cast<uint64_t>(attr.addr);
    const Region* added = regions_.add(attr, to_here, domain, static_cast<uint8_t>(prng_.next()));
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

Status Device::create_address_handle(const Gid& gid, AddressHandle* ah, uint16_t domain) {
    uint32_t peer = peers_.find_or_add(gid);
    if (peer == kNone && fetching_.empty()) {  // a packet whose payload is being fetched has its peer's number
        peers_.forget_strangers();
        peer = peers_.find_or_add(gid);
    }
    if (peer == kNone || !peers_.add_handle(peer, domain, options_.profile.ahs_max))
        return Status::error(Code::kResource, "use fewer peers per device",
                             "%s: the device has no more address handles (%u)", name().c_str(),
                             options_.profile.ahs_max);
    ah->ahn = peers_[peer].ahn;
    ah->handle = peers_[peer].ahn;
    return Status();
}

Status Device::destroy_address_handle(const AddressHandle& ah, uint16_t domain) {
    if (peers_.remove_handle(ah.ahn, domain)) return Status();
    return Status::error(Code::kInvalidArgument, nullptr, "%s: no address handle %u", name().c_str(), ah.ahn);
}

}  // namespace nvshmem_efa::soft
