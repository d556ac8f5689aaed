// SPDX-License-Identifier: Apache-2.0
#include "cuda_driver.h"

#include <dlfcn.h>

#include <set>
#include <thread>

#include "check.h"
#include "cuda_stream.h"
#include "fake_cuda/fake_cuda.h"

using namespace nvshmem_efa;

namespace {

std::set<std::string> asked;
std::string hidden;

void* lookup(void* library, const char* symbol) {
    asked.insert(symbol);
    return symbol == hidden ? nullptr : dlsym(library, symbol);
}

}  // namespace

TEST(each_missing_symbol_is_named) {
    hidden.clear(), asked.clear();
    cuda::Driver driver;
    CHECK_OK(cuda::driver_fill(&lookup, RTLD_DEFAULT, &driver));
    const std::set<std::string> all = asked;
    CHECK(all.size() > 35);
    for (const std::string& symbol : all) {
        hidden = symbol;
        Status status = cuda::driver_fill(&lookup, RTLD_DEFAULT, &driver);
        CHECK_EQ(status.code(), Code::kTooOld);
        CHECK(std::strstr(status.message(), (" " + symbol + ";").c_str()) != nullptr);
        CHECK(std::strstr(status.message(), "hint:") != nullptr);
    }
    hidden.clear();
}

TEST(loading_twice_gives_one_table_from_any_thread) {
    const cuda::Driver* first = nullptr;
    const cuda::Driver* second = nullptr;
    std::thread other([&] { (void)cuda::driver_load(&second).ok(); });
    CHECK_OK(cuda::driver_load(&first));
    other.join();
    CHECK(first == second && first != nullptr);
    CHECK(cuda::driver_if_loaded() == first);
}

TEST(memory_kind_tells_device_from_pinned_and_plain_memory) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    const uint64_t device = fake_cuda_alloc(4096);
    const cuda::Driver* driver = nullptr;
    CHECK_OK(cuda::driver_load(&driver));
    void* pinned = nullptr;
    CHECK_EQ(driver->mem_host_alloc(&pinned, 4096, cuda::kHostPortable), 0);
    int plain = 0;
    CHECK_EQ(cuda::memory_kind_of(reinterpret_cast<void*>(device + 4095)), MemoryKind::kCuda);
    CHECK_EQ(cuda::memory_kind_of(pinned), MemoryKind::kHost);
    CHECK_EQ(cuda::memory_kind_of(&plain), MemoryKind::kHost);
    driver->mem_free_host(pinned);
    fake_cuda_free(device);
}

TEST(an_error_names_the_call_the_code_and_its_text) {
    const cuda::Driver* driver = nullptr;
    CHECK_OK(cuda::driver_load(&driver));
    CHECK_FAILS(cuda::driver_error(*driver, 2, "cuMemMap", "free memory"), Code::kResource,
                "cuMemMap failed: CUDA_ERROR_OUT_OF_MEMORY (2, as planned by the test); hint: free memory");
    CHECK_FAILS(cuda::driver_error(*driver, 801, "x"), Code::kUnsupported, "CUDA_ERROR_NOT_SUPPORTED");
    CHECK_FAILS(cuda::driver_error(*driver, 700, "x"), Code::kDevice, "700");
}

TEST(a_scoped_context_is_put_back) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    const cuda::Driver* driver = nullptr;
    CHECK_OK(cuda::driver_load(&driver));
    cuda::Context mine = nullptr, now = nullptr;
    driver->ctx_get_current(&mine);
    fake_cuda_use_device(1);
    {
        cuda::ScopedContext scope(*driver, mine);
        driver->ctx_get_current(&now);
        CHECK(now == mine && scope.result() == 0);
        cuda::ScopedContext again(*driver, mine);
        CHECK_EQ(fake_cuda_calls("cuCtxPushCurrent"), uint64_t{1});  // already current: nothing to push
    }
    driver->ctx_get_current(&now);
    CHECK(now != mine);
    CHECK_EQ(fake_cuda_calls("cuCtxPopCurrent"), uint64_t{1});
}

TEST(a_marked_stream_needs_a_context_and_says_so) {
    fake_cuda_reset(1);
    fake_cuda_use_device(-1);
    std::unique_ptr<cuda::MarkedStream> stream;
    CHECK_FAILS(cuda::MarkedStream::create(64, &stream), Code::kMissing, "no current CUDA context");
    fake_cuda_use_device(0);
    CHECK_OK(cuda::MarkedStream::create(64, &stream));
}

TEST(each_failing_call_of_a_marked_stream_is_named) {
    for (const char* call : {"cuCtxGetDevice", "cuStreamCreateWithPriority", "cuMemHostAlloc", "cuMemHostGetDevicePointer"}) {
        fake_cuda_reset(1);
        fake_cuda_use_device(0);
        fake_cuda_fail(call, 999, 0, 1);
        std::unique_ptr<cuda::MarkedStream> stream;
        CHECK_FAILS(cuda::MarkedStream::create(64, &stream), Code::kDevice, call);
    }
}

TEST(a_marker_lands_after_the_work_before_it) {
    for (uint64_t seed = 1; seed <= 50; ++seed) {
        fake_cuda_reset(seed);
        fake_cuda_use_device(0);
        std::unique_ptr<cuda::MarkedStream> stream;
        CHECK_OK(cuda::MarkedStream::create(4096, &stream));
        const uint64_t device = fake_cuda_alloc(4096);
        std::memset(stream->scratch(), static_cast<int>(seed), 4096);
        const cuda::Driver& driver = stream->driver();
        CHECK_EQ(driver.memcpy_htod_async(device, stream->scratch(), 4096, stream->stream()), 0);
        cuda::MarkedStream::Ticket ticket = 0;
        CHECK_OK(stream->mark(&ticket));
        CHECK_OK(stream->wait(ticket, 5000, "test"));
        CHECK(std::memcmp(fake_cuda_cpu(device), stream->scratch(), 4096) == 0);
        fake_cuda_free(device);
    }
}

TEST(a_wait_on_a_stalled_stream_ends_at_its_deadline) {
    fake_cuda_reset(1);
    fake_cuda_use_device(0);
    std::unique_ptr<cuda::MarkedStream> stream;
    CHECK_OK(cuda::MarkedStream::create(64, &stream));
    fake_cuda_stall(1);
    cuda::MarkedStream::Ticket ticket = 0;
    CHECK_OK(stream->mark(&ticket));
    CHECK_FAILS(stream->wait(ticket, 20, "the thing"), Code::kTimeout, "the thing on GPU 0 did not complete within 20 ms");
    fake_cuda_stall(0);
    CHECK_OK(stream->wait(ticket, 5000, "the thing"));
}

TEST_MAIN()
