// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/page_list.h"

#include <algorithm>

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kAddressesPerPage = kListPageBytes / sizeof(uint64_t);
constexpr uint32_t kPointersPerChunk = (kListPageBytes - sizeof(GuestBuffer)) / sizeof(uint64_t);
static_assert(kPointersPerChunk == 510, "a chunk holds 510 pointers and, behind them, where the next chunk lies");

Status not_ram(const char* what, uint64_t addr) {
    return Status::error(Code::kProtocol, "give addresses in the guest's RAM", "%s at 0x%llx is not RAM", what,
                         static_cast<unsigned long long>(addr));
}

// An array of addresses may lie across ranges of RAM, so it is read page by page.
Status read_addresses(const GuestMemory& memory, uint64_t at, uint64_t* to, uint64_t n) {
    if (at % sizeof(uint64_t) != 0)
        return Status::error(Code::kProtocol, "align it to 8 bytes", "a page list at 0x%llx",
                             static_cast<unsigned long long>(at));
    while (n != 0) {
        const uint64_t here = std::min<uint64_t>(n, (kListPageBytes - at % kListPageBytes) / sizeof(uint64_t));
        if (!memory.read(at, to, here * sizeof(uint64_t))) return not_ram("a page list", at);
        at += here * sizeof(uint64_t);
        to += here;
        n -= here;
    }
    return Status();
}

Status read_chunks(const GuestMemory& memory, GuestBuffer chunk, uint64_t* to, uint64_t n) {
    uint64_t n_lists = (n + kAddressesPerPage - 1) / kAddressesPerPage;
    while (n_lists != 0) {
        const uint64_t here = std::min<uint64_t>(n_lists, kPointersPerChunk);
        if (chunk.bytes < here * sizeof(uint64_t) || chunk.bytes > kListPageBytes)
            return Status::error(Code::kProtocol, "a chunk is up to 4096 bytes: pointers and the next chunk's place",
                                 "a chunk of %u bytes for %llu pointers", chunk.bytes,
                                 static_cast<unsigned long long>(here));
        uint64_t pointers[kPointersPerChunk];
        EFA_TRY(read_addresses(memory, chunk.addr(), pointers, here));
        for (uint64_t i = 0; i < here; ++i) {
            if (pointers[i] % kListPageBytes != 0)
                return Status::error(Code::kProtocol, "lists fill pages", "a chunk points to 0x%llx",
                                     static_cast<unsigned long long>(pointers[i]));
            const uint64_t in_list = std::min<uint64_t>(n, kAddressesPerPage);
            EFA_TRY(read_addresses(memory, pointers[i], to, in_list));
            to += in_list;
            n -= in_list;
        }
        n_lists -= here;
        if (n_lists == 0) break;
        const uint64_t next_at = chunk.addr() + kPointersPerChunk * sizeof(uint64_t);
        if (!memory.read(next_at, &chunk, sizeof chunk)) return not_ram("the place of the next chunk", next_at);
    }
    return Status();
}

}  // namespace

Status read_region_pages(const GuestMemory& memory, const RegMrCommand& command, uint8_t flags, uint32_t pages_max,
                         uint64_t page_sizes, RegionPages* region) {
    const uint32_t shift = command.flags & kMrPageShiftMask;
    if (shift < kListPageShift || !(page_sizes >> shift & 1u))
        return Status::error(Code::kInvalidArgument, "use a page size of the device's attributes",
                             "pages of 2^%u bytes", shift);
    const uint64_t page_bytes = 1ull << shift, in_first = command.addr & (page_bytes - 1);
    if (command.bytes == 0 || command.bytes - 1 > UINT64_MAX - command.addr)
        return Status::error(Code::kInvalidArgument, "give at least one byte, and no wrap", "%llu bytes at 0x%llx",
                             static_cast<unsigned long long>(command.bytes),
                             static_cast<unsigned long long>(command.addr));
    // The command's own page count is never filled in.
    const uint64_t n = ((in_first + (command.bytes - 1)) >> shift) + 1;
    const uint64_t n_mapped = ((in_first % kListPageBytes + (command.bytes - 1)) >> kListPageShift) + 1;
    if (command.bytes > static_cast<uint64_t>(pages_max) << kListPageShift || n > pages_max || n_mapped > pages_max)
        return Status::error(Code::kResource, "register less at a time", "%llu pages; the device has %u",
                             static_cast<unsigned long long>(n), pages_max);
    std::vector<uint64_t> blocks(n);
    if (!(flags & kAdminHasControlData)) {
        if (n > kMrInlinePages)
            return Status::error(Code::kProtocol, "give a list", "%llu pages in a command that holds 4",
                                 static_cast<unsigned long long>(n));
        for (uint64_t i = 0; i < n; ++i) blocks[i] = command.inline_pages[i];
    } else if (flags & kAdminIsIndirect) {
        EFA_TRY(read_chunks(memory, command.list, blocks.data(), n));
    } else {
        if (command.list.bytes < n * sizeof(uint64_t))
            return Status::error(Code::kProtocol, "give 8 bytes per page", "a list of %u bytes for %llu pages",
                                 command.list.bytes, static_cast<unsigned long long>(n));
        EFA_TRY(read_addresses(memory, command.list.addr(), blocks.data(), n));
    }
    for (uint64_t block : blocks) {
        if (block & (page_bytes - 1))
            return Status::error(Code::kInvalidArgument, "pages are aligned to their size", "a page at 0x%llx",
                                 static_cast<unsigned long long>(block));
    }
    // Only what the region covers: the rest of a large page need not be RAM.
    region->first_byte = static_cast<uint32_t>(in_first % kListPageBytes);
    region->pages.resize(n_mapped);
    const uint64_t first = in_first >> kListPageShift;
    for (uint64_t i = 0; i < n_mapped; ++i) {
        const uint64_t at = (first + i) << kListPageShift;
        region->pages[i] = blocks[at >> shift] + (at & (page_bytes - 1));
    }
    return Status();
}

}  // namespace nvshmem_efa::soft::pci
