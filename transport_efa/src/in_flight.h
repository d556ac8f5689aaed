// SPDX-License-Identifier: Apache-2.0
// Which remote bytes of one peer this lane has un-acknowledged writes to. SRD may place a payload twice, the second
// time after a later write to the same bytes; so a write waits for the completion of any earlier one that it overlaps.
// Answers "surely free" from a few counters; only when they cannot tell are the requests in flight looked through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nvshmem_efa {

class InFlightRanges {
   public:
    InFlightRanges() : pages_(kPages) {}

    // True when no write in flight can touch [addr, addr + bytes).
    bool is_surely_free(uint64_t addr, uint64_t bytes) const;
    void add(uint64_t addr, uint64_t bytes);
    void remove(uint64_t addr, uint64_t bytes);

   private:
    // All writes in flight that touch a page (of any number that maps here): how many, and what they span together.
    struct Span {
        uint32_t count = 0;
        uint64_t first = 0, last = 0;
        bool misses(uint64_t addr, uint64_t bytes) const { return count == 0 || addr > last || addr + (bytes - 1) < first; }
        void add(uint64_t addr, uint64_t bytes);
    };
    static constexpr uint32_t kPageShift = 12;
    static constexpr size_t kPages = 256;
    static constexpr uint64_t kLargeBytes = 32u << 10;  // from here on a write counts in `large_` alone
    static size_t slot_of(uint64_t page) { return (page ^ (page >> 8)) & (kPages - 1); }

    std::vector<Span> pages_;
    Span large_;
};

}  // namespace nvshmem_efa
