// SPDX-License-Identifier: Apache-2.0
#include "tables.h"

#include "prng.h"

namespace nvshmem_efa::soft {

Region* RegionTable::add(const MemoryAttr& attr, uint64_t to_here, uint16_t domain, uint8_t salt) {
    if (used_ >= bound_) return nullptr;
    uint32_t index;
    if (!free_.empty()) {
        index = free_.back();
        free_.pop_back();
    } else {
        index = static_cast<uint32_t>(regions_.size());
        regions_.emplace_back();
        generations_.push_back(0);
    }
    ++used_;
    Region& region = regions_[index];
    region.addr = reinterpret_cast<uint64_t>(attr.addr);
    region.bytes = attr.bytes;
    region.kind = attr.kind;
    region.access = attr.access;
    region.to_here = to_here;
    region.domain = domain;
    region.lkey = index | (static_cast<uint32_t>(++generations_[index]) << 16);
    region.rkey = region.lkey | (static_cast<uint32_t>(salt) << 24);
    return &region;
}

bool RegionTable::remove(uint32_t lkey) {
    if (!by_lkey(lkey)) return false;
    const uint32_t index = lkey & 0xffffu;
    regions_[index] = Region{};
    // Freed numbers are reused last-in first-out; the generation in the key tells the new region from the old.
    free_.push_back(index);
    --used_;
    return true;
}

uint64_t PeerTable::hash_gid(const Gid& gid) {
    uint64_t halves[2];
    std::memcpy(halves, gid.raw, sizeof halves);
    return mix64(halves[0] + 0x9e3779b97f4a7c15u * halves[1]);
}

void PeerTable::rehash(size_t slots) {
    slots_.assign(slots, kNone);
    for (uint32_t i = 0; i < peers_.size(); ++i) {
        if (peers_[i].is_free) continue;
        size_t at = hash_gid(peers_[i].gid) & (slots - 1);
        while (slots_[at] != kNone) at = (at + 1) & (slots - 1);
        slots_[at] = i;
    }
}

uint32_t PeerTable::find_or_add(const Gid& gid) {
    if (last_found_ != kNone && peers_[last_found_].gid == gid) return last_found_;
    if (slots_.empty()) rehash(64);
    size_t at = hash_gid(gid) & (slots_.size() - 1);
    while (slots_[at] != kNone) {
        if (peers_[slots_[at]].gid == gid) return last_found_ = slots_[at];
        at = (at + 1) & (slots_.size() - 1);
    }
    if (free_peers_.empty() && peers_.size() >= kPeersMax) return kNone;
    auto index = static_cast<uint32_t>(peers_.size());
    if (free_peers_.empty()) {
        peers_.emplace_back();
    } else {
        index = free_peers_.back();
        free_peers_.pop_back();
        peers_[index] = Peer{};
    }
    peers_[index].gid = gid;
    slots_[at] = index;
    if (peers_.size() * 2 > slots_.size()) rehash(slots_.size() * 2);
    return last_found_ = index;
}

void PeerTable::forget_strangers() {
    for (uint32_t i = 0; i < peers_.size(); ++i) {
        Peer& peer = peers_[i];
        const bool is_idle = peer.outgoing.empty() && peer.answers.empty() && peer.ready.empty() && !peer.is_listed;
        if (peer.is_free || peer.handles != 0 || peer.arrivals != 0 || !is_idle) continue;
        peer.is_free = true;
        free_peers_.push_back(i);
    }
    last_found_ = kNone;
    rehash(slots_.size());
}

bool PeerTable::add_handle(uint32_t index, uint16_t domain, uint32_t ahs_max) {
    Peer& peer = peers_[index];
    if (peer.handles++ != 0) {  // one handle number per destination
        peer.domains.push_back(domain);
        return true;
    }
    if (!free_ahns_.empty()) {
        peer.ahn = free_ahns_.back();
        free_ahns_.pop_back();
        by_ahn_[peer.ahn] = index;
    } else if (by_ahn_.size() < ahs_max) {
        peer.ahn = static_cast<uint16_t>(by_ahn_.size());
        by_ahn_.push_back(index);
    } else {
        peer.handles = 0;
        return false;
    }
    peer.domains.push_back(domain);
    return true;
}

bool PeerTable::remove_handle(uint16_t ahn, uint16_t domain) {
    const uint32_t index = by_ahn(ahn);
    if (index == kNone) return false;
    Peer& peer = peers_[index];
    const auto at = std::find(peer.domains.begin(), peer.domains.end(), domain);
    if (at == peer.domains.end()) return false;
    peer.domains.erase(at);
    if (--peer.handles != 0) return true;
    by_ahn_[ahn] = kNone;
    free_ahns_.push_back(ahn);
    peer.ahn = kAhUnknown;
    return true;
}

bool cq_push(CqState& cq, const RxCqeEx& entry) {
    if (cq.is_overrun) return false;
    // Acquire pairs with the poller's release of its count, after it has read the entries before.
    const uint32_t consumed = cq.consumer ? __atomic_load_n(cq.consumer, __ATOMIC_ACQUIRE) : kCqConsumerUnused;
    if (consumed != kCqConsumerUnused && cq.written - consumed >= cq.depth) {
        cq.is_overrun = true;
        return false;
    }
    uint8_t* at = cq.entries + static_cast<size_t>(cq.written & (cq.depth - 1)) * cq.entry_bytes;
    const uint8_t phase = ((cq.written >> cq.depth_log2) & 1u) ^ 1u;
    ++cq.written;
    constexpr size_t kFlagsAt = offsetof(TxCqe, flags);
    const auto* bytes = reinterpret_cast<const uint8_t*>(&entry);
    std::memcpy(at, bytes, kFlagsAt);
    std::memcpy(at + kFlagsAt + 1, bytes + kFlagsAt + 1, cq.entry_bytes - kFlagsAt - 1);
    const auto flags = static_cast<uint8_t>((entry.base.flags & ~kCqePhase) | phase);
    // Release pairs with the acquire in cq_ring_peek(): the phase bit is seen last.
    __atomic_store_n(at + kFlagsAt, flags, __ATOMIC_RELEASE);
    return true;
}

}  // namespace nvshmem_efa::soft
