// SPDX-License-Identifier: Apache-2.0
// What the guest has made on this function: its numbers, the model's handles behind them, and the guest's pages that
// they hold mapped.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "soft_efa/device.h"
#include "soft_efa/pci/efa_admin_objects.h"
#include "soft_efa/pci/guest_memory.h"
#include "soft_efa/pci/id_table.h"

namespace nvshmem_efa::soft::pci {

struct DomainObject {  // a protection domain or a UAR
    uint32_t users = 0;
};

struct EqObject {
    MappedPages pages;
    uint8_t* entries = nullptr;
    uint32_t depth = 0;
    uint32_t written = 0;
    uint32_t vector = 0;
    uint32_t users = 0;
    bool is_armed = false;
    bool has_unannounced = false;  // entries that no interrupt told of
};

struct CqObject {
    MappedPages pages;
    uint8_t* entries = nullptr;
    std::vector<uint64_t> rings;  // the model's queues: one per sub-queue
    uint32_t users = 0;
    uint32_t uar = 0;
    uint32_t eq = kNoId;  // kNoId: no interrupts
    uint32_t next_ring = 0;
    uint16_t consumed = 0;  // as the guest's doorbell last said
    bool is_armed = false;
    bool is_req_id_64 = false;
};

// The model counts operations of a queue pair, good and failed, in these words; event counters sum them up.
struct OpCounts {
    uint64_t model_handle[6] = {};  // by bit of CounterOp; 0: not counted
    uint64_t words[6][2] = {};      // good, failed
};

struct QpObject {
    uint64_t model_handle = 0;
    uint32_t handle = 0;  // its name in later commands
    uint8_t type = 0;
    uint32_t pd = 0, uar = 0, send_cq = 0, recv_cq = 0;
    AdminQpState state = AdminQpState::kReset;
    uint32_t qkey = 0;
    uint32_t sq_psn = 0;
    uint8_t rnr_retry = 0;  // until the driver asks for more, a receiver that is not ready is an error
    uint32_t sq_bytes = 0;
    MappedPages rq_pages;
    std::unique_ptr<OpCounts> counts;
    uint32_t event_counter[kQpEvents] = {kNoId, kNoId, kNoId, kNoId, kNoId, kNoId, kNoId, kNoId, kNoId, kNoId};
    uint64_t events_seen[kQpEvents] = {};
};

struct MrObject {
    uint32_t pd = 0;
    MappedPages pages;
};

struct EventCounterObject {
    MappedPages pages;
    uint64_t* word = nullptr;
    uint32_t uar = 0;
    uint64_t value = 0;
    uint32_t users = 0;
    uint32_t handle = 0;
};

struct alignas(64) DoorbellPair {
    uint32_t send = 0;
    alignas(64) uint32_t receive = 0;
};

struct Objects {
    explicit Objects(const Profile& profile)
        : pds(profile.pci.max_pds),
          uars(profile.pci.max_uars),
          eqs(profile.pci.max_eqs),
          cqs(profile.pci.max_cqs),
          qps(profile.caps.max_qps - 1),
          event_counters(2 * profile.caps.max_counters),
          doorbells(profile.caps.max_qps) {}

    IdTable<DomainObject> pds, uars;
    IdTable<EqObject> eqs;
    IdTable<CqObject> cqs;
    IdTable<QpObject> qps;
    IdTable<EventCounterObject> event_counters;
    std::unordered_map<uint32_t, MrObject> mrs;                 // by lkey
    std::map<std::pair<uint16_t, uint16_t>, uint32_t> handles;  // by address handle and domain: how often made
    uint32_t n_handles = 0;
    std::vector<DoorbellPair> doorbells;  // by number of the queue pair; never moves
    uint16_t generation = 0;

    // A 32-bit name for number `id` of a table, so that the name of a former one is refused.
    uint32_t new_handle(uint32_t id) { return id | static_cast<uint32_t>(++generation) << 16; }
    static uint32_t id_of(uint32_t handle) { return handle & 0xffff; }
};

}  // namespace nvshmem_efa::soft::pci
