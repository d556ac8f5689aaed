// SPDX-License-Identifier: Apache-2.0
// GPU memory that a NIC writes: whole granules, so that they can be exported as a dma-buf.
#pragma once

#include "cuda_driver.h"

namespace nvshmem_efa::cuda {

class GpuMemory {
   public:
    GpuMemory() = default;
    ~GpuMemory() { release(); }
    GpuMemory(const GpuMemory&) = delete;
    GpuMemory& operator=(const GpuMemory&) = delete;

    // On the GPU that is current on this thread. Allocates and waits for a copy (with a deadline): at start only.
    Status allocate_zeroed(size_t bytes);
    void release();  // pre: no device writes to it any more
    uint8_t* data() const { return reinterpret_cast<uint8_t*>(addr_); }  // the GPU's address; null: none

   private:
    const Driver* driver_ = nullptr;
    Context context_ = nullptr;
    DevicePtr addr_ = 0;
};

}  // namespace nvshmem_efa::cuda
