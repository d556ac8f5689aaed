// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/wire_tcp.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "soft_efa/wire_shm_ring.h"

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kUnsentMax = 4u << 20;     // then send() says: no room
constexpr size_t kDirectBytes = 32u << 10;  // payloads of this size skip the buffer when it is empty
constexpr size_t kFlushBytes = 64u << 10;   // small packets gather up to this much before a system call
constexpr size_t kReadBytes = 256u << 10;
constexpr int kLingerMs = 200;

}  // namespace

TcpLink::~TcpLink() {
    for (int waits = 0; waits < kLingerMs / 10 && unsent() > 0 && !write_ended_; ++waits) {
        flush();
        pollfd wait{socket_.get(), POLLOUT, 0};
        if (unsent() > 0) ::poll(&wait, 1, 10);
    }
    if (socket_.is_open()) shutdown(socket_.get(), SHUT_WR);
}

void TcpLink::append(const void* bytes, size_t count) {
    if (count == 0) return;
    if (out_begin_ == out_.size()) {
        out_.clear();
        out_begin_ = 0;
    } else if (out_begin_ > kUnsentMax) {
        out_.erase(out_.begin(), out_.begin() + static_cast<ptrdiff_t>(out_begin_));
        out_begin_ = 0;
    }
    const auto* from = static_cast<const uint8_t*>(bytes);
    out_.insert(out_.end(), from, from + count);
}

// Hands header and payload to the kernel without a copy of ours; buffers the rest.
bool TcpLink::send_now(const PacketHeader& header, const void* payload) {
    iovec parts[2] = {{const_cast<PacketHeader*>(&header), sizeof header},
                      {const_cast<void*>(payload), header.payload_bytes}};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = 2;
    const ssize_t result = sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (result < 0 && errno != EAGAIN && errno != EINTR) {
        write_ended_ = true;
        return true;
    }
    const size_t sent = result < 0 ? 0 : static_cast<size_t>(result);
    if (sent < sizeof header) {
        append(reinterpret_cast<const uint8_t*>(&header) + sent, sizeof header - sent);
        append(payload, header.payload_bytes);
    } else {
        const size_t payload_sent = sent - sizeof header;
        append(static_cast<const uint8_t*>(payload) + payload_sent, header.payload_bytes - payload_sent);
    }
    return true;
}

bool TcpLink::send(const PacketHeader& header, const void* payload) {
    if (write_ended_) return true;
    if (unsent() + sizeof header + header.payload_bytes > kUnsentMax) {
        flush();
        if (unsent() + sizeof header + header.payload_bytes > kUnsentMax) {
            ++stats.sends_refused;
            return false;
        }
    }
    ++stats.packets_sent;
    stats.bytes_sent += header.payload_bytes;
    if (header.payload_bytes >= kDirectBytes) {
        flush();
        if (unsent() == 0) return send_now(header, payload);
    }
    append(&header, sizeof header);
    append(payload, header.payload_bytes);
    if (unsent() >= kFlushBytes) flush();
    return true;
}

void TcpLink::flush() {
    while (unsent() > 0 && !write_ended_) {
        const ssize_t sent = ::send(socket_.get(), out_.data() + out_begin_, unsent(), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) {
            write_ended_ = true;  // poll() finds out why, once it has delivered what had come
            return;
        }
        out_begin_ += static_cast<size_t>(sent);
    }
}

// Delivers the whole frames in the buffer. `*wanted`: how many bytes the frame at the front needs in all.
Status TcpLink::take_frames(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered, size_t* wanted) {
    *wanted = sizeof(PacketHeader);
    while (*delivered < packets_max && in_end_ - in_begin_ >= sizeof(PacketHeader)) {
        PacketHeader header;
        std::memcpy(static_cast<void*>(&header), in_.data() + in_begin_, sizeof header);
        EFA_TRY(check_packet_header(header));
        const size_t bytes = sizeof header + header.payload_bytes;
        if (in_end_ - in_begin_ < bytes) {
            *wanted = bytes;
            return Status();
        }
        const uint8_t* payload = in_.data() + in_begin_ + sizeof header;
        in_begin_ += bytes;
        ++stats.packets_received;
        stats.bytes_received += header.payload_bytes;
        deliver(header, payload);
        ++*delivered;
    }
    return Status();
}

Status TcpLink::read_more(size_t wanted, bool* got_some) {
    *got_some = false;
    if (in_begin_ > 0) {
        std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
        in_end_ -= in_begin_;
        in_begin_ = 0;
    }
    if (in_.size() < std::max(wanted, kReadBytes)) in_.resize(std::max(wanted, kReadBytes));
    const ssize_t got = recv(socket_.get(), in_.data() + in_end_, in_.size() - in_end_, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) return Status();
    if (got < 0 && errno == EAGAIN) {
        readable_ = false;
        return Status();
    }
    if (got > 0) {
        in_end_ += static_cast<size_t>(got);
        *got_some = true;
        return Status();
    }
    const int error = got < 0 ? errno : 0;
    ended_ = write_ended_ = true;
    if (in_end_ > 0 && error == 0) {
        return Status::error(Code::kPeer, "look at the peer's log and exit code", "its connection ended inside a packet");
    }
    return Status::error(Code::kPeer, "look at the peer's log and exit code, and at the network between the hosts",
                         "its connection has ended%s%s", error ? ": " : "", error ? std::strerror(error) : "");
}

Status TcpLink::poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) {
    if (unsent() > 0) flush();
    while (true) {
        size_t wanted = 0;
        EFA_TRY(take_frames(deliver, packets_max, delivered, &wanted));
        if (*delivered >= packets_max || !readable_) return Status();
        bool got_some = false;
        EFA_TRY(read_more(wanted, &got_some));
        if (!got_some) return Status();
    }
}

}  // namespace nvshmem_efa::soft
