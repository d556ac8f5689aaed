// SPDX-License-Identifier: Apache-2.0
// Generations of EFA that the software device plays: capabilities, limits, and the times of the virtual clock.
#pragma once

#include <string>

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

// What only the PCI front of a device shows (soft_efa/pci).
struct PciShape {
    uint16_t device_id = 0xefa2;
    // Minor version of the admin queue's protocol 0.x. From 2 on completions carry a checksum; with 3 commands may be
    // 128 bytes long, with a checksum of their own.
    uint8_t admin_minor = 1;
    uint16_t link_gbps = 100;
    uint16_t sub_cqs_per_cq = 1;
    uint16_t min_sq_depth = 0;
    uint16_t max_sub_cq_depth = 32768;  // the field that asks for it has 16 bits
    uint32_t max_cqs = 2048;
    uint32_t max_pds = 1024;
    uint32_t max_uars = 1024;
    uint32_t max_eqs = 16;
    uint32_t max_eq_depth = 2048;       // one armed CQ has at most one event under way
    uint32_t max_mr_pages = 1u << 22;   // 16 GiB of 4-KiB pages
    uint64_t page_sizes = 0xfffff000u;  // every power of two from 4 KiB to 2 GiB
};

struct Profile {
    const char* name = "";
    NicCaps caps;
    uint32_t cqe_bytes = 32;
    uint32_t ahs_max = 0;
    uint32_t segments_max = 8;  // segments of one RDMA message are at least bytes / segments_max long (bounds GPU copies)
    Timing timing;
    PciShape pci;
};

// "efa2", "efa3" or "efa4"; kConfig otherwise.
Status find_profile(const char* name, Profile* profile);

// Takes capabilities away, comma-separated: rdma_read, rdma_write, rnr_retry, unsolicited, inline_write, req_id_64,
// counters, data_polling_128. kConfig names one that is unknown.
Status remove_capabilities(const std::string& names, NicCaps* caps);

}  // namespace nvshmem_efa::soft
