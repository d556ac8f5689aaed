// SPDX-License-Identifier: Apache-2.0
// A peer on another host: packets framed on one TCP connection, a PacketHeader and its payload each.
#pragma once

#include <vector>

#include "soft_efa/control_socket.h"
#include "soft_efa/process_wire_link.h"

namespace nvshmem_efa::soft {

class TcpLink final : public Link {
   public:
    explicit TcpLink(Fd socket) : socket_(std::move(socket)) {}
    ~TcpLink() override;  // what is buffered gets a moment to leave
    const char* kind() const override { return "tcp"; }
    int control_fd() const override { return socket_.get(); }
    bool send(const PacketHeader& header, const void* payload) override;
    void flush() override;
    Status poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) override;

    // The socket has something to read; set by whoever waits on control_fd(). Until then poll() asks the kernel nothing.
    void set_readable() { readable_ = true; }

   private:
    size_t unsent() const { return out_.size() - out_begin_; }
    void append(const void* bytes, size_t count);
    bool send_now(const PacketHeader& header, const void* payload);
    Status take_frames(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered, size_t* wanted);
    Status read_more(size_t wanted, bool* got_some);

    Fd socket_;
    std::vector<uint8_t> out_;  // bytes that the kernel did not take yet, from out_begin_ on
    size_t out_begin_ = 0;
    std::vector<uint8_t> in_;  // bytes not delivered yet: [in_begin_, in_end_)
    size_t in_begin_ = 0;
    size_t in_end_ = 0;
    bool readable_ = false;
    bool ended_ = false;        // nothing more comes
    bool write_ended_ = false;  // the peer takes nothing more; packets to it are swallowed
};

}  // namespace nvshmem_efa::soft
