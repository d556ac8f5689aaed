// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/guest_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <utility>

#include "soft_efa/control_socket.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint64_t kPage = 4096;  // what vfio-user maps in
constexpr uint32_t kPageShiftMin = 12, kPageShiftMax = 30;

// What guests have of the process's mappings and addresses. The limits are the process's, so the counts are too.
struct InUse {
    std::atomic<size_t> pieces{0}, bytes{0};
};

InUse& in_use() {
    static InUse counts;
    return counts;
}

bool take(std::atomic<size_t>* count, size_t more, size_t limit) {
    if (more <= limit && count->fetch_add(more, std::memory_order_relaxed) <= limit - more) return true;
    if (more <= limit) count->fetch_sub(more, std::memory_order_relaxed);
    return false;
}

bool is_page_aligned(uint64_t value) { return value % kPage == 0; }
bool wraps(uint64_t start, uint64_t bytes) { return bytes > UINT64_MAX - start; }

// A file that stays as long as it is: whoever has it may not take pages away while we read them.
Status check_file(int fd, uint64_t offset, uint64_t bytes) {
    struct stat file {};
    struct statfs system {};
    if (fstat(fd, &file) != 0 || fstatfs(fd, &system) != 0) {
        return Status::error(Code::kInvalidArgument, nullptr, "the memory's descriptor cannot be asked what it is: %s",
                             std::strerror(errno));
    }
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return Status::error(Code::kInvalidArgument,
                             "give QEMU its memory as -object memory-backend-memfd,share=on (seal=on is its default)",
                             "the memory's file could be shrunk while it is used (%s)",
                             seals < 0 ? "it knows no seals" : "no F_SEAL_SHRINK");
    }
    if (system.f_type != TMPFS_MAGIC) {
        return Status::error(Code::kInvalidArgument, "give QEMU memory-backend-memfd with hugetlb=off",
                             "the memory's file has pages that cannot be mapped one by one (file system %lx)",
                             static_cast<unsigned long>(system.f_type));
    }
    const uint64_t file_bytes = static_cast<uint64_t>(file.st_size);
    if (offset > file_bytes || bytes > file_bytes - offset) {
        return Status::error(Code::kInvalidArgument, nullptr,
                             "a range of 0x%" PRIx64 " bytes at 0x%" PRIx64 " does not fit its file of 0x%" PRIx64 " bytes", bytes, offset,
                             file_bytes);
    }
    return Status();
}

}  // namespace

MappedPages::MappedPages(MappedPages&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)), pieces_(std::exchange(other.pieces_, 0)) {}

MappedPages& MappedPages::operator=(MappedPages&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    std::swap(pieces_, other.pieces_);
    return *this;
}

MappedPages::~MappedPages() {
    if (base_) munmap(base_, bytes_);
    in_use().pieces.fetch_sub(pieces_, std::memory_order_relaxed);
    in_use().bytes.fetch_sub(bytes_, std::memory_order_relaxed);
}

struct GuestMemory::Range {
    uint64_t guest_addr = 0, bytes = 0, file_offset = 0;
    bool is_writable = false;
    Fd fd;
    uint8_t* host = nullptr;  // all of it; null without a descriptor

    ~Range() {
        if (host) munmap(host, bytes);
    }
    uint64_t last() const { return guest_addr + (bytes - 1); }
};

GuestMemory::GuestMemory() = default;
GuestMemory::~GuestMemory() = default;

Status GuestMemory::add_range(uint64_t guest_addr, uint64_t bytes, int fd, uint64_t file_offset, bool is_writable) {
    auto range = std::make_unique<Range>();
    range->fd = Fd(fd);  // also closed when the range is refused
    range->guest_addr = guest_addr;
    range->bytes = bytes;
    range->file_offset = file_offset;
    range->is_writable = is_writable;
    if (bytes == 0 || !is_page_aligned(guest_addr) || !is_page_aligned(bytes) || !is_page_aligned(file_offset)) {
        return Status::error(Code::kInvalidArgument, "addresses, sizes and offsets are multiples of 4096",
                             "guest memory at 0x%" PRIx64 ", 0x%" PRIx64 " bytes, file offset 0x%" PRIx64, guest_addr, bytes, file_offset);
    }
    if (wraps(guest_addr, bytes) || wraps(file_offset, bytes)) {
        return Status::error(Code::kInvalidArgument, nullptr, "guest memory at 0x%" PRIx64 " with 0x%" PRIx64 " bytes wraps",
                             guest_addr, bytes);
    }
    if (overlaps(guest_addr, bytes)) {
        return Status::error(Code::kInvalidArgument, "unmap the old range first",
                             "guest memory at 0x%" PRIx64 " with 0x%" PRIx64 " bytes overlaps a known range", guest_addr, bytes);
    }
    if (ranges_.size() >= kRangesMax) {
        return Status::error(Code::kResource, nullptr, "the guest has more than %zu memory ranges", kRangesMax);
    }
    uint64_t mapped_bytes = 0;
    for (const auto& other : ranges_) mapped_bytes += other->host ? other->bytes : 0;
    if (range->fd.is_open() && (bytes > kAddressesMax || mapped_bytes > kAddressesMax - bytes)) {
        return Status::error(Code::kResource, nullptr,
                             "with 0x%" PRIx64 " bytes more the guest has over 0x%" PRIx64 " bytes of memory", bytes,
                             kAddressesMax);
    }
    if (range->fd.is_open()) {
        EFA_TRY(check_file(fd, file_offset, bytes));
        const int protection = is_writable ? PROT_READ | PROT_WRITE : PROT_READ;
        void* mapped = mmap(nullptr, bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, static_cast<off_t>(file_offset));
        if (mapped == MAP_FAILED) {
            return Status::error(errno == ENOMEM ? Code::kResource : Code::kInvalidArgument, nullptr,
                                 "cannot map 0x%" PRIx64 " bytes of guest memory at 0x%" PRIx64 ": %s", bytes, guest_addr,
                                 std::strerror(errno));
        }
        range->host = static_cast<uint8_t*>(mapped);
    }
    const auto after = std::find_if(ranges_.begin(), ranges_.end(), [&](const auto& other) { return other->guest_addr > guest_addr; });
    ranges_.insert(after, std::move(range));
    return Status();
}

