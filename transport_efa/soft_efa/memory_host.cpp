// SPDX-License-Identifier: Apache-2.0
// Host memory only: copies are done when they return, nothing is shared by reference.
#include <cstdlib>
#include <cstring>

#include "memory_port.h"

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kSmallCopy = 128;

// Aligned 8-byte blocks are each written by one store, as the device promises; a program may poll them.
void copy_small(uint8_t* to, const uint8_t* from, size_t bytes) {
    while (bytes != 0) {
        if (bytes >= 8 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
            uint64_t word;
            std::memcpy(&word, from, 8);
            __atomic_store_n(reinterpret_cast<uint64_t*>(to), word, __ATOMIC_RELAXED);
            to += 8, from += 8, bytes -= 8;
        } else if (bytes >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
            uint32_t word;
            std::memcpy(&word, from, 4);
            __atomic_store_n(reinterpret_cast<uint32_t*>(to), word, __ATOMIC_RELAXED);
            to += 4, from += 4, bytes -= 4;
        } else {
            __atomic_store_n(to, *from, __ATOMIC_RELAXED);
            ++to, ++from, --bytes;
        }
    }
}

// The last word of each aligned 128-byte block is placed last, as devices with 128-byte data polling promise: who sees it
// sees the block. Pairs with an acquire load of that word by the program.
void copy_blocks(uint8_t* to, const uint8_t* from, size_t bytes) {
    constexpr size_t kBlock = 128, kWord = 8;
    while (bytes != 0) {
        const size_t left = kBlock - reinterpret_cast<uintptr_t>(to) % kBlock, n = bytes < left ? bytes : left;
        if (n == left && n >= kWord) {
            uint64_t word;
            std::memcpy(&word, from + n - kWord, kWord);
            if (n == kBlock) std::memcpy(to, from, kBlock - kWord);  // of a size known to the compiler
            else std::memcpy(to, from, n - kWord);
            __atomic_store_n(reinterpret_cast<uint64_t*>(to + n - kWord), word, __ATOMIC_RELEASE);
        } else {
            std::memcpy(to, from, n);
        }
        to += n, from += n, bytes -= n;
    }
}

class HostMemoryPort final : public MemoryPort {
   public:
    Ticket copy(MemoryAddr to, MemoryAddr from, size_t bytes) override {
        auto* target = reinterpret_cast<uint8_t*>(to.addr);
        const auto* source = reinterpret_cast<const uint8_t*>(from.addr);
        if (bytes <= kSmallCopy) {
            copy_small(target, source, bytes);
        } else if (target + bytes <= source || source + bytes <= target) {
            copy_blocks(target, source, bytes);
        } else {
            std::memmove(target, source, bytes);  // a loopback write may overlap its source
        }
        return 0;
    }
    void flush() override {}
    bool done(Ticket) override { return true; }
    Status error() override { return Status(); }

    void* alloc_host(size_t bytes) override {
        constexpr size_t kAlign = 4096;
        return std::aligned_alloc(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
    }
    void free_host(void* memory) override { std::free(memory); }

    Status add_local(const MemoryAttr& attr, MemoryShare* share) override {
        if (attr.kind == MemoryKind::kCuda)
            return Status::error(Code::kMissing, "make a CUDA context current before the transport starts",
                                 "GPU memory %p was registered, but the software device found no CUDA at its start",
                                 attr.addr);
        *share = MemoryShare{};
        return Status();
    }
    void remove_local(const MemoryAttr&) override {}
    Status attach(const MemoryShare&, const FetchFd&) override { return Status(); }
    int export_fd(uint64_t, uint32_t) override { return -1; }
    bool reference_of(MemoryAddr, size_t, PeerBytes*) override { return false; }
    bool resolve(const PeerBytes&, size_t, MemoryAddr*) override { return false; }
};

}  // namespace

std::unique_ptr<MemoryPort> make_host_memory_port() { return std::make_unique<HostMemoryPort>(); }

}  // namespace nvshmem_efa::soft
