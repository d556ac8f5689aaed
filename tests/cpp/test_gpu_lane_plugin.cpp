// SPDX-License-Identifier: Apache-2.0
// The real plugin in this process, one PE: the device state by the C API, and NVSHMEM's own quiet and barrier behind what
// posters have posted by it.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

#include "check.h"
#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/api.h"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/wait.cuh"
#include "pe_runtime/pe.h"

using namespace nvshmem_efa;
using namespace nvshmem_efa::pe;

namespace {

constexpr size_t kChunkBytes = 1 << 20;

PeOptions options_of(int abi, const char* gpu_queues) {
    static std::atomic<int> n{0};
    setenv("NVSHMEM_EFA_MODE", "soft", 1);
    setenv("NVSHMEM_EFA_GPU_QUEUES", gpu_queues, 1);
    setenv("NVSHMEM_EFA_SOFT_REORDER_NS", "20000000", 1);  // a host that does not wait looks too early
    setenv("NVSHMEM_EFA_TIMEOUT_MS", "6000", 1);
    PeOptions options;
    options.job = "gpu-" + std::to_string(getpid()) + "-" + std::to_string(n.fetch_add(1)) + "-job";
    options.abi = abi;
    options.plugin_path = std::string(PE_PLUGIN_FOLDER) + "/nvshmem_transport_efa_abi" + std::to_string(abi) + ".so";
    options.heap_bytes = options.heap.chunk_bytes = kChunkBytes;
    options.heap.reserve_bytes = 64 << 20;
    options.timeout_ms = 8000;
    return options;
}

// The library that the plugin itself uses.
template <class Function>
Function symbol(const char* name) {
    static void* const library = dlopen((std::string(PE_PLUGIN_FOLDER) + "/libnvshmem_efa.so").c_str(), RTLD_NOW);
    auto* const found = library ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
    if (!found) check::fail(__FILE__, __LINE__, std::string(name) + " is not there");
    return found;
}

struct Got {
    int code = 0;
    const DeviceState* state = nullptr;
    std::string error;
};
Got device_state() {
    Got got;
    void* at = nullptr;
    uint32_t version = 0;
    size_t bytes = 0;
    got.code = symbol<decltype(&nvshmem_efa_device_state)>("nvshmem_efa_device_state")(&at, &version, &bytes);
    CHECK(device_state_fits(version, bytes));
    got.state = static_cast<const DeviceState*>(at);
    if (got.code) got.error = symbol<decltype(&nvshmem_efa_last_error)>("nvshmem_efa_last_error")(nullptr);
    return got;
}

uint64_t now(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

}  // namespace

TEST(nvshmem_quiet_and_barrier_wait_for_what_was_posted_through_the_state) {
    for (const int abi : {3, 4, 7}) {
        std::unique_ptr<Pe> pe;
        CHECK_OK(Pe::create(options_of(abi, "2"), &pe));
        const Got got = device_state();
        CHECK_EQ(got.code, 0);
        void* block = nullptr;
        CHECK_OK(pe->malloc(8192, &block));
        auto* const words = static_cast<uint64_t*>(block);
        for (uint64_t round = 1; round <= 2; ++round) {
            for (uint64_t i = 0; i < 32; ++i) {
                words[i] = 100 * round + i;
                CHECK(put_nbi(*got.state, words + 100 + i, words + i, 8, 0));
            }
            CHECK(atomic_add(*got.state, words + 99, uint64_t{5}, 0));
            CHECK_OK(round == 1 ? pe->quiet() : pe->barrier_all());
            for (uint64_t i = 0; i < 32; ++i) CHECK_EQ(now(words + 100 + i), 100 * round + i);
            CHECK_EQ(now(words + 99), 5 * round);
        }
        CHECK(pe->stats_json().find("\"gpu_work_requests\": 66") != std::string::npos);
        CHECK_OK(pe->finalize());
        const Got after = device_state();
        CHECK_EQ(after.code, static_cast<int>(Code::kMissing));
        CHECK(!after.state && after.error.find("no transport is up") != std::string::npos);
    }
}

TEST(memory_that_nvshmem_adds_later_can_be_posted_to) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(6, "1"), &pe));
    const DeviceState& state = *device_state().state;
    const uint32_t before = state.n_chunks;
    void* block = nullptr;
    CHECK_OK(pe->grow(2 * kChunkBytes));
    CHECK(state.n_chunks > before);
    CHECK_OK(pe->malloc(kChunkBytes + kChunkBytes / 2, &block));  // over the end of a chunk
    auto* const words = static_cast<uint64_t*>(block);
    const size_t n = kChunkBytes / 8 + 64;
    for (size_t i = 0; i < 64; ++i) words[i] = 900 + i;
    for (size_t i = 0; i < 64; ++i) CHECK(put_nbi(state, words + n + i, words + i, 8, 0));
    CHECK_OK(pe->quiet());
    for (size_t i = 0; i < 64; ++i) CHECK_EQ(now(words + n + i), 900 + i);
    alignas(64) static uint64_t outside[8] = {31, 32, 33, 34, 35, 36, 37, 38};
    CHECK_OK(pe->register_buffer(outside, sizeof outside));
    CHECK(put_nbi(state, words, outside, sizeof outside, 0));
    CHECK_OK(pe->quiet());
    for (size_t i = 0; i < 8; ++i) CHECK_EQ(now(words + i), 31 + i);
    CHECK_OK(pe->unregister_buffer(outside));
    CHECK(!put_nbi(state, words, outside, sizeof outside, 0));
    const Status status = pe->quiet();
    CHECK(!status.ok());
    const std::string error = symbol<decltype(&nvshmem_efa_last_error)>("nvshmem_efa_last_error")(nullptr);
    if (error.find("is in no memory registered") == std::string::npos) check::fail(__FILE__, __LINE__, error);
}

TEST(without_queues_there_is_no_state_and_the_error_says_what_to_set) {
    std::unique_ptr<Pe> pe;
    CHECK_OK(Pe::create(options_of(4, "0"), &pe));
    const Got got = device_state();
    CHECK_EQ(got.code, static_cast<int>(Code::kUnsupported));
    CHECK(!got.state && got.error.find("hint: set NVSHMEM_EFA_GPU_QUEUES") != std::string::npos);
    CHECK_OK(pe->finalize());
}

TEST_MAIN()
