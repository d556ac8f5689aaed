// SPDX-License-Identifier: Apache-2.0
// The network under a group: a Transport whose queues CPU threads post to by the device API, and the symmetric buffer.
// Devices and limits come from the NVSHMEM_EFA_* settings of the environment.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "ep_api.h"
#include "gpu_runtime.h"
#include "nvshmem_efa/device_state.h"
#include "shared_slab.h"
#include "transport.h"

namespace nvshmem_efa::ep {

class Network {
 public:
    // Opens the devices and makes the buffer; nobody is talked to. `is_shared`: NVLink peers will map the buffer.
    // With a `gpu` the buffer lies in its memory, and kernels post.
    static Status open(const ep_options& options, bool is_shared, GpuRuntime* gpu, std::unique_ptr<Network>* network);
    ~Network();
    // Collective.
    Status connect(const Bootstrap& bootstrap);

    const DeviceState& state() const { return *state_; }  // with a GPU its address is the GPU's
    Transport& transport() { return *transport_; }
    uint8_t* base() const { return block_.data() ? block_.data() : buffer_.base() + own_bytes_; }  // the symmetric buffer; page-aligned, zeroes at first
    int64_t bytes() const { return options_.rdma_bytes; }
    // Memory for the first `bytes` of it; cheap when it is there.
    Status commit(int64_t bytes) { return block_.data() ? Status() : buffer_.commit(own_bytes_ + static_cast<size_t>(bytes)); }
    const GpuBlock& block() const { return block_; }     // the symmetric buffer on a GPU
    SharedSlab& slab() { return buffer_; }               // own words of this class, then the symmetric buffer
    size_t own_bytes() const { return own_bytes_; }
    bool is_soft() const { return mode_ == "soft"; }     // this process's threads are the devices
    std::string describe() const;
    std::string stats_json() const;  // members of an object, without braces

    // Between all ranks for which `take_part` holds, which is asked again while waiting.
    using Late = std::function<Status(int rank, Status)>;
    Status barrier(const std::function<bool(int rank)>& take_part, const Late& late);

 private:
    explicit Network(const ep_options& options) : options_(options) {}
    Status open_devices(TransportOptions* options);
    Status register_buffer(const Bootstrap& bootstrap);
    Status share(const Bootstrap& bootstrap, void* base, size_t bytes, std::vector<MemHandle>* handles);
    // Rank s writes [s] by the network.
    uint64_t* barrier_word(int rank) const { return &(reinterpret_cast<ControlWord*>(buffer_.base()) + rank)->value; }

    const ep_options options_;
    std::string mode_;
    size_t own_bytes_ = 0;
    SharedSlab buffer_;  // outlives the devices that write it, as the next
    GpuBlock block_;
    std::unique_ptr<Transport> transport_;
    const DeviceState* state_ = nullptr;
    std::vector<MemHandle> handles_;  // [rank]: own words, and with no GPU the buffer behind them
    uint64_t barriers_ = 0;
};

}  // namespace nvshmem_efa::ep
