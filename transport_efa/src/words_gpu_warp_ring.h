// SPDX-License-Identifier: Apache-2.0
// The ring between the CPU and the atomics warp, in pinned host memory. Plain layout: the host's C++, the kernel and
// the tests share it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nvshmem_efa {

inline constexpr uint32_t kWarpLanes = 32;  // requests in one batch, a lane each
inline constexpr uint32_t kWarpBatches = 8;
inline constexpr uint64_t kWarpStop = ~uint64_t{0};
// A warp that finds no batch for so long ends: cudaDeviceSynchronize and the like, which wait for every kernel, return
// then. Long beside the 10 us between two batches of a busy program, short beside what those calls take anyway.
inline constexpr uint64_t kWarpIdleNs = 200'000;

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
// A warp is one launch, with a number; idle ones end, and the CPU launches the next when batches wait.
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
    uint64_t launch;  // the number of this launch, from 1; written before it, like `first`
    uint64_t first;   // the batch it starts with
    uint64_t hello;   // = launch once the warp runs
    uint64_t bye;     // = launch when it has ended; every answer it gave is visible then
    uint64_t reserved[4];
    WarpBatch batches[kWarpBatches];
    WarpAnswer answers[kWarpBatches];
};

}  // namespace nvshmem_efa
