// SPDX-License-Identifier: Apache-2.0
// The wire between processes: one per process, for all its software devices. It chooses shared memory or TCP for each
// peer process, and authenticates every connection with the job's secret.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "clock.h"
#include "memory_port.h"
#include "process_wire_link.h"
#include "wire.h"

namespace nvshmem_efa::soft {

struct ProcessWireOptions {
    uint64_t process_id = 0;      // random; stands in bytes 4..11 of all our gids
    std::vector<Gid> local_gids;  // this process's devices; packets between them never touch a socket or a ring
    MemoryPort* memory = nullptr;  // export_fd() for peers that ask; alloc_host(); outlives the wire
    // Held by whoever calls connect(), send(), poll(), flush() or is_gone(). connect() releases it around its waits.
    std::mutex* engine_lock = nullptr;
    Clock* clock = nullptr;  // for deadlines; null: real_clock()
    uint64_t timeout_ms = 0;  // of connect() and handshakes; 0: the knob's
};

// Kind, address, ring size and deadlines come from knobs(). Nothing that it creates outlives the process, however
// the process ends.
class ProcessWire : public Wire {
   public:
    // Before the first connect(); a peer that does not prove that it knows the secret is refused (kAuth).
    virtual Status join_job(const JobSecret& secret) = 0;
    // Fills `address->extra` with what a peer needs to reach us (host identity, control socket, TCP address, ...).
    // `address->gid` is already set. May be called before join_job().
    virtual void describe_self(PeerAddress* address) const = 0;
    // Asks the owner's process for a file descriptor over the control connection; -1 when it refuses, has ended or is
    // on another host. The caller closes it. Called WITHOUT the engine's lock, on application threads, after
    // connect(owner). The owner answers on a thread of its wire, so that two processes may ask each other at once.
    virtual int fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) = 0;
    // "shm", "tcp" or "loopback", for the log; "" when not connected.
    virtual const char* kind_of(const Gid& peer) const = 0;
    // Sums over all connections of a kind (as above), ended ones included.
    virtual LinkStats statistics(const char* /*kind*/) const { return {}; }
};

// Fails with a hint when no socket, shared memory or address can be had. The wire listens when this returns.
Status make_process_wire(const ProcessWireOptions& options, std::unique_ptr<ProcessWire>* wire);

}  // namespace nvshmem_efa::soft
