// SPDX-License-Identifier: Apache-2.0
// GPU pages in the CPU's address space, through GDRCopy. The library is loaded at run time; the declarations are ours.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "cuda_driver.h"

namespace nvshmem_efa {

inline constexpr uint64_t kGpuPageBytes = 64 * 1024;
inline constexpr size_t kGpuPagesMax = 1024;  // mapped at once: 64 MiB of the GPU's BAR, which may be only 256 MiB

class GdrPages {
   public:
    static Status open(std::unique_ptr<GdrPages>* pages);
    ~GdrPages();  // unmaps everything
    GdrPages(const GdrPages&) = delete;
    GdrPages& operator=(const GdrPages&) = delete;

    // Where the CPU finds GPU address `addr`, until the next call. Maps its page at the first use, dropping the oldest
    // page beyond kGpuPagesMax. Notices memory that was freed and given out again since; freeing it meanwhile is the
    // caller's error.
    Status find(uint64_t addr, volatile void** mapped);
    // Makes earlier stores leave the write-combining buffers; order towards the GPU, not arrival.
    static void flush_stores();

   private:
    struct PinHandle {  // gdr_mh_t
        unsigned long value;
    };
    struct Page {
        PinHandle pin{};
        void* mapped = nullptr;
    };
    // The page's GPU address and CUDA's id of the allocation: an address given out again is another page, and so is
    // one page that two small allocations share.
    using Key = std::pair<uint64_t, uint64_t>;
    // The calls of libgdrapi that are used, under their exported names.
    struct Api {
        void* (*gdr_open)() = nullptr;
        int (*gdr_close)(void* gdr) = nullptr;
        int (*gdr_pin_buffer)(void* gdr, unsigned long addr, size_t bytes, uint64_t token, uint32_t va_space,
                              PinHandle* pin) = nullptr;
        int (*gdr_unpin_buffer)(void* gdr, PinHandle pin) = nullptr;
        int (*gdr_map)(void* gdr, PinHandle pin, void** mapped, size_t bytes) = nullptr;
        int (*gdr_unmap)(void* gdr, PinHandle pin, void* mapped, size_t bytes) = nullptr;
    };

    GdrPages() = default;
    Status load();
    Status allocation_of(uint64_t addr, uint64_t* allocation) const;
    Status map_page(uint64_t base, Page* page);
    void drop(const Key& key);

    const cuda::Driver* driver_ = nullptr;
    Api api_;
    void* gdr_ = nullptr;
    std::map<Key, Page> pages_;
    std::deque<Key> by_age_;
};

}  // namespace nvshmem_efa
