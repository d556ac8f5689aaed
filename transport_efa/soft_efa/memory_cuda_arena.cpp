// SPDX-License-Identifier: Apache-2.0
#include "memory_cuda_arena.h"

#include <cstdlib>
#include <iterator>

namespace nvshmem_efa::soft {
namespace {

size_t round_up(size_t bytes, size_t align) { return (bytes + align - 1) / align * align; }

}  // namespace

size_t PinnedArena::pinned_bytes() const {
    std::lock_guard<std::mutex> guard(lock_);
    return total_;
}

Status PinnedArena::grow_if_short(size_t bytes) {
    {
        std::lock_guard<std::mutex> guard(lock_);
        if (taken_ * 2 < total_ || total_ + bytes > kPinnedMax) return Status();
    }
    void* memory = nullptr;  // allocated with the lock released: it may take long, and the engine's thread wants take()
    bytes = round_up(bytes, kAlign);
    if (cuda::Result result = driver_.mem_host_alloc(&memory, bytes, cuda::kHostPortable))
        return cuda::driver_error(driver_, result, "cuMemHostAlloc of " + std::to_string(bytes) + " bytes",
                                  "raise the limit of locked memory (ulimit -l)");
    std::lock_guard<std::mutex> guard(lock_);
    auto* start = static_cast<uint8_t*>(memory);
    chunks_.push_back(memory);
    chunk_bytes_[start] = bytes;
    free_[start] = bytes;
    total_ += bytes;
    return Status();
}

void* PinnedArena::take(size_t bytes) {
    bytes = round_up(bytes == 0 ? 1 : bytes, kAlign);
    {
        std::lock_guard<std::mutex> guard(lock_);
        for (auto block = free_.begin(); block != free_.end(); ++block) {
            if (block->second < bytes) continue;
            uint8_t* start = block->first;
            const size_t left = block->second - bytes;
            free_.erase(block);
            if (left != 0) free_[start + bytes] = left;
            used_[start] = bytes;
            taken_ += bytes;
            return start;
        }
    }
    return std::aligned_alloc(kAlign, bytes);
}

void PinnedArena::give(void* memory) {
    if (!memory) return;
    std::unique_lock<std::mutex> guard(lock_);
    auto used = used_.find(static_cast<uint8_t*>(memory));
    if (used == used_.end()) {
        guard.unlock();
        std::free(memory);
        return;
    }
    auto [start, bytes] = *used;
    used_.erase(used);
    taken_ -= bytes;
    auto next = free_.find(start + bytes);
    if (next != free_.end() && !chunk_bytes_.count(next->first)) {
        bytes += next->second;
        free_.erase(next);
    }
    auto after = free_.lower_bound(start);
    if (after != free_.begin() && !chunk_bytes_.count(start)) {
        auto before = std::prev(after);
        if (before->first + before->second == start) {
            before->second += bytes;
            return;
        }
    }
    free_[start] = bytes;
}

void PinnedArena::release() {
    std::lock_guard<std::mutex> guard(lock_);
    for (void* chunk : chunks_) driver_.mem_free_host(chunk);
    chunks_.clear();
    chunk_bytes_.clear();
    free_.clear();
    used_.clear();
    total_ = taken_ = 0;
}

}  // namespace nvshmem_efa::soft
