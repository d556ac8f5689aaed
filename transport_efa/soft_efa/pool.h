// SPDX-License-Identifier: Apache-2.0
// Storage of the data path: pools that stop growing at a bound, lists inside them, and the queue of timed events.
// Nothing here allocates once the traffic's high-water mark is reached.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory_port.h"

namespace nvshmem_efa::soft {

inline constexpr uint32_t kNone = 0xffffffffu;

// Objects with stable addresses and small numbers. T must have a member `uint32_t next`.
template <class T>
class Pool {
   public:
    explicit Pool(uint32_t bound) : bound_(bound) {}
    T& operator[](uint32_t index) { return chunks_[index / kChunk][index % kChunk]; }
    const T& operator[](uint32_t index) const { return chunks_[index / kChunk][index % kChunk]; }
    uint32_t room() const { return bound_ - used_; }
    uint32_t used() const { return used_; }
    uint32_t size() const { return size_; }  // numbers ever handed out are below this

    // kNone when the bound is reached. The object keeps what its last user left in it.
    uint32_t take() {
        if (free_ == kNone && !grow()) return kNone;
        const uint32_t index = free_;
        free_ = (*this)[index].next;
        (*this)[index].next = kNone;
        ++used_;
        return index;
    }
    void give(uint32_t index) {
        (*this)[index].next = free_;
        free_ = index;
        --used_;
    }

   private:
    static constexpr uint32_t kChunk = 64;
    bool grow() {
        if (size_ >= bound_) return false;
        chunks_.push_back(std::make_unique<T[]>(kChunk));
        const uint32_t n = std::min(kChunk, bound_ - size_);
        for (uint32_t i = n; i-- > 0;) {
            (*this)[size_ + i].next = free_;
            free_ = size_ + i;
        }
        size_ += n;
        return true;
    }
    uint32_t bound_;
    uint32_t size_ = 0;
    uint32_t used_ = 0;
    uint32_t free_ = kNone;
    std::vector<std::unique_ptr<T[]>> chunks_;
};

// First in, first out, through the `next` of pooled objects.
struct PoolList {
    uint32_t head = kNone;
    uint32_t tail = kNone;
    bool empty() const { return head == kNone; }
};

template <class T>
void list_push(Pool<T>& pool, PoolList& list, uint32_t index) {
    pool[index].next = kNone;
    if (list.tail == kNone) {
        list.head = index;
    } else {
        pool[list.tail].next = index;
    }
    list.tail = index;
}

template <class T>
uint32_t list_pop(Pool<T>& pool, PoolList& list) {
    const uint32_t index = list.head;
    if (index == kNone) return kNone;
    list.head = pool[index].next;
    if (list.head == kNone) list.tail = kNone;
    pool[index].next = kNone;
    return index;
}

// Buffers of one size from MemoryPort::alloc_host(), so that copies from and to GPU memory are fast with them.
class BufferPool {
   public:
    BufferPool(MemoryPort* memory, size_t bytes, uint32_t bound) : memory_(memory), bytes_(bytes), bound_(bound) {}
    ~BufferPool() {
        for (uint8_t* buffer : all_) memory_->free_host(buffer);
    }
    BufferPool(const BufferPool&) = delete;
    BufferPool& operator=(const BufferPool&) = delete;
    size_t bytes() const { return bytes_; }

    // Buffers that take() surely gives: those that are free, and a few more than ever before while memory lasts.
    uint32_t room() {
        while (free_.size() < kAhead && all_.size() < bound_) {
            auto* buffer = static_cast<uint8_t*>(memory_->alloc_host(bytes_));
            if (!buffer) {
                bound_ = static_cast<uint32_t>(all_.size());
                break;
            }
            all_.push_back(buffer);
            free_.push_back(buffer);
        }
        return static_cast<uint32_t>(free_.size());
    }
    uint8_t* take() {  // null when room() is 0
        if (room() == 0) return nullptr;
        uint8_t* buffer = free_.back();
        free_.pop_back();
        return buffer;
    }
    void give(uint8_t* buffer) { free_.push_back(buffer); }

   private:
    static constexpr size_t kAhead = 4;
    MemoryPort* memory_;
    size_t bytes_;
    uint32_t bound_;
    std::vector<uint8_t*> all_;
    std::vector<uint8_t*> free_;
};

// Events by time; ties in the order of insertion, so that a run is a function of its seed.
class TimeQueue {
   public:
    bool empty() const { return heap_.empty(); }
    uint64_t next_ns() const { return heap_.empty() ? UINT64_MAX : heap_.front().at_ns; }
    void push(uint64_t at_ns, uint32_t index) {
        heap_.push_back(Entry{at_ns, sequence_++, index});
        std::push_heap(heap_.begin(), heap_.end(), is_later);
    }
    bool pop_due(uint64_t now_ns, uint32_t* index) {
        if (heap_.empty() || heap_.front().at_ns > now_ns) return false;
        *index = heap_.front().index;
        std::pop_heap(heap_.begin(), heap_.end(), is_later);
        heap_.pop_back();
        return true;
    }

   private:
    struct Entry {
        uint64_t at_ns;
        uint32_t sequence;
        uint32_t index;
    };
    static bool is_later(const Entry& left, const Entry& right) {
        if (left.at_ns != right.at_ns) return left.at_ns > right.at_ns;
        return static_cast<int32_t>(left.sequence - right.sequence) > 0;
    }
    uint32_t sequence_ = 0;
    std::vector<Entry> heap_;
};

}  // namespace nvshmem_efa::soft
