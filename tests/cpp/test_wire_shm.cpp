// SPDX-License-Identifier: Apache-2.0
// The shared-memory ring by itself: order, wraps, pieces, refusals, and what a corrupt producer or consumer can do.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "check.h"
#include "soft_efa/wire_shm_ring.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::soft;

namespace {

constexpr size_t kRing = kShmRingBytesMin;

uint8_t pattern(uint64_t message, size_t i) { return static_cast<uint8_t>(message * 131 + i * 7 + (i >> 8)); }

std::vector<uint8_t> payload_of(uint64_t message, size_t bytes) {
    std::vector<uint8_t> payload(bytes);
    for (size_t i = 0; i < bytes; ++i) payload[i] = pattern(message, i);
    return payload;
}

PacketHeader header_of(uint64_t message, size_t bytes) {
    PacketHeader header;
    header.type = PacketType::kWrite;
    header.message = message;
    header.payload_bytes = static_cast<uint32_t>(bytes);
    return header;
}

// Both ends of one ring, and a third mapping with which a test plays the corrupt peer.
struct RingPair {
    ShmRing meddler;
    std::unique_ptr<ShmSender> sender;
    std::unique_ptr<ShmReceiver> receiver;
    uint64_t next = 0;  // message expected next
    size_t bytes = 0;

    explicit RingPair(size_t data_bytes = kRing) {
        ShmRing own, theirs;
        CHECK_OK(ShmRing::create(data_bytes, &own));
        CHECK_OK(ShmRing::attach(dup(own.fd()), &theirs));
        CHECK_OK(ShmRing::attach(dup(own.fd()), &meddler));
        receiver = std::make_unique<ShmReceiver>(std::move(own));
        sender = std::make_unique<ShmSender>(std::move(theirs));
    }
    bool push(uint64_t message, size_t size) {
        const std::vector<uint8_t> payload = payload_of(message, size);
        return sender->push(header_of(message, size), payload.data());
    }
    // Takes what is there; every packet must be the next one, byte for byte.
    Status poll(size_t packets_max = 1000) {
        size_t delivered = 0;
        return receiver->poll(
            [this](const PacketHeader& header, const void* payload) {
                CHECK_EQ(header.message, next);
                const auto* got = static_cast<const uint8_t*>(payload);
                for (size_t i = 0; i < header.payload_bytes; ++i) {
                    if (got[i] != pattern(next, i)) check::fail(__FILE__, __LINE__, "payload differs");
                }
                ++next;
                bytes += header.payload_bytes;
            },
            packets_max, &delivered);
    }
};

}  // namespace

TEST(packets_of_every_size_arrive_in_order_over_many_laps) {
    RingPair pair;
    uint64_t sent = 0;
    for (int round = 0; round < 40; ++round) {
        for (size_t size : {0, 1, 8, 15, 16, 17, 127, 4096, 4097, 16000}) {
            while (!pair.push(sent, size)) CHECK_OK(pair.poll(3));
            ++sent;
        }
    }
    while (pair.next < sent) CHECK_OK(pair.poll());
    CHECK_EQ(pair.next, sent);
}

TEST(a_full_ring_refuses_and_takes_again_after_a_poll) {
    RingPair pair;
    uint64_t sent = 0;
    while (pair.push(sent, 1000)) ++sent;
    CHECK_EQ(sent, 56u);  // of 16 + 128 + 1008 bytes, in 65536
    CHECK(!pair.push(sent, 1000));
    CHECK(pair.push(sent, 0));  // a small one still fits
    CHECK_OK(pair.poll());
    CHECK_EQ(pair.next, 57u);
    CHECK(pair.push(57, 1000));
    CHECK_OK(pair.poll());
    CHECK_EQ(pair.next, 58u);
}

TEST(a_packet_longer_than_the_ring_goes_in_pieces) {
    RingPair pair;  // 64 KiB; the longest packet has 1 MiB
    CHECK(pair.push(0, kPacketPayloadMax));
    CHECK(pair.sender->has_pending());
    CHECK(!pair.push(1, 8));  // nothing may overtake the rest of it
    while (pair.next < 1) {
        CHECK_OK(pair.poll());
        pair.sender->flush();
    }
    CHECK(!pair.sender->has_pending());
    CHECK(pair.push(1, 8));
    CHECK(pair.push(2, kRing / 4));  // just beyond one piece
    CHECK(pair.push(3, 8));
    while (pair.next < 4) CHECK_OK(pair.poll());
    CHECK_EQ(pair.bytes, kPacketPayloadMax + 8 + kRing / 4 + 8);
}

