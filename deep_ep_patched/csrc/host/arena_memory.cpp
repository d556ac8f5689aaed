// SPDX-License-Identifier: Apache-2.0
#include "arena_memory.h"

#include <utility>

namespace nvshmem_efa::ep {

namespace {

constexpr const char* kPurpose = "the arena of results";

}  // namespace

Status ArenaMemory::create(GpuRuntime* gpu, size_t bytes, ArenaMemory* memory) {
    ArenaMemory made;
    if (gpu) {
        // As it is: every byte of a result that is said to be there is written, as in memory that torch.empty() gives.
        EFA_TRY(gpu->allocate_as_it_is(bytes, kPurpose, &made.block_));
        GpuShare share;
        EFA_TRY(gpu->share(made.block_, &share));
        static_assert(sizeof share == sizeof made.entry_.gpu_share);
        std::memcpy(made.entry_.gpu_share, &share, sizeof share);
        made.bytes_ = made.block_.bytes();
    } else {
        EFA_TRY(SharedSlab::create(bytes, kPurpose, &made.slab_));
        made.entry_.name = made.slab_.name();
        made.bytes_ = made.slab_.bytes();
    }
    made.entry_.bytes = made.bytes_;
    *memory = std::move(made);
    return Status();
}

Status ArenaMemory::open(GpuRuntime* gpu, const SlabEntry& entry, ArenaMemory* memory) {
    ArenaMemory made;
    if (gpu) {
        GpuShare share;
        std::memcpy(&share, entry.gpu_share, sizeof share);
        if (share.bytes != entry.bytes)
            return Status::error(Code::kProtocol, "run one version of this library on all ranks", "a slab of %s has two sizes", kPurpose);
        EFA_TRY(gpu->open_shared(share, &made.block_));
    } else {
        EFA_TRY(SharedSlab::open(entry.name, entry.bytes, kPurpose, &made.slab_));
    }
    made.entry_ = entry;
    made.bytes_ = entry.bytes;
    *memory = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa::ep
