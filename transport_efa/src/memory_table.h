// SPDX-License-Identifier: Apache-2.0
// What this PE has registered. Read on the data path, written by registration from any thread.
#pragma once

#include <shared_mutex>
#include <vector>

#include "transport.h"

namespace nvshmem_efa {

class MemoryTable {
   public:
    explicit MemoryTable(const std::vector<std::unique_ptr<Nic>>& nics) : nics_(nics) {}
    ~MemoryTable();

    Status add(void* addr, size_t bytes, MemHandle* handle);
    Status remove(const MemHandle& handle);
    // The registration that holds [addr, addr + bytes); kUnregistered when there is none.
    Status find(uint64_t addr, size_t bytes, MemHandle* handle) const;
    bool holds(uint64_t addr, size_t bytes, MemoryKind* kind) const;

   private:
    struct Chunk {
        MemHandle handle;
        std::vector<MemoryRegion> regions;  // one a rail
    };
    const Chunk* find_locked(uint64_t addr, size_t bytes) const;

    const std::vector<std::unique_ptr<Nic>>& nics_;
    mutable std::shared_mutex mutex_;
    std::vector<Chunk> chunks_;  // sorted by base
    uint64_t next_id_ = 1;
};

inline constexpr uint32_t kMemHandleMagic = 0x484d4645;  // "EFMH"
inline constexpr uint16_t kMemHandleVersion = 1;

inline bool handle_covers(const MemHandle& handle, uint64_t addr, size_t bytes) {
    return addr >= handle.base && addr - handle.base <= handle.bytes && bytes <= handle.bytes - (addr - handle.base);
}

}  // namespace nvshmem_efa
