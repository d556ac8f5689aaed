// SPDX-License-Identifier: Apache-2.0
// An authenticated connection to one peer process, over either wire.
#pragma once

#include "soft_efa/wire.h"

namespace nvshmem_efa::soft {

struct LinkStats {
    uint64_t packets_sent = 0;
    uint64_t bytes_sent = 0;  // payload
    uint64_t packets_received = 0;
    uint64_t bytes_received = 0;
    uint64_t sends_refused = 0;  // send() found no room

    void add(const LinkStats& other) {
        packets_sent += other.packets_sent;
        bytes_sent += other.bytes_sent;
        packets_received += other.packets_received;
        bytes_received += other.bytes_received;
        sends_refused += other.sends_refused;
    }
};

class Link {
   public:
    virtual ~Link() = default;
    virtual const char* kind() const = 0;  // "shm" or "tcp"
    virtual int control_fd() const = 0;    // readable when there is something to look at
    // As Wire::send() and Wire::flush().
    virtual bool send(const PacketHeader& header, const void* payload) = 0;
    virtual void flush() = 0;
    // Adds to `*delivered`. kPeer: the connection ended and everything that came before was delivered. Any other
    // failure: the peer sent what is not valid; the link must not be used again.
    virtual Status poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) = 0;

    LinkStats stats;
};

}  // namespace nvshmem_efa::soft
