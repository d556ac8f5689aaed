// SPDX-License-Identifier: Apache-2.0
// The wire against what must not happen: wrong secrets, other versions, garbage before and after the handshake, corrupt
// rings, exhausted memory, peers that ended or never answer, settings that do not fit. Each is a named error within its
// deadline, and the others live on.
#include <sys/resource.h>
#include <sys/socket.h>

#include "wire_raw_peer.h"

using namespace wire_test;

namespace {

// Ranks 0 and 1 are connected and live on while rank 2 does what `attack` says; then they exchange messages still.
void survive(const char* kind, const std::function<void(Rank&)>& attack) {
    use_wire(kind);
    run_good(3, [&](Rank& self) {
        if (self.rank == 2) {
            while (self.shared->arrivals[0].load() < 2) usleep(1000);
            attack(self);
            self.shared->arrivals[1].fetch_add(1);
            return;
        }
        self.open();
        self.shared->arrivals[0].fetch_add(1);
        self.wait("the other", [&] { return self.shared->arrivals[0].load() == 2; });
        CHECK_OK(self.connect(1 - self.rank));
        self.wait("the attack's end", [&] { return self.shared->arrivals[1].load() > 0; });
        CHECK(!self.is_gone(1 - self.rank));
        for (uint64_t i = 0; i < 10; ++i) self.send_surely(1 - self.rank, i, 1000);
        self.wait("the other's messages", [&] { return self.received[1 - self.rank] == 10; });
        self.barrier(2, 2);
    });
}

constexpr uint64_t kStranger = 0x7777777700000001;

}  // namespace

TEST(a_process_with_a_wrong_secret_is_refused_by_name_on_both_sides) {
    for (const char* kind : {"shm", "tcp"}) {
        LogFile log;
        use_wire(kind);
        run_good(3, [](Rank& self) {
            self.open(self.rank == 2 ? 8 : 7);
            self.barrier(0);
            const uint64_t start = now_ms();
            for (int other = 0; other < 3; ++other) {
                if (other == self.rank) continue;
                if (other == 2 || self.rank == 2) {
                    CHECK_FAILS(self.connect(other), Code::kAuth, "secret");
                } else {
                    CHECK_OK(self.connect(other));
                }
            }
            CHECK(now_ms() - start < 5000);
            self.barrier(1);
            CHECK(self.send(2, 0, 8));  // swallowed
            if (self.rank < 2) self.send_surely(1 - self.rank, 0, 8);
            if (self.rank < 2) self.wait("the other", [&] { return self.received[1 - self.rank] == 1; });
            self.barrier(2);
            CHECK_EQ(self.received[self.rank == 2 ? 0 : 2], 0u);
        });
        CHECK(log.has("does not know this job's secret"));
    }
}

TEST(another_wire_version_is_a_mismatch_that_names_both) {
    for (const char* kind : {"shm", "tcp"}) {
        LogFile log;
        survive(kind, [kind](Rank& self) {
            RawPeer peer(self.shared->addresses[0], std::strcmp(kind, "tcp") == 0);
            ControlMessage hello = peer.hello(kStranger);
            hello.version = 2;
            peer.write(&hello, sizeof hello);
            const ControlMessage answer = peer.read();
            CHECK(answer.type == ControlType::kRefuse && answer.reason == RefuseReason::kVersion);
            CHECK_EQ(answer.version, kWireVersion);
            peer.expect_closed();
        });
        CHECK(log.has("the peer speaks wire version 2, this process 1"));
    }
    use_wire("shm");
    run_good(1, [](Rank& self) {
        self.open();
        PeerAddress other = self.address;
        other.extra[4] = 9;  // the version in the address
        CHECK_FAILS(self.connect(other), Code::kMismatch, "wire version 9, this process 1");
        std::memset(other.extra, 0, sizeof other.extra);  // a real EFA device, say
        CHECK_FAILS(self.connect(other), Code::kMismatch, "NVSHMEM_EFA_MODE");
        other = self.address;
        other.gid.raw[5] ^= 1;
        CHECK_FAILS(self.connect(other), Code::kInvalidArgument, "does not fit its gid");
    });
}

