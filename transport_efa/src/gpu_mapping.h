// SPDX-License-Identifier: Apache-2.0
// Host memory (or a device's, with kHostIoMemory) as the GPU sees it: pinned and mapped for the life of an object.
#pragma once

#include "cuda_driver.h"

namespace nvshmem_efa::cuda {

class GpuMapping {
   public:
    GpuMapping() = default;
    ~GpuMapping() { unmap(); }
    GpuMapping(GpuMapping&& other) noexcept { *this = static_cast<GpuMapping&&>(other); }
    GpuMapping& operator=(GpuMapping&& other) noexcept;

    // Maps the pages of [memory, memory + bytes) for the GPU that is current on this thread. Memory that CUDA has pinned
    // already is used as it is. Pins memory: not beside a spinning kernel. `what` names the memory in errors, `hint` is
    // what to do about a refusal (null: the limit of locked memory).
    Status map(void* memory, size_t bytes, unsigned extra_flags, const char* what, const char* hint = nullptr);
    // Pre: nobody on the GPU uses it any more. The memory itself must still be there.
    void unmap();

    // The GPU's address of a byte that is mapped.
    template <class T>
    T* at_gpu(T* host) const {
        return reinterpret_cast<T*>(gpu_ + (reinterpret_cast<uint64_t>(host) - start_));
    }

   private:
    const Driver* driver_ = nullptr;
    Context context_ = nullptr;
    uint64_t start_ = 0;  // first byte that `gpu_` stands for
    DevicePtr gpu_ = 0;
    bool is_registered_ = false;  // by us
};

// A GPU is current on this thread: CUDA is loaded and has a context here.
bool has_current_gpu();

}  // namespace nvshmem_efa::cuda