Status GuestMemory::remove_range(uint64_t guest_addr, uint64_t bytes) {
    const size_t at = position_of(guest_addr);
    if (at == ranges_.size() || ranges_[at]->guest_addr != guest_addr || ranges_[at]->bytes != bytes) {
        return Status::error(Code::kInvalidArgument, "a range is unmapped as it was mapped",
                             "no range of guest memory begins at 0x%" PRIx64 " and has 0x%" PRIx64 " bytes", guest_addr, bytes);
    }
    ranges_.erase(ranges_.begin() + static_cast<ptrdiff_t>(at));
    return Status();
}

void GuestMemory::remove_all() { ranges_.clear(); }

bool GuestMemory::overlaps(uint64_t guest_addr, uint64_t bytes) const {
    if (bytes == 0 || wraps(guest_addr, bytes)) return false;
    const uint64_t last = guest_addr + (bytes - 1);
    return std::any_of(ranges_.begin(), ranges_.end(),
                       [&](const auto& range) { return range->guest_addr <= last && guest_addr <= range->last(); });
}

size_t GuestMemory::position_of(uint64_t guest_addr) const {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), guest_addr,
                                        [](uint64_t addr, const auto& range) { return addr < range->guest_addr; });
    if (after == ranges_.begin()) return ranges_.size();
    const auto found = std::prev(after);
    return guest_addr <= (*found)->last() ? static_cast<size_t>(found - ranges_.begin()) : ranges_.size();
}

const GuestMemory::Range* GuestMemory::find(uint64_t guest_addr, uint64_t bytes) const {
    const size_t at = position_of(guest_addr);
    if (at == ranges_.size() || !ranges_[at]->host) return nullptr;
    const Range* range = ranges_[at].get();
    return bytes <= range->bytes - (guest_addr - range->guest_addr) ? range : nullptr;
}

bool GuestMemory::read(uint64_t guest_addr, void* to, size_t bytes) const {
    const Range* range = find(guest_addr, bytes);
    if (!range) return false;
    const uint8_t* from = range->host + (guest_addr - range->guest_addr);
    size_t done = 0;
    if (bytes >= sizeof(uint32_t) && guest_addr % sizeof(uint32_t) == 0) {
        // pairs with the guest driver's write barrier before it sets the phase bit of a command
        const uint32_t first = __atomic_load_n(reinterpret_cast<const uint32_t*>(from), __ATOMIC_ACQUIRE);
        std::memcpy(to, &first, sizeof first);
        done = sizeof first;
    }
    if (bytes > done) std::memcpy(static_cast<uint8_t*>(to) + done, from + done, bytes - done);
    return true;
}

bool GuestMemory::write(uint64_t guest_addr, const void* from, size_t bytes) const {
    const Range* range = find(guest_addr, bytes);
    if (!range || !range->is_writable) return false;
    uint8_t* to = range->host + (guest_addr - range->guest_addr);
    if (bytes < sizeof(uint32_t) || guest_addr % sizeof(uint32_t) != 0) {
        if (bytes) std::memcpy(to, from, bytes);
        return true;
    }
    uint32_t first;
    std::memcpy(&first, from, sizeof first);
    std::memcpy(to + sizeof first, static_cast<const uint8_t*>(from) + sizeof first, bytes - sizeof first);
    // pairs with the guest driver's read barrier after it saw the phase bit of an entry
    __atomic_store_n(reinterpret_cast<uint32_t*>(to), first, __ATOMIC_RELEASE);
    return true;
}

