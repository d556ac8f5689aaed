// SPDX-License-Identifier: Apache-2.0
// The memory port for programs with GPU memory: copies on a private stream, completion read from pinned memory.
#include "memory_cuda.h"

#include <algorithm>

#include "cuda_stream.h"
#include "knobs.h"
#include "log.h"
#include "memory_cuda_arena.h"
#include "memory_cuda_regions.h"

namespace nvshmem_efa::soft {
namespace {

constexpr size_t kStagingBytes = 64 * 1024;

class CudaMemoryPort final : public MemoryPort {
   public:
    CudaMemoryPort(std::unique_ptr<cuda::MarkedStream> stream, uint64_t process_id, const CudaPortOptions& options)
        : options_(options), stream_(std::move(stream)), host_(make_host_memory_port()), arena_(stream_->driver()),
          regions_(stream_->driver(), stream_->device(), process_id, options.sharing) {}
    ~CudaMemoryPort() override;
    Status open() { return arena_.grow_if_short(options_.arena_bytes); }

    Ticket copy(MemoryAddr to, MemoryAddr from, size_t bytes) override;
    void flush() override;
    bool done(Ticket ticket) override { return ticket == 0 || is_broken_ || stream_->reached(ticket); }
    Status error() override;

    void* alloc_host(size_t bytes) override { return arena_.take(bytes); }
    void free_host(void* memory) override { arena_.give(memory); }

    Status add_local(const MemoryAttr& attr, MemoryShare* share) override;
    void remove_local(const MemoryAttr& attr) override;
    Status attach(const MemoryShare& share, const FetchFd& fetch_fd) override;
    int export_fd(uint64_t export_id, uint32_t index) override { return regions_.export_fd(export_id, index); }
    bool reference_of(MemoryAddr local, size_t bytes, PeerBytes* reference) override {
        return regions_.reference_of(local.addr, bytes, reference);
    }
    bool resolve(const PeerBytes& reference, size_t bytes, MemoryAddr* mapped) override {
        mapped->kind = MemoryKind::kCuda;
        return regions_.resolve(reference, bytes, &mapped->addr);
    }

   private:
    cuda::Result start_copy(MemoryAddr to, MemoryAddr from, size_t bytes);
    cuda::Result bounce(uint64_t to, uint64_t from, size_t bytes);
    bool must_bounce(MemoryAddr to, MemoryAddr from, size_t bytes) const;
    Status enter(const cuda::ScopedContext& scope) const;
    void keep_error(Status status);

