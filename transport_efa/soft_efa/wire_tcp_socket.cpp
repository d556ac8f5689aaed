// SPDX-License-Identifier: Apache-2.0
// The TCP half of control_socket.h.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "soft_efa/control_socket.h"

namespace nvshmem_efa::soft {
namespace {

constexpr const char* kAddressHint = "set NVSHMEM_EFA_SOFT_TCP_ADDR to an address of this host that the peers can reach";

socklen_t to_sockaddr(const TcpAddress& address, sockaddr_storage* storage) {
    *storage = sockaddr_storage{};
    if (address.family == 4) {
        auto* v4 = reinterpret_cast<sockaddr_in*>(storage);
        v4->sin_family = AF_INET;
        v4->sin_port = htons(address.port);
        std::memcpy(&v4->sin_addr, address.bytes, 4);
        return sizeof *v4;
    }
    auto* v6 = reinterpret_cast<sockaddr_in6*>(storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    std::memcpy(&v6->sin6_addr, address.bytes, 16);
    return sizeof *v6;
}

TcpAddress from_sockaddr(const sockaddr_storage& storage) {
    TcpAddress address;
    if (storage.ss_family == AF_INET) {
        const auto& v4 = reinterpret_cast<const sockaddr_in&>(storage);
        address.family = 4;
        address.port = ntohs(v4.sin_port);
        std::memcpy(address.bytes, &v4.sin_addr, 4);
    } else {
        const auto& v6 = reinterpret_cast<const sockaddr_in6&>(storage);
        address.family = 6;
        address.port = ntohs(v6.sin6_port);
        std::memcpy(address.bytes, &v6.sin6_addr, 16);
    }
    return address;
}

bool is_wildcard(const TcpAddress& address) {
    const uint8_t zeros[16] = {};
    return std::memcmp(address.bytes, zeros, 16) == 0;
}

Status resolve(const std::string& name, sockaddr_storage* storage, socklen_t* length) {
    addrinfo wanted{};
    wanted.ai_socktype = SOCK_STREAM;
    wanted.ai_family = AF_UNSPEC;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(name.c_str(), nullptr, &wanted, &found);
    const addrinfo* best = nullptr;
    for (const addrinfo* at = found; at; at = at->ai_next) {
        if (at->ai_family == AF_INET || (at->ai_family == AF_INET6 && !best)) best = at;
        if (at->ai_family == AF_INET) break;
    }
    if (error != 0 || !best) {
        if (found) freeaddrinfo(found);
        return Status::error(Code::kConfig, kAddressHint, "no address for \"%s\": %s", name.c_str(),
                             error ? gai_strerror(error) : "neither IPv4 nor IPv6");
    }
    std::memcpy(storage, best->ai_addr, best->ai_addrlen);
    *length = best->ai_addrlen;
    freeaddrinfo(found);
    return Status();
}

}  // namespace

std::string tcp_address_text(const TcpAddress& address) {
    char text[INET6_ADDRSTRLEN] = "?";
    inet_ntop(address.family == 4 ? AF_INET : AF_INET6, address.bytes, text, sizeof text);
    return std::string(text) + " port " + std::to_string(address.port);
}

bool tcp_is_loopback(const TcpAddress& address) {
    const uint8_t v6[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    return address.family == 4 ? address.bytes[0] == 127 : std::memcmp(address.bytes, v6, sizeof v6) == 0;
}

Status tcp_bind(const std::string& knob, Fd* socket_out, TcpAddress* address) {
    std::string name = knob;
    if (name.empty()) {
        char host[256] = "";
        gethostname(host, sizeof host - 1);
        name = host;
    }
    sockaddr_storage storage{};
    socklen_t length = 0;
    EFA_TRY(resolve(name, &storage, &length));
    if (is_wildcard(from_sockaddr(storage))) {
        return Status::error(Code::kConfig, kAddressHint, "\"%s\" means all addresses; peers need one of them", name.c_str());
    }
    Fd made(socket(storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!made.is_open()) {
        return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)", "cannot make a TCP socket: %s",
                             std::strerror(errno));
    }
    if (bind(made.get(), reinterpret_cast<const sockaddr*>(&storage), length) != 0) {
        return Status::error(Code::kConfig, kAddressHint, "cannot use the address \"%s\" of the software device: %s",
                             name.c_str(), std::strerror(errno));
    }
    length = sizeof storage;
    getsockname(made.get(), reinterpret_cast<sockaddr*>(&storage), &length);
    *address = from_sockaddr(storage);
    *socket_out = std::move(made);
    return Status();
}

Status tcp_listen(int socket) {
    if (listen(socket, SOMAXCONN) == 0) return Status();
    return Status::error(Code::kResource, kAddressHint, "cannot listen for peers: %s", std::strerror(errno));
}

Status tcp_dial(const TcpAddress& address, Fd* socket_out) {
    sockaddr_storage storage;
    const socklen_t length = to_sockaddr(address, &storage);
    Fd made(socket(storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!made.is_open()) {
        return Status::error(Code::kResource, "raise the limit of open files (ulimit -n)", "cannot make a TCP socket: %s",
                             std::strerror(errno));
    }
    // Any other outcome than "connected" or "under way" shows in tcp_dial_result().
    if (connect(made.get(), reinterpret_cast<const sockaddr*>(&storage), length) != 0 && errno != EINPROGRESS &&
        errno != ECONNREFUSED && errno != EINTR) {
        return Status::error(Code::kPeer, "check NVSHMEM_EFA_SOFT_TCP_ADDR on the peer, and routes and firewalls",
                             "cannot connect to %s: %s", tcp_address_text(address).c_str(), std::strerror(errno));
    }
    *socket_out = std::move(made);
    return Status();
}

int tcp_dial_result(int socket) {
    pollfd wait{socket, POLLOUT, 0};
    if (poll(&wait, 1, 0) <= 0) return EINPROGRESS;
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
    if (error == 0 && (wait.revents & POLLHUP) != 0) return ECONNREFUSED;
    return error;
}

void tcp_set_options(int socket, uint64_t timeout_ms) {
    const int on = 1, idle_s = 10, interval_s = 5, probes = 3;
    const auto timeout = static_cast<unsigned>(timeout_ms);
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

}  // namespace nvshmem_efa::soft
