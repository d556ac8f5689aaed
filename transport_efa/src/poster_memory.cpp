// SPDX-License-Identifier: Apache-2.0
#include "poster_memory.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "nvshmem_efa/memory_order.h"

namespace nvshmem_efa {

namespace {
constexpr size_t kStagingBytes = size_t{64} << 10;
constexpr size_t kPage = 4096;
constexpr auto kCalibration = std::chrono::milliseconds(5);
}  // namespace

Status PosterMemory::create(MemoryKind posters, size_t bytes, size_t live_bytes, int64_t timeout_ms,
                            std::unique_ptr<PosterMemory>* memory) {
    std::unique_ptr<PosterMemory> made(new PosterMemory);
    made->timeout_ms_ = timeout_ms;
    EFA_TRY(made->open(posters, bytes, live_bytes).with_context("memory for GPU queues"));
    *memory = std::move(made);
    return Status();
}

Status PosterMemory::open(MemoryKind posters, size_t bytes, size_t live_bytes) {
    bytes_ = (bytes + kPage - 1) / kPage * kPage;
    if (posters == MemoryKind::kHost) {
        void* memory = std::aligned_alloc(kPage, bytes_);
        if (!memory) return Status::error(Code::kResource, "free memory", "cannot allocate %zu bytes", bytes_);
        std::memset(memory, 0, bytes_);
        base_ = reinterpret_cast<uint64_t>(memory);
        return Status();
    }
    staging_bytes_ = std::max(kStagingBytes, live_bytes);
    EFA_TRY(cuda::MarkedStream::create(staging_bytes_, &stream_));
    const cuda::Driver& driver = stream_->driver();
    if (const cuda::Result result = driver.mem_alloc(&base_, bytes_); result != cuda::kSuccess) {
        base_ = 0;
        return cuda::driver_error(driver, result, "cuMemAlloc of " + std::to_string(bytes_) + " bytes",
                                  "leave the GPU that much memory, or lower NVSHMEM_EFA_GPU_QUEUES");
    }
    const std::vector<uint8_t> zeros(bytes_, 0);
    return write(0, zeros.data(), zeros.size());
}

PosterMemory::~PosterMemory() {
    if (!stream_) {
        std::free(reinterpret_cast<void*>(base_));
        return;
    }
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    // Freeing waits for the GPU, which does not answer after an abandoned copy.
    if (base_ && !is_abandoned_ && scope.result() == cuda::kSuccess) (void)stream_->driver().mem_free(base_);
}

Status PosterMemory::finish(const char* what) {
    cuda::MarkedStream::Ticket ticket = 0;
    EFA_TRY(stream_->mark(&ticket));
    Status status = stream_->wait(ticket, timeout_ms_, what);
    if (!status.ok()) {  // the copy may still come, from or to the staging memory
        stream_->abandon();
        is_abandoned_ = true;
    }
    return status;
}

Status PosterMemory::write(size_t offset, const void* from, size_t bytes) {
    if (!stream_) {
        std::memcpy(reinterpret_cast<void*>(base_ + offset), from, bytes);
        return Status();
    }
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    for (size_t done = 0; done < bytes;) {
        const size_t n = std::min(bytes - done, staging_bytes_);
        std::memcpy(stream_->scratch(), static_cast<const uint8_t*>(from) + done, n);
        const cuda::Result result =
            stream_->driver().memcpy_htod_async(base_ + offset + done, stream_->scratch(), n, stream_->stream());
        if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "cuMemcpyHtoDAsync to GPU queues' state");
        EFA_TRY(finish("a copy to GPU queues' state"));
        done += n;
    }
    return Status();
}

Status PosterMemory::publish32(size_t offset, uint32_t value) {
    if (!stream_) {
        __atomic_store_n(at<uint32_t>(offset), value, __ATOMIC_RELEASE);  // pairs as said at the declaration
        return Status();
    }
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    // A default write makes a full barrier first, so what is in the stream before it is visible before it.
    const cuda::Result result =
        stream_->driver().stream_write_value32(stream_->stream(), base_ + offset, value, cuda::kWriteValueDefault);
    if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "cuStreamWriteValue32");
    return finish("a write to GPU queues' state");
}

Status PosterMemory::publish64(size_t offset, uint64_t value) {
    if (!stream_) {
        __atomic_store_n(at<uint64_t>(offset), value, __ATOMIC_RELEASE);  // pairs as said at the declaration
        return Status();
    }
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    const cuda::Result result =
        stream_->driver().stream_write_value64(stream_->stream(), base_ + offset, value, cuda::kWriteValueDefault);
    if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "cuStreamWriteValue64");
    return finish("a write to GPU queues' state");
}

Status PosterMemory::read_words(const std::vector<size_t>& offsets, std::vector<uint32_t>* values) {
    values->resize(offsets.size());
    if (!stream_) {
        // Acquire: what a poster on another thread did before it stored the word counts as seen.
        for (size_t i = 0; i < offsets.size(); ++i) (*values)[i] = __atomic_load_n(at<uint32_t>(offsets[i]), __ATOMIC_ACQUIRE);
        return Status();
    }
    if (offsets.empty()) return Status();
    const auto [first, last] = std::minmax_element(offsets.begin(), offsets.end());
    const size_t span = *last - *first + sizeof(uint32_t);
    if (span > staging_bytes_) return Status::error(Code::kInternal, nullptr, "%zu bytes are read back at once", span);
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    const cuda::Result result =
        stream_->driver().memcpy_dtoh_async(stream_->scratch(), base_ + *first, span, stream_->stream());
    if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "cuMemcpyDtoHAsync of GPU queues' heads");
    EFA_TRY(finish("a copy of GPU queues' heads"));
    for (size_t i = 0; i < offsets.size(); ++i)
        std::memcpy(&(*values)[i], static_cast<const uint8_t*>(stream_->scratch()) + (offsets[i] - *first), sizeof(uint32_t));
    return Status();
}

Status PosterMemory::read_gpu_word(const uint64_t* at, uint64_t* value) {
    if (!stream_) return Status::error(Code::kInternal, nullptr, "a counter in GPU memory, and no GPU");
    const cuda::ScopedContext scope(stream_->driver(), stream_->context());
    const cuda::Result result = stream_->driver().memcpy_dtoh_async(
        stream_->scratch(), reinterpret_cast<cuda::DevicePtr>(at), sizeof *value, stream_->stream());
    if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "cuMemcpyDtoHAsync of a completion counter");
    EFA_TRY(finish("a copy of a completion counter"));
    std::memcpy(value, stream_->scratch(), sizeof *value);
    return Status();
}

Status PosterMemory::ticks_per_ms(uint64_t* ticks) const {
    if (stream_) {
        int khz = 0;
        const cuda::Result result = stream_->driver().device_get_attribute(&khz, cuda::kDeviceClockKhz, stream_->device());
        if (result != cuda::kSuccess || khz <= 0)
            return cuda::driver_error(stream_->driver(), result, "cuDeviceGetAttribute of the clock rate");
        *ticks = static_cast<uint64_t>(khz);
        return Status();
    }
    const uint64_t ticks_before = order::clock_ticks();
    const auto before = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(kCalibration);
    const uint64_t passed = order::clock_ticks() - ticks_before;
    const std::chrono::duration<double, std::milli> ms = std::chrono::steady_clock::now() - before;
    *ticks = std::max<uint64_t>(1, static_cast<uint64_t>(static_cast<double>(passed) / ms.count()));
    return Status();
}

}  // namespace nvshmem_efa
