// SPDX-License-Identifier: Apache-2.0
// A slab of an arena: memory that peers map. Shared memory, or memory of a GPU.
#pragma once

#include <cstring>

#include "ep_control.h"
#include "gpu_runtime.h"
#include "shared_slab.h"

namespace nvshmem_efa::ep {

class ArenaMemory {
 public:
    // `gpu` null: shared memory. Named as in errors: "the arena of results".
    static Status create(GpuRuntime* gpu, size_t bytes, ArenaMemory* memory);
    static Status open(GpuRuntime* gpu, const SlabEntry& entry, ArenaMemory* memory);  // a peer's

    uint8_t* base() const { return block_.data() ? block_.data() : slab_.base(); }
    size_t bytes() const { return bytes_; }
    SlabEntry entry() const { return entry_; }  // what peers open it by
    Status commit(size_t bytes) { return block_.data() ? Status() : slab_.commit(bytes); }
    void unlink() { slab_.unlink(); }

 private:
    SharedSlab slab_;
    GpuBlock block_;
    size_t bytes_ = 0;
    SlabEntry entry_ = {};
};

}  // namespace nvshmem_efa::ep
