// SPDX-License-Identifier: Apache-2.0
// What a PE knows of the job once it is connected, and the two messages that PEs exchange to get there.
#pragma once

#include <vector>

#include "transport.h"

namespace nvshmem_efa {

// First message: who speaks. Fixed for all versions up to `version`, so that a mismatch is always told by name.
struct Hello {
    uint32_t magic = 0;
    uint32_t wire_version = 0;
    char version[24] = {};  // NVSHMEM_EFA_VERSION
    char mode[16] = {};     // "soft", "proxy"
    int32_t pe = 0;
    int32_t n_pes = 0;
    uint32_t n_rails = 0;
    uint32_t rq_depth = 0;
    uint8_t unsolicited = 0;
    uint8_t gpu_queues = 0;  // a rail
    uint8_t writes_once = 0;
    uint8_t arrival_slots = 0;   // NVSHMEM_EFA_ARRIVALS
    uint8_t arrival_source = 0;  // NVSHMEM_EFA_ARRIVAL_SOURCE, by arrival_source_code()
    uint8_t has_counters = 0;    // all its devices have completion counters
    uint8_t reserved[2] = {};
    JobSecret secret;  // PE 0's is the job's
};
inline constexpr uint32_t kHelloMagic = 0x4f4c4645;  // "EFLO"
inline constexpr uint32_t kWireVersion = 3;          // of everything PEs say to each other, the records included

struct RailCard {
    PeerAddress address;
    WqeTarget agent;  // `ah` unused
    uint16_t lane_qp_num[kLanes] = {};
    uint16_t gpu_qp_num[kGpuQueuesMax] = {};  // 0 from the first that is not there
    uint32_t control_rkey = 0;
};

// Second message: how to reach a PE.
struct PeCard {
    uint64_t ack_words[kLanesMax] = {};    // u64 [n_pes]: written by the agent of PE i; 0: the PE has no such lane
    uint64_t reply_slots[kLanesMax] = {};  // ReplySlot [n_pes][window]
    RailCard rails[kRailsMax];
};

struct Peer {
    PeCard card;
    WqeTarget agent[kRailsMax] = {};  // with our own device's AH number
    AddressHandle ah[kRailsMax];
};

struct Job {
    int pe = 0;
    int n_pes = 0;
    size_t n_rails = 0;
    uint32_t lanes = kLanes;  // that PEs send from: kLanesMax when any of them has GPU queues
    uint32_t window = 0;  // records and signals that one lane may have un-acknowledged at one PE; a power of two
    bool count_by_immediate = false;  // all devices have unsolicited write receive
    bool writes_once = false;  // all devices place each payload once
    uint32_t arrival_slots = 0;  // of each PE, for counted puts of each other PE
    bool arrivals_by_immediate = false;
    uint64_t segment_bytes = 0;       // longest single RDMA operation
    uint64_t stripe_bytes = 0;
    uint64_t timeout_ms = 0;
    Clock* clock = nullptr;
    std::vector<Peer> peers;
};

}  // namespace nvshmem_efa
