// SPDX-License-Identifier: Apache-2.0
// What a software device keeps of its objects: memory regions, peers (address handles), completion queues, counters.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "memory_port.h"
#include "pool.h"
#include "profile.h"

namespace nvshmem_efa::soft {

struct Region {
    uint64_t addr = 0;
    uint64_t bytes = 0;
    MemoryKind kind = MemoryKind::kHost;
    uint32_t access = 0;
    uint32_t lkey = 0;  // 24 bits: number and generation; 0 when free
    uint32_t rkey = 0;
    uint16_t domain = 0;   // whose queue pairs may use it: a protection domain, where a front has several
    uint64_t to_here = 0;  // added to an address that programs use gives ours; 0 unless a PCI front mapped the memory
    bool covers(uint64_t at, uint64_t length) const {
        return at >= addr && length <= bytes && at - addr <= bytes - length;
    }
    // Where a covered byte lies for the MemoryPort.
    MemoryAddr here(uint64_t at) const { return MemoryAddr{kind, at + to_here}; }
};

// Keys name a slot of the table and its generation, so that a stale key is refused and a lookup is one load.
class RegionTable {
   public:
    explicit RegionTable(uint32_t bound) : bound_(bound) {}
    // Null when the table is full. `salt` goes to the upper bits of the rkey.
    Region* add(const MemoryAttr& attr, uint64_t to_here, uint16_t domain, uint8_t salt);
    bool remove(uint32_t lkey);
    const Region* by_lkey(uint32_t lkey) const {
        const uint32_t index = lkey & 0xffffu;
        return index < regions_.size() && lkey != 0 && regions_[index].lkey == lkey ? &regions_[index] : nullptr;
    }
    const Region* by_rkey(uint32_t rkey) const {
        const Region* region = by_lkey(rkey & kLkeyMask);
        return region && region->rkey == rkey ? region : nullptr;
    }

   private:
    uint32_t bound_;
    uint32_t used_ = 0;
    std::vector<Region> regions_ = std::vector<Region>(1);  // number 0 is never a key
    std::vector<uint8_t> generations_ = std::vector<uint8_t>(1);
    std::vector<uint32_t> free_;
};

// A remote device: one that we hold an address handle for, or that only sends to us.
struct Peer {
    Gid gid;
    uint16_t ahn = kAhUnknown;  // our address handle, while `handles` is not 0
    uint32_t handles = 0;
    std::vector<uint16_t> domains;  // of these handles: protection domains, where a front has several
    uint64_t last_heard_ns = 0;
    uint64_t arrivals = 0;      // packets in the order the wire gave them
    uint64_t newest_handled = 0;
    PoolList outgoing;          // ready packets: acks, requests for payload, fetched payload
    PoolList answers;           // read requests that we answer
    PoolList ready;             // work requests whose time to leave has come
    bool is_listed = false;     // on the device's list of peers with something to send
    bool is_free = false;       // its number is for the next one
    // Exports of ours that this peer could not resolve lately: their bytes travel in packets.
    uint64_t refused_exports[8] = {};
    uint32_t n_refused = 0;

    bool is_known_in(uint16_t domain) const {
        return std::find(domains.begin(), domains.end(), domain) != domains.end();
    }
};

class PeerTable {
   public:
    // The peer's number, making it if needed; kNone at the bound.
    uint32_t find_or_add(const Gid& gid);
    // Frees the numbers of peers without a handle that nothing ever came from and nothing waits for.
    void forget_strangers();
    uint32_t by_ahn(uint16_t ahn) const {  // kNone when the handle is not known
        return ahn < by_ahn_.size() ? by_ahn_[ahn] : kNone;
    }
    Peer& operator[](uint32_t index) { return peers_[index]; }
    const Peer& operator[](uint32_t index) const { return peers_[index]; }
    // Adds a handle to a peer; false when the device has no more.
    bool add_handle(uint32_t index, uint16_t domain, uint32_t ahs_max);
    bool remove_handle(uint16_t ahn, uint16_t domain);

   private:
    static uint64_t hash_gid(const Gid& gid);
    void rehash(size_t slots);
    static constexpr uint32_t kPeersMax = 16384;
    std::deque<Peer> peers_;  // a peer stays where it is
    std::vector<uint32_t> slots_;  // open addressing, power of two, kNone when free
    std::vector<uint32_t> by_ahn_;
    std::vector<uint16_t> free_ahns_;
    std::vector<uint32_t> free_peers_;
    uint32_t last_found_ = kNone;
};

struct CqState {
    bool is_live = false;
    uint8_t* entries = nullptr;
    uint32_t* consumer = nullptr;  // the poller's count, if it keeps one (Cq::consumer); null on a caller's ring
    uint32_t entry_bytes = 0;
    uint32_t depth = 0;
    uint32_t depth_log2 = 0;
    uint32_t written = 0;
    uint32_t users = 0;  // queue pairs
    bool is_overrun = false;
    bool is_callers = false;  // the caller's memory
};

inline constexpr uint32_t kRecvSgesMax = 2;  // descriptors of one receive
inline constexpr uint32_t kUdHeaderBytes = 40;

// One receive: its descriptors, copied.
struct Receive {
    RecvWqe pieces[kRecvSgesMax];
    uint32_t n = 0;
    uint64_t bytes = 0;
    bool is_whole = false;  // marked from first to last
};

struct CounterState {
    bool is_live = false;
    bool is_dirty = false;  // GPU words are written once per step
    CounterAttr attr;
    uint32_t users = 0;
    uint64_t completions = 0;
    uint64_t errors = 0;
};

// Appends an entry to the ring, its phase bit last. False when the poller is known not to have read the old entry:
// then nothing is written.
bool cq_push(CqState& cq, const RxCqeEx& entry);

}  // namespace nvshmem_efa::soft
