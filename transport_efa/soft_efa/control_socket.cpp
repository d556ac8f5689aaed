// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/control_socket.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <utility>

namespace nvshmem_efa::soft {
namespace {

constexpr int kFdsMax = 4;  // more than one never comes from us; what comes is closed

socklen_t control_name(uint64_t process_id, sockaddr_un* name) {
    *name = sockaddr_un{};
    name->sun_family = AF_UNIX;  // sun_path[0] stays 0: an abstract name, which vanishes with its socket
    const int length = std::snprintf(name->sun_path + 1, sizeof name->sun_path - 1, "nvshmem-efa-%016" PRIx64, process_id);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + static_cast<size_t>(length));
}

Status socket_error(const char* what, int error) {
    return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)", "%s: %s", what, std::strerror(error));
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
    if (this != &other) {
        reset();
        fd_ = other.release();
    }
    return *this;
}

int Fd::release() { return std::exchange(fd_, -1); }

void Fd::reset() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
}

Status control_listen(uint64_t process_id, Fd* listener) {
    Fd made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!made.is_open()) return socket_error("cannot make a unix socket", errno);
    sockaddr_un name;
    const socklen_t length = control_name(process_id, &name);
    if (bind(made.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0 || listen(made.get(), SOMAXCONN) != 0) {
        return socket_error("cannot listen on an abstract unix socket", errno);
    }
    *listener = std::move(made);
    return Status();
}

Status control_dial(uint64_t process_id, Fd* socket_out, bool* would_block) {
    *would_block = false;
    Fd made(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!made.is_open()) return socket_error("cannot make a unix socket", errno);
    sockaddr_un name;
    const socklen_t length = control_name(process_id, &name);
    if (connect(made.get(), reinterpret_cast<const sockaddr*>(&name), length) != 0) {
        if (errno == EAGAIN || errno == EINTR) {
            *would_block = true;
            return Status();
        }
        return Status::error(Code::kPeer, "look at the peer's log; if it runs in another container, set NVSHMEM_EFA_SOFT_WIRE=tcp",
                             "nobody listens at its control socket (%s): the process has ended", std::strerror(errno));
    }
    *socket_out = std::move(made);
    return Status();
}

Status control_check_user(int socket, int* pid) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
        return Status::error(Code::kAuth, "this kernel must offer SO_PEERCRED", "cannot ask who is at a unix socket: %s",
                             std::strerror(errno));
    }
    if (credentials.uid != geteuid()) {
        return Status::error(Code::kAuth, "all processes of a job must run as one user; between containers set NVSHMEM_EFA_SOFT_WIRE=tcp",
                             "process %d at the other end of a control socket runs as user %u, this one as user %u",
                             credentials.pid, credentials.uid, geteuid());
    }
    *pid = credentials.pid;
    return Status();
}

Status accept_next(int listener, Fd* socket) {
    socket->reset();
    const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)) {
        return socket_error("cannot accept a peer's connection", errno);
    }
    *socket = Fd(fd);
    return Status();
}

Status ControlReader::read(int socket, bool is_tcp, Result* result, ControlMessage* message, Fd* fd) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kFdsMax)];
    uint8_t longer[sizeof bytes_ + 1];  // one more, so that an oversized datagram shows
    iovec to{is_tcp ? bytes_ + count_ : longer, is_tcp ? sizeof bytes_ - count_ : sizeof longer};
    msghdr header{};
    header.msg_iov = &to;
    header.msg_iovlen = 1;
    if (!is_tcp) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
    }
    const ssize_t got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *result = Result::kNothing;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return Status();
    int fds = 0;
    for (cmsghdr* part = got < 0 ? nullptr : CMSG_FIRSTHDR(&header); part; part = CMSG_NXTHDR(&header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        for (size_t i = 0; i < (part->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i, ++fds) {
            int received;
            std::memcpy(&received, CMSG_DATA(part) + i * sizeof(int), sizeof received);
            *fd = Fd(received);  // an earlier one is closed
        }
    }
    if (got <= 0) {
        *result = Result::kEnd;
        return Status();
    }
    if (fds > 1 || (header.msg_flags & MSG_CTRUNC) != 0) {
        return Status::error(Code::kProtocol, "the peer may be broken; if not, raise the limit of open files (ulimit -n)",
                             "a control message with %d descriptors", fds);
    }
    if (is_tcp) {
        count_ += static_cast<size_t>(got);
        // Garbage is named as soon as its first bytes are here, not when 128 have come.
        if (count_ < sizeof bytes_) {
            ControlMessage start;
            if (count_ < 6 || std::memcmp(bytes_, &start, 6) == 0) return Status();
        }
        const size_t count = std::exchange(count_, 0);
        EFA_TRY(parse_control_message(bytes_, count, message));
    } else {
        EFA_TRY(parse_control_message(longer, static_cast<size_t>(got), message));
    }
    *result = Result::kMessage;
    return Status();
}

Status control_send(int socket, const ControlMessage& message, int fd) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    iovec from{const_cast<ControlMessage*>(&message), sizeof message};
    msghdr header{};
    header.msg_iov = &from;
    header.msg_iovlen = 1;
    if (fd >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        cmsghdr* part = CMSG_FIRSTHDR(&header);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(part), &fd, sizeof fd);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent != static_cast<ssize_t>(sizeof message)) {
        return Status::error(Code::kPeer, "look at the peer's log", "cannot send it a control message: %s",
                             sent < 0 ? std::strerror(errno) : "the socket is full");
    }
    return Status();
}

}  // namespace nvshmem_efa::soft
