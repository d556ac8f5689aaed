// SPDX-License-Identifier: Apache-2.0
#include "gpu_mapping.h"

#include <unistd.h>

#include <utility>

#include "log.h"

namespace nvshmem_efa::cuda {

namespace {
constexpr unsigned kMemoryTypeHost = 1;
}  // namespace

GpuMapping& GpuMapping::operator=(GpuMapping&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(context_, other.context_);
    std::swap(start_, other.start_);
    std::swap(gpu_, other.gpu_);
    std::swap(is_registered_, other.is_registered_);
    return *this;
}

Status GpuMapping::map(void* memory, size_t bytes, unsigned extra_flags, const char* what, const char* hint) {
    unmap();
    const Driver* driver = nullptr;
    EFA_TRY(driver_load(&driver));
    Context context = nullptr;
    if (const Result result = driver->ctx_get_current(&context); result != kSuccess || !context) {
        return Status::error(Code::kMissing, "select a GPU (cudaSetDevice and a first CUDA call) before NVSHMEM starts",
                             "%s cannot be mapped: this thread has no current CUDA context", what);
    }
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<uint64_t>(memory);
    unsigned type = 0;
    const bool is_pinned = driver->pointer_get_attribute(&type, kAttrMemoryType, first) == kSuccess && type == kMemoryTypeHost;
    const uint64_t start = is_pinned ? first : first / page * page;
    const uint64_t end = (first + bytes + page - 1) / page * page;
    auto* const at = reinterpret_cast<void*>(start);
    if (!is_pinned) {
        const Result result = driver->mem_host_register(at, end - start, kHostPortable | kHostDeviceMap | extra_flags);
        if (result != kSuccess)
            return driver_error(*driver, result, std::string("cuMemHostRegister of ") + what,
                                hint ? hint : "raise the limit of locked memory (ulimit -l)");
    }
    DevicePtr gpu = 0;
    if (const Result result = driver->mem_host_get_device_pointer(&gpu, at, 0); result != kSuccess) {
        Status status = driver_error(*driver, result, std::string("cuMemHostGetDevicePointer of ") + what, hint);
        if (!is_pinned) driver->mem_host_unregister(at);
        return status;
    }
    driver_ = driver;
    context_ = context;
    start_ = start;
    gpu_ = gpu;
    is_registered_ = !is_pinned;
    return Status();
}

void GpuMapping::unmap() {
    if (!driver_) return;
    if (is_registered_) {
        ScopedContext scope(*driver_, context_);
        const Result result = driver_->mem_host_unregister(reinterpret_cast<void*>(start_));
        // A context that is gone took the mapping with it.
        if (result != kSuccess) EFA_LOG(kDebug, "gpu", "cuMemHostUnregister gave %d", result);
    }
    driver_ = nullptr;
    is_registered_ = false;
}

bool has_current_gpu() {
    const Driver* driver = driver_if_loaded();
    Context context = nullptr;
    return driver && driver->ctx_get_current(&context) == kSuccess && context;
}

}  // namespace nvshmem_efa::cuda
