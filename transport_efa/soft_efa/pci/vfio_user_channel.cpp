// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/vfio_user_channel.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace nvshmem_efa::soft::pci {
namespace {

constexpr const char* kHint = "look at the client's log; QEMU 10.1 or newer is what this server is tried with";

}  // namespace

// Reads to the end of the header or of the message and never further: the kernel hands descriptors over with the bytes
// they were sent with, so those that come belong to this message.
Status VfioUserChannel::receive_part(uint8_t* to, size_t bytes, size_t* got, Result* result) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kVfioUserFdsMax)];
    iovec part{to, bytes};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    const ssize_t count = recvmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *got = 0;
    if (count <= 0) {
        *result = count < 0 && (errno == EAGAIN || errno == EINTR) ? Result::kNothing : Result::kEnd;
        return Status();
    }
    for (cmsghdr* one = CMSG_FIRSTHDR(&header); one; one = CMSG_NXTHDR(&header, one)) {
        if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
        for (size_t i = 0; i < (one->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(one) + i * sizeof(int), sizeof fd);
            partial_.fds.emplace_back(fd);
        }
    }
    if ((header.msg_flags & MSG_CTRUNC) != 0 || partial_.fds.size() > kVfioUserFdsMax) {
        return Status::error(Code::kProtocol, "this server takes 16 in a message; or raise the limit of open files (ulimit -n)",
                             "a message came with too many descriptors");
    }
    *got = static_cast<size_t>(count);
    *result = Result::kMessage;
    return Status();
}

Status VfioUserChannel::check_header() const {
    const VfioUserHeader& header = partial_.header;
    if ((header.flags & kVfioUserTypeMask) != 0) {
        return Status::error(Code::kProtocol, kHint, "a message of type %u; a client sends commands only",
                             header.flags & kVfioUserTypeMask);
    }
    if (header.bytes < sizeof header || header.bytes > kVfioUserMessageMax) {
        return Status::error(Code::kProtocol, kHint, "a message of %u bytes (command %u); from %zu to %u are possible",
                             header.bytes, header.command, sizeof header, kVfioUserMessageMax);
    }
    return Status();
}

Status VfioUserChannel::receive(Result* result, VfioUserMessage* message) {
    while (true) {
        size_t got = 0;
        if (received_ < sizeof(VfioUserHeader)) {
            uint8_t* header = reinterpret_cast<uint8_t*>(&partial_.header);
            EFA_TRY(receive_part(header + received_, sizeof(VfioUserHeader) - received_, &got, result));
            received_ += got;
            if (*result != Result::kMessage) return Status();
            if (received_ < sizeof(VfioUserHeader)) continue;
            EFA_TRY(check_header());
            partial_.body.resize(partial_.header.bytes - sizeof(VfioUserHeader));
        }
        const size_t in_body = received_ - sizeof(VfioUserHeader);
        if (in_body < partial_.body.size()) {
            EFA_TRY(receive_part(partial_.body.data() + in_body, partial_.body.size() - in_body, &got, result));
            received_ += got;
            if (*result != Result::kMessage) return Status();
        }
        if (received_ < partial_.header.bytes) continue;
        received_ = 0;
        *message = std::exchange(partial_, VfioUserMessage());
        return Status();
    }
}

Status VfioUserChannel::reply(const VfioUserHeader& command, const void* body, size_t bytes, int fd) {
    VfioUserHeader header = command;
    header.flags = kVfioUserReply;
    header.error = 0;
    return send(header, body, bytes, fd);
}

Status VfioUserChannel::reply_error(const VfioUserHeader& command, int error) {
    VfioUserHeader header = command;
    header.flags = kVfioUserReply | kVfioUserError;
    header.error = static_cast<uint32_t>(error);
    return send(header, nullptr, 0, -1);
}

Status VfioUserChannel::send(VfioUserHeader header, const void* body, size_t bytes, int fd) {
    header.bytes = static_cast<uint32_t>(sizeof header + bytes);
    iovec parts[2] = {{&header, sizeof header}, {const_cast<void*>(body), bytes}};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = bytes ? 2 : 1;
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        cmsghdr* one = CMSG_FIRSTHDR(&message);
        one->cmsg_level = SOL_SOCKET;
        one->cmsg_type = SCM_RIGHTS;
        one->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(one), &fd, sizeof fd);
    }
    ssize_t sent;
    do {
        sent = sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent == static_cast<ssize_t>(header.bytes)) return Status();
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) return Status::error(Code::kPeer, nullptr, "the client left before its reply");
    // QEMU waits for almost every reply; a full socket is a client that does not read.
    return Status::error(Code::kProtocol, kHint, "cannot reply to command %u: %s", header.command,
                         sent < 0 ? std::strerror(errno) : "the client does not read its replies");
}

}  // namespace nvshmem_efa::soft::pci
