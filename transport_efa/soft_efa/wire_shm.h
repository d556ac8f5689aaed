// SPDX-License-Identifier: Apache-2.0
// A peer on this host: one ring each way, beside the unix connection that made them.
#pragma once

#include "soft_efa/control_socket.h"
#include "soft_efa/process_wire_link.h"
#include "soft_efa/wire_shm_ring.h"

namespace nvshmem_efa::soft {

class ShmLink final : public Link {
   public:
    // `inbound` is the ring that this process made, `outbound` the peer's. `pid` may be 0: unknown.
    ShmLink(Fd control, int pid, ShmRing inbound, ShmRing outbound);
    const char* kind() const override { return "shm"; }
    int control_fd() const override { return control_.get(); }
    // Readable when the peer's process has ended, even where a child of it still holds the socket; -1 if unknown.
    int pid_fd() const { return pid_fd_.get(); }
    bool send(const PacketHeader& header, const void* payload) override;
    void flush() override;
    Status poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) override;

    // Reads one control message, if there is one. kEnd: the peer's process has ended; poll() then drains and reports it.
    Status read_control(ControlReader::Result* result, ControlMessage* message, Fd* fd);
    void set_ended() { ended_ = true; }

   private:
    Fd control_;
    Fd pid_fd_;
    ControlReader reader_;
    ShmReceiver receiver_;
    ShmSender sender_;
    bool ended_ = false;
};

}  // namespace nvshmem_efa::soft