TEST(a_poll_delivers_no_more_than_it_was_asked_for) {
    RingPair pair;
    for (uint64_t i = 0; i < 10; ++i) CHECK(pair.push(i, 8));
    CHECK_OK(pair.poll(4));
    CHECK_EQ(pair.next, 4u);
    CHECK_OK(pair.poll(4));
    CHECK_EQ(pair.next, 8u);
    CHECK_OK(pair.poll(4));
    CHECK_EQ(pair.next, 10u);
}

TEST(the_ring_size_is_rounded_up_to_a_power_of_two) {
    ShmRing ring;
    CHECK_OK(ShmRing::create(100000, &ring));
    CHECK_EQ(ring.data_bytes(), 131072u);
    CHECK_OK(ShmRing::create(1, &ring));
    CHECK_EQ(ring.data_bytes(), kShmRingBytesMin);
}

TEST(a_corrupt_producer_is_named_and_nothing_is_delivered) {
    struct Corruption {
        const char* part;
        void (*apply)(ShmRing& ring);
    };
    // The first record lies at the start of the data: 16 bytes of record, then the packet's header.
    const Corruption corruptions[] = {
        {"index is out of range", [](ShmRing& ring) { ring.header().head.store(uint64_t{1} << 40); }},
        {"index is out of range", [](ShmRing& ring) { ring.header().head.store(kRing + 16); }},
        {"inside a record", [](ShmRing& ring) { ring.header().head.store(8); }},
        {"without its magic number", [](ShmRing& ring) { ring.data()[0] ^= 1; }},
        {"unexpected kind", [](ShmRing& ring) { ring.data()[4] = 77; }},
        {"unexpected kind", [](ShmRing& ring) { ring.data()[4] = static_cast<uint8_t>(ShmRecordKind::kMore); }},
        {"longer than what was written", [](ShmRing& ring) { ring.data()[11] = 0xff; }},
        {"longer than what was written", [](ShmRing& ring) { std::memset(ring.data() + 8, 0xff, 4); }},
        {"too short for a packet", [](ShmRing& ring) { ring.data()[8] = 4, ring.data()[9] = 0; }},
        {"corrupt packet: it has no magic", [](ShmRing& ring) { ring.data()[16] ^= 1; }},
        {"corrupt packet: its type", [](ShmRing& ring) { ring.data()[20] = 99; }},
        {"corrupt packet: its type", [](ShmRing& ring) { ring.data()[20] = 0; }},
        {"beyond the limit",
         [](ShmRing& ring) { std::memset(ring.data() + 16 + offsetof(PacketHeader, payload_bytes), 0xff, 4); }},
        {"not the record's", [](ShmRing& ring) { ring.data()[16 + offsetof(PacketHeader, payload_bytes)] ^= 1; }},
    };
    for (const Corruption& corruption : corruptions) {
        RingPair pair;
        CHECK(pair.push(0, 100));
        corruption.apply(pair.meddler);
        CHECK_FAILS(pair.poll(), Code::kProtocol, corruption.part);
        CHECK_EQ(pair.next, 0u);
    }
}

TEST(pieces_that_do_not_fit_their_packet_are_refused) {
    for (int wrong = 0; wrong < 3; ++wrong) {
        RingPair pair;
        CHECK(pair.push(0, kRing / 4 + 1000));  // two pieces
        uint8_t* first = pair.meddler.data();
        uint8_t* second = first + kRing / 4 + 16;
        const uint32_t kinds[] = {1, 2, 3};
        uint32_t total = kRing / 4 + 10;
        if (wrong == 0) std::memcpy(first + 16 + offsetof(PacketHeader, payload_bytes), &total, 4);  // second is too long
        if (wrong == 1) std::memcpy(second + 4, &kinds[0], 4);  // a packet inside a packet
        if (wrong == 2) std::memcpy(second + 4, &kinds[1], 4);  // another beginning inside a packet
        CHECK_FAILS(pair.poll(), Code::kProtocol, wrong == 0 ? "does not fit" : "inside another");
        CHECK_EQ(pair.next, 0u);
    }
}

