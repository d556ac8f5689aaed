// SPDX-License-Identifier: Apache-2.0
// The guest's RAM, as QEMU shares it with this process (vfio-user DMA_MAP: a file, an offset, a guest address).
// The only way from a guest address to a pointer: whatever a hostile guest writes into a descriptor, what is reached
// through this class is the guest's own RAM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "status.h"

namespace nvshmem_efa::soft::pci {

// Guest pages side by side in our address space. The mapping stays good when QEMU takes the range away (it is then
// memory that nobody looks at), so a pointer into it never dangles while this object lives.
class MappedPages {
   public:
    MappedPages() = default;
    MappedPages(uint8_t* base, size_t bytes, size_t pieces) : base_(base), bytes_(bytes), pieces_(pieces) {}
    MappedPages(MappedPages&& other) noexcept;
    MappedPages& operator=(MappedPages&& other) noexcept;
    ~MappedPages();  // unmaps
    uint8_t* data() const { return base_; }
    size_t bytes() const { return bytes_; }

   private:
    uint8_t* base_ = nullptr;
    size_t bytes_ = 0;
    size_t pieces_ = 0;  // mappings it may take, of all that this process gives to guests
};

class GuestMemory {
   public:
    GuestMemory();
    ~GuestMemory();

    // Takes the descriptor. Refuses: overlap with a known range, sizes that do not fit the file or wrap, addresses that
    // are not page-aligned, more than kRangesMax ranges, a file that could be shrunk under us (no F_SEAL_SHRINK:
    // SIGBUS). QEMU's memory-backend-memfd seals its file by default. fd == -1 (BIOS, ROMs, BARs of devices): the range
    // is known, and every access to it fails.
    Status add_range(uint64_t guest_addr, uint64_t bytes, int fd, uint64_t file_offset, bool is_writable);
    bool overlaps(uint64_t guest_addr, uint64_t bytes) const;
    // Exactly one known range.
    Status remove_range(uint64_t guest_addr, uint64_t bytes);
    void remove_all();

    // Small accesses within one range: admin queues, page lists. False when any byte lies outside, or a write meets a
    // read-only range. Of an address that is a multiple of 4 the first four bytes are read first (acquire) and written
    // last (release): they hold the phase bits of all queues, which the guest's driver reads and writes the same way.
    bool read(uint64_t guest_addr, void* to, size_t bytes) const;
    bool write(uint64_t guest_addr, const void* from, size_t bytes) const;

    // Maps `pages` (guest addresses, aligned to 1 << page_shift) side by side. kInvalidArgument when a page is not RAM
    // that may be written, kResource when the process has no more mappings.
    Status map_pages(const std::vector<uint64_t>& pages, uint32_t page_shift, MappedPages* mapped) const;
    // One contiguous piece; need not be aligned: `*data` points at guest_addr's byte.
    Status map_contiguous(uint64_t guest_addr, size_t bytes, MappedPages* mapped, uint8_t** data) const;

    static constexpr size_t kRangesMax = 512;
    // Of the 65530 mappings that Linux gives a process by default; the others are for our heap, stacks and libraries.
    static constexpr size_t kPiecesMax = 48 * 1024;
    // Addresses that ranges, and pages mapped for the device, may each take of the 2^47 that a process has.
    static constexpr uint64_t kAddressesMax = uint64_t{1} << 40;

   private:
    struct Range;
    struct Run {  // guest addresses in a row, perhaps over several ranges
        uint64_t guest_addr, bytes;
    };
    size_t position_of(uint64_t guest_addr) const;  // the range that holds this address; ranges_.size(): none does
    const Range* find(uint64_t guest_addr, uint64_t bytes) const;
    Status check_run(Run run) const;
    Status map_run(Run run, uint8_t* to, size_t* pieces) const;
    Status map_runs(const std::vector<Run>& runs, uint64_t bytes, MappedPages* mapped) const;
    std::vector<std::unique_ptr<Range>> ranges_;  // sorted by guest address
};

}  // namespace nvshmem_efa::soft::pci
