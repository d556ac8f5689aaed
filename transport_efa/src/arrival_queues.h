// SPDX-License-Identifier: Apache-2.0
// The receiving side of counted puts (nvshmem_efa/counted.cuh): what counts, at this PE, the writes of each PE to each slot.
// docs/ordering.md says what such a count proves.
#pragma once

#include <string>
#include <vector>

#include "gpu_mapping.h"
#include "gpu_memory.h"
#include "job.h"
#include "nvshmem_efa/device_state.h"

namespace nvshmem_efa {

// What the PEs' first messages and this PE's settings say of counted puts, into `job`: the same on all PEs, errors too.
Status settle_arrivals(const std::vector<Hello>& hellos, Job* job);
// NVSHMEM_EFA_ARRIVAL_SOURCE as PEs tell it each other, and back.
uint8_t arrival_source_code(const Knobs& knobs);
const char* arrival_source_text(uint8_t code);

struct ArrivalAttr {
    uint32_t qkey = 0;
    MemoryKind posters = MemoryKind::kHost;
    bool is_soft = false;         // software devices, which count when the payload's copy is done
    uint32_t queues_taken = 0;    // of each device, by this PE's lanes, agent and posters
    uint32_t counters_taken = 0;  // the same, of its counters
};

// Tables are indexed [(pe * slots + slot) * n_rails + rail], as in DeviceState.
class ArrivalQueues {
   public:
    // Opens the queues of this PE, if its devices can have so many. With posters == kCuda on a thread where their GPU is
    // current. Allocates and pins.
    static Status open(const Job& job, const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr,
                       std::unique_ptr<ArrivalQueues>* queues);
    // Pre: no poster looks any more.
    ~ArrivalQueues();
    ArrivalQueues(const ArrivalQueues&) = delete;
    ArrivalQueues& operator=(const ArrivalQueues&) = delete;

    // Collective: PEs tell each other their queues' numbers. Pre: address handles are made.
    Status exchange(const Bootstrap& bootstrap, const Job& job);

    const std::vector<DeviceTarget>& targets() const { return targets_; }  // what this PE sends to
    const uint64_t* counts_at_posters() const { return counts_at_posters_; }  // null with immediates: posters keep the counts
    const std::vector<uint32_t>& biases() const { return biases_; }           // what the counts held at the start
    // With immediates, [rail] as posters see them, but for what lies in the posters' memory; else empty.
    const std::vector<ArrivalQueue>& queues() const { return queues_; }
    uint32_t unread_max() const { return unread_max_; }  // see DeviceState::arrival_unread_max
    std::string describe() const;  // "arrivals at 4 slots a PE by counters in host memory"

   private:
    static constexpr uint32_t kIdleSqDepth = 8;  // nothing is sent from a target
    struct Made {
        Nic* nic = nullptr;
        uint64_t qp = 0, counter = 0;
        uint16_t qp_num = 0;
    };
    ArrivalQueues() = default;
    Status open_counters(const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr);
    Status make_counters(const std::vector<std::unique_ptr<Nic>>& nics, uint32_t qkey);
    void close_counters();
    Status open_queue(Nic& nic, uint64_t cq, uint32_t qkey, size_t index);
    Status map_host_memory(size_t bytes, MemoryKind posters);
    // arrival_immediates.cpp
    struct Rail {
        Nic* nic = nullptr;
        Cq cq;
        Qp qp;
        MemoryRegion buffer;
        cuda::GpuMemory gpu_entries;
        cuda::GpuMapping entries_map, doorbell_map;
    };
    Status open_immediates(const Job& job, const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr);
    Status open_entries(Rail* rail, uint32_t depth, const ArrivalAttr& attr);
    Status open_receiver(Rail* rail, uint32_t depth, const ArrivalAttr& attr);
    Status fill_receives(Rail* rail);
    Status show_to_posters(Rail* rail, const ArrivalAttr& attr);
    void close_immediates();

    uint32_t slots_ = 0;
    size_t n_rails_ = 0, n_ = 0;
    std::vector<Made> made_;
    std::vector<std::pair<Nic*, uint64_t>> cqs_;
    std::vector<DeviceTarget> targets_;
    std::vector<uint32_t> biases_;
    cuda::GpuMemory gpu_memory_;
    uint8_t* host_memory_ = nullptr;
    size_t bytes_ = 0;
    cuda::GpuMapping host_map_;
    uint8_t* words_ = nullptr;  // completions [n_], then errors [n_]; where the device writes them
    MemoryKind words_kind_ = MemoryKind::kHost;
    const uint64_t* counts_at_posters_ = nullptr;
    uint32_t unread_max_ = 0;
    std::vector<std::unique_ptr<Rail>> rails_;  // with immediates
    std::vector<ArrivalQueue> queues_;
};

}  // namespace nvshmem_efa
