// SPDX-License-Identifier: Apache-2.0
// Blocks of memory for results, which peers write: first fit over slabs, which are added by demand and kept until the end.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "arena_memory.h"
#include "ep_normal.h"

namespace nvshmem_efa::ep {

class Arena {
 public:
    // Any thread, all of it.
    // No slab before one is needed where `first_slab_bytes` is 0. With a `gpu` all of it lies in its memory.
    Status open(size_t first_slab_bytes, GpuRuntime* gpu = nullptr);
    Status place(size_t bytes, void** block);  // 128-byte aligned; kResource when there is no memory
    Status unplace(void* block);
    // Of `block`, which place() gave out for at least `bytes`.
    Status find(const void* block, size_t bytes, Place* place) const;

    GpuRuntime* gpu() const { return gpu_; }
    uint32_t n_slabs() const;
    SlabEntry entry(uint32_t slab) const;
    uint8_t* at(const Place& place) const;
    Status commit_first(void** base, size_t* bytes);  // memory for the whole first slab
    void unlink(uint32_t n_slabs);  // the names of the first `n_slabs`: all peers have mapped them

    static constexpr size_t kAlign = 128;

 private:
    struct Slab {
        ArenaMemory memory;
        std::map<uint64_t, uint64_t> free;  // offset: bytes; neighbours are joined
    };
    struct Block {
        uint32_t slab;
        uint64_t bytes;
    };
    Status grow(size_t bytes);
    bool take(uint32_t slab, size_t bytes, void** block, Status* failed);
    void give(uint32_t slab, uint64_t offset, uint64_t bytes);

    GpuRuntime* gpu_ = nullptr;
    mutable std::mutex lock_;
    std::vector<Slab> slabs_;
    std::map<const void*, Block> blocks_;
};

}  // namespace nvshmem_efa::ep
