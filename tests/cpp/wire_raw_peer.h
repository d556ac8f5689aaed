// SPDX-License-Identifier: Apache-2.0
// A peer of the wire made of bytes, for tests that break its protocol.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "soft_efa/control_socket.h"
#include "soft_efa/process_wire_impl.h"
#include "test_wire_processes.h"

namespace wire_test {

inline WireAddress wire_address_of(const PeerAddress& address) {
    WireAddress found;
    std::memcpy(static_cast<void*>(&found), address.extra, sizeof found);
    return found;
}

// A peer made of bytes: it speaks as much of the protocol as a test wants.
class RawPeer {
   public:
    RawPeer(const PeerAddress& victim, bool tcp) : is_tcp_(tcp), victim_(wire_address_of(victim)) {
        if (tcp) {
            CHECK_OK(tcp_dial(victim_.tcp, &fd));
            wait_for(POLLOUT);
            CHECK_EQ(tcp_dial_result(fd.get()), 0);
        } else {
            bool would_block = false;
            CHECK_OK(control_dial(victim_.process_id, &fd, &would_block));
            CHECK(!would_block);
        }
    }
    void wait_for(short events) {
        pollfd wait{fd.get(), events, 0};
        CHECK_EQ(::poll(&wait, 1, 8000), 1);
    }
    void write(const void* bytes, size_t count) {
        CHECK_EQ(::send(fd.get(), bytes, count, MSG_NOSIGNAL), static_cast<ssize_t>(count));
    }
    ControlMessage read(Fd* received = nullptr) {
        ControlMessage message;
        Fd dropped;
        ControlReader::Result result = ControlReader::Result::kNothing;
        while (result == ControlReader::Result::kNothing) {
            wait_for(POLLIN);
            CHECK_OK(reader_.read(fd.get(), is_tcp_, &result, &message, received ? received : &dropped));
        }
        CHECK(result == ControlReader::Result::kMessage);
        return message;
    }
    // The victim has closed the connection; what it may have sent before is dropped.
    void expect_closed() {
        char bytes[256];
        while (true) {
            wait_for(POLLIN);
            const ssize_t got = recv(fd.get(), bytes, sizeof bytes, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) return;
        }
    }
    ControlMessage hello(uint64_t self) {
        ControlMessage message;
        message.from_process = self;
        message.to_process = victim_.process_id;
        return message;
    }
    // The whole handshake; with shared memory also the rings. `self` is the id it goes by.
    void handshake(uint64_t self, uint8_t secret_byte = 7) {
        JobSecret secret;
        std::memset(secret.bytes, secret_byte, sizeof secret.bytes);
        Handshake side(true, secret, self, victim_.process_id);
        ControlMessage message, reply;
        bool has_reply = false;
        CHECK_OK(side.begin(&message));
        write(&message, sizeof message);
        CHECK_OK(side.on_message(read(), &reply, &has_reply));
        write(&reply, sizeof reply);
        Fd ring;
        CHECK_OK(side.on_message(read(&ring), &reply, &has_reply));
        CHECK(side.proven());
        if (is_tcp_) return;
        CHECK_OK(ShmRing::attach(ring.release(), &outbound));
        CHECK_OK(ShmRing::create(kShmRingBytesMin, &inbound));
        message = ControlMessage{};
        message.type = ControlType::kRing;
        message.from_process = self;
        message.to_process = victim_.process_id;
        CHECK_OK(control_send(fd.get(), message, inbound.fd()));
    }

    Fd fd;
    ShmRing inbound;
    ShmRing outbound;

   private:
    bool is_tcp_;
    WireAddress victim_;
    ControlReader reader_;
};

}  // namespace wire_test
