// SPDX-License-Identifier: Apache-2.0
#include "memory_table.h"

#include <algorithm>
#include <mutex>

#include "cuda_driver.h"

namespace nvshmem_efa {

MemoryTable::~MemoryTable() {
    for (const Chunk& chunk : chunks_)
        for (size_t rail = 0; rail < chunk.regions.size(); ++rail) (void)nics_[rail]->deregister_memory(chunk.regions[rail]);
}

Status MemoryTable::add(void* addr, size_t bytes, MemHandle* handle) {
    if (!addr || bytes == 0)
        return Status::error(Code::kInvalidArgument, nullptr, "cannot register %zu bytes at %p", bytes, addr);
    Chunk chunk;
    MemoryAttr attr;
    attr.addr = addr;
    attr.bytes = bytes;
    attr.kind = cuda::memory_kind_of(addr);
    attr.access = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead;
    chunk.handle.magic = kMemHandleMagic;
    chunk.handle.version = kMemHandleVersion;
    chunk.handle.n_rails = static_cast<uint8_t>(nics_.size());
    chunk.handle.kind = static_cast<uint8_t>(attr.kind);
    chunk.handle.base = reinterpret_cast<uint64_t>(addr);
    chunk.handle.bytes = bytes;
    for (size_t rail = 0; rail < nics_.size(); ++rail) {
        MemoryRegion region;
        Status status = nics_[rail]->register_memory(attr, &region);
        if (!status.ok()) {
            for (size_t done = 0; done < rail; ++done) (void)nics_[done]->deregister_memory(chunk.regions[done]);
            return std::move(status).with_context("registering " + std::to_string(bytes) + " bytes on " +
                                                  nics_[rail]->info().name);
        }
        chunk.handle.lkey[rail] = region.lkey;
        chunk.handle.rkey[rail] = region.rkey;
        if (rail == 0) chunk.handle.share = region.share;
        chunk.regions.push_back(region);
    }
    const std::unique_lock lock(mutex_);
    chunk.handle.id = next_id_++;
    *handle = chunk.handle;
    const auto place = std::upper_bound(chunks_.begin(), chunks_.end(), chunk.handle.base,
                                        [](uint64_t base, const Chunk& other) { return base < other.handle.base; });
    chunks_.insert(place, std::move(chunk));
    return Status();
}

Status MemoryTable::remove(const MemHandle& handle) {
    Chunk chunk;
    {
        const std::unique_lock lock(mutex_);
        const auto found = std::find_if(chunks_.begin(), chunks_.end(),
                                        [&](const Chunk& other) { return other.handle.id == handle.id; });
        if (found == chunks_.end()) {
            return Status::error(Code::kInvalidArgument, "release a handle once, on the PE that made it",
                                 "memory handle %llu is not registered", static_cast<unsigned long long>(handle.id));
        }
        chunk = std::move(*found);
        chunks_.erase(found);
    }
    for (size_t rail = 0; rail < chunk.regions.size(); ++rail)
        EFA_TRY(nics_[rail]->deregister_memory(chunk.regions[rail]));
    return Status();
}

const MemoryTable::Chunk* MemoryTable::find_locked(uint64_t addr, size_t bytes) const {
    // Registrations may overlap (a user buffer inside the heap), so walk back from the last one that starts before.
    auto next = std::upper_bound(chunks_.begin(), chunks_.end(), addr,
                                 [](uint64_t value, const Chunk& chunk) { return value < chunk.handle.base; });
    while (next != chunks_.begin()) {
        --next;
        if (handle_covers(next->handle, addr, bytes)) return &*next;
    }
    return nullptr;
}

Status MemoryTable::find(uint64_t addr, size_t bytes, MemHandle* handle) const {
    const std::shared_lock lock(mutex_);
    if (const Chunk* chunk = find_locked(addr, bytes)) {
        *handle = chunk->handle;
        return Status();
    }
    return Status::error(Code::kUnregistered,
                         "use the symmetric heap, or register the buffer with nvshmemx_buffer_register()",
                         "local buffer [%#llx, +%zu) is not registered", static_cast<unsigned long long>(addr), bytes);
}

bool MemoryTable::holds(uint64_t addr, size_t bytes, MemoryKind* kind) const {
    const std::shared_lock lock(mutex_);
    const Chunk* chunk = find_locked(addr, bytes);
    if (chunk) *kind = static_cast<MemoryKind>(chunk->handle.kind);
    return chunk != nullptr;
}

}  // namespace nvshmem_efa
