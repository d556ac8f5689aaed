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
    MappedPages(uint8_t* base, size_t bytes) : base_(base), bytes_(bytes) {}
    MappedPages(MappedPages&& other) noexcept;
    MappedPages& operator=(MappedPages&& other) noexcept;
    ~MappedPages();  // unmaps
    uint8_t* data() const { return base_; }
    size_t bytes() const { return bytes_; }

   private:
    uint8_t* base_ = nullptr;
    size_t bytes_ = 0;
};

class GuestMemory {
   public:
    GuestMemory();
    ~GuestMemory();

    // Takes the descriptor. Refuses: overlap with a known range, sizes that do not fit the file or wrap, addresses that are
    // not page-aligned, more than kRangesMax ranges, a file that could be shrunk under us (no F_SEAL_SHRINK: SIGBUS).
    Status add_range(uint64_t guest_addr, uint64_t bytes, int fd, uint64_t file_offset, bool is_writable);
    // Exactly one known range, or everything (bytes == 0 and all == true).
    Status remove_range(uint64_t guest_addr, uint64_t bytes);
    void remove_all();

    // Small accesses within one range: admin queues, page lists. False when any byte lies outside.
    bool read(uint64_t guest_addr, void* to, size_t bytes) const;
    bool write(uint64_t guest_addr, const void* from, size_t bytes) const;

    // Maps `pages` (guest addresses, aligned to 1 << page_shift) side by side. kInvalidArgument when a page is not RAM,
    // kResource when the process has no more mappings.
    Status map_pages(const std::vector<uint64_t>& pages, uint32_t page_shift, MappedPages* mapped) const;
    // One contiguous piece; need not be aligned: `*data` points at guest_addr's byte.
    Status map_contiguous(uint64_t guest_addr, size_t bytes, MappedPages* mapped, uint8_t** data) const;

    static constexpr size_t kRangesMax = 512;

   private:
    struct Range;
    const Range* find(uint64_t guest_addr, uint64_t bytes) const;
    std::vector<std::unique_ptr<Range>> ranges_;  // sorted by guest address
};

}  // namespace nvshmem_efa::soft::pci
