// SPDX-License-Identifier: Apache-2.0
// The guest's list of a memory region's pages, in its three forms: inside the command, one array, or a chain of chunks
// that point to pages full of addresses.
#pragma once

#include <vector>

#include "soft_efa/pci/efa_admin_objects.h"
#include "soft_efa/pci/guest_memory.h"

namespace nvshmem_efa::soft::pci {

inline constexpr uint32_t kListPageShift = 12;  // pages of the list itself, and what we map
inline constexpr uint32_t kListPageBytes = 1u << kListPageShift;

// Where a region's bytes lie: guest addresses of 4-KiB pages that cover it exactly, and the first byte in the first.
struct RegionPages {
    std::vector<uint64_t> pages;
    uint32_t first_byte = 0;
};

// `flags` are the command's. kInvalidArgument when sizes or addresses are not what they must be, kProtocol when the
// list is malformed or not RAM, kResource beyond `pages_max` pages.
Status read_region_pages(const GuestMemory& memory, const RegMrCommand& command, uint8_t flags, uint32_t pages_max,
                         uint64_t page_sizes, RegionPages* region);

}  // namespace nvshmem_efa::soft::pci
