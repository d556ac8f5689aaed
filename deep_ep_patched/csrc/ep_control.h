// SPDX-License-Identifier: Apache-2.0
// The control slab of a rank: the words through which the ranks of one NVLink domain find each other. Every rank has one,
// mapped by all. Each word is written by exactly one rank and holds an epoch, a number that only grows; nobody resets it.
//
// Records alternate between two places by the parity of their epoch. That is safe with no credits: a rank writes record
// e + 2 after it has seen all of e + 1, and its owner sends e + 1 after it is through with e.
#pragma once

#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa::ep {

inline constexpr int kDomainRanksMax = 64;
inline constexpr uint32_t kRecordBytes = 16384;  // body of a record
inline constexpr uint32_t kSlabsMax = 32;        // of an arena

struct alignas(64) ControlWord {
    uint64_t value;
};

struct SlabName {
    char text[56];
};

// A slab of the owner's arena. Written once, before the record which counts it.
struct alignas(64) SlabEntry {
    SlabName name;          // of shared memory
    uint64_t bytes;
    uint8_t gpu_share[96];  // of a GPU's memory: a GpuShare
};

struct alignas(64) ControlRecord {
    uint64_t epoch;  // stored last, with release
    uint32_t kind;   // of the call that made it
    uint32_t n_slabs;  // of the writer's arena, so far
    alignas(64) uint8_t body[kRecordBytes];
};

struct ControlBlock {
    ControlWord gone;                      // the owner: 1 once it takes part in nothing any more
    SlabEntry slabs[kSlabsMax];            // the owner
    ControlWord barrier[kDomainRanksMax];  // rank s of the domain writes [s]: barriers that it has come to
    ControlWord done[kDomainRanksMax];     // rank s writes [s]: epoch whose rows from s are all here
    // ControlRecord [2][n_ranks] follows; rank s writes [.][s].
};

NVSHMEM_EFA_HD inline size_t control_bytes(int n_ranks) {
    return sizeof(ControlBlock) + 2 * static_cast<size_t>(n_ranks) * sizeof(ControlRecord);
}
NVSHMEM_EFA_HD inline ControlRecord* control_record(ControlBlock* block, int n_ranks, uint64_t epoch, int source) {
    return reinterpret_cast<ControlRecord*>(block + 1) + (epoch & 1) * static_cast<size_t>(n_ranks) + source;
}

}  // namespace nvshmem_efa::ep
