// SPDX-License-Identifier: Apache-2.0
#include "words_gdrcopy_pages.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nvshmem_efa {
namespace {

constexpr const char* kLibrary = "libgdrapi.so.2";
constexpr const char* kInstallHint =
    "install GDRCopy 2.x and load its gdrdrv kernel module, or leave NVSHMEM_EFA_GDRCOPY at auto";

template <class Call>
Status find_call(void* library, const char* symbol, Call* call) {
    *call = reinterpret_cast<Call>(dlsym(library, symbol));
    if (*call) return Status();
    return Status::error(Code::kTooOld, kInstallHint, "%s has no symbol %s", kLibrary, symbol);
}

}  // namespace

Status GdrPages::open(std::unique_ptr<GdrPages>* pages) {
    std::unique_ptr<GdrPages> made(new GdrPages);
    EFA_TRY(cuda::driver_load(&made->driver_));
    EFA_TRY(made->load());
    *pages = std::move(made);
    return Status();
}

// The library stays loaded: unloading it under a mapping is never worth it.
Status GdrPages::load() {
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* why = dlerror();
        return Status::error(Code::kMissing, kInstallHint, "cannot load %s: %s", kLibrary, why ? why : "no reason given");
    }
    EFA_TRY(find_call(library, "gdr_open", &api_.gdr_open));
    EFA_TRY(find_call(library, "gdr_close", &api_.gdr_close));
    EFA_TRY(find_call(library, "gdr_pin_buffer", &api_.gdr_pin_buffer));
    EFA_TRY(find_call(library, "gdr_unpin_buffer", &api_.gdr_unpin_buffer));
    EFA_TRY(find_call(library, "gdr_map", &api_.gdr_map));
    EFA_TRY(find_call(library, "gdr_unmap", &api_.gdr_unmap));
    gdr_ = api_.gdr_open();
    if (!gdr_) return Status::error(Code::kMissing, kInstallHint, "gdr_open failed: is /dev/gdrdrv there and readable?");
    return Status();
}

GdrPages::~GdrPages() {
    while (!by_age_.empty()) drop(Key(by_age_.front()));
    if (gdr_) api_.gdr_close(gdr_);
}

Status GdrPages::allocation_of(uint64_t addr, uint64_t* allocation) const {
    // The block id also covers memory that was mapped by cuMemMap; drivers before CUDA 12 know only the buffer id.
    if (driver_->pointer_get_attribute(allocation, cuda::kAttrMemoryBlockId, addr) == cuda::kSuccess) return Status();
    const cuda::Result result = driver_->pointer_get_attribute(allocation, cuda::kAttrBufferId, addr);
    if (result == cuda::kSuccess) return Status();
    return cuda::driver_error(*driver_, result, "asking CUDA for the allocation of a word",
                              "the address must lie in GPU memory of this process");
}

Status GdrPages::find(uint64_t addr, volatile void** mapped) {
    Key key{addr & ~(kGpuPageBytes - 1), 0};
    EFA_TRY(allocation_of(addr, &key.second));
    auto known = pages_.find(key);
    if (known == pages_.end()) {
        if (pages_.size() == kGpuPagesMax) drop(Key(by_age_.front()));
        Page page;
        EFA_TRY(map_page(key.first, &page));
        known = pages_.emplace(key, page).first;
        by_age_.push_back(key);
    }
    *mapped = static_cast<volatile uint8_t*>(known->second.mapped) + (addr - key.first);
    return Status();
}

Status GdrPages::map_page(uint64_t base, Page* page) {
    if (int error = api_.gdr_pin_buffer(gdr_, base, kGpuPageBytes, 0, 0, &page->pin))
        return Status::error(Code::kResource, "GPU memory must be GPUDirect-RDMA capable, and BAR1 space free",
                             "gdr_pin_buffer of GPU page 0x%llx failed: %s", static_cast<unsigned long long>(base),
                             std::strerror(error));
    if (int error = api_.gdr_map(gdr_, page->pin, &page->mapped, kGpuPageBytes)) {
        api_.gdr_unpin_buffer(gdr_, page->pin);
        return Status::error(Code::kResource, "BAR1 space may be used up (nvidia-smi -q -d MEMORY)",
                             "gdr_map of GPU page 0x%llx failed: %s", static_cast<unsigned long long>(base),
                             std::strerror(error));
    }
    return Status();
}

void GdrPages::drop(const Key& key) {
    const auto found = pages_.find(key);
    const Page page = found->second;
    api_.gdr_unmap(gdr_, page.pin, page.mapped, kGpuPageBytes);
    api_.gdr_unpin_buffer(gdr_, page.pin);
    by_age_.erase(std::remove(by_age_.begin(), by_age_.end(), key), by_age_.end());
    pages_.erase(found);
}

void GdrPages::flush_stores() {
#if defined(__x86_64__)
    _mm_mfence();  // drains the write-combining buffers, and keeps a following load of the word behind its store
#elif defined(__aarch64__)
    asm volatile("dsb sy" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

}  // namespace nvshmem_efa