TEST(garbage_before_the_handshake_is_named_and_harms_nobody) {
    const std::string texts[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "x", std::string(128, '\xff'), std::string(5000, 'a')};
    for (const char* kind : {"shm", "tcp"}) {
        LogFile log;
        survive(kind, [&](Rank& self) {
            for (const std::string& text : texts) {
                if (text.size() == 1 && std::strcmp(kind, "tcp") == 0) continue;  // might still become a message
                RawPeer peer(self.shared->addresses[0], std::strcmp(kind, "tcp") == 0);
                peer.write(text.data(), text.size());
                peer.expect_closed();
            }
            RawPeer silent(self.shared->addresses[0], std::strcmp(kind, "tcp") == 0);  // says nothing at all
        });
        CHECK(log.has("not a message of the software device's wire"));
    }
}

TEST(a_hello_for_another_process_is_turned_away) {
    for (const char* kind : {"shm", "tcp"}) {
        LogFile log;
        survive(kind, [kind](Rank& self) {
            RawPeer peer(self.shared->addresses[0], std::strcmp(kind, "tcp") == 0);
            ControlMessage hello = peer.hello(kStranger);
            hello.to_process ^= 1;
            peer.write(&hello, sizeof hello);
            CHECK(peer.read().reason == RefuseReason::kNotMe);
            peer.expect_closed();
        });
        CHECK(log.has("a connection meant for process"));
    }
}

TEST(a_corrupt_tcp_frame_cuts_its_sender_off_by_name) {
    for (int wrong = 0; wrong < 2; ++wrong) {
        LogFile log;
        survive("tcp", [wrong](Rank& self) {
            RawPeer peer(self.shared->addresses[0], true);
            peer.handshake(kStranger);
            PacketHeader header;
            if (wrong == 0) header.magic = 0x12345678;
            if (wrong == 1) header.payload_bytes = 0x7fffffff;
            peer.write(&header, sizeof header);
            peer.expect_closed();
        });
        CHECK(log.has("process 7777777700000001 is cut off: corrupt packet"));
        CHECK(log.has(wrong == 0 ? "magic 12345678" : "payload of 2147483647 bytes"));
    }
}

TEST(a_corrupt_ring_cuts_its_producer_off_by_name) {
    LogFile log;
    survive("shm", [](Rank& self) {
        RawPeer peer(self.shared->addresses[0], false);
        peer.handshake(kStranger);
        std::memset(peer.outbound.data(), 0xee, 4096);
        peer.outbound.header().head.store(4096);
        peer.expect_closed();
    });
    CHECK(log.has("process 7777777700000001 is cut off: corrupt shared-memory ring: a record without its magic"));
}

TEST(a_process_that_was_cut_off_does_not_come_back) {
    LogFile log;
    survive("shm", [](Rank& self) {
        {
            RawPeer peer(self.shared->addresses[0], false);
            peer.handshake(kStranger);
            peer.outbound.header().head.store(uint64_t{1} << 50);
            peer.expect_closed();
        }
        RawPeer again(self.shared->addresses[0], false);
        JobSecret secret;
        std::memset(secret.bytes, 7, sizeof secret.bytes);
        Handshake side(true, secret, kStranger, wire_address_of(self.shared->addresses[0]).process_id);
        ControlMessage message, reply;
        bool has_reply = false;
        CHECK_OK(side.begin(&message));
        again.write(&message, sizeof message);
        CHECK_OK(side.on_message(again.read(), &reply, &has_reply));
        again.write(&reply, sizeof reply);
        const ControlMessage answer = again.read();
        CHECK(answer.type == ControlType::kRefuse && answer.reason == RefuseReason::kCutOff);
    });
    CHECK(log.has("is cut off"));
}

TEST(garbage_on_the_control_socket_of_a_link_cuts_it_off) {
    LogFile log;
    survive("shm", [](Rank& self) {
        RawPeer peer(self.shared->addresses[0], false);
        peer.handshake(kStranger);
        const std::string text(1000, 'z');
        peer.write(text.data(), text.size());
        peer.expect_closed();
    });
    CHECK(log.has("process 7777777700000001 is cut off"));
}

