// SPDX-License-Identifier: Apache-2.0
// The ranks of one NVLink domain, through shared memory: they exchange records, tell each other that rows are there, and
// reach each other's arenas. One thread at a time; every wait has a deadline and names the rank.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "arena.h"
#include "ep_control.h"
#include "status.h"

namespace nvshmem_efa::ep {

// Which call an exchange belongs to: ranks that differ in it are told so.
enum class CallKind : uint32_t { kOpen = 1, kNotify = 2, kNotifyCached = 3, kDispatch = 4, kCombine = 5 };
const char* call_name(CallKind kind);  // "ep_notify", ...

struct Domain {
    int first = 0;  // rank number of its first rank
    int n_ranks = 1;
    int index = 0;  // this rank's, in it
    uint64_t timeout_ms = 0;
    bool is_spinning = false;  // waits keep their processor for a while: other ranks' hosts are a few microseconds behind
    int rank_of(int i) const { return first + i; }
};

class Control {
 public:
    explicit Control(const Domain& domain) : domain_(domain) {}
    Status create();  // the own slab
    const SlabName& name() const { return own_.name(); }
    Status map_peers(const std::vector<SlabName>& names);  // [n_ranks of the domain]
    void unlink() { own_.unlink(); }

    // All-to-all. `fill` writes the record for rank `dest` of the domain, of which `body` is zeroes or old bytes. Then
    // received(source) is that of each rank, until the exchange after the next; what peers' arenas have grown by is mapped.
    Status exchange(CallKind kind, Arena& arena, const std::function<void(int dest, uint8_t* body)>& fill);
    const uint8_t* received(int source) const;
    uint64_t waited_ns() const { return waited_ns_; }  // in all exchanges, for other ranks' records
    uint64_t epoch() const { return epoch_; }  // of the last exchange: the same number on all ranks
    // After rows were stored to `dest`: makes them visible to its wait_done(). Once an exchange.
    void tell_done(int dest);
    Status wait_done(CallKind kind, Arena& arena);

    // `skip` tells ranks that are masked; `late` is called for one that did not come, and may forgive it by an OK status.
    using Late = std::function<Status(int index, Status)>;
    Status barrier(const std::function<bool(int index)>& skip, const Late& late);
    void leave();  // tells peers that this rank will answer nothing any more

    // Memory of a peer's arena; kProtocol when it is not all inside.
    Status locate(int peer, const Place& place, uint64_t bytes, Arena& own_arena, uint8_t** at) const;

 private:
    ControlBlock* block(int i) const { return blocks_[static_cast<size_t>(i)]; }
    Status wait(int source, const uint64_t* word, uint64_t value, const char* what);
    Status map_slabs(int source, uint32_t n_slabs, GpuRuntime* gpu);

    const Domain domain_;
    SharedSlab own_;
    std::vector<SharedSlab> peers_;
    std::vector<ControlBlock*> blocks_;
    std::vector<std::vector<ArenaMemory>> arenas_;  // [rank of the domain]; empty for the own
    uint64_t epoch_ = 0;          // exchanges that this rank has begun
    uint64_t barriers_ = 0;
    uint64_t waited_ns_ = 0;
    uint32_t told_slabs_ = 0;     // of the own arena, in the last exchange
};

}  // namespace nvshmem_efa::ep