TEST(random_bytes_in_a_ring_never_crash_the_consumer) {
    uint64_t state = 12345;
    const auto random = [&state] { return state = state * 6364136223846793005u + 1442695040888963407u, state >> 33; };
    int refused = 0;
    for (int round = 0; round < 3000; ++round) {
        RingPair pair;
        for (uint64_t i = 0; i < 5; ++i) CHECK(pair.push(i, 40));
        const int flips = 1 + static_cast<int>(random() % 3);
        for (int i = 0; i < flips; ++i) pair.meddler.data()[random() % 960] ^= static_cast<uint8_t>(1 + random() % 255);
        if (random() % 4 == 0) pair.meddler.header().head.store(random() % 2000);
        size_t delivered = 0;
        const Status status = pair.receiver->poll(
            [](const PacketHeader& header, const void* payload) {
                CHECK(header.payload_bytes <= kPacketPayloadMax);
                volatile uint8_t last = header.payload_bytes ? static_cast<const uint8_t*>(payload)[header.payload_bytes - 1] : 0;
                (void)last;
            },
            100, &delivered);
        if (status.ok()) continue;
        CHECK_EQ(status.code(), Code::kProtocol);
        ++refused;
    }
    CHECK(refused > 1000);
}

TEST(a_corrupt_consumer_breaks_the_sender_without_an_overwrite) {
    for (uint64_t nonsense : {uint64_t{1} << 50, uint64_t{kRing} * 3, ~uint64_t{0}}) {
        RingPair pair;
        uint64_t sent = 0;
        pair.meddler.header().tail.store(nonsense);
        while (pair.push(sent, 1000)) ++sent;
        CHECK(sent <= kRing / 1152);
        CHECK(pair.sender->is_broken());
        CHECK(!pair.push(sent, 1000));
    }
}

TEST(what_is_not_a_ring_is_not_attached) {
    ShmRing ring;
    const auto file_of = [](size_t bytes, int seals) {
        const int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        CHECK(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
        if (seals) CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
        return fd;
    };
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    CHECK_FAILS(ShmRing::attach(-1, &ring), Code::kProtocol, "not sealed");
    CHECK_FAILS(ShmRing::attach(open("/dev/null", O_RDWR), &ring), Code::kProtocol, "not sealed");
    CHECK_FAILS(ShmRing::attach(file_of(page + kRing, 0), &ring), Code::kProtocol, "not sealed");
    CHECK_FAILS(ShmRing::attach(file_of(page + kRing, F_SEAL_GROW), &ring), Code::kProtocol, "not sealed");
    for (size_t bytes : {size_t{0}, page, page + 4096, page + kRing + 1, page + kRing * 3, size_t{1} << 40}) {
        CHECK_FAILS(ShmRing::attach(file_of(bytes, seals), &ring), Code::kProtocol, "wrong size");
    }
    CHECK_FAILS(ShmRing::attach(file_of(page + kRing, seals), &ring), Code::kProtocol, "not that of a ring");
    CHECK(!ring.is_mapped());
}

TEST(a_peer_cannot_shrink_or_grow_a_ring) {
    ShmRing ring;
    CHECK_OK(ShmRing::create(kRing, &ring));
    CHECK(ftruncate(ring.fd(), 4096) != 0);
    CHECK(ftruncate(ring.fd(), 1 << 24) != 0);
}

namespace {

// Runs `body` in a child with a limit; its exit code.
template <class Body>
int in_child(Body body) {
    const pid_t child = fork();
    if (child == 0) {
        int code = 1;
        try {
            code = body();
        } catch (const check::Failed&) {
        }
        _exit(code);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

TEST(a_memory_shortage_is_an_error_that_names_the_setting) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    SKIP("sanitizers need the address space themselves");
#endif
    CHECK_EQ(in_child([] {
                 const rlimit limit{256u << 20, 256u << 20};
                 setrlimit(RLIMIT_AS, &limit);
                 ShmRing ring;
                 CHECK_FAILS(ShmRing::create(512u << 20, &ring), Code::kResource, "NVSHMEM_EFA_SOFT_RING_BYTES");
                 CHECK_OK(ShmRing::create(kRing, &ring));
                 return 0;
             }),
             0);
}

TEST(a_file_size_limit_is_an_error_and_not_a_signal) {
    CHECK_EQ(in_child([] {
                 const rlimit limit{100000, 100000};
                 setrlimit(RLIMIT_FSIZE, &limit);
                 ShmRing ring;
                 CHECK_FAILS(ShmRing::create(1u << 20, &ring), Code::kResource, "ulimit -f");
                 return 0;
             }),
             0);
}

TEST_MAIN()
