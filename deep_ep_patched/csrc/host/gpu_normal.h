// SPDX-License-Identifier: Apache-2.0
// Normal mode on a GPU: flags that peers map, and launches. Hosts tell each other counts and places first, as on the CPU;
// the kernels of a call then wait for each other on the GPUs.
#pragma once

#include <memory>
#include <vector>

#include "ep_normal_gpu.h"
#include "gpu_runtime.h"

namespace nvshmem_efa::ep {

class Group;

class GpuNormal {
 public:
    static Status create(GpuRuntime& gpu, const ep_options& options, std::unique_ptr<GpuNormal>* normal);
    const GpuBlock& flags() const { return flags_; }
    Status map_peer(int rank, const GpuShare& share);  // its flags; ranks of a domain that can use the normal mode

    // Each puts a kernel into the stream; errors of earlier kernels come first.
    Status layout(const ep_layout_args& args);
    // Waits for the kernel: `counts` is what it found, until the next call.
    Status count(const ep_notify_args& args, const NormalCounts** counts);
    Status dispatch(const ep_dispatch_args& args, const DispatchView& view, uint64_t epoch);
    Status combine(const ep_combine_args& args, const ReturnView (&returns)[kNormalRanksMax], const ReduceView& reduce, uint64_t epoch);
    Status wait();   // all of it has ended
    Status check() const;  // what a kernel has told

 private:
    GpuNormal(GpuRuntime& gpu, const ep_options& options) : gpu_(gpu), options_(options) {}
    NormalCommon common(uint64_t epoch) const;
    Status wait_for_counts();

    GpuRuntime& gpu_;
    const ep_options options_;
    GpuBlock flags_, words_;
    GpuBlock peer_flags_[kNormalRanksMax];
    struct Pinned {
        NormalReport report;
        NormalCounts counts;
    };
    Pinned* pinned_ = nullptr;       // as the CPU sees it
    Pinned* gpu_pinned_ = nullptr;   // as the GPU does
    uint64_t turn_ = 0;              // of counting
};

}  // namespace nvshmem_efa::ep
