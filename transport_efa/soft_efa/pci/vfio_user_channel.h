// SPDX-License-Identifier: Apache-2.0
// Messages of one vfio-user client: cut out of the byte stream, with the descriptors that came along with each.
#pragma once

#include <string>
#include <vector>

#include "soft_efa/control_socket.h"
#include "soft_efa/pci/vfio_user_protocol.h"

namespace nvshmem_efa::soft::pci {

struct VfioUserMessage {
    VfioUserHeader header{};
    std::vector<uint8_t> body;
    std::vector<Fd> fds;  // not more than kVfioUserFdsMax; closed unless somebody takes them
};

class VfioUserChannel {
   public:
    explicit VfioUserChannel(Fd socket) : socket_(std::move(socket)) {}  // non-blocking
    int fd() const { return socket_.get(); }

    enum class Result { kMessage, kNothing, kEnd };
    // Takes what has come. kMessage: `*message` is complete, a command, of a size that we take. kProtocol: the bytes
    // are not messages, or too many descriptors came; nothing after them can be understood.
    Status receive(Result* result, VfioUserMessage* message);
    bool is_mid_message() const { return received_ > 0; }

    // A reply to `command`, with a duplicate of `fd` if it is not -1. An error: the client does not read its replies.
    Status reply(const VfioUserHeader& command, const void* body, size_t bytes, int fd = -1);
    Status reply_error(const VfioUserHeader& command, int error);

   private:
    Status receive_part(uint8_t* to, size_t bytes, size_t* got, Result* result);
    Status check_header() const;
    Status send(VfioUserHeader header, const void* body, size_t bytes, int fd);

    Fd socket_;
    VfioUserMessage partial_;
    size_t received_ = 0;  // of the message in partial_, header included
};

}  // namespace nvshmem_efa::soft::pci
