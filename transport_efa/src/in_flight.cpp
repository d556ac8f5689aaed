// SPDX-License-Identifier: Apache-2.0
#include "in_flight.h"

#include <algorithm>

namespace nvshmem_efa {

void InFlightRanges::Span::add(uint64_t addr, uint64_t bytes) {
    const uint64_t end = addr + (bytes - 1);
    first = count ? std::min(first, addr) : addr;
    last = count ? std::max(last, end) : end;
    ++count;
}

bool InFlightRanges::is_surely_free(uint64_t addr, uint64_t bytes) const {
    if (!large_.misses(addr, bytes)) return false;
    const uint64_t end_page = (addr + (bytes - 1)) >> kPageShift;
    if (end_page - (addr >> kPageShift) >= kPages)
        return std::all_of(pages_.begin(), pages_.end(), [&](const Span& span) { return span.misses(addr, bytes); });
    for (uint64_t page = addr >> kPageShift; page <= end_page; ++page)
        if (!pages_[slot_of(page)].misses(addr, bytes)) return false;
    return true;
}

void InFlightRanges::add(uint64_t addr, uint64_t bytes) {
    if (bytes >= kLargeBytes) return large_.add(addr, bytes);
    for (uint64_t page = addr >> kPageShift; page <= (addr + (bytes - 1)) >> kPageShift; ++page)
        pages_[slot_of(page)].add(addr, bytes);
}

void InFlightRanges::remove(uint64_t addr, uint64_t bytes) {
    if (bytes >= kLargeBytes) {
        --large_.count;
        return;
    }
    for (uint64_t page = addr >> kPageShift; page <= (addr + (bytes - 1)) >> kPageShift; ++page)
        --pages_[slot_of(page)].count;
}

}  // namespace nvshmem_efa
