// SPDX-License-Identifier: Apache-2.0
// The symmetric heap in host memory: one reservation of addresses, registered in chunks, one allocator that takes the
// same decisions on every PE. Growing, allocating and freeing: application thread, collective. Looking up: any thread,
// also while the heap grows.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "bootstrap.h"
#include "plugin_port.h"
#include "status.h"

namespace nvshmem_efa::pe {

inline constexpr size_t kChunkBytesMax = size_t{2} << 30;  // as NVSHMEM registers
inline constexpr int kChunksMax = 256;
inline constexpr size_t kAllocationAlign = 512;

struct HeapOptions {
    size_t reserve_bytes = size_t{8} << 30;  // addresses only
    size_t chunk_bytes = size_t{64} << 20;   // registered at once; a multiple of the page size
};

// A stretch of memory under one handle.
struct Piece {
    abi::MemHandleBytes* handle = nullptr;
    size_t bytes = 0;  // from the address that was looked up to the end of what the handle covers
};

class SymmetricHeap {
   public:
    static Status create(const HeapOptions& options, std::unique_ptr<SymmetricHeap>* heap);
    ~SymmetricHeap();  // gives the memory back; handles must have been released

    // Collective: exchanges where every PE's heap lies, and that all have the same options.
    Status exchange_bases(BootstrapSocket& bootstrap);
    // Collective: makes at least `bytes` more usable: commits, registers, exchanges handles, hands them to the plugin.
    Status grow(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes);
    // Collective: the same block on every PE, zeroed at first use; grows the heap when it must.
    Status allocate(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes, void** block);
    // Collective. A block that allocate() did not return is an error and changes nothing.
    Status release(void* block);
    void release_handles(PluginPort& port);

    // User memory, not symmetric: may be the local side of an operation.
    Status register_buffer(PluginPort& port, void* buffer, size_t bytes);
    Status unregister_buffer(PluginPort& port, void* buffer);

    // kUnregistered names the address and what is registered. `remote`: the target's own address.
    Status find_remote(int pe, const void* symmetric, Piece* piece, uint64_t* remote, uint64_t* offset);
    Status find_local(const void* address, Piece* piece);

    char* base() const { return base_; }
    size_t committed_bytes() const { return committed_.load(std::memory_order_acquire); }
    int n_chunks() const { return n_chunks_.load(std::memory_order_acquire); }

   private:
    struct Chunk {
        size_t offset = 0;
        size_t bytes = 0;
        std::vector<abi::MemHandleBytes> handles;  // kTransportStride for each PE
    };
    struct Buffer {
        size_t bytes = 0;
        std::unique_ptr<abi::MemHandleBytes> handle;
    };

    explicit SymmetricHeap(const HeapOptions& options) : options_(options) {}
    Status grow_chunk(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes);
    Chunk* chunk_of(size_t offset);
    bool take_free(size_t bytes, size_t* offset);
    void add_free(size_t offset, size_t bytes);
    Status unregistered(const void* address, const char* what) const;

    HeapOptions options_;
    char* base_ = nullptr;
    int my_pe_ = 0;
    std::vector<uint64_t> peer_bases_;
    std::vector<Chunk> chunks_{kChunksMax};  // never moves, so that a reader needs no lock
    // Published with release after the chunk is filled in; pairs with the acquire in chunk_of().
    std::atomic<int> n_chunks_{0};
    std::atomic<size_t> committed_{0};
    std::map<size_t, size_t> free_;       // offset -> bytes, neighbours merged
    std::map<size_t, size_t> allocated_;  // offset -> bytes
    std::mutex buffers_lock_;
    std::map<uintptr_t, Buffer> buffers_;
};

}  // namespace nvshmem_efa::pe
