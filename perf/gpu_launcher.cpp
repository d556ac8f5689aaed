// SPDX-License-Identifier: Apache-2.0
#include "gpu_launcher.h"

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda_driver.h"
#include "nvshmem_efa/api.h"

using nvshmem_efa::Code;
using nvshmem_efa::Status;
namespace cuda = nvshmem_efa::cuda;

struct nvshmem_efa_bench {
    const cuda::Driver* driver = nullptr;
    cuda::Context context = nullptr;
    cuda::Module module = nullptr;
    cuda::Stream stream = nullptr;
    cuda::DevicePtr out = 0;
    uint64_t out_bytes = 0;
    bool has_state = false;  // the library knows the module
    bool is_stuck = false;   // a kernel has not ended
    std::vector<uint8_t> zeros;
};

namespace {

constexpr auto kLook = std::chrono::microseconds(200);
constexpr uint32_t kCopyDeadlineMs = 10'000;

thread_local std::string error_text;

template <class Call>
int guarded(Call call) noexcept {
    try {
        const Status status = call();
        if (!status.ok()) error_text = status.message();
        return static_cast<int>(status.code());
    } catch (...) {
        error_text = "out of memory";
        return static_cast<int>(Code::kResource);
    }
}

Status named(const nvshmem_efa_bench& bench, cuda::Result result, const std::string& what) {
    return result == cuda::kSuccess ? Status() : cuda::driver_error(*bench.driver, result, what);
}

Status open(nvshmem_efa_bench& bench, const void* image) {
    EFA_TRY(cuda::driver_load(&bench.driver));
    const cuda::Driver& driver = *bench.driver;
    EFA_TRY(named(bench, driver.ctx_get_current(&bench.context), "cuCtxGetCurrent"));
    if (!bench.context) return Status::error(Code::kMissing, "make a GPU current first", "no CUDA context is current on this thread");
    EFA_TRY(named(bench, driver.stream_create(&bench.stream, cuda::kStreamNonBlocking, 0), "cuStreamCreateWithPriority"));
    EFA_TRY(named(bench, driver.mem_alloc(&bench.out, bench.out_bytes), "cuMemAlloc of " + std::to_string(bench.out_bytes) + " bytes"));
    EFA_TRY(named(bench, driver.module_load_data(&bench.module, image), "cuModuleLoadData"));
    if (const int code = nvshmem_efa_module_add_driver(bench.module))
        return Status::error(static_cast<Code>(code), nullptr, "the kernels get no device state: %s", nvshmem_efa_last_error(nullptr));
    bench.has_state = true;
    return Status();
}

// Looks, so that a kernel that never ends is an error and no hang.
Status wait_for_stream(nvshmem_efa_bench& bench, uint32_t deadline_ms, const char* what) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
    for (;;) {
        const cuda::Result result = bench.driver->stream_query(bench.stream);
        if (result == cuda::kSuccess) return Status();
        if (result != cuda::kErrorNotReady) {
            bench.is_stuck = true;  // nobody knows what still runs
            return named(bench, result, what);
        }
        if (std::chrono::steady_clock::now() > end) {
            bench.is_stuck = true;
            return Status::error(Code::kTimeout, "a PE that stopped, or NVSHMEM_EFA_TIMEOUT_MS above this deadline",
                                 "%s has not ended within %u ms", what, deadline_ms);
        }
        std::this_thread::sleep_for(kLook);
    }
}

Status run(nvshmem_efa_bench& bench, const nvshmem_efa_bench_launch& launch, void* out, uint64_t bytes) {
    if (bench.is_stuck) return Status::error(Code::kInvalidArgument, nullptr, "an earlier kernel has not ended");
    if (bytes > bench.out_bytes)
        return Status::error(Code::kInvalidArgument, nullptr, "%s reports %llu bytes, there is room for %llu", launch.kernel,
                             static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(bench.out_bytes));
    const cuda::Driver& driver = *bench.driver;
    const cuda::ScopedContext scope(driver, bench.context);
    EFA_TRY(named(bench, scope.result(), "cuCtxPushCurrent"));
    cuda::Function function = nullptr;
    EFA_TRY(named(bench, driver.module_get_function(&function, bench.module, launch.kernel), std::string("finding ") + launch.kernel));
    if (bench.zeros.size() < bytes) bench.zeros.resize(bytes);
    EFA_TRY(named(bench, driver.memcpy_htod_async(bench.out, bench.zeros.data(), bytes, bench.stream), "cuMemcpyHtoDAsync"));
    void* parameters[] = {const_cast<void*>(launch.args)};
    EFA_TRY(named(bench, driver.launch_kernel(function, launch.blocks, 1, 1, launch.threads, 1, 1, 0, bench.stream, parameters, nullptr),
                  std::string("launching ") + launch.kernel));
    EFA_TRY(wait_for_stream(bench, launch.deadline_ms, launch.kernel));
    EFA_TRY(named(bench, driver.memcpy_dtoh_async(out, bench.out, bytes, bench.stream), "cuMemcpyDtoHAsync"));
    return wait_for_stream(bench, kCopyDeadlineMs, "copying a kernel's report");
}

Status close(nvshmem_efa_bench& bench) {
    if (!bench.context) return Status();
    const cuda::ScopedContext scope(*bench.driver, bench.context);
    EFA_TRY(named(bench, scope.result(), "cuCtxPushCurrent"));
    if (bench.stream && !bench.is_stuck) static_cast<void>(wait_for_stream(bench, kCopyDeadlineMs, "what is left in the stream"));
    if (bench.is_stuck) return Status::error(Code::kTimeout, nullptr, "a kernel may still run; its module and memory are left alone");
    int removed = 0;
    if (bench.has_state) removed = nvshmem_efa_module_remove_driver(bench.module);
    cuda::Result first = cuda::kSuccess;
    const auto note = [&](cuda::Result result) { first = first == cuda::kSuccess ? result : first; };
    if (bench.module) note(bench.driver->module_unload(bench.module));
    if (bench.out) note(bench.driver->mem_free(bench.out));
    if (bench.stream) note(bench.driver->stream_destroy(bench.stream));
    if (removed) return Status::error(static_cast<Code>(removed), nullptr, "%s", nvshmem_efa_last_error(nullptr));
    return named(bench, first, "freeing the launcher");
}

}  // namespace

int nvshmem_efa_bench_open(const void* image, uint64_t out_bytes, nvshmem_efa_bench** bench) {
    return guarded([&] {
        auto made = std::make_unique<nvshmem_efa_bench>();
        made->out_bytes = out_bytes;
        Status status = open(*made, image);
        if (!status.ok()) {
            static_cast<void>(close(*made));  // the first error is the one to tell
            if (made->is_stuck) static_cast<void>(made.release());
            return status;
        }
        *bench = made.release();
        return Status();
    });
}

uint64_t nvshmem_efa_bench_out(const nvshmem_efa_bench* bench) { return bench->out; }

int nvshmem_efa_bench_run(nvshmem_efa_bench* bench, const nvshmem_efa_bench_launch* launch, void* out, uint64_t bytes) {
    return guarded([&] { return run(*bench, *launch, out, bytes); });
}

int nvshmem_efa_bench_close(nvshmem_efa_bench* bench) {
    const int code = guarded([&] { return close(*bench); });
    if (!bench->is_stuck) delete bench;  // else the stream may still read it, and so may whoever looks why
    return code;
}

const char* nvshmem_efa_bench_error(void) { return error_text.c_str(); }
