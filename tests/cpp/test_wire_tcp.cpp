// SPDX-License-Identifier: Apache-2.0
// The TCP link by itself: frames over a byte stream that cuts anywhere, back-pressure, garbage, sudden ends.
#include "soft_efa/wire_tcp.h"

#include <sys/socket.h>
#include <unistd.h>

#include <vector>

#include "check.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

uint8_t pattern(uint64_t message, size_t i) { return static_cast<uint8_t>(message * 131 + i * 7 + (i >> 8)); }

PacketHeader header_of(uint64_t message, size_t bytes) {
    PacketHeader header;
    header.type = PacketType::kWrite;
    header.message = message;
    header.payload_bytes = static_cast<uint32_t>(bytes);
    return header;
}

bool push(TcpLink& link, uint64_t message, size_t bytes) {
    std::vector<uint8_t> payload(bytes);
    for (size_t i = 0; i < bytes; ++i) payload[i] = pattern(message, i);
    return link.send(header_of(message, bytes), payload.data());
}

struct Streams {
    Fd raw;  // the peer, as plain bytes
    std::unique_ptr<TcpLink> link;
    uint64_t next = 0;

    Streams() {
        int ends[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
        link = std::make_unique<TcpLink>(Fd(ends[0]));
        raw = Fd(ends[1]);
    }
    Status poll(size_t packets_max = 1000) { return poll_on(*link, packets_max); }
    Status poll_on(TcpLink& from, size_t packets_max = 1000) {
        size_t delivered = 0;
        from.set_readable();
        return from.poll(
            [this](const PacketHeader& header, const void* payload) {
                CHECK_EQ(header.message, next);
                for (size_t i = 0; i < header.payload_bytes; ++i) {
                    if (static_cast<const uint8_t*>(payload)[i] != pattern(next, i)) {
                        check::fail(__FILE__, __LINE__, "payload differs");
                    }
                }
                ++next;
            },
            packets_max, &delivered);
    }
    void write_raw(const void* bytes, size_t count) { CHECK_EQ(write(raw.get(), bytes, count), static_cast<ssize_t>(count)); }
};

}  // namespace

TEST(packets_of_every_size_arrive_in_order) {
    Streams streams;
    TcpLink other(std::move(streams.raw));
    uint64_t sent = 0;
    for (int round = 0; round < 20; ++round) {
        for (size_t size : {size_t{0}, size_t{1}, size_t{8}, size_t{32767}, size_t{32768}, size_t{100000}, size_t{kPacketPayloadMax}}) {
            while (!push(other, sent, size)) CHECK_OK(streams.poll());
            ++sent;
            other.flush();
        }
    }
    for (int turns = 0; streams.next < sent && turns < 100000; ++turns) {
        other.flush();
        CHECK_OK(streams.poll());
    }
    CHECK_EQ(streams.next, sent);
    CHECK_EQ(streams.link->stats.packets_received, sent);
    CHECK_EQ(other.stats.packets_sent, sent);
    CHECK_EQ(other.stats.bytes_sent, streams.link->stats.bytes_received);
}

TEST(a_frame_that_comes_byte_by_byte_is_delivered_once_whole) {
    Streams streams;
    std::vector<uint8_t> frame(sizeof(PacketHeader) + 5);
    const PacketHeader header = header_of(0, 5);
    std::memcpy(frame.data(), &header, sizeof header);
    for (size_t i = 0; i < 5; ++i) frame[sizeof header + i] = pattern(0, i);
    for (size_t i = 0; i < frame.size(); ++i) {
        CHECK_EQ(streams.next, 0u);
        streams.write_raw(&frame[i], 1);
        CHECK_OK(streams.poll());
    }
    CHECK_EQ(streams.next, 1u);
}

TEST(a_peer_that_does_not_read_gets_back_pressure_and_loses_nothing) {
    Streams streams;
    TcpLink other(std::move(streams.raw));
    uint64_t sent = 0;
    while (sent < 1000 && push(other, sent, 100000)) ++sent;
    CHECK(sent > 10);
    CHECK(sent < 200);  // bounded: 4 MiB here and what the kernel takes
    CHECK_EQ(other.stats.sends_refused, 1u);
    CHECK(!push(other, sent, 100000));
    for (int turns = 0; streams.next < sent && turns < 100000; ++turns) {
        CHECK_OK(streams.poll());
        other.flush();
    }
    CHECK_EQ(streams.next, sent);
    CHECK(push(other, sent, 100000));
}