Status GuestMemory::check_run(Run run) const {
    while (run.bytes > 0) {
        const size_t at = position_of(run.guest_addr);
        if (at == ranges_.size() || !ranges_[at]->host || !ranges_[at]->is_writable) {
            return Status::error(Code::kInvalidArgument, nullptr,
                                 "guest address 0x%" PRIx64 " is not RAM that may be written", run.guest_addr);
        }
        const uint64_t part = std::min(run.bytes, ranges_[at]->last() - run.guest_addr + 1);
        run.guest_addr += part;
        run.bytes -= part;
    }
    return Status();
}

// A checked run, over addresses that are reserved at `to`.
Status GuestMemory::map_run(Run run, uint8_t* to, size_t* pieces) const {
    while (run.bytes > 0) {
        const Range& range = *ranges_[position_of(run.guest_addr)];
        const uint64_t in_range = run.guest_addr - range.guest_addr;
        const uint64_t part = std::min(run.bytes, range.bytes - in_range);
        if (!take(&in_use().pieces, 1, kPiecesMax)) {
            return Status::error(Code::kResource, "register fewer or less scattered pages",
                                 "the guest has more than %zu pieces of memory mapped", kPiecesMax);
        }
        ++*pieces;
        const off_t offset = static_cast<off_t>(range.file_offset + in_range);
        if (mmap(to, part, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, range.fd.get(), offset) == MAP_FAILED) {
            return Status::error(Code::kResource, "register less memory, or raise vm.max_map_count",
                                 "cannot map guest memory at 0x%" PRIx64 ": %s", run.guest_addr, std::strerror(errno));
        }
        run.guest_addr += part;
        run.bytes -= part;
        to += part;
    }
    return Status();
}

// Nothing is reserved before all is known to be RAM: a length out of a descriptor may be any number.
Status GuestMemory::map_runs(const std::vector<Run>& runs, uint64_t bytes, MappedPages* mapped) const {
    for (const Run& run : runs) EFA_TRY(check_run(run));
    if (!take(&in_use().bytes, bytes, kAddressesMax)) {
        return Status::error(Code::kResource, "register less memory",
                             "with 0x%" PRIx64 " bytes more the guest has over 0x%" PRIx64 " mapped", bytes, kAddressesMax);
    }
    void* reserved = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
        in_use().bytes.fetch_sub(bytes, std::memory_order_relaxed);
        return Status::error(Code::kResource, "register less memory",
                             "cannot reserve 0x%" PRIx64 " bytes of addresses for guest memory: %s", bytes,
                             std::strerror(errno));
    }
    uint8_t* const base = static_cast<uint8_t*>(reserved);
    uint8_t* to = base;
    size_t pieces = 0;
    Status status;
    for (const Run& run : runs) {
        status = map_run(run, to, &pieces);
        if (!status.ok()) break;
        to += run.bytes;
    }
    MappedPages made(base, bytes, pieces);  // unmaps what was reached if it did not reach the end
    if (status.ok()) *mapped = std::move(made);
    return status;
}

Status GuestMemory::map_pages(const std::vector<uint64_t>& pages, uint32_t page_shift, MappedPages* mapped) const {
    if (pages.empty() || page_shift < kPageShiftMin || page_shift > kPageShiftMax || pages.size() > (kAddressesMax >> page_shift)) {
        return Status::error(Code::kInvalidArgument, nullptr, "cannot map %zu pages of 2^%u bytes", pages.size(), page_shift);
    }
    const uint64_t page_bytes = uint64_t{1} << page_shift;
    std::vector<Run> runs;
    for (const uint64_t page : pages) {
        if (page % page_bytes != 0 || wraps(page, page_bytes)) {
            return Status::error(Code::kInvalidArgument, nullptr,
                                 "guest page 0x%" PRIx64 " is not aligned to 2^%u bytes, or wraps", page, page_shift);
        }
        if (!runs.empty() && page == runs.back().guest_addr + runs.back().bytes) {
            runs.back().bytes += page_bytes;
        } else {
            runs.push_back({page, page_bytes});
        }
    }
    return map_runs(runs, pages.size() << page_shift, mapped);
}

Status GuestMemory::map_contiguous(uint64_t guest_addr, size_t bytes, MappedPages* mapped, uint8_t** data) const {
    const uint64_t start = guest_addr - guest_addr % kPage;
    if (bytes == 0 || bytes > kAddressesMax || wraps(guest_addr, bytes + kPage)) {
        return Status::error(Code::kInvalidArgument, nullptr, "cannot map 0x%zx bytes of guest memory at 0x%" PRIx64, bytes, guest_addr);
    }
    const uint64_t mapped_bytes = (guest_addr - start + bytes + kPage - 1) / kPage * kPage;
    EFA_TRY(map_runs({{start, mapped_bytes}}, mapped_bytes, mapped));
    *data = mapped->data() + (guest_addr - start);
    return Status();
}

}  // namespace nvshmem_efa::soft::pci
