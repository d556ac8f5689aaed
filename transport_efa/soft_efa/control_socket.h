// SPDX-License-Identifier: Apache-2.0
// Sockets of the wire, and control messages on them: abstract unix sockets (no file is ever left) between processes of
// one host, TCP between hosts. All calls are non-blocking.
#pragma once

#include <string>

#include "soft_efa/auth_handshake.h"

namespace nvshmem_efa::soft {

// A descriptor that is closed at the end.
class Fd {
   public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    ~Fd() { reset(); }
    Fd(Fd&& other) noexcept : fd_(other.release()) {}
    Fd& operator=(Fd&& other) noexcept;
    int get() const { return fd_; }
    bool is_open() const { return fd_ >= 0; }
    int release();
    void reset();

   private:
    int fd_ = -1;
};

// Listens at the abstract name of this process id.
Status control_listen(uint64_t process_id, Fd* listener);
// `*would_block`: the peer's backlog is full, try again. kPeer: nobody listens, so the process has ended.
Status control_dial(uint64_t process_id, Fd* socket, bool* would_block);
// kAuth unless the process at the other end runs as our user. `*pid` is 0 if it cannot be seen from here.
Status control_check_user(int socket, int* pid);

// Another TCP or unix connection, or a closed Fd when none waits; an error only when descriptors ran out.
Status accept_next(int listener, Fd* socket);

// A control message coming in over either kind of socket, perhaps in parts.
class ControlReader {
   public:
    enum class Result { kMessage, kNothing, kEnd };
    // kMessage: `*message` is set, and `*fd` if a descriptor came along. A Status names bytes that are not a message.
    Status read(int socket, bool is_tcp, Result* result, ControlMessage* message, Fd* fd);

   private:
    uint8_t bytes_[sizeof(ControlMessage)];
    size_t count_ = 0;
};

// Sends a message, on unix sockets with a duplicate of `fd` if it is not -1. Messages are few and small: a full socket
// is a peer that does not read, and an error.
Status control_send(int socket, const ControlMessage& message, int fd = -1);

// ---- TCP ----

struct TcpAddress {
    uint16_t family = 0;  // 0: none, 4 or 6
    uint16_t port = 0;    // host order
    uint8_t bytes[16] = {};
};

std::string tcp_address_text(const TcpAddress& address);
bool tcp_is_loopback(const TcpAddress& address);
// Binds an ephemeral port of the address named by `knob` (NVSHMEM_EFA_SOFT_TCP_ADDR; empty: this host's name). Connections
// are refused until listen() is called.
Status tcp_bind(const std::string& knob, Fd* socket, TcpAddress* address);
Status tcp_listen(int socket);
// Starts a connection; tcp_dial_result() tells its end.
Status tcp_dial(const TcpAddress& address, Fd* socket);
// 0 connected, EINPROGRESS still under way, else why it failed.
int tcp_dial_result(int socket);
// No delay, keep-alive, and an end to unacknowledged data after `timeout_ms`.
void tcp_set_options(int socket, uint64_t timeout_ms);

}  // namespace nvshmem_efa::soft