    const CudaPortOptions options_;
    std::unique_ptr<cuda::MarkedStream> stream_;
    std::unique_ptr<MemoryPort> host_;  // copies between two places of host memory
    PinnedArena arena_;
    CudaRegions regions_;
    Ticket next_ticket_ = 1;  // of the marker that the next flush() enqueues
    bool has_unmarked_ = false;
    bool is_broken_ = false;  // markers no longer come: nothing is waited for, error() says why
    Status error_;
};

Status CudaMemoryPort::enter(const cuda::ScopedContext& scope) const {
    if (scope.result() == cuda::kSuccess) return Status();
    return cuda::driver_error(stream_->driver(), scope.result(), "making the software device's CUDA context current");
}

void CudaMemoryPort::keep_error(Status status) {
    if (error_.ok()) error_ = std::move(status);
}

Status CudaMemoryPort::error() {
    Status first = std::move(error_);
    error_ = Status();
    return first;
}

MemoryPort::Ticket CudaMemoryPort::copy(MemoryAddr to, MemoryAddr from, size_t bytes) {
    if (bytes == 0) return 0;
    if (to.kind == MemoryKind::kHost && from.kind == MemoryKind::kHost) return host_->copy(to, from, bytes);
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    if (Status status = enter(scope); !status.ok()) {
        keep_error(std::move(status));
        return 0;
    }
    if (const cuda::Result result = start_copy(to, from, bytes); result != cuda::kSuccess) {
        char what[128];
        snprintf(what, sizeof what, "copying %zu bytes from %s 0x%llx to %s 0x%llx", bytes,
                 from.kind == MemoryKind::kCuda ? "GPU" : "host", static_cast<unsigned long long>(from.addr),
                 to.kind == MemoryKind::kCuda ? "GPU" : "host", static_cast<unsigned long long>(to.addr));
        keep_error(cuda::driver_error(stream_->driver(), result, what,
                                      "the memory must stay allocated while it is registered"));
    }
    has_unmarked_ = true;  // also after an error: parts of the copy may be under way
    return next_ticket_;
}

// Unknown devices count as the same one: the slower way is right for both.
bool CudaMemoryPort::must_bounce(MemoryAddr to, MemoryAddr from, size_t bytes) const {
    if (to.kind != MemoryKind::kCuda || from.kind != MemoryKind::kCuda) return false;
    if (bytes > options_.same_gpu_bounce_bytes) return false;
    const int to_device = regions_.device_of(to.addr);
    const int from_device = regions_.device_of(from.addr);
    return to_device == from_device || to_device == kDeviceUnknown || from_device == kDeviceUnknown;
}

cuda::Result CudaMemoryPort::start_copy(MemoryAddr to, MemoryAddr from, size_t bytes) {
    if (must_bounce(to, from, bytes)) return bounce(to.addr, from.addr, bytes);
    return stream_->driver().memcpy_async(to.addr, from.addr, bytes, stream_->stream());
}

// The one staging buffer is used again without a wait: the stream runs the copies in order.
cuda::Result CudaMemoryPort::bounce(uint64_t to, uint64_t from, size_t bytes) {
    const cuda::Driver& driver = stream_->driver();
    for (size_t offset = 0; offset < bytes; offset += kStagingBytes) {
        const size_t piece = std::min(kStagingBytes, bytes - offset);
        if (auto result = driver.memcpy_dtoh_async(stream_->scratch(), from + offset, piece, stream_->stream()))
            return result;
        if (auto result = driver.memcpy_htod_async(to + offset, stream_->scratch(), piece, stream_->stream()))
            return result;
    }
    return cuda::kSuccess;
}

void CudaMemoryPort::flush() {
    if (!has_unmarked_ || is_broken_) return;
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    Status status = enter(scope);
    Ticket marked = 0;
    if (status.ok()) status = stream_->mark(&marked);
    if (!status.ok()) {
        is_broken_ = true;
        keep_error(std::move(status));
        return;
    }
    next_ticket_ = marked + 1;
    has_unmarked_ = false;
}

Status CudaMemoryPort::add_local(const MemoryAttr& attr, MemoryShare* share) {
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    EFA_TRY(enter(scope));
    EFA_TRY(arena_.grow_if_short(options_.arena_bytes));
    return regions_.add(attr, share);
}

void CudaMemoryPort::remove_local(const MemoryAttr& attr) {
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    if (scope.result() == cuda::kSuccess) regions_.remove(attr);
}

Status CudaMemoryPort::attach(const MemoryShare& share, const FetchFd& fetch_fd) {
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    EFA_TRY(enter(scope));
    EFA_TRY(arena_.grow_if_short(options_.arena_bytes));
    return regions_.attach(share, fetch_fd);
}

CudaMemoryPort::~CudaMemoryPort() {
    flush();
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    Status status = enter(scope);
    if (status.ok()) status = is_broken_ ? error() : stream_->wait(next_ticket_ - 1, options_.timeout_ms, "the last copy");
    if (!status.ok() || is_broken_) {
        EFA_LOG(kWarn, "soft", "GPU copies did not end; their memory is left to the process's end: %s",
                status.ok() ? "their completion markers failed" : status.message());
        stream_->abandon();
        return;
    }
    regions_.close_all();
    arena_.release();
}

}  // namespace

Status make_cuda_memory_port(uint64_t process_id, const CudaPortOptions& options, std::unique_ptr<MemoryPort>* port) {
    std::unique_ptr<cuda::MarkedStream> stream;
    EFA_TRY(cuda::MarkedStream::create(kStagingBytes, &stream));
    auto made = std::make_unique<CudaMemoryPort>(std::move(stream), process_id, options);
    EFA_TRY(made->open());
    *port = std::move(made);
    return Status();
}

Status make_cuda_memory_port(uint64_t process_id, std::unique_ptr<MemoryPort>* port) {
    CudaPortOptions options;
    options.timeout_ms = knobs().timeout_ms;
    options.sharing = knobs().soft_cuda;
    options.same_gpu_bounce_bytes = static_cast<size_t>(knobs().soft_same_gpu_bounce);
    return make_cuda_memory_port(process_id, options, port);
}

}  // namespace nvshmem_efa::soft
