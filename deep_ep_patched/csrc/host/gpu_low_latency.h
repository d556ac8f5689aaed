// SPDX-License-Identifier: Apache-2.0
// What a group keeps for the low-latency mode on a GPU: tables and epochs in GPU memory, and launches. Calls put kernels
// into the stream and wait for nothing, so that a CUDA graph may hold them; but the first call of a shape makes tables and
// waits, and over software devices each call that no graph captures waits for its kernel.
#pragma once

#include <vector>

#include "ep_gpu_launch.h"
#include "group.h"

namespace nvshmem_efa::ep {

class GpuLowLatency : public ModeState {
 public:
    static Status open(Group& group, std::unique_ptr<ModeState>* state);  // after the group is connected
    ~GpuLowLatency() override;  // waits for kernels, with a deadline
    std::string describe() const override;
    std::string stats_json() const override;
    Status before_barrier() override;  // takes over whom kernels have masked; waits

    // As the calls of the C API. Errors of earlier kernels come first.
    Status dispatch(const ep_ll_dispatch_args& args);
    Status combine(const ep_ll_combine_args& args);
    Status combine_buffer(const LlShape& shape, void** base, int64_t* stride_expert, int64_t* stride_row);
    Status clean(const LlShape& shape);
    Status set_masked(int rank, bool is_masked);
    Status wait();  // for the kernels so far

 private:
    explicit GpuLowLatency(Group& group) : group_(group), gpu_(*group.gpu()) {}
    Status make_words();
    Status use_shape(const LlShape& shape);
    Status make_tables(const LlShape& shape);
    Status check();  // what a kernel has told
    Status reset(ResetStep step);
    uint32_t blocks_for(const LlShape& shape) const;
    Status let_soft_devices_work();

    Group& group_;
    GpuRuntime& gpu_;
    DeviceState state_{};  // a copy, of what the host needs of it
    GpuCommon common_{};
    GpuReport* report_ = nullptr;
    GpuBlock words_, tables_;
    bool has_far_ranks_ = false;
    uint64_t combines_ = 0;  // sent, by this host: graphs that are replayed do not count here
    uint64_t launches_ = 0;
};

}  // namespace nvshmem_efa::ep
