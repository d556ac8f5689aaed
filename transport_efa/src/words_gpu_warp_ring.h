// SPDX-License-Identifier: Apache-2.0
// The ring between the CPU and the resident warp, in pinned host memory. Plain layout: the host's C++, the kernel and
// the tests share it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nvshmem_efa {

inline constexpr uint32_t kWarpLanes = 32;  // requests in one batch, a lane each
inline constexpr uint32_t kWarpBatches = 8;
inline constexpr uint64_t kWarpStop = ~uint64_t{0};
inline constexpr uint64_t kWarpHello = 0x31707261572d4146ull;
inline constexpr uint64_t kWarpBye = 0x657962207261572dull;

struct WarpRequest {
    uint64_t addr;
    uint64_t operand;
    uint64_t compare;
    uint32_t op;    // WordOp
    uint16_t bytes;
    uint16_t is_float;
};
static_assert(sizeof(WarpRequest) == 32);

// Batch n (from 0) uses batches[n % kWarpBatches]. The CPU writes requests and count, then sequence = n + 1 (release);
// the warp answers with results, then done = n + 1 (release). kWarpStop in place of the next sequence ends the warp.
struct WarpBatch {
    uint64_t sequence;
    uint64_t count;
    uint64_t reserved[6];
    WarpRequest requests[kWarpLanes];
};
static_assert(sizeof(WarpBatch) == 64 + 1024 && offsetof(WarpBatch, requests) == 64);

struct WarpAnswer {
    uint64_t done;
    uint64_t reserved[7];
    uint64_t results[kWarpLanes];  // the values before
};
static_assert(sizeof(WarpAnswer) == 64 + 256);

struct WarpRing {
    uint64_t hello;  // kWarpHello once the warp runs
    uint64_t bye;    // kWarpBye when it has ended
    uint64_t reserved[6];
    WarpBatch batches[kWarpBatches];
    WarpAnswer answers[kWarpBatches];
};

}  // namespace nvshmem_efa
