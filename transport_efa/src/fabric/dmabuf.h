// SPDX-License-Identifier: Apache-2.0
// GPU memory as a dma-buf, for registration and for rings and counters in GPU memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "status.h"

namespace nvshmem_efa::verbs {

// Owns a file descriptor. The kernel keeps its own reference once something is registered on it.
class Dmabuf {
   public:
    Dmabuf() = default;
    Dmabuf(int fd, uint64_t offset) : fd_(fd), offset_(offset) {}
    ~Dmabuf();
    Dmabuf(Dmabuf&& other) noexcept;
    Dmabuf& operator=(Dmabuf&& other) noexcept;

    int fd() const { return fd_; }
    uint64_t offset() const { return offset_; }  // of the asked-for address within the dma-buf

   private:
    int fd_ = -1;
    uint64_t offset_ = 0;
};

// Exports a range that covers [addr, addr + bytes) in whole granules of its allocation. Any thread.
using DmabufExporter = std::function<Status(const void* addr, size_t bytes, Dmabuf* dmabuf)>;

// Through the CUDA driver, if this process has loaded it: whole 2 MiB granules first (VMM heaps), whole pages second.
Status export_cuda_dmabuf(const void* addr, size_t bytes, Dmabuf* dmabuf);

// The driver's cuMemGetHandleForAddressRange, and what export_cuda_dmabuf() does with it: 0, or the last CUDA error.
using GetHandleForRange = int (*)(void* handle, uint64_t addr, size_t bytes, int type, unsigned long long flags);
int export_granules(GetHandleForRange get_handle, const void* addr, size_t bytes, Dmabuf* dmabuf);

// PCI id of the GPU whose context is current on this thread; empty when there is none.
std::string current_gpu_pci_id();

}  // namespace nvshmem_efa::verbs
