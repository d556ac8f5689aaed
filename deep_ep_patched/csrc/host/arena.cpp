// SPDX-License-Identifier: Apache-2.0
#include "arena.h"

#include <algorithm>
#include <utility>

namespace nvshmem_efa::ep {

namespace {

constexpr size_t kSlabUnit = size_t{2} << 20;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

Status Arena::open(size_t first_slab_bytes, GpuRuntime* gpu) {
    gpu_ = gpu;
    const std::lock_guard guard(lock_);
    return first_slab_bytes ? grow(first_slab_bytes) : Status();
}

Status Arena::grow(size_t bytes) {
    if (slabs_.size() == kSlabsMax)
        return Status::error(Code::kResource, "give results back earlier, or open with more nvl_bytes",
                             "the arena of results has %u slabs already, and no room for %zu bytes", kSlabsMax, bytes);
    Slab slab;
    EFA_TRY(ArenaMemory::create(gpu_, rounded(bytes, kSlabUnit), &slab.memory));
    slab.free[0] = slab.memory.bytes();
    slabs_.push_back(std::move(slab));
    return Status();
}

bool Arena::take(uint32_t index, size_t bytes, void** block, Status* failed) {
    Slab& slab = slabs_[index];
    const auto fits = std::find_if(slab.free.begin(), slab.free.end(), [&](const auto& range) { return range.second >= bytes; });
    if (fits == slab.free.end()) return false;
    const auto [offset, room] = *fits;
    Status committed = slab.memory.commit(offset + bytes);
    if (!committed.ok()) {
        *failed = std::move(committed);
        return false;
    }
    slab.free.erase(fits);
    if (room > bytes) slab.free[offset + bytes] = room - bytes;
    *block = slab.memory.base() + offset;
    blocks_[*block] = {index, bytes};
    return true;
}

Status Arena::place(size_t wanted, void** block) {
    *block = nullptr;
    if (wanted > SIZE_MAX / 4) return Status::error(Code::kInvalidArgument, nullptr, "a block of %zu bytes", wanted);
    const size_t bytes = std::max(rounded(wanted, kAlign), kAlign);
    const std::lock_guard guard(lock_);
    Status failed;
    for (uint32_t i = 0; i < slabs_.size(); ++i)
        if (take(i, bytes, block, &failed)) return Status();
    EFA_TRY(std::move(failed));
    // As much as there is already, so that a growing need takes few slabs.
    size_t total = 0;
    for (const Slab& slab : slabs_) total += slab.memory.bytes();
    EFA_TRY(grow(std::max(bytes, total)));
    if (take(static_cast<uint32_t>(slabs_.size() - 1), bytes, block, &failed)) return Status();
    return failed;
}

void Arena::give(uint32_t index, uint64_t offset, uint64_t bytes) {
    auto& free = slabs_[index].free;
    auto next = free.lower_bound(offset);
    if (next != free.end() && next->first == offset + bytes) {
        bytes += next->second;
        next = free.erase(next);
    }
    if (next != free.begin()) {
        const auto before = std::prev(next);
        if (before->first + before->second == offset) {
            before->second += bytes;
            return;
        }
    }
    free[offset] = bytes;
}

Status Arena::unplace(void* block) {
    const std::lock_guard guard(lock_);
    const auto found = blocks_.find(block);
    if (found == blocks_.end())
        return Status::error(Code::kInvalidArgument, "give each block of ep_place() back once",
                             "%p is not a block of this group that is in use", block);
    const Block was = found->second;
    blocks_.erase(found);
    give(was.slab, static_cast<uint64_t>(static_cast<uint8_t*>(block) - slabs_[was.slab].memory.base()), was.bytes);
    return Status();
}

Status Arena::find(const void* block, size_t bytes, Place* place) const {
    const std::lock_guard guard(lock_);
    const auto found = blocks_.find(block);
    if (found == blocks_.end())
        return Status::error(Code::kInvalidArgument, "take it from ep_place() of the same group", "%p is no block of this group", block);
    if (found->second.bytes < bytes)
        return Status::error(Code::kInvalidArgument, "take as many bytes as ep_dispatch_place() says",
                             "the block at %p has %llu bytes; %zu are needed", block,
                             static_cast<unsigned long long>(found->second.bytes), bytes);
    const uint8_t* const base = slabs_[found->second.slab].memory.base();
    *place = {found->second.slab, 0, static_cast<uint64_t>(static_cast<const uint8_t*>(block) - base)};
    return Status();
}

uint32_t Arena::n_slabs() const {
    const std::lock_guard guard(lock_);
    return static_cast<uint32_t>(slabs_.size());
}

SlabEntry Arena::entry(uint32_t slab) const {
    const std::lock_guard guard(lock_);
    return slabs_[slab].memory.entry();
}

uint8_t* Arena::at(const Place& place) const {
    const std::lock_guard guard(lock_);
    return slabs_[place.slab].memory.base() + place.offset;
}

Status Arena::commit_first(void** base, size_t* bytes) {
    const std::lock_guard guard(lock_);
    *base = nullptr;
    *bytes = 0;
    if (slabs_.empty()) return Status();
    EFA_TRY(slabs_[0].memory.commit(slabs_[0].memory.bytes()));
    *base = slabs_[0].memory.base();
    *bytes = slabs_[0].memory.bytes();
    return Status();
}

void Arena::unlink(uint32_t n_slabs) {
    const std::lock_guard guard(lock_);
    for (uint32_t i = 0; i < n_slabs && i < slabs_.size(); ++i) slabs_[i].memory.unlink();
}

}  // namespace nvshmem_efa::ep
