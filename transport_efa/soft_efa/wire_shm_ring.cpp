// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/wire_shm_ring.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace nvshmem_efa::soft {
namespace {

constexpr uint32_t kRingMagic = 0x52414645;    // "EFAR"
constexpr uint32_t kRecordMagic = 0x44414645;  // "EFAD"
constexpr uint32_t kRingVersion = 1;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
constexpr const char* kPeerHint = "the peer's memory is corrupt or it runs another version; it is cut off, others live on";

uint64_t padded(uint64_t bytes) { return (bytes + 15) & ~uint64_t{15}; }

size_t page_bytes() {
    static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

unsigned long long limit_of(__rlimit_resource resource) {
    rlimit limit{};
    getrlimit(resource, &limit);
    return limit.rlim_cur;
}

Status shortage(const char* what, size_t bytes, int error) {
    char address_space[32] = "unlimited";
    if (limit_of(RLIMIT_AS) != RLIM_INFINITY) std::snprintf(address_space, sizeof address_space, "%llu", limit_of(RLIMIT_AS));
    return Status::error(Code::kResource,
                         "lower NVSHMEM_EFA_SOFT_RING_BYTES (each peer costs one such ring here), or raise the limit: "
                         "ulimit -v and -f, the container's memory",
                         "no shared memory for a ring of %zu bytes: %s: %s (address space limit: %s bytes)", bytes, what,
                         std::strerror(error), address_space);
}

Status corrupt(const char* what, unsigned long long value) {
    return Status::error(Code::kProtocol, kPeerHint, "corrupt shared-memory ring: %s (%llu)", what, value);
}

}  // namespace

Status check_packet_header(const PacketHeader& header) {
    const char* what = nullptr;
    const auto type = static_cast<uint8_t>(header.type);
    if (header.payload_bytes > kPacketPayloadMax) what = "its payload is beyond the limit";
    if (type < 1 || type > static_cast<uint8_t>(PacketType::kNeedPayload)) what = "its type is unknown";
    if (header.magic != kPacketMagic) what = "it has no magic number";
    if (!what) return Status();
    return Status::error(Code::kProtocol, kPeerHint, "corrupt packet: %s (magic %08x, type %u, payload of %u bytes)", what,
                         header.magic, type, header.payload_bytes);
}

ShmRing& ShmRing::operator=(ShmRing&& other) noexcept {
    if (this == &other) return *this;
    reset();
    fd_ = std::exchange(other.fd_, -1);
    header_ = std::exchange(other.header_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    data_bytes_ = std::exchange(other.data_bytes_, 0);
    return *this;
}

void ShmRing::close_fd() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
}

void ShmRing::reset() {
    if (header_) munmap(static_cast<void*>(header_), page_bytes() + 2 * data_bytes_);
    header_ = nullptr;
    data_ = nullptr;
    close_fd();
}

Status ShmRing::map(size_t data_bytes) {
    const size_t page = page_bytes();
    void* base = mmap(nullptr, page + 2 * data_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return shortage("mmap", data_bytes, errno);
    auto* bytes = static_cast<uint8_t*>(base);
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_SHARED | MAP_FIXED;
    const off_t data_offset = static_cast<off_t>(page);
    if (mmap(bytes, page + data_bytes, protection, flags, fd_, 0) == MAP_FAILED ||
        mmap(bytes + page + data_bytes, data_bytes, protection, flags, fd_, data_offset) == MAP_FAILED) {
        const int error = errno;
        munmap(base, page + 2 * data_bytes);
        return shortage("mmap", data_bytes, error);
    }
    header_ = static_cast<ShmRingHeader*>(base);
    data_ = bytes + page;
    data_bytes_ = data_bytes;
    return Status();
}

Status ShmRing::create(size_t data_bytes, ShmRing* ring) {
    data_bytes = std::bit_ceil(std::max(data_bytes, kShmRingBytesMin));
    const size_t total = page_bytes() + data_bytes;
    ShmRing made;
    made.fd_ = memfd_create("nvshmem-efa-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (made.fd_ < 0) return shortage("memfd_create", data_bytes, errno);
    // Beyond the file-size limit ftruncate() would raise SIGXFSZ in somebody else's program.
    if (total > limit_of(RLIMIT_FSIZE)) return shortage("file size limit (ulimit -f)", data_bytes, EFBIG);
    if (ftruncate(made.fd_, static_cast<off_t>(total)) != 0) return shortage("ftruncate", data_bytes, errno);
    int error;
    do {
        error = fallocate(made.fd_, 0, 0, static_cast<off_t>(total)) == 0 ? 0 : errno;
    } while (error == EINTR);
    if (error != 0) return shortage("fallocate", data_bytes, error);
    if (fcntl(made.fd_, F_ADD_SEALS, kSeals) != 0) return shortage("sealing", data_bytes, errno);
    EFA_TRY(made.map(data_bytes));
    made.header_->magic = kRingMagic;
    made.header_->version = kRingVersion;
    made.header_->data_bytes = data_bytes;
    *ring = std::move(made);
    return Status();
}

Status ShmRing::attach(int fd, ShmRing* ring) {
    ShmRing made;
    made.fd_ = fd;
    struct stat file {};
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & kSeals) != kSeals) return corrupt("the file is not sealed", static_cast<unsigned>(seals));
    if (fstat(fd, &file) != 0 || file.st_size < 0) return corrupt("the file has no size", 0);
    const auto total = static_cast<uint64_t>(file.st_size);
    const uint64_t data_bytes = total - page_bytes();
    if (total < page_bytes() || data_bytes < kShmRingBytesMin || data_bytes > kShmRingBytesMax ||
        !std::has_single_bit(data_bytes)) {
        return corrupt("the file has a wrong size", total);
    }
    EFA_TRY(made.map(data_bytes));
    const ShmRingHeader& header = made.header();
    if (header.magic != kRingMagic || header.version != kRingVersion || header.data_bytes != data_bytes) {
        return corrupt("the header is not that of a ring", header.magic);
    }
    *ring = std::move(made);
    return Status();
}

ShmSender::ShmSender(ShmRing ring) : ring_(std::move(ring)), piece_bytes_max_(ring_.data_bytes() / 4) {
    ring_.close_fd();
}

uint64_t ShmSender::room() {
    const uint64_t room_seen = ring_.data_bytes() - (head_ - seen_tail_);
    if (room_seen >= piece_bytes_max_ + sizeof(ShmRecord)) return room_seen;
    // Acquire pairs with ShmReceiver::publish_tail(): the consumer is done with the bytes before it frees them.
    const uint64_t tail = ring_.header().tail.load(std::memory_order_acquire);
    if (head_ - tail > ring_.data_bytes() || tail - seen_tail_ > head_ - seen_tail_) {
        broken_ = true;
        return 0;
    }
    seen_tail_ = tail;
    return ring_.data_bytes() - (head_ - seen_tail_);
}

bool ShmSender::write_record(ShmRecordKind kind, const void* first, size_t first_bytes, const void* second,
                             size_t second_bytes) {
    const uint64_t needed = padded(sizeof(ShmRecord) + first_bytes + second_bytes);
    if (room() < needed) return false;
    uint8_t* at = ring_.data() + (head_ & (ring_.data_bytes() - 1));
    const ShmRecord record{kRecordMagic, kind, static_cast<uint32_t>(first_bytes + second_bytes), 0};
    std::memcpy(at, &record, sizeof record);
    std::memcpy(at + sizeof record, first, first_bytes);
    if (second_bytes > 0) std::memcpy(at + sizeof record + first_bytes, second, second_bytes);
    head_ += needed;
    // Release pairs with the acquire of head in ShmReceiver::poll(): the record is whole before it is seen.
    ring_.header().head.store(head_, std::memory_order_release);
    return true;
}

bool ShmSender::push(const PacketHeader& header, const void* payload) {
    if (has_pending()) flush();
    if (has_pending() || broken_) return false;
    const size_t bytes = header.payload_bytes;
    if (sizeof header + bytes <= piece_bytes_max_) {
        return write_record(ShmRecordKind::kPacket, &header, sizeof header, payload, bytes);
    }
    const size_t first_bytes = piece_bytes_max_ - sizeof header;
    if (!write_record(ShmRecordKind::kFirst, &header, sizeof header, payload, first_bytes)) return false;
    const auto* from = static_cast<const uint8_t*>(payload);
    size_t sent = first_bytes;
    while (sent < bytes) {
        const size_t piece = std::min(piece_bytes_max_, bytes - sent);
        if (!write_record(ShmRecordKind::kMore, from + sent, piece, nullptr, 0)) break;
        sent += piece;
    }
    pending_.assign(from + sent, from + bytes);
    pending_begin_ = 0;
    return true;
}

void ShmSender::flush() {
    while (has_pending()) {
        const size_t piece = std::min(piece_bytes_max_, pending_.size() - pending_begin_);
        if (!write_record(ShmRecordKind::kMore, pending_.data() + pending_begin_, piece, nullptr, 0)) return;
        pending_begin_ += piece;
    }
}

ShmReceiver::ShmReceiver(ShmRing ring) : ring_(std::move(ring)) { ring_.close_fd(); }

void ShmReceiver::publish_tail() {
    // Release pairs with the acquire of tail in ShmSender::room().
    if (tail_ != published_tail_) ring_.header().tail.store(tail_, std::memory_order_release);
    published_tail_ = tail_;
}

Status ShmReceiver::poll(const Wire::Deliver& deliver, size_t packets_max, size_t* delivered) {
    // Acquire pairs with the release of head in ShmSender::write_record().
    const uint64_t head = ring_.header().head.load(std::memory_order_acquire);
    if (head - tail_ > ring_.data_bytes()) return corrupt("the producer's index is out of range", head);
    Status status;
    while (status.ok() && *delivered < packets_max && tail_ != head) {
        uint64_t taken = 0;
        status = take_record(head - tail_, deliver, &taken, delivered);
        tail_ += taken;
        if (tail_ - published_tail_ >= ring_.data_bytes() / 8) publish_tail();
    }
    publish_tail();
    return status;
}

Status ShmReceiver::take_record(uint64_t available, const Wire::Deliver& deliver, uint64_t* taken, size_t* delivered) {
    const uint8_t* at = ring_.data() + (tail_ & (ring_.data_bytes() - 1));
    if (available < sizeof(ShmRecord)) return corrupt("the producer's index is inside a record", available);
    ShmRecord record;  // copied first: the producer could change what was checked
    std::memcpy(&record, at, sizeof record);
    if (record.magic != kRecordMagic) return corrupt("a record without its magic number", record.magic);
    const uint64_t bytes = padded(sizeof record + uint64_t{record.body_bytes});
    if (bytes > available) return corrupt("a record longer than what was written", record.body_bytes);
    const uint8_t* body = at + sizeof record;
    if (record.kind == ShmRecordKind::kPacket) {
        if (in_pieces_) return corrupt("a packet inside another one", record.body_bytes);
        if (record.body_bytes < sizeof(PacketHeader)) return corrupt("a record too short for a packet", record.body_bytes);
        PacketHeader header;
        std::memcpy(static_cast<void*>(&header), body, sizeof header);
        EFA_TRY(check_packet_header(header));
        if (record.body_bytes != sizeof header + header.payload_bytes) {
            return corrupt("a payload size that is not the record's", header.payload_bytes);
        }
        payload_bytes_ += header.payload_bytes;
        deliver(header, body + sizeof header);
        ++*delivered;
    } else {
        EFA_TRY(take_piece(record, body, deliver, delivered));
    }
    *taken = bytes;
    return Status();
}

Status ShmReceiver::take_piece(const ShmRecord& record, const uint8_t* body, const Wire::Deliver& deliver,
                               size_t* delivered) {
    size_t bytes = record.body_bytes;
    if (record.kind == ShmRecordKind::kFirst) {
        if (in_pieces_) return corrupt("a packet inside another one", bytes);
        if (bytes < sizeof(PacketHeader)) return corrupt("a record too short for a packet", bytes);
        std::memcpy(static_cast<void*>(&piece_header_), body, sizeof piece_header_);
        EFA_TRY(check_packet_header(piece_header_));
        body += sizeof piece_header_;
        bytes -= sizeof piece_header_;
        if (pieces_.size() < piece_header_.payload_bytes) pieces_.resize(piece_header_.payload_bytes);
        pieces_bytes_ = 0;
        in_pieces_ = true;
    } else if (record.kind != ShmRecordKind::kMore || !in_pieces_) {
        return corrupt("a record of an unexpected kind", static_cast<uint32_t>(record.kind));
    }
    if (bytes == 0 || bytes > piece_header_.payload_bytes - pieces_bytes_) {
        return corrupt("a piece that does not fit its packet", bytes);
    }
    std::memcpy(pieces_.data() + pieces_bytes_, body, bytes);
    pieces_bytes_ += bytes;
    if (pieces_bytes_ == piece_header_.payload_bytes) {
        in_pieces_ = false;
        payload_bytes_ += piece_header_.payload_bytes;
        deliver(piece_header_, pieces_.data());
        ++*delivered;
    }
    return Status();
}

}  // namespace nvshmem_efa::soft
