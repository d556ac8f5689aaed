// SPDX-License-Identifier: Apache-2.0
#include "gpu_runtime.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "cuda_stream.h"
#include "ep_gpu_launch.h"
#include "ep_normal_gpu.h"
#include "log.h"

namespace nvshmem_efa::ep {

namespace {

constexpr int kMultiprocessors = 16;           // of cuDeviceGetAttribute
constexpr size_t kAllocation = size_t{2} << 20;   // so that an allocation, which is what CUDA shares, is one block
constexpr auto kLookEvery = std::chrono::microseconds(50);
constexpr const char* kSymbols[] = {kDispatchSymbol,     kCombineSymbol,        kResetSymbol,        kNormalLayoutSymbol,
                                    kNormalNotifySymbol, kNormalDispatchSymbol, kNormalCombineSymbol};

// Of this process, and of no other.
uint64_t process_number() {
    static const uint64_t number = [] {
        uint64_t drawn = 0;
        return getrandom(&drawn, sizeof drawn, 0) == static_cast<ssize_t>(sizeof drawn) ? drawn : 0;  // 0: as if unknown
    }();
    return number;
}

}  // namespace

GpuBlock& GpuBlock::operator=(GpuBlock&& other) noexcept {
    if (this == &other) return *this;
    release();
    runtime_ = std::exchange(other.runtime_, nullptr);
    addr_ = std::exchange(other.addr_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
    kind_ = other.kind_;
    return *this;
}

void GpuBlock::release() {
    if (addr_ == 0) return;
    const cuda::Driver& driver = *runtime_->driver_;
    const cuda::ScopedContext scope(driver, runtime_->context_);
    if (!runtime_->is_stuck_ && kind_ != Kind::kSameProcess) {
        const cuda::Result result = kind_ == Kind::kMapped ? driver.ipc_close_mem_handle(addr_) : driver.mem_free(addr_);
        // A context that is gone took the memory with it.
        if (result != cuda::kSuccess) EFA_LOG(kDebug, "ep", "freeing GPU memory gave %d", result);
    }
    addr_ = 0;
}

Status GpuRuntime::named(cuda::Result result, const std::string& what, const char* hint) const {
    return result == cuda::kSuccess ? Status() : cuda::driver_error(*driver_, result, what, hint);
}

Status GpuRuntime::open(int64_t timeout_ms, std::unique_ptr<GpuRuntime>* runtime) {
    std::unique_ptr<GpuRuntime> made(new GpuRuntime);
    EFA_TRY(cuda::driver_load(&made->driver_));
    const cuda::Driver& driver = *made->driver_;
    made->timeout_ms_ = timeout_ms;
    if (driver.ctx_get_current(&made->context_) != cuda::kSuccess || !made->context_)
        return Status::error(Code::kMissing, "torch.cuda.set_device() and a first tensor on the GPU, before the Buffer is made",
                             "the exchange on the GPU: this thread has no current CUDA context");
    cuda::Device device = 0;
    EFA_TRY(made->named(driver.ctx_get_device(&device), "cuCtxGetDevice"));
    int count = 0;
    EFA_TRY(made->named(driver.device_get_attribute(&count, kMultiprocessors, device), "cuDeviceGetAttribute of the multiprocessors"));
    EFA_TRY(made->named(driver.stream_create(&made->own_, cuda::kStreamNonBlocking, 0), "cuStreamCreateWithPriority"));
    made->stream_ = made->own_;
    made->multiprocessors_ = static_cast<uint32_t>(std::max(count, 1));
    *runtime = std::move(made);
    return Status();
}

GpuRuntime::~GpuRuntime() {
    if (!context_ || is_stuck_) return;
    const cuda::ScopedContext scope(*driver_, context_);
    if (scope.result() != cuda::kSuccess) return;
    for (const cuda::Module module : modules_) static_cast<void>(driver_->module_unload(module));
    for (void* const pinned : pinned_) static_cast<void>(driver_->mem_free_host(pinned));
    if (own_) static_cast<void>(driver_->stream_destroy(own_));
}

// From a small block of zeroes, many times: the buffer of an exchange may be larger than memory that can be pinned.
Status GpuRuntime::zero(cuda::DevicePtr addr, size_t bytes) {
    std::unique_ptr<cuda::MarkedStream> stream;
    EFA_TRY(cuda::MarkedStream::create(std::min(bytes, kAllocation), &stream));
    for (size_t done = 0; done < bytes; done += kAllocation)
        EFA_TRY(named(driver_->memcpy_htod_async(addr + done, stream->scratch(), std::min(kAllocation, bytes - done), stream->stream()),
                      "cuMemcpyHtoDAsync"));
    cuda::MarkedStream::Ticket ticket = 0;
    EFA_TRY(stream->mark(&ticket));
    Status status = stream->wait(ticket, timeout_ms_, "zeroing of GPU memory");
    if (!status.ok()) stream->abandon();
    return status;
}

Status GpuRuntime::allocate(size_t bytes, const char* what, GpuBlock* block) {
    EFA_TRY(allocate_as_it_is(bytes, what, block));
    Status zeroed = zero(block->addr_, block->bytes_);
    if (!zeroed.ok()) *block = GpuBlock();
    return zeroed;
}

Status GpuRuntime::allocate_as_it_is(size_t bytes, const char* what, GpuBlock* block) {
    const cuda::ScopedContext scope(*driver_, context_);
    GpuBlock made;
    const size_t whole = (std::max<size_t>(bytes, 1) + kAllocation - 1) / kAllocation * kAllocation;
    EFA_TRY(named(driver_->mem_alloc(&made.addr_, whole), "cuMemAlloc of " + std::to_string(whole) + " bytes for " + what));
    made.runtime_ = this;
    made.bytes_ = whole;
    *block = std::move(made);
    return Status();
}

Status GpuRuntime::share(const GpuBlock& block, GpuShare* share) const {
    const cuda::ScopedContext scope(*driver_, context_);
    *share = {{}, process_number(), reinterpret_cast<uint64_t>(context_), block.addr_, block.bytes_};
    return named(driver_->ipc_get_mem_handle(&share->handle, block.addr_), "cuIpcGetMemHandle");
}

Status GpuRuntime::open_shared(const GpuShare& share, GpuBlock* block) const {
    const cuda::ScopedContext scope(*driver_, context_);
    const size_t bytes = share.bytes;
    GpuBlock made;
    // CUDA refuses handles of the same process; ranks that are threads share what this one has.
    if (share.process != 0 && share.process == process_number() && share.context == reinterpret_cast<uint64_t>(context_)) {
        made.runtime_ = this;
        made.addr_ = share.address;
        made.bytes_ = bytes;
        made.kind_ = GpuBlock::Kind::kSameProcess;
        *block = std::move(made);
        return Status();
    }
    EFA_TRY(named(driver_->ipc_open_mem_handle(&made.addr_, share.handle, cuda::kIpcLazyPeerAccess), "cuIpcOpenMemHandle",
                  "GPUs of one NVLink domain must reach each other, and ranks with GPUs of their own be processes"
                  "; DEEP_EP_NVLINK_RANKS=1 goes without"));
    made.runtime_ = this;
    made.kind_ = GpuBlock::Kind::kMapped;
    cuda::DevicePtr base = 0;
    size_t mapped = 0;
    EFA_TRY(named(driver_->mem_get_address_range(&base, &mapped, made.addr_), "cuMemGetAddressRange"));
    if (base != made.addr_ || mapped < bytes)
        return Status::error(Code::kProtocol, "run one version of this library on all ranks", "a peer's GPU memory has %zu bytes; %zu were told",
                             mapped, bytes);
    made.bytes_ = bytes;
    *block = std::move(made);
    return Status();
}

Status GpuRuntime::load_kernels(const void* image, size_t bytes) {
    if (!image || bytes == 0) return Status::error(Code::kInvalidArgument, nullptr, "no image of kernels was given");
    const cuda::ScopedContext scope(*driver_, context_);
    const uint8_t* const first = static_cast<const uint8_t*>(image);
    images_.emplace_back(first, first + bytes);
    images_.back().push_back(0);  // an image of text ends with a zero
    cuda::Module module = nullptr;
    EFA_TRY(named(driver_->module_load_data(&module, images_.back().data()), "cuModuleLoadData",
                  "were the kernels compiled for this GPU? nvshmem_efa.kernels.archs_here() names it"));
    modules_.push_back(module);
    for (const char* const symbol : kSymbols) {
        // Not by asking the driver for each: tools that watch for errors would show every one that is in another image.
        if (!memmem(image, bytes, symbol, std::strlen(symbol))) continue;
        cuda::Function function = nullptr;
        if (driver_->module_get_function(&function, module, symbol) == cuda::kSuccess) functions_.emplace_back(symbol, function);
    }
    return Status();
}

Status GpuRuntime::launch(const char* symbol, const char* what, uint32_t blocks, uint32_t threads, const void* parameter) {
    const cuda::ScopedContext scope(*driver_, context_);
    const auto known = std::find_if(functions_.begin(), functions_.end(), [&](const auto& one) { return one.first == symbol; });
    if (known == functions_.end())
        return Status::error(Code::kMissing, "the Python package loads them when a Buffer is made", "no kernel for %s is loaded", what);
    void* parameters[] = {const_cast<void*>(parameter)};
    is_busy(stream_);
    return named(driver_->launch_kernel(known->second, blocks, 1, 1, threads, 1, 1, 0, stream_, parameters, nullptr),
                 std::string("launching the kernel for ") + what);
}

void GpuRuntime::is_busy(cuda::Stream stream) {
    if (std::find(busy_.begin(), busy_.end(), stream) == busy_.end()) busy_.push_back(stream);
}

Status GpuRuntime::look(const char* what) const {
    const cuda::ScopedContext scope(*driver_, context_);
    const cuda::Result result = driver_->stream_query(stream_);
    return result == cuda::kErrorNotReady ? Status() : named(result, what);
}

Status GpuRuntime::is_capturing(bool* is) const {
    const cuda::ScopedContext scope(*driver_, context_);
    int state = 0;  // CUstreamCaptureStatus: 0 none, 1 active, 2 invalidated
    EFA_TRY(named(driver_->stream_is_capturing(stream_, &state), "cuStreamIsCapturing"));
    *is = state != 0;
    return Status();
}

Status GpuRuntime::wait(const char* what) {
    const cuda::ScopedContext scope(*driver_, context_);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(4 * timeout_ms_);  // kernels end after their own waits
    while (!busy_.empty()) {
        const cuda::Result result = driver_->stream_query(busy_.back());
        if (result == cuda::kSuccess) {
            busy_.pop_back();
            continue;
        }
        is_stuck_ = result != cuda::kErrorNotReady || std::chrono::steady_clock::now() > end;
        if (result != cuda::kErrorNotReady) return named(result, what);
        if (is_stuck_)
            return Status::error(Code::kTimeout, "a kernel of the program that never ends, in the same stream?", "%s has not ended within %lld ms",
                                 what, static_cast<long long>(4 * timeout_ms_));
        std::this_thread::sleep_for(kLookEvery);
    }
    return Status();
}

Status GpuRuntime::write(void* gpu, const void* host, size_t bytes) {
    const cuda::ScopedContext scope(*driver_, context_);
    is_busy(stream_);
    EFA_TRY(named(driver_->memcpy_htod_async(reinterpret_cast<cuda::DevicePtr>(gpu), host, bytes, stream_), "cuMemcpyHtoDAsync"));
    return wait("a copy to the GPU");
}

Status GpuRuntime::read(void* host, const void* gpu, size_t bytes) {
    const cuda::ScopedContext scope(*driver_, context_);
    is_busy(stream_);
    EFA_TRY(named(driver_->memcpy_dtoh_async(host, reinterpret_cast<cuda::DevicePtr>(gpu), bytes, stream_), "cuMemcpyDtoHAsync"));
    return wait("a copy from the GPU");
}

Status GpuRuntime::fill_host(size_t bytes, void** host, void** gpu) {
    const cuda::ScopedContext scope(*driver_, context_);
    void* pinned = nullptr;
    EFA_TRY(named(driver_->mem_host_alloc(&pinned, bytes, cuda::kHostPortable), "cuMemHostAlloc", "raise the limit of locked memory (ulimit -l)"));
    pinned_.push_back(pinned);
    std::memset(pinned, 0, bytes);
    cuda::DevicePtr addr = 0;
    EFA_TRY(named(driver_->mem_host_get_device_pointer(&addr, pinned, 0), "cuMemHostGetDevicePointer"));
    *host = pinned;
    *gpu = reinterpret_cast<void*>(addr);
    return Status();
}

}  // namespace nvshmem_efa::ep
