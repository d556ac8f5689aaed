// SPDX-License-Identifier: Apache-2.0
#include "gpu_memory.h"

#include "cuda_stream.h"
#include "knobs.h"
#include "log.h"

namespace nvshmem_efa::cuda {
namespace {

constexpr size_t kGranule = 2u << 20;  // also contiguous for a device, as a completion queue must be

Status zero(DevicePtr addr, size_t bytes) {
    std::unique_ptr<MarkedStream> stream;
    EFA_TRY(MarkedStream::create(bytes, &stream));  // its scratch is zero
    const Driver& driver = stream->driver();
    const Result result = driver.memcpy_htod_async(addr, stream->scratch(), bytes, stream->stream());
    if (result != kSuccess) return driver_error(driver, result, "cuMemcpyHtoDAsync");
    MarkedStream::Ticket ticket = 0;
    EFA_TRY(stream->mark(&ticket));
    Status status = stream->wait(ticket, knobs().timeout_ms, "zeroing of counters and completion queue");
    if (!status.ok()) stream->abandon();
    return status;
}

}  // namespace

Status GpuMemory::allocate_zeroed(size_t bytes) {
    release();
    EFA_TRY(driver_load(&driver_));
    if (const Result result = driver_->ctx_get_current(&context_); result != kSuccess || !context_)
        return Status::error(Code::kMissing, "select a GPU (cudaSetDevice and a first CUDA call) before NVSHMEM starts",
                             "GPU memory for completions: this thread has no current CUDA context");
    const size_t whole = (bytes + kGranule - 1) / kGranule * kGranule;
    if (const Result result = driver_->mem_alloc(&addr_, whole); result != kSuccess) {
        addr_ = 0;
        return driver_error(*driver_, result, "cuMemAlloc of " + std::to_string(whole) + " bytes for completions");
    }
    Status status = zero(addr_, bytes);
    if (!status.ok()) release();
    return status;
}

void GpuMemory::release() {
    if (addr_ == 0) return;
    ScopedContext scope(*driver_, context_);
    const Result result = driver_->mem_free(addr_);
    // A context that is gone took the memory with it.
    if (result != kSuccess) EFA_LOG(kDebug, "gpu", "cuMemFree gave %d", result);
    addr_ = 0;
}

}  // namespace nvshmem_efa::cuda
