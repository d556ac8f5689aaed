// SPDX-License-Identifier: Apache-2.0
// Collective start-up: PEs say who they are, refuse a mismatch by name, open their queues and learn to reach each other.
#pragma once

#include <vector>

#include "agent_record.h"
#include "arrival_queues.h"
#include "control_memory.h"
#include "endpoint.h"
#include "gpu_ring.h"
#include "job.h"

namespace nvshmem_efa {

struct ConnectedQueues {
    std::vector<Endpoint> lanes[kLanes];  // one a rail
    std::vector<Endpoint> agent;
    std::vector<std::unique_ptr<GpuRing>> gpu;  // [rail * queues of a rail + i]; empty unless NVSHMEM_EFA_GPU_QUEUES says so
    MemoryKind posters = MemoryKind::kHost;     // who posts to them
    std::unique_ptr<ArrivalQueues> arrivals;    // null unless NVSHMEM_EFA_ARRIVALS says so
    uint64_t* ack_words[kLanesMax] = {};        // [n_pes]; null where there is no such lane
    ReplySlot* replies[kLanesMax] = {};         // [n_pes][window]
};

// Needs job->clock; fills the rest. Receives are posted; every address handle exists on this side on return.
Status connect_job(const Bootstrap& bootstrap, const std::vector<std::unique_ptr<Nic>>& nics, const Knobs& knobs,
                   ControlMemory& control, Job* job, ConnectedQueues* queues);

// The first difference between `mine` and `other` that forbids to run together; OK if there is none. Pure.
struct Hello;
Status check_hello(const Hello& mine, const Hello& other, int expected_pe);

}  // namespace nvshmem_efa