TEST(a_ring_that_is_no_ring_is_refused) {
    LogFile log;
    survive("shm", [](Rank& self) {
        RawPeer peer(self.shared->addresses[0], false);
        JobSecret secret;
        std::memset(secret.bytes, 7, sizeof secret.bytes);
        Handshake side(true, secret, kStranger, wire_address_of(self.shared->addresses[0]).process_id);
        ControlMessage message, reply;
        bool has_reply = false;
        CHECK_OK(side.begin(&message));
        peer.write(&message, sizeof message);
        CHECK_OK(side.on_message(peer.read(), &reply, &has_reply));
        peer.write(&reply, sizeof reply);
        CHECK(peer.read().type == ControlType::kAccept);
        message = ControlMessage{};
        message.type = ControlType::kRing;
        CHECK_OK(control_send(peer.fd.get(), message, peer.fd.get()));  // a socket instead of memory
        peer.expect_closed();
    });
    CHECK(log.has("the file is not sealed"));
}

TEST(too_little_memory_is_an_error_on_both_sides_that_names_the_setting) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("sanitizers need the address space themselves");
#endif
    LogFile log;
    use_wire("shm");
    setenv("NVSHMEM_EFA_SOFT_RING_BYTES", "64m", 1);
    run_good(3, [](Rank& self) {
        self.open();
        if (self.rank == 2) {
            const rlimit limit{100u << 20, 100u << 20};
            CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        }
        self.barrier(0);
        for (int other = 0; other < 3; ++other) {
            if (other == self.rank) continue;
            if (self.rank == 2) {
                CHECK_FAILS(self.connect(other), Code::kResource, "NVSHMEM_EFA_SOFT_RING_BYTES");
            } else if (other == 2) {
                CHECK_FAILS(self.connect(other), Code::kResource, "NVSHMEM_EFA_SOFT_RING_BYTES");
            } else {
                CHECK_OK(self.connect(other));
            }
        }
        if (self.rank < 2) self.send_surely(1 - self.rank, 0, 8);
        if (self.rank < 2) self.wait("the other", [&] { return self.received[1 - self.rank] == 1; });
        self.barrier(1);
    });
    unsetenv("NVSHMEM_EFA_SOFT_RING_BYTES");
    CHECK(log.has("no shared memory for a ring of 67108864 bytes"));
    CHECK(log.has("address space limit: 104857600 bytes"));
}

TEST(a_peer_that_has_ended_is_named_at_once_over_shared_memory) {
    use_wire("shm");
    run_good(2, [](Rank& self) {
        self.open();
        if (self.rank == 1) {
            self.wire.reset();
            self.shared->arrivals[0].fetch_add(1);
            return;
        }
        self.wait("the end", [&] { return self.shared->arrivals[0].load() == 1; });
        const uint64_t start = now_ms();
        CHECK_FAILS(self.connect(1), Code::kPeer, "has ended");
        CHECK(now_ms() - start < 1000);
    });
}

TEST(a_peer_that_does_not_answer_is_named_within_the_deadline) {
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "400", 1);
    for (const char* kind : {"shm", "tcp"}) {
        use_wire(kind);
        const std::vector<int> codes = run_ranks(2, [](Rank& self) {
            self.open();
            self.shared->arrivals[0].fetch_add(1);
            if (self.rank == 1) {
                while (true) pause();  // stopped, as it were: it never polls
            }
            self.wait("the other", [&] { return self.shared->arrivals[0].load() == 2; });
            char name[32];
            std::snprintf(name, sizeof name, "process %016" PRIx64, wire_address_of(self.shared->addresses[1]).process_id);
            const uint64_t start = now_ms();
            CHECK_FAILS(self.connect(1), Code::kTimeout, name);
            CHECK(now_ms() - start >= 350);
            CHECK(now_ms() - start < 3000);
            CHECK_FAILS(self.connect(1), Code::kTimeout, "within 400 ms");
            kill(self.shared->pids[1], SIGKILL);
        });
        CHECK_EQ(codes[0], 0);
    }
    unsetenv("NVSHMEM_EFA_TIMEOUT_MS");
}

