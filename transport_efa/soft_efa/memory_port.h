// SPDX-License-Identifier: Apache-2.0
// How a software device reads and writes memory: plain memcpy, or CUDA copies on a private stream.
// One thread at a time calls a port (the engine's lock), except where said.
#pragma once

#include <functional>
#include <memory>

#include "packet.h"

namespace nvshmem_efa::soft {

struct MemoryAddr {
    MemoryKind kind = MemoryKind::kHost;
    uint64_t addr = 0;
};

// Where bytes of another process can be had without the wire.
struct PeerBytes {
    uint64_t process = 0;  // random id of the owner's engine
    uint64_t export_id = 0;
    uint64_t offset = 0;
};

class MemoryPort {
   public:
    using Ticket = uint64_t;  // 0: done already. Tickets of one port complete in order.
    virtual ~MemoryPort() = default;
    // First call on the device thread: sets the CUDA context current where there is one.
    virtual void on_engine_thread_start() {}

    // Starts a copy; either end may be GPU memory. Host ends stay untouched until done(). An error is kept for error().
    virtual Ticket copy(MemoryAddr to, MemoryAddr from, size_t bytes) = 0;
    virtual void flush() = 0;  // once per step: what was started will complete without another call
    virtual bool done(Ticket ticket) = 0;
    virtual Status error() = 0;  // the first failed copy since the last call, by name

    // Host memory that copies from and to GPU memory are fast with (pinned where CUDA is in use).
    virtual void* alloc_host(size_t bytes) = 0;
    virtual void free_host(void* memory) = 0;

    // Registration: makes [addr, addr+bytes) readable for this port, and shareable with other processes if it can be.
    // Called on application threads, as attach() is: one at a time, WITHOUT the engine's lock, so beside the data calls
    // above and reference_of(), resolve() and export_fd() below. The port guards its own tables, never across a wait.
    virtual Status add_local(const MemoryAttr& attr, MemoryShare* share) = 0;
    virtual void remove_local(const MemoryAttr& attr) = 0;
    // Maps another process's memory here. `fetch_fd(export_id, index)` asks its owner for a file descriptor over the
    // wire's control connection (-1: refused). Called on application threads. Not being able to is not an error:
    // the bytes then travel through host memory.
    using FetchFd = std::function<int(uint64_t export_id, uint32_t index)>;
    virtual Status attach(const MemoryShare& share, const FetchFd& fetch_fd) = 0;
    // The file descriptor to hand to a peer that asks, or -1. Any thread (the wire's own answers peers). The port keeps ownership; the wire sends a duplicate.
    virtual int export_fd(uint64_t export_id, uint32_t index) = 0;

    // For a sender: the reference under which peers know this local memory; false if it is not shared.
    virtual bool reference_of(MemoryAddr local, size_t bytes, PeerBytes* reference) = 0;
    // For a receiver: the local mapping of a peer's bytes; false if it is not attached here, and then the device asks
    // the sender for the payload itself.
    virtual bool resolve(const PeerBytes& reference, size_t bytes, MemoryAddr* mapped) = 0;
};

std::unique_ptr<MemoryPort> make_host_memory_port();
// `process_id` is the engine's random id. Fails with kMissing when libcuda or a context is not there.
Status make_cuda_memory_port(uint64_t process_id, std::unique_ptr<MemoryPort>* port);

}  // namespace nvshmem_efa::soft
