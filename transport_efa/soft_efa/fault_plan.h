// SPDX-License-Identifier: Apache-2.0
// NVSHMEM_EFA_SOFT_FAULT: which devices die, and when.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "status.h"

namespace nvshmem_efa::soft {

struct PlannedFault {
    enum class Kind : uint8_t { kDeadPeer, kDeadRail } kind = Kind::kDeadPeer;
    int which = 0;              // PE, or rail
    uint64_t after_packets = 0;  // that the device has received
};

// "dead_peer=1@500,dead_rail=0@20"; kConfig with what was expected otherwise.
Status parse_fault_plan(const std::string& text, std::vector<PlannedFault>* plan);

}  // namespace nvshmem_efa::soft
