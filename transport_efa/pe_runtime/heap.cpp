// SPDX-License-Identifier: Apache-2.0
#include "heap.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace nvshmem_efa::pe {
namespace {

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Status SymmetricHeap::create(const HeapOptions& options, std::unique_ptr<SymmetricHeap>* heap) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (options.chunk_bytes == 0 || options.chunk_bytes % page || options.chunk_bytes > kChunkBytesMax ||
        options.reserve_bytes < options.chunk_bytes)
        return Status::error(Code::kInvalidArgument,
                             "a multiple of the page size, at most 2 GiB and no more than the reservation",
                             "heap chunks of %zu bytes", options.chunk_bytes);
    std::unique_ptr<SymmetricHeap> made(new SymmetricHeap(options));
    void* base = mmap(nullptr, options.reserve_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return Status::error(Code::kResource, "raise the limit of address space (ulimit -v)",
                             "cannot reserve %zu bytes for the heap: %s", options.reserve_bytes, strerror(errno));
    made->base_ = static_cast<char*>(base);
    *heap = std::move(made);
    return Status();
}

SymmetricHeap::~SymmetricHeap() {
    if (base_) munmap(base_, options_.reserve_bytes);
}

Status SymmetricHeap::exchange_bases(BootstrapSocket& bootstrap) {
    struct Record {
        uint64_t base, reserve_bytes, chunk_bytes;
    };
    const Record mine{reinterpret_cast<uint64_t>(base_), options_.reserve_bytes, options_.chunk_bytes};
    std::vector<Record> all(static_cast<size_t>(bootstrap.n_pes()));
    EFA_TRY(bootstrap.allgather(&mine, all.data(), sizeof mine).with_context("exchanging heap addresses"));
    my_pe_ = bootstrap.pe();
    for (size_t pe = 0; pe < all.size(); ++pe) {
        if (all[pe].reserve_bytes != mine.reserve_bytes || all[pe].chunk_bytes != mine.chunk_bytes)
            return Status::error(Code::kMismatch, "give all PEs the same heap sizes",
                                 "PE %zu reserves a heap of %llu bytes in chunks of %llu, PE %d %zu in %zu", pe,
                                 static_cast<unsigned long long>(all[pe].reserve_bytes),
                                 static_cast<unsigned long long>(all[pe].chunk_bytes), my_pe_, options_.reserve_bytes,
                                 options_.chunk_bytes);
        peer_bases_.push_back(all[pe].base);
    }
    return Status();
}

Status SymmetricHeap::grow(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes) {
    size_t left = round_up(bytes, options_.chunk_bytes);
    while (left > 0) {
        EFA_TRY(grow_chunk(port, bootstrap, options_.chunk_bytes));
        left -= options_.chunk_bytes;
    }
    return Status();
}

Status SymmetricHeap::grow_chunk(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes) {
    const int index = n_chunks_.load(std::memory_order_relaxed);
    const size_t offset = committed_.load(std::memory_order_relaxed);
    if (index == kChunksMax || offset + bytes > options_.reserve_bytes)
        return Status::error(Code::kResource, "start with a larger heap (--heap-mb) or larger chunks",
                             "the symmetric heap is full: %zu bytes in %d chunks", offset, index);
    if (mprotect(base_ + offset, bytes, PROT_READ | PROT_WRITE) != 0)
        return Status::error(Code::kResource, "lower --heap-mb", "no memory for %zu more bytes of heap: %s", bytes,
                             strerror(errno));
    Chunk& chunk = chunks_[static_cast<size_t>(index)];
    chunk.offset = offset;
    chunk.bytes = bytes;
    abi::MemHandleBytes mine{};
    EFA_TRY(port.get_mem_handle(&mine, base_ + offset, bytes, false).with_context("registering a heap chunk"));
    std::vector<abi::MemHandleBytes> all(static_cast<size_t>(bootstrap.n_pes()));
    if (Status status = bootstrap.allgather(&mine, all.data(), sizeof mine); !status.ok()) {
        (void)port.release_mem_handle(&mine);
        return std::move(status).with_context("exchanging memory handles");
    }
    // What other transports left in their places is no business of ours: make sure that nobody reads it.
    abi::MemHandleBytes foreign;
    std::memset(foreign.bytes, 0xee, sizeof foreign.bytes);
    chunk.handles.assign(all.size() * kTransportStride, foreign);
    for (size_t pe = 0; pe < all.size(); ++pe) chunk.handles[pe * kTransportStride + kTransportIndex] = all[pe];
    // From here on release_handles() owns the registration.
    n_chunks_.store(index + 1, std::memory_order_release);  // pairs with chunk_of()
    EFA_TRY(port.add_remote_handles(chunk.handles.data(), offset, bytes));
    EFA_TRY(bootstrap.barrier());  // nobody uses the chunk before everybody knows it
    committed_.store(offset + bytes, std::memory_order_release);
    add_free(offset, bytes);
    return Status();
}

Status SymmetricHeap::allocate(PluginPort& port, BootstrapSocket& bootstrap, size_t bytes, void** block) {
    const uint64_t wanted = round_up(std::max<size_t>(bytes, 1), kAllocationAlign);
    std::vector<uint64_t> all(static_cast<size_t>(bootstrap.n_pes()));
    EFA_TRY(bootstrap.allgather(&wanted, all.data(), sizeof wanted).with_context("allocating from the symmetric heap"));
    for (size_t pe = 0; pe < all.size(); ++pe)
        if (all[pe] != wanted)
            return Status::error(Code::kMismatch, "a symmetric allocation is collective: same size on all PEs",
                                 "PE %zu asks for %llu bytes, PE %d for %llu", pe,
                                 static_cast<unsigned long long>(all[pe]), my_pe_,
                                 static_cast<unsigned long long>(wanted));
    size_t offset = 0;
    while (!take_free(wanted, &offset)) EFA_TRY(grow(port, bootstrap, options_.chunk_bytes));
    allocated_[offset] = wanted;
    *block = base_ + offset;
    return Status();
}

Status SymmetricHeap::release(void* block) {
    const auto found = allocated_.find(static_cast<size_t>(static_cast<char*>(block) - base_));
    if (found == allocated_.end())
        return Status::error(Code::kInvalidArgument, "free what malloc returned, once",
                             "%p is no block of the symmetric heap", block);
    add_free(found->first, found->second);
    allocated_.erase(found);
    return Status();
}

void SymmetricHeap::release_handles(PluginPort& port) {
    const int n = n_chunks_.exchange(0, std::memory_order_acq_rel);
    for (int i = 0; i < n; ++i)
        (void)port.release_mem_handle(
            &chunks_[static_cast<size_t>(i)].handles[static_cast<size_t>(my_pe_ * kTransportStride + kTransportIndex)]);
    std::lock_guard guard(buffers_lock_);
    for (auto& [address, buffer] : buffers_) (void)port.release_mem_handle(buffer.handle.get());
    buffers_.clear();
}

bool SymmetricHeap::take_free(size_t bytes, size_t* offset) {
    const auto fits = [bytes](const auto& range) { return range.second >= bytes; };
    const auto found = std::find_if(free_.begin(), free_.end(), fits);
    if (found == free_.end()) return false;
    *offset = found->first;
    const size_t left = found->second - bytes;
    free_.erase(found);
    if (left) free_[*offset + bytes] = left;
    return true;
}

void SymmetricHeap::add_free(size_t offset, size_t bytes) {
    auto next = free_.lower_bound(offset);
    if (next != free_.end() && offset + bytes == next->first) {
        bytes += next->second;
        next = free_.erase(next);
    }
    if (next != free_.begin()) {
        auto previous = std::prev(next);
        if (previous->first + previous->second == offset) {
            previous->second += bytes;
            return;
        }
    }
    free_[offset] = bytes;
}

Status SymmetricHeap::register_buffer(PluginPort& port, void* buffer, size_t bytes) {
    std::lock_guard guard(buffers_lock_);
    const auto start = reinterpret_cast<uintptr_t>(buffer);
    const auto after = buffers_.lower_bound(start);
    const bool hits_next = after != buffers_.end() && after->first < start + bytes;
    const bool hits_previous =
        after != buffers_.begin() && std::prev(after)->first + std::prev(after)->second.bytes > start;
    if (bytes == 0 || hits_next || hits_previous)
        return Status::error(Code::kInvalidArgument, "unregister the other one first",
                             "buffer %p of %zu bytes is empty or overlaps a registered one", buffer, bytes);
    auto handle = std::make_unique<abi::MemHandleBytes>();
    EFA_TRY(port.get_mem_handle(handle.get(), buffer, bytes, true).with_context("registering a buffer"));
    buffers_[start] = Buffer{bytes, std::move(handle)};
    return Status();
}

Status SymmetricHeap::unregister_buffer(PluginPort& port, void* buffer) {
    std::lock_guard guard(buffers_lock_);
    const auto found = buffers_.find(reinterpret_cast<uintptr_t>(buffer));
    if (found == buffers_.end())
        return Status::error(Code::kUnregistered, "pass the address that was registered", "%p is no registered buffer",
                             buffer);
    Status status = port.release_mem_handle(found->second.handle.get());
    buffers_.erase(found);
    return status;
}

SymmetricHeap::Chunk* SymmetricHeap::chunk_of(size_t offset) {
    const int n = n_chunks_.load(std::memory_order_acquire);  // pairs with grow_chunk()
    for (int i = 0; i < n; ++i) {
        Chunk& chunk = chunks_[static_cast<size_t>(i)];
        if (offset >= chunk.offset && offset - chunk.offset < chunk.bytes) return &chunk;
    }
    return nullptr;
}

Status SymmetricHeap::find_remote(int pe, const void* symmetric, Piece* piece, uint64_t* remote, uint64_t* offset) {
    const auto address = reinterpret_cast<uintptr_t>(symmetric);
    const auto base = reinterpret_cast<uintptr_t>(base_);
    if (pe < 0 || static_cast<size_t>(pe) >= peer_bases_.size())
        return Status::error(Code::kInvalidArgument, "PEs are numbered from 0", "PE %d does not exist: the job has %zu",
                             pe, peer_bases_.size());
    Chunk* chunk = address < base ? nullptr : chunk_of(address - base);
    if (!chunk) return unregistered(symmetric, "the remote side of an operation must be in the symmetric heap");
    *offset = address - base;
    *remote = peer_bases_[static_cast<size_t>(pe)] + *offset;
    piece->handle = &chunk->handles[static_cast<size_t>(pe * kTransportStride + kTransportIndex)];
    piece->bytes = chunk->offset + chunk->bytes - *offset;
    return Status();
}

Status SymmetricHeap::find_local(const void* address, Piece* piece) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    const auto base = reinterpret_cast<uintptr_t>(base_);
    if (Chunk* chunk = at < base ? nullptr : chunk_of(at - base)) {
        piece->handle = &chunk->handles[static_cast<size_t>(my_pe_ * kTransportStride + kTransportIndex)];
        piece->bytes = chunk->offset + chunk->bytes - (at - base);
        return Status();
    }
    std::lock_guard guard(buffers_lock_);
    auto found = buffers_.upper_bound(at);
    if (found == buffers_.begin()) return unregistered(address, "register it with register_buffer()");
    --found;
    if (at - found->first >= found->second.bytes) return unregistered(address, "register it with register_buffer()");
    piece->handle = found->second.handle.get();
    piece->bytes = found->first + found->second.bytes - at;
    return Status();
}

Status SymmetricHeap::unregistered(const void* address, const char* hint) const {
    return Status::error(Code::kUnregistered, hint, "PE %d: address %p is not registered (the heap is %p, %zu bytes)",
                         my_pe_, address, static_cast<void*>(base_), committed_bytes());
}

}  // namespace nvshmem_efa::pe