TEST(no_more_is_delivered_than_asked_for) {
    Streams streams;
    TcpLink other(std::move(streams.raw));
    for (uint64_t i = 0; i < 10; ++i) CHECK(push(other, i, 8));
    other.flush();
    CHECK_OK(streams.poll(4));
    CHECK_EQ(streams.next, 4u);
    CHECK_OK(streams.poll(6));
    CHECK_EQ(streams.next, 10u);
}

TEST(garbage_and_oversized_frames_are_named) {
    const struct {
        const char* part;
        void (*apply)(PacketHeader& header);
    } corruptions[] = {
        {"no magic number", [](PacketHeader& header) { header.magic = 0; }},
        {"type is unknown", [](PacketHeader& header) { header.type = static_cast<PacketType>(0); }},
        {"type is unknown", [](PacketHeader& header) { header.type = static_cast<PacketType>(200); }},
        {"beyond the limit", [](PacketHeader& header) { header.payload_bytes = kPacketPayloadMax + 1; }},
        {"beyond the limit", [](PacketHeader& header) { header.payload_bytes = 0xffffffff; }},
    };
    for (const auto& corruption : corruptions) {
        Streams streams;
        const PacketHeader good = header_of(0, 0);
        PacketHeader bad = header_of(1, 0);
        corruption.apply(bad);
        streams.write_raw(&good, sizeof good);
        streams.write_raw(&bad, sizeof bad);
        CHECK_FAILS(streams.poll(), Code::kProtocol, corruption.part);
        CHECK_EQ(streams.next, 1u);  // what came before it is good
    }
}

TEST(an_end_between_packets_comes_after_what_was_sent) {
    Streams streams;
    const PacketHeader header = header_of(0, 0);
    streams.write_raw(&header, sizeof header);
    streams.raw.reset();
    CHECK_FAILS(streams.poll(), Code::kPeer, "ended");
    CHECK_EQ(streams.next, 1u);
    CHECK(push(*streams.link, 5, 100));  // swallowed
}

TEST(an_end_inside_a_packet_is_named) {
    Streams streams;
    const PacketHeader header = header_of(0, 100);
    streams.write_raw(&header, sizeof header);
    streams.write_raw(&header, 50);
    streams.raw.reset();
    CHECK_FAILS(streams.poll(), Code::kPeer, "inside a packet");
    CHECK_EQ(streams.next, 0u);
}

TEST(what_is_buffered_at_the_end_still_leaves) {
    Streams streams;
    auto other = std::make_unique<TcpLink>(std::move(streams.raw));
    for (uint64_t i = 0; i < 10; ++i) CHECK(push(*other, i, 100));
    other.reset();
    CHECK_FAILS(streams.poll(), Code::kPeer, "ended");
    CHECK_EQ(streams.next, 10u);
}

TEST(an_address_that_cannot_be_used_is_a_config_error_with_a_hint) {
    Fd socket;
    TcpAddress address;
    CHECK_FAILS(tcp_bind("no-such-host.invalid", &socket, &address), Code::kConfig, "NVSHMEM_EFA_SOFT_TCP_ADDR");
    CHECK_FAILS(tcp_bind("0.0.0.0", &socket, &address), Code::kConfig, "all addresses");
    CHECK_FAILS(tcp_bind("::", &socket, &address), Code::kConfig, "all addresses");
    CHECK_FAILS(tcp_bind("203.0.113.7", &socket, &address), Code::kConfig, "203.0.113.7");  // not of this host
    CHECK_OK(tcp_bind("127.0.0.1", &socket, &address));
    CHECK_EQ(address.family, 4);
    CHECK(address.port != 0);
    CHECK_EQ(tcp_address_text(address), "127.0.0.1 port " + std::to_string(address.port));
}

TEST(a_bound_port_refuses_until_it_listens) {
    Fd listener, dialled;
    TcpAddress address;
    CHECK_OK(tcp_bind("127.0.0.1", &listener, &address));
    const auto result_of_dial = [&] {
        CHECK_OK(tcp_dial(address, &dialled));
        int result = EINPROGRESS;
        for (int i = 0; i < 1000 && result == EINPROGRESS; ++i) {
            result = tcp_dial_result(dialled.get());
            if (result == EINPROGRESS) usleep(1000);
        }
        return result;
    };
    CHECK_EQ(result_of_dial(), ECONNREFUSED);
    CHECK_OK(tcp_listen(listener.get()));
    CHECK_EQ(result_of_dial(), 0);
}

TEST_MAIN()
