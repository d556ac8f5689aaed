// SPDX-License-Identifier: Apache-2.0
// How packets get from one software device to another: in process (virtual clock), shared memory, or TCP.
// One thread at a time calls a Wire (the engine's lock).
#pragma once

#include <functional>

#include "packet.h"

namespace nvshmem_efa::soft {

class Wire {
   public:
    virtual ~Wire() = default;
    // Makes `peer` reachable; may connect, authenticate and exchange file descriptors. Called from an application
    // thread with the engine's lock released around waits, so that the peer can do the same towards us.
    virtual Status connect(const PeerAddress& peer) = 0;
    // False when there is no room just now: keep the packet and try again on a later step. A peer that is gone
    // swallows packets: the device learns of it by its timeout, as a real one does.
    virtual bool send(const PacketHeader& header, const void* payload) = 0;
    // Once per step, after its sends: what was sent reaches the peer without another call.
    virtual void flush() {}
    // Hands over what has arrived, at most `packets_max`. `payload` is valid during the call only.
    using Deliver = std::function<void(const PacketHeader& header, const void* payload)>;
    virtual size_t poll(const Deliver& deliver, size_t packets_max) = 0;
    // True if the peer's process is known to have ended.
    virtual bool is_gone(const Gid& peer) const = 0;
};

}  // namespace nvshmem_efa::soft
