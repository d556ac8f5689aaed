// SPDX-License-Identifier: Apache-2.0
// This program links no fake driver: what happens in a process which has no CUDA.
#include <dlfcn.h>

#include <fstream>

#include "check.h"
#include "cuda_driver.h"
#include "soft_efa/memory_port.h"
#include "words_cuda.h"

using namespace nvshmem_efa;

namespace {

bool is_driver_mapped() {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);)
        if (line.find("libcuda") != std::string::npos) return true;
    return false;
}

void skip_with_driver() {
    if (void* library = dlopen("libcuda.so.1", RTLD_LAZY)) {
        dlclose(library);
        SKIP("this machine has a driver");
    }
}

}  // namespace

TEST(asking_for_the_kind_of_memory_loads_no_driver) {
    int plain = 0;
    CHECK_EQ(cuda::memory_kind_of(&plain), MemoryKind::kHost);
    CHECK(cuda::driver_if_loaded() == nullptr);
    CHECK(!is_driver_mapped());
}

TEST(every_engine_and_port_names_the_missing_driver) {
    skip_with_driver();
    std::unique_ptr<WordEngine> engine;
    std::unique_ptr<soft::MemoryPort> port;
    CHECK_FAILS(make_cuda_words(&engine), Code::kMissing, "libcuda.so.1");
    CHECK_FAILS(make_stream_words(100, &engine), Code::kMissing, "hint:");
    CHECK_FAILS(make_gpu_warp_words(100, &engine), Code::kMissing, "libcuda.so.1");
    CHECK_FAILS(make_gdrcopy_words(nullptr, &engine), Code::kMissing, "libcuda.so.1");
    CHECK_FAILS(soft::make_cuda_memory_port(1, &port), Code::kMissing, "libcuda.so.1");
}

TEST_MAIN()
