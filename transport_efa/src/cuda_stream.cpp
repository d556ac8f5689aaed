// SPDX-License-Identifier: Apache-2.0
#include "cuda_stream.h"

#include <cstring>

#include "clock.h"

namespace nvshmem_efa::cuda {

Status MarkedStream::create(size_t scratch_bytes, std::unique_ptr<MarkedStream>* stream) {
    std::unique_ptr<MarkedStream> made(new MarkedStream);
    EFA_TRY(made->open(scratch_bytes));
    *stream = std::move(made);
    return Status();
}

Status MarkedStream::open(size_t scratch_bytes) {
    EFA_TRY(driver_load(&driver_));
    const Driver& cuda = *driver_;
    if (Result result = cuda.ctx_get_current(&context_); result != kSuccess || !context_) {
        context_ = nullptr;
        return Status::error(Code::kMissing, "select a GPU (cudaSetDevice and a first CUDA call) before NVSHMEM starts",
                             "this thread has no current CUDA context (cuCtxGetCurrent gave %d)", result);
    }
    if (Result result = cuda.ctx_get_device(&device_)) return driver_error(cuda, result, "cuCtxGetDevice");
    int least = 0, greatest = 0;
    if (cuda.ctx_get_stream_priority_range(&least, &greatest) != kSuccess) greatest = 0;
    // Non-blocking: the legacy default stream of the program neither waits for this one nor holds it up.
    if (Result result = cuda.stream_create(&stream_, kStreamNonBlocking, greatest))
        return driver_error(cuda, result, "cuStreamCreateWithPriority");
    void* memory = nullptr;
    if (Result result = cuda.mem_host_alloc(&memory, kMarkerBytes + scratch_bytes, kHostPortable))
        return driver_error(cuda, result, "cuMemHostAlloc of " + std::to_string(scratch_bytes) + " bytes",
                            "raise the limit of locked memory (ulimit -l)");
    pinned_ = static_cast<uint8_t*>(memory);
    std::memset(pinned_, 0, kMarkerBytes + scratch_bytes);
    if (Result result = cuda.mem_host_get_device_pointer(&marker_addr_, memory, 0))
        return driver_error(cuda, result, "cuMemHostGetDevicePointer");
    return Status();
}

MarkedStream::~MarkedStream() {
    if (!context_) return;
    ScopedContext scope(*driver_, context_);
    if (scope.result() != kSuccess) return;  // the context is gone, and with it all that lived in it
    if (stream_) driver_->stream_destroy(stream_);
    if (pinned_ && !abandoned_) driver_->mem_free_host(pinned_);
}

MemOp MarkedStream::mark_op(Ticket* ticket) {
    *ticket = ++last_;
    MemOp op;
    op.operation = kMemOpWriteValue64;
    op.addr = marker_addr_;
    op.value = last_;
    return op;
}

Status MarkedStream::mark(Ticket* ticket) {
    *ticket = ++last_;
    if (Result result = driver_->stream_write_value64(stream_, marker_addr_, last_, kWriteValueDefault))
        return driver_error(*driver_, result, "cuStreamWriteValue64 of a completion marker",
                            "the GPU or the driver's stream memory operations are not usable");
    return Status();
}

bool MarkedStream::reached(Ticket ticket) const {
    // pairs with the memory barrier which a default cuStreamWriteValue makes before it stores the marker (mark, mark_op)
    return __atomic_load_n(reinterpret_cast<const uint64_t*>(pinned_), __ATOMIC_ACQUIRE) >= ticket;
}

Status MarkedStream::wait(Ticket ticket, int64_t timeout_ms, const char* what) {
    Deadline deadline(real_clock(), static_cast<uint64_t>(timeout_ms));
    while (!reached(ticket)) {
        if (deadline.passed()) {
            const Result state = driver_->stream_query(stream_);
            if (state != kSuccess && state != kErrorNotReady) return driver_error(*driver_, state, what);
            return Status::error(Code::kTimeout, "the GPU does not serve copies; look for a fault with nvidia-smi and dmesg",
                                 "%s on GPU %d did not complete within %lld ms", what, device_,
                                 static_cast<long long>(timeout_ms));
        }
        deadline.relax();
    }
    return Status();
}

}  // namespace nvshmem_efa::cuda
