// SPDX-License-Identifier: Apache-2.0
// Pinned host memory for buffers: a few large allocations, cut up first fit.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "cuda_driver.h"

namespace nvshmem_efa::soft {

// take() and give() never call the driver, so that the engine's thread may use them beside a spinning kernel.
class PinnedArena {
   public:
    explicit PinnedArena(const cuda::Driver& driver) : driver_(driver) {}
    // The context must be current. Does nothing while at least half of the arena is free.
    Status grow_if_short(size_t bytes);
    // 4096-byte aligned. Ordinary memory when the arena is used up: copies are slower with it, not wrong. Null: no memory.
    void* take(size_t bytes);
    void give(void* memory);
    void release();            // frees the pinned memory; the context must be current
    size_t pinned_bytes() const;

   private:
    static constexpr size_t kAlign = 4096;
    static constexpr size_t kPinnedMax = size_t{256} << 20;

    const cuda::Driver& driver_;
    mutable std::mutex lock_;
    std::vector<void*> chunks_;
    std::map<uint8_t*, size_t> free_;  // by address; neighbours within a chunk are merged
    std::map<uint8_t*, size_t> used_;
    std::map<uint8_t*, size_t> chunk_bytes_;
    size_t total_ = 0;
    size_t taken_ = 0;
};

}  // namespace nvshmem_efa::soft
