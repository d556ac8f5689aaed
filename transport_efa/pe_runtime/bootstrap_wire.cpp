// SPDX-License-Identifier: Apache-2.0
#include "bootstrap_wire.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace nvshmem_efa::pe {

socklen_t bootstrap_address(const std::string& job, sockaddr_un* address) {
    std::memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    const std::string name = "nvshmem-efa-pe." + job;
    const size_t length = std::min(name.size(), sizeof address->sun_path - 1);
    std::memcpy(address->sun_path + 1, name.data(), length);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

Status check_same_user(int fd, int* pid) {
    ucred peer{};
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
        return Status::error(Code::kAuth, nullptr, "cannot read who is at the other end of the bootstrap socket: %s",
                             strerror(errno));
    if (peer.uid != geteuid())
        return Status::error(Code::kAuth, "use a fresh random --job name; another user holds this one",
                             "the bootstrap socket's other end belongs to user %u, not to us (%u)",
                             static_cast<unsigned>(peer.uid), static_cast<unsigned>(geteuid()));
    if (pid) *pid = static_cast<int>(peer.pid);
    return Status();
}

uint64_t monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

bool wait_fd(int fd, short events, uint64_t end_ns) {
    for (;;) {
        const uint64_t now = monotonic_ns();
        if (now >= end_ns) return false;
        pollfd entry{fd, events, 0};
        const uint64_t left_ms = (end_ns - now) / 1'000'000 + 1;
        const int ready = poll(&entry, 1, static_cast<int>(std::min<uint64_t>(left_ms, 1000)));
        if (ready > 0) return true;  // also for hang-up: the read or write that follows says so
        if (ready < 0 && errno != EINTR) return true;
    }
}

int read_all(int fd, void* data, size_t bytes, uint64_t end_ns) {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
        const ssize_t got = recv(fd, at, bytes, MSG_DONTWAIT);
        if (got > 0) {
            at += got;
            bytes -= static_cast<size_t>(got);
        } else if (got == 0) {
            return EPIPE;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (!wait_fd(fd, POLLIN, end_ns)) return ETIMEDOUT;
        } else if (errno != EINTR) {
            return errno == ECONNRESET ? EPIPE : errno;
        }
    }
    return 0;
}

int write_all(int fd, const void* data, size_t bytes, uint64_t end_ns) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t sent = send(fd, at, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
            bytes -= static_cast<size_t>(sent);
        } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (!wait_fd(fd, POLLOUT, end_ns)) return ETIMEDOUT;
        } else if (sent < 0 && errno != EINTR) {
            return errno == ECONNRESET ? EPIPE : errno;
        }
    }
    return 0;
}

int write_frame(int fd, const FrameHeader& header, const void* payload, uint64_t end_ns) {
    if (const int error = write_all(fd, &header, sizeof header, end_ns)) return error;
    return header.bytes ? write_all(fd, payload, header.bytes, end_ns) : 0;
}

}  // namespace nvshmem_efa::pe
