// SPDX-License-Identifier: Apache-2.0
// What `nvshmem-efa bench transport` launches its kernels with, on a fake driver; and what tells right bytes from wrong.
#include <atomic>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "bench_bodies.h"
#include "check.h"
#include "fake_cuda/fake_cuda.h"
#include "gpu_launcher.h"
#include "module_registry.h"
#include "nvshmem_efa/api.h"
#include "status.h"

using namespace nvshmem_efa;

namespace {

constexpr char kImage[] = "what the fake driver takes for a module: .version 7.0, with bench_one in it";
constexpr size_t kOutBytes = 512;

uint64_t* out_of(void* parameter) { return static_cast<uint64_t*>(fake_cuda_cpu(reinterpret_cast<uint64_t>(parameter))); }

// A GPU, on which a module has the two variables that module.cuh makes.
struct Gpu {
    uint64_t symbol = 0;
    explicit Gpu(size_t layout_bytes = module_layout_bytes(kDeviceStateVersion, sizeof(DeviceState))) {
        fake_cuda_reset(1);
        fake_cuda_use_device(0);
        symbol = fake_cuda_alloc(64);
        fake_cuda_module_global(const_cast<char*>(kImage), "nvshmem_efa_state", symbol, 8);
        fake_cuda_module_global(const_cast<char*>(kImage), "nvshmem_efa_state_layout", symbol, layout_bytes);
        fake_cuda_kernel([](void* out) { out_of(out)[0] += 7; });
    }
    ~Gpu() { fake_cuda_free(symbol); }
};

struct Launcher {
    nvshmem_efa_bench* bench = nullptr;
    int code = nvshmem_efa_bench_open(kImage, kOutBytes, &bench);
    uint64_t out[kOutBytes / 8] = {};
    ~Launcher() { if (bench) static_cast<void>(nvshmem_efa_bench_close(bench)); }
    int close() { return nvshmem_efa_bench_close(std::exchange(bench, nullptr)); }
    // Of one whose kernel may still run: it stays, here too, so that nobody takes it for forgotten.
    int close_stuck() {
        static auto* const kept = new std::vector<nvshmem_efa_bench*>;  // outlives the leak checker's look
        kept->push_back(bench);
        return close();
    }

    int run(const char* kernel = "bench_one", uint32_t deadline_ms = 5000, uint64_t bytes = kOutBytes) {
        bench::Args args{};
        args.out = reinterpret_cast<uint64_t*>(nvshmem_efa_bench_out(bench));
        const nvshmem_efa_bench_launch launch{kernel, &args, 1, 32, deadline_ms, 0};
        return nvshmem_efa_bench_run(bench, &launch, out, bytes);
    }
};

bool says(const char* words) {
    if (std::strstr(nvshmem_efa_bench_error(), words)) return true;
    std::fprintf(stderr, "error text: %s\n", nvshmem_efa_bench_error());
    return false;
}
int code(Code code) { return static_cast<int>(code); }

}  // namespace

TEST(a_kernel_runs_to_its_end_and_its_report_begins_with_zeros) {
    Gpu gpu;
    fake_cuda_delay_us(3000);
    Launcher launcher;
    CHECK_EQ(launcher.code, 0);
    for (int i = 0; i < 3; ++i) {
        CHECK_EQ(launcher.run(), 0);
        CHECK_EQ(launcher.out[0], 7u);
        CHECK_EQ(launcher.out[1], 0u);
    }
}

TEST(a_kernel_that_never_ends_is_a_timeout_by_name_and_nothing_of_it_is_freed) {
    Gpu gpu;
    Launcher launcher;
    CHECK_EQ(launcher.code, 0);
    fake_cuda_gpu_full(1);
    CHECK_EQ(launcher.run("bench_one", 30), code(Code::kTimeout));
    CHECK(says("bench_one has not ended within 30 ms"));
    CHECK_EQ(launcher.run(), code(Code::kInvalidArgument));
    CHECK(says("an earlier kernel"));
    CHECK_EQ(launcher.close_stuck(), code(Code::kTimeout));
    CHECK_EQ(fake_cuda_calls("cuMemFree") + fake_cuda_calls("cuModuleUnload"), 0u);
    fake_cuda_gpu_full(0);
}