TEST(nobody_at_a_tcp_address_is_a_timeout_that_says_so) {
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "300", 1);
    use_wire("tcp");
    run_good(1, [](Rank& self) {
        self.open();
        WireAddress there = wire_address_of(self.address);
        PeerAddress other = self.address;
        Fd reserved;  // bound, but it does not listen
        CHECK_OK(tcp_bind("127.0.0.1", &reserved, &there.tcp));
        there.process_id ^= 0x55;
        std::memcpy(other.extra, &there, sizeof there);
        other.gid = gid_of(there.process_id);
        CHECK_FAILS(self.connect(other), Code::kTimeout, "Connection refused; hint: the peer gave out a loopback");
    });
    unsetenv("NVSHMEM_EFA_TIMEOUT_MS");
}

TEST(settings_that_do_not_fit_are_a_mismatch) {
    run_good(2, [](Rank& self) {
        use_wire(self.rank == 0 ? "shm" : "tcp");
        self.open();
        self.barrier(0);
        CHECK_FAILS(self.connect(1 - self.rank), Code::kMismatch, "NVSHMEM_EFA_SOFT_WIRE");
        self.barrier(1);
    });
    use_wire("shm");
    run_good(1, [](Rank& self) {
        self.open();
        PeerAddress other = self.address;
        other.extra[16] ^= 1;
        CHECK_FAILS(self.connect(other), Code::kUnsupported, "on another host");
    });
    setenv("NVSHMEM_EFA_SOFT_WIRE", "auto", 1);
    setenv("NVSHMEM_EFA_SOFT_TCP_ADDR", "no-such-host.invalid", 1);
    run_good(1, [](Rank& self) {
        self.open();  // fine as long as all are on this host
        PeerAddress other = self.address;
        other.extra[16] ^= 1;
        CHECK_FAILS(self.connect(other), Code::kConfig, "no-such-host.invalid");
    });
    setenv("NVSHMEM_EFA_SOFT_WIRE", "tcp", 1);
    run_good(1, [](Rank& self) {
        CHECK_OK(load_knobs());
        ProcessWireOptions options;
        options.process_id = self.process_id;
        CHECK_FAILS(make_process_wire(options, &self.wire), Code::kConfig, "NVSHMEM_EFA_SOFT_TCP_ADDR");
    });
}

TEST(a_connect_before_the_job_is_joined_is_refused) {
    use_wire("shm");
    run_good(1, [](Rank& self) {
        CHECK_OK(load_knobs());
        ProcessWireOptions options;
        options.process_id = self.process_id;
        CHECK_OK(make_process_wire(options, &self.wire));
        PeerAddress other;
        self.wire->describe_self(&other);
        other.gid = gid_of(self.process_id ^ 0x5500);
        WireAddress inside = wire_address_of(other);
        inside.process_id = self.process_id ^ 0x5500;
        std::memcpy(other.extra, &inside, sizeof inside);
        CHECK_FAILS(self.connect(other), Code::kInvalidArgument, "join_job");
    });
}

TEST(too_few_descriptors_are_named) {
#if defined(__SANITIZE_ADDRESS__)
    SKIP("the undefined-behaviour sanitizer needs descriptors itself");
#endif
    LogFile log;
    use_wire("shm");
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "1500", 1);
    run_good(2, [](Rank& self) {
        self.open();
        if (self.rank == 0) {
            const rlimit limit{8, 8};
            CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
            while (dup(0) >= 0) {
            }
        }
        self.barrier(0);
        if (self.rank == 0) CHECK_FAILS(self.connect(1), Code::kResource, "ulimit -n");
        if (self.rank == 1) CHECK(!self.connect(0).ok());
        self.barrier(1);
    });
    unsetenv("NVSHMEM_EFA_TIMEOUT_MS");
    CHECK(log.has("ulimit -n"));
}

TEST_MAIN()
