// SPDX-License-Identifier: Apache-2.0
// What the host and the kernels of the GPU executor agree on: the one parameter of each kernel, and words that outlive a
// launch. Epochs lie in GPU memory, so that a CUDA graph can be replayed: no launch carries a number of its own.
#pragma once

#include "ep_ll_view.cuh"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kGpuThreads = 512;  // of a block of every kernel
inline constexpr uint32_t kGpuWarps = kGpuThreads / 32;

// Why a kernel ended early. The host makes an error of it.
enum class GpuStop : uint32_t {
    kNone = 0,
    kFault,     // GpuReport::fault says what the protocol code found
    kBlocks,    // a block of the kernel did not come: not all of them run at once
    kOrder,     // a third operation was sent before the first was received, or nothing is there to receive
    kZeroCopy,  // rows were written for the other parity than this combine has
};

// Pinned host memory. `is_set` is stored last, with release at system scope; the host loads it with acquire.
struct GpuReport {
    uint32_t is_set;
    GpuStop stop;
    uint32_t phase;
    uint32_t reserved;
    LlFault fault;
};

// Operations of a phase that this rank has begun and ended.
struct GpuEpochs {
    uint64_t sent;
    uint64_t received;
};

// Where the blocks of a kernel wait for each other. `come` counts blocks, and from bit 16 on those that know of a fault; it
// is 0 between kernels. `lap` is twice a number that only grows, and 1 more when one of the blocks knew of a fault.
struct GpuGate {
    uint32_t come;
    uint32_t lap;
};

// GPU memory, zeroed when a group is opened. Kernels of one phase run one after the other; the two phases may overlap.
struct GpuWords {
    GpuEpochs epochs[2];  // [phase]
    GpuGate gates[2];     // [phase]
    uint32_t ended[2][2]; // [phase][half]: as `come`, of blocks that have done all of theirs and wait for nobody
    uint32_t is_told;     // 1: a stop is in the report
    uint32_t reserved;
};

struct GpuCommon {
    GpuReport* report;  // as the GPU sees it; first, where tests look for it
    GpuWords* words;
    uint64_t gate_ns;  // deadline of the blocks' waits for each other: beyond all others
    LlView view;       // pointers are the GPU's
};

// Kernels nvshmem_efa::ep::dispatch() and combine(). Their names are looked up by profilers of DeepEP's test programs.
struct DispatchLaunch {
    GpuCommon common;
    ep_ll_dispatch_args args;
};
struct CombineLaunch {
    GpuCommon common;
    ep_ll_combine_args args;
    uint64_t zero_copy_epoch;  // for which the caller was given the buffer; its parity counts
};

// Kernel reset(): makes the places of low-latency mode ready for another shape, in steps with a barrier of the host between.
enum class ResetStep : uint32_t { kSettle = 0, kEmpty = 1, kTell = 2, kTake = 3 };
struct ResetLaunch {
    GpuCommon common;
    ResetStep step;
    uint32_t reserved;
};

// The kernels' names as the module has them. tests/python/test_deep_ep_kernels.py looks for them in what NVRTC makes.
inline constexpr const char* kDispatchSymbol = "_ZN11nvshmem_efa2ep8dispatchENS0_14DispatchLaunchE";
inline constexpr const char* kCombineSymbol = "_ZN11nvshmem_efa2ep7combineENS0_13CombineLaunchE";
inline constexpr const char* kResetSymbol = "_ZN11nvshmem_efa2ep5resetENS0_11ResetLaunchE";

// NVRTC and the C++ compiler lay structs out alike: each checks these.
static_assert(sizeof(GpuReport) == 48 && sizeof(GpuWords) == 72 && sizeof(LlView) == 240 && sizeof(GpuCommon) == 264);
static_assert(sizeof(DispatchLaunch) == 368 && sizeof(CombineLaunch) == 360 && sizeof(ResetLaunch) == 272);
NVSHMEM_EFA_LAYOUT(offsetof(GpuWords, gates) == 32 && offsetof(LlView, rank) == 216 && offsetof(CombineLaunch, zero_copy_epoch) == 352);

}  // namespace nvshmem_efa::ep
