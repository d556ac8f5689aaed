// SPDX-License-Identifier: Apache-2.0
// The CUDA memory port with its settings spelled out; make_cuda_memory_port() in memory_port.h takes them from the knobs.
#pragma once

#include <string>

#include "memory_port.h"

namespace nvshmem_efa::soft {

struct CudaPortOptions {
    int64_t timeout_ms = 30000;
    std::string sharing = "auto";  // auto | direct | bounce, as NVSHMEM_EFA_SOFT_CUDA
    // Copies within one GPU up to this size go through pinned host memory: the driver may run a direct one as a kernel,
    // which waits forever beside a program that fills the GPU.
    size_t same_gpu_bounce_bytes = 65536;
    size_t arena_bytes = 16u << 20;  // pinned, at construction; grows by as much, on application threads
};

// In the current context of the calling thread. All device and pinned memory is allocated here, in add_local() and in
// attach(); nothing on the engine's thread does.
Status make_cuda_memory_port(uint64_t process_id, const CudaPortOptions& options, std::unique_ptr<MemoryPort>* port);

}  // namespace nvshmem_efa::soft