TEST(what_the_driver_refuses_while_opening_is_named_and_all_of_it_undone) {
    for (const char* call : {"cuStreamCreateWithPriority", "cuMemAlloc", "cuModuleLoadData", "cuModuleGetGlobal"}) {
        Gpu gpu;
        fake_cuda_fail(call, 2, 0, 2);
        nvshmem_efa_bench* bench = nullptr;
        CHECK(nvshmem_efa_bench_open(kImage, kOutBytes, &bench) != 0);
        CHECK(bench == nullptr);
        if (std::strcmp(call, "cuModuleGetGlobal") != 0) CHECK(says(call) && says("OUT_OF_MEMORY"));
        else CHECK(says("no device state"));
        fake_cuda_fail(call, 0, 0, 0);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), std::strcmp(call, "cuModuleLoadData") == 0 || std::strcmp(call, "cuModuleGetGlobal") == 0 ? 1u : 0u);
        CHECK_EQ(fake_cuda_calls("cuModuleUnload"), std::strcmp(call, "cuModuleGetGlobal") == 0 ? 1u : 0u);
    }
}

TEST(what_the_driver_refuses_in_a_run_is_named) {
    for (const char* call : {"cuModuleGetFunction", "cuMemcpyHtoDAsync", "cuLaunchKernel", "cuStreamQuery", "cuMemcpyDtoHAsync"}) {
        Gpu gpu;
        Launcher launcher;
        CHECK_EQ(launcher.code, 0);
        fake_cuda_fail(call, 2, 0, 1);
        CHECK(launcher.run() != 0);
        CHECK(says("OUT_OF_MEMORY"));
        CHECK(says(std::strcmp(call, "cuModuleGetFunction") == 0 ? "finding bench_one" : std::strcmp(call, "cuLaunchKernel") == 0 ? "launching bench_one"
                   : std::strcmp(call, "cuStreamQuery") == 0 ? "bench_one" : call));
        const bool may_still_run = std::strcmp(call, "cuStreamQuery") == 0;
        CHECK_EQ(may_still_run ? launcher.close_stuck() : launcher.close(), may_still_run ? code(Code::kTimeout) : 0);
        CHECK_EQ(fake_cuda_calls("cuMemFree"), may_still_run ? 0u : 1u);
    }
}

TEST(a_kernel_that_the_module_lacks_and_a_report_without_room_are_refused) {
    Gpu gpu;
    Launcher launcher;
    CHECK_EQ(launcher.code, 0);
    CHECK(launcher.run("bench_other") != 0);
    CHECK(says("finding bench_other"));
    CHECK_EQ(launcher.run("bench_one", 1000, kOutBytes + 8), code(Code::kInvalidArgument));
    CHECK(says("reports 520 bytes, there is room for 512"));
}

TEST(a_module_of_other_headers_is_refused) {
    Gpu gpu(module_layout_bytes(kDeviceStateVersion + 1, sizeof(DeviceState)));
    Launcher launcher;
    CHECK_EQ(launcher.code, code(Code::kMismatch));
    CHECK(says("the kernels get no device state"));
}

TEST(without_a_current_gpu_the_error_says_so) {
    fake_cuda_reset(1);
    fake_cuda_use_device(-1);
    Launcher launcher;
    CHECK_EQ(launcher.code, code(Code::kMissing));
    CHECK(says("no CUDA context is current"));
}

TEST(a_closed_launcher_leaves_nothing_behind) {
    Gpu gpu;
    for (int i = 0; i < 3; ++i) {
        Launcher launcher;
        CHECK_EQ(launcher.code, 0);
        CHECK_EQ(launcher.run(), 0);
        CHECK_EQ(launcher.close(), 0);
    }
    CHECK_EQ(fake_cuda_calls("cuMemAlloc"), fake_cuda_calls("cuMemFree"));
    CHECK_EQ(fake_cuda_calls("cuModuleUnload"), 3u);
    CHECK_EQ(std::string(nvshmem_efa_modules_json()), "[]");
}

TEST(a_byte_that_is_missing_from_another_pe_or_from_another_place_is_wrong) {
    constexpr size_t kBytes = 1000;
    std::vector<char> source(kBytes), dest(kBytes, 'x');
    bench::Args args{};
    args.source = source.data();
    args.dest = dest.data();
    args.bytes = kBytes;
    for (uint64_t first = 0; first < 3; ++first) bench::fill(args, 1, first, 3);
    const auto wrong = [&](int32_t owner) {
        args.peer = owner;
        uint64_t sum = 0;
        for (uint64_t first = 0; first < 7; ++first) sum += bench::wrong_bytes(args, 0, first, 7);
        return sum;
    };
    CHECK(wrong(1) > kBytes * 9 / 10);  // nothing arrived: a few zeros are right by chance
    dest = source;
    args.dest = dest.data();
    CHECK_EQ(wrong(1), 0u);
    CHECK(wrong(0) > kBytes * 9 / 10);
    dest[kBytes - 1] = static_cast<char>(dest[kBytes - 1] ^ 1);
    CHECK_EQ(wrong(1), 1u);
    std::memmove(dest.data() + 8, source.data(), kBytes - 8);
    CHECK(wrong(1) > kBytes * 9 / 10);
}

TEST_MAIN()
