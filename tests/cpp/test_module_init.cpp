// SPDX-License-Identifier: Apache-2.0
// The whole way: this program is linked with the switch and includes the header; a PE starts the real plugin over soft EFA,
// with queues for posters; and a "kernel" of this program posts through its own symbol.
#include "nvshmem_efa/module.cuh"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "modules/module.h"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/wait.cuh"
#include "pe_runtime/pe.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::pe;

namespace {

PeOptions options_of(int abi) {
    static int n = 0;
    setenv("NVSHMEM_EFA_MODE", "soft", 1);
    setenv("NVSHMEM_EFA_GPU_QUEUES", "1", 1);
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "6000", 1);
    PeOptions options;
    options.job = "module-" + std::to_string(getpid()) + "-" + std::to_string(n++) + "-job";
    options.abi = abi;
    options.plugin_path = std::string(PLUGINS) + "/nvshmem_transport_efa_abi" + std::to_string(abi) + ".so";
    options.heap_bytes = options.heap.chunk_bytes = 1 << 20;
    options.heap.reserve_bytes = 64 << 20;
    options.timeout_ms = 8000;
    return options;
}

using Look = unsigned long (*)();
Look library_look() {
    void* library = dlopen(MODULE, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr);
    return reinterpret_cast<Look>(dlsym(library, "module_first"));
}

}  // namespace

TEST(a_program_posts_through_its_own_symbol_between_init_and_finalize_and_again) {
    const Look before = library_look();
    for (const int abi : {3, 7}) {
        CHECK(nvshmem_efa_state == nullptr && before() == 0);
        std::unique_ptr<Pe> pe;
        CHECK_OK(Pe::create(options_of(abi), &pe));
        CHECK(nvshmem_efa_state != nullptr && nvshmem_efa_state->magic == kDeviceStateMagic);
        CHECK_EQ(before(), reinterpret_cast<unsigned long>(nvshmem_efa_state));
        void* block = nullptr;
        CHECK_OK(pe->malloc(8192, &block));
        char* at = static_cast<char*>(block);
        std::memset(at, abi, 1000);
        CHECK(put_nbi(*nvshmem_efa_state, at + 4096, at, 1000, 0));
        CHECK(quiet(*nvshmem_efa_state));
        CHECK_EQ(std::memcmp(at, at + 4096, 1000), 0);
        CHECK_OK(pe->free(block));
        CHECK_OK(pe->finalize());
        CHECK(nvshmem_efa_state == nullptr && before() == 0);
    }
}

TEST_MAIN()
