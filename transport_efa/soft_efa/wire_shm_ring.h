// SPDX-License-Identifier: Apache-2.0
// One direction of a shared-memory wire: a single-producer, single-consumer ring of packets in an anonymous, sealed
// memory file. The consumer's process makes it and hands the descriptor to the producer. The data area is mapped twice
// in a row, so a record never wraps. The consumer trusts nothing that it reads there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "soft_efa/wire.h"
#include "status.h"

namespace nvshmem_efa::soft {

inline constexpr size_t kShmRingBytesMin = size_t{1} << 16;
inline constexpr size_t kShmRingBytesMax = size_t{1} << 30;

// First page of the file. Indices are free-running byte counts, each in its own cache line (two lines apart, because
// CPUs prefetch lines in pairs).
struct ShmRingHeader {
    uint32_t magic;
    uint32_t version;
    uint64_t data_bytes;
    alignas(128) std::atomic<uint64_t> head;  // written by the producer
    alignas(128) std::atomic<uint64_t> tail;  // written by the consumer
};
static_assert(sizeof(ShmRingHeader) == 384 && std::atomic<uint64_t>::is_always_lock_free);

enum class ShmRecordKind : uint32_t { kPacket = 1, kFirst = 2, kMore = 3 };

// Before every record; a record is padded to 16 bytes.
struct ShmRecord {
    uint32_t magic;
    ShmRecordKind kind;
    uint32_t body_bytes;  // kPacket, kFirst: a PacketHeader and payload; kMore: payload only
    uint32_t reserved;
};
static_assert(sizeof(ShmRecord) == 16);

// Owns the mapping and the descriptor.
class ShmRing {
   public:
    ShmRing() = default;
    ~ShmRing() { reset(); }
    ShmRing(ShmRing&& other) noexcept { *this = std::move(other); }
    ShmRing& operator=(ShmRing&& other) noexcept;

    // `data_bytes` is rounded up to a power of two. All pages are taken at once, so that a shortage is an error here
    // (kResource) and not a SIGBUS later.
    static Status create(size_t data_bytes, ShmRing* ring);
    // Maps a peer's ring; takes `fd` in any case. kProtocol when size, seals or header are not those of a ring.
    static Status attach(int fd, ShmRing* ring);
    void reset();
    void close_fd();  // the mapping stays

    int fd() const { return fd_; }
    bool is_mapped() const { return header_ != nullptr; }
    ShmRingHeader& header() const { return *header_; }
    uint8_t* data() const { return data_; }
    uint64_t data_bytes() const { return data_bytes_; }

   private:
    Status map(size_t data_bytes);

    int fd_ = -1;
    ShmRingHeader* header_ = nullptr;
    uint8_t* data_ = nullptr;
    uint64_t data_bytes_ = 0;
};

class ShmSender {
   public:
    explicit ShmSender(ShmRing ring);
    // False when there is no room now. A packet longer than a quarter of the ring goes in pieces; what does not fit at
    // once is kept here and leaves with flush().
    bool push(const PacketHeader& header, const void* payload);
    void flush();
    bool has_pending() const { return pending_begin_ < pending_.size(); }
    bool is_broken() const { return broken_; }  // the consumer's index is nonsense

   private:
    uint64_t room();
    bool write_record(ShmRecordKind kind, const void* first, size_t first_bytes, const void* second, size_t second_bytes);

    ShmRing ring_;
    uint64_t head_ = 0;
    uint64_t seen_tail_ = 0;
    size_t piece_bytes_max_;
    std::vector<uint8_t> pending_;  // payload of a packet in pieces that found no room yet
    size_t pending_begin_ = 0;
    bool broken_ = false;
};

class ShmReceiver {
   public:
    explicit ShmReceiver(ShmRing ring);
    // kProtocol, once: the bytes in the ring are not valid; nothing of the bad record was delivered.
    Status poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered);
    uint64_t payload_bytes() const { return payload_bytes_; }  // delivered so far

   private:
    Status take_record(uint64_t available, const Wire::Deliver& deliver, uint64_t* taken, size_t* delivered);
    Status take_piece(const ShmRecord& record, const uint8_t* body, const Wire::Deliver& deliver, size_t* delivered);
    void publish_tail();

    ShmRing ring_;
    uint64_t tail_ = 0;
    uint64_t published_tail_ = 0;
    uint64_t payload_bytes_ = 0;
    PacketHeader piece_header_;  // of the packet being put together
    std::vector<uint8_t> pieces_;
    size_t pieces_bytes_ = 0;
    bool in_pieces_ = false;
};

// Checks what every wire checks of a packet's header before it is used.
Status check_packet_header(const PacketHeader& header);

}  // namespace nvshmem_efa::soft
