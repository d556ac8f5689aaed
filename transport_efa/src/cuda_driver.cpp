// SPDX-License-Identifier: Apache-2.0
#include "cuda_driver.h"

#include <dlfcn.h>

#include <atomic>
#include <mutex>

namespace nvshmem_efa::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

std::mutex load_lock;
std::atomic<const Driver*> loaded_driver{nullptr};

// Keeps the handle for the life of the process: the table's pointers must stay valid in every destructor.
Status driver_adopt(void* library, const Driver** driver) {
    static Driver table;
    EFA_TRY(driver_fill(&dlsym, library, &table));
    loaded_driver.store(&table, std::memory_order_release);  // pairs with the acquires in driver_load, driver_if_loaded
    *driver = &table;
    return Status();
}

}  // namespace

Status driver_fill(Lookup lookup, void* library, Driver* driver) {
#define EFA_CUDA_LOOKUP(field, symbol, result, parameters)                                                     \
    driver->field = reinterpret_cast<decltype(driver->field)>(lookup(library, symbol));                        \
    if (!driver->field)                                                                                        \
        return Status::error(Code::kTooOld, "install an NVIDIA driver of CUDA 12.0 or newer (525 or later)",   \
                             "%s has no symbol %s", kLibrary, symbol);
    EFA_CUDA_FUNCTIONS(EFA_CUDA_LOOKUP)
#undef EFA_CUDA_LOOKUP
    return Status();
}

Status driver_load(const Driver** driver) {
    if (const Driver* known = loaded_driver.load(std::memory_order_acquire)) {  // pairs with driver_adopt
        *driver = known;
        return Status();
    }
    std::lock_guard<std::mutex> guard(load_lock);
    if (const Driver* known = loaded_driver.load(std::memory_order_acquire)) {
        *driver = known;
        return Status();
    }
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* why = dlerror();
        return Status::error(Code::kMissing, "GPU memory needs the NVIDIA driver; in a container, start it with GPUs",
                             "cannot load %s: %s", kLibrary, why ? why : "no reason given");
    }
    Status status = driver_adopt(library, driver);
    if (!status.ok()) dlclose(library);
    return status;
}

const Driver* driver_if_loaded() {
    if (const Driver* known = loaded_driver.load(std::memory_order_acquire)) return known;  // pairs with driver_adopt
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD);
    if (!library) return nullptr;
    dlclose(library);  // only a probe; driver_load takes its own reference
    const Driver* driver = nullptr;
    return driver_load(&driver).ok() ? driver : nullptr;
}

Status driver_error(const Driver& driver, Result result, const std::string& what, const char* hint) {
    const char* name = nullptr;
    const char* text = nullptr;
    if (driver.get_error_name(result, &name) != kSuccess || !name) name = "unknown CUDA error";
    if (driver.get_error_string(result, &text) != kSuccess || !text) text = "no description";
    Code code = Code::kDevice;
    if (result == kErrorOutOfMemory) code = Code::kResource;
    if (result == kErrorNotSupported) code = Code::kUnsupported;
    return Status::error(code, hint, "%s failed: %s (%d, %s)", what.c_str(), name, result, text);
}

MemoryKind memory_kind_of(const void* addr) {
    const Driver* driver = driver_if_loaded();
    if (!driver) return MemoryKind::kHost;
    unsigned type = 0;
    const Result result =
        driver->pointer_get_attribute(&type, kAttrMemoryType, reinterpret_cast<DevicePtr>(addr));
    return result == kSuccess && type == kMemoryTypeDevice ? MemoryKind::kCuda : MemoryKind::kHost;
}

ScopedContext::ScopedContext(const Driver& driver, Context context) : driver_(driver) {
    Context current = nullptr;
    result_ = driver_.ctx_get_current(&current);
    if (result_ != kSuccess || current == context) return;
    result_ = driver_.ctx_push_current(context);
    pushed_ = result_ == kSuccess;
}

ScopedContext::~ScopedContext() {
    Context popped = nullptr;
    if (pushed_) driver_.ctx_pop_current(&popped);
}

}  // namespace nvshmem_efa::cuda
