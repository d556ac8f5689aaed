// SPDX-License-Identifier: Apache-2.0
// One zeroed host allocation registered on every rail: staging cells, receive buffers, ack words, reply slots.
#pragma once

#include <memory>
#include <vector>

#include "fabric/fabric.h"

namespace nvshmem_efa {

class ControlMemory {
   public:
    ControlMemory() = default;
    ~ControlMemory();
    ControlMemory(const ControlMemory&) = delete;
    ControlMemory& operator=(const ControlMemory&) = delete;

    Status allocate(size_t bytes, const std::vector<std::unique_ptr<Nic>>& nics);
    // The next `bytes` (128-byte aligned) of the allocation; null when allocate() was given too little.
    void* take(size_t bytes);
    uint32_t lkey(size_t rail) const { return regions_[rail].lkey; }
    uint32_t rkey(size_t rail) const { return regions_[rail].rkey; }

    static constexpr size_t kAlign = 128;
    static constexpr size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

   private:
    uint8_t* base_ = nullptr;
    size_t bytes_ = 0, used_ = 0;
    std::vector<Nic*> nics_;
    std::vector<MemoryRegion> regions_;
};

}  // namespace nvshmem_efa
