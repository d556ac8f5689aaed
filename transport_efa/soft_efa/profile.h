// SPDX-License-Identifier: Apache-2.0
// Generations of EFA that the software device plays: capabilities, limits, and the times of the virtual clock.
#pragma once

#include "fabric/fabric.h"
#include "status.h"

namespace nvshmem_efa::soft {

// Times of the virtual clock, from published measurements (docs/soft-efa.md). Never shown as a measured speed.
struct Timing {
    uint32_t one_way_ns = 0;      // small write, NIC to memory
    uint32_t jitter_ns = 0;       // added to it, uniform
    uint32_t ack_extra_ns = 0;    // the initiator's completion becomes visible
    uint32_t per_request_ns = 0;  // one work request occupies the device
    uint32_t bytes_per_us = 0;    // one link; 0 means no limit
};

struct Profile {
    const char* name = "";
    NicCaps caps;
    uint32_t cqe_bytes = 32;
    uint32_t ahs_max = 0;
    uint32_t segments_max = 8;  // segments of one RDMA message are at least bytes / segments_max long (bounds GPU copies)
    Timing timing;
};

// "efa2", "efa3" or "efa4"; kConfig otherwise.
Status find_profile(const char* name, Profile* profile);

}  // namespace nvshmem_efa::soft
