// SPDX-License-Identifier: Apache-2.0
// Modules get the device state by themselves, on a GPU: this executable, libraries opened before and after init, a cubin
// that NVRTC made. One PE; docs/modules.md says what is promised. tests/gpu/build_modules.sh builds and tells how to run:
//   modules FOLDER_OF_LIBRARIES NVSHMEM_HOST_LIBRARY MODULE_PROBE_CUBIN
#include <cuda.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "modules_kernel.cuh"

namespace {

int failures = 0;

[[noreturn]] void stop(const std::string& what) {
    std::fprintf(stderr, "modules: %s\n", what.c_str());
    std::exit(3);
}

template <class Function>
Function find(void* library, const char* name) {
    void* found = dlsym(library, name);
    if (!found) stop(std::string("no ") + name);
    return reinterpret_cast<Function>(found);
}

void* open_library(const std::string& path, int flags = RTLD_LOCAL) {
    void* library = dlopen(path.c_str(), RTLD_NOW | flags);
    if (!library) stop(dlerror());
    return library;
}

// `tries`: looks, 0.1 s apart, until there is a state.
void expect(const char* who, const char* when, LookFunction look_at, bool wants_state, int tries = 1) {
    int32_t seen[5] = {};
    for (bool has_looked = false; !has_looked || (--tries > 0 && !seen[0]); has_looked = true) {
        if (has_looked) usleep(100'000);
        if (look_at(seen)) continue;
        std::printf("FAIL %s, %s: %s\n", who, when, cudaGetErrorString(static_cast<cudaError_t>(seen[1])));
        ++failures;
        return;
    }
    const bool is_good = wants_state ? seen[0] == 1 && seen[1] == static_cast<int32_t>(nvshmem_efa::kDeviceStateVersion) &&
                                           seen[2] == static_cast<int32_t>(sizeof(nvshmem_efa::DeviceState)) && seen[3] == 0 && seen[4] == 1
                                     : seen[0] == 0;
    failures += !is_good;
    std::printf("%s %s, %s: %s (version %d, %d bytes, PE %d of %d)\n", is_good ? "ok  " : "FAIL", who, when,
                seen[0] ? "has a state" : "has none", seen[1], seen[2], seen[3], seen[4]);
}

// ---- NVSHMEM's host API, by name: layouts are those of its installed headers ----

struct UniqueId {
    int version;
    char bytes[124];
};
struct InitAttr {
    int version;
    void* mpi;
    char args[128];
};
static_assert(sizeof(UniqueId) == 128 && sizeof(InitAttr) == 144, "as python/nvshmem_efa/gpu_calls.py");

void nvshmem_start(void* host) {
    UniqueId id = {(1 << 16) + static_cast<int>(sizeof(UniqueId)), {}};
    InitAttr attr = {(1 << 16) + static_cast<int>(sizeof(InitAttr)), nullptr, {}};
    if (find<int (*)(UniqueId*)>(host, "nvshmemx_get_uniqueid")(&id) != 0) stop("nvshmemx_get_uniqueid failed");
    if (find<int (*)(int, int, const UniqueId*, InitAttr*)>(host, "nvshmemx_set_attr_uniqueid_args")(0, 1, &id, &attr) != 0)
        stop("nvshmemx_set_attr_uniqueid_args failed");
    constexpr unsigned kWithUniqueId = 1u << 3;
    if (find<int (*)(unsigned, InitAttr*)>(host, "nvshmemx_hostlib_init_attr")(kWithUniqueId, &attr) != 0)
        stop("nvshmemx_hostlib_init_attr failed");
}

void nvshmem_end(void* host) { find<void (*)()>(host, "nvshmemx_hostlib_finalize")(); }

// ---- a cubin, through the driver ----

CUmodule cubin = nullptr;
CUfunction cubin_kernel = nullptr;

void load_cubin(const char* path) {
    void* driver = open_library("libcuda.so.1");
    if (find<decltype(&cuModuleLoad)>(driver, "cuModuleLoad")(&cubin, path) != CUDA_SUCCESS) stop(std::string("cuModuleLoad of ") + path);
    if (find<decltype(&cuModuleGetFunction)>(driver, "cuModuleGetFunction")(&cubin_kernel, cubin, "module_probe") != CUDA_SUCCESS)
        stop("no kernel module_probe");
}

bool look_by_cubin(int32_t seen[5]) {
    int32_t* out = nullptr;
    if (cudaMalloc(&out, 5 * sizeof *out) != cudaSuccess || cudaMemset(out, 0, 5 * sizeof *out) != cudaSuccess) return false;
    void* parameters[] = {&out};
    const auto launch = find<decltype(&cuLaunchKernel)>(open_library("libcuda.so.1"), "cuLaunchKernel");
    const bool is_good = launch(cubin_kernel, 1, 1, 1, 1, 1, 1, 0, nullptr, parameters, nullptr) == CUDA_SUCCESS &&
                         cudaMemcpy(seen, out, 5 * sizeof *out, cudaMemcpyDeviceToHost) == cudaSuccess;
    cudaFree(out);
    return is_good;
}

int call_for_cubin(const char* name) {
    return find<int (*)(void*)>(open_library("libnvshmem_efa.so", RTLD_NOLOAD), name)(cubin);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4) stop("usage: modules FOLDER_OF_LIBRARIES NVSHMEM_HOST_LIBRARY MODULE_PROBE_CUBIN");
    const std::string folder = argv[1];
    if (cudaSetDevice(0) != cudaSuccess || cudaFree(nullptr) != cudaSuccess) stop("no GPU");
    void* early = open_library(folder + "/libmodules_early.so");
    const auto early_look = find<LookFunction>(early, "module_look"), early_second = find<LookFunction>(early, "module_look_second");
    expect("executable", "before init", look, false);
    expect("library", "before init", early_look, false);

    void* host = open_library(argv[2], RTLD_GLOBAL);
    nvshmem_start(host);
    expect("executable", "after init", look, true);
    expect("library opened before", "after init", early_look, true);
    expect("its second translation unit", "after init", early_second, true);
    expect("library opened after", "at once", find<LookFunction>(open_library(folder + "/libmodules_late.so"), "module_look"), true);
    void* rdc = open_library(folder + "/libmodules_rdc.so");
    // The runtime knows such a library only when its last constructor has run: a moment later (docs/modules.md).
    expect("-rdc library opened after", "soon", find<LookFunction>(rdc, "module_look"), true, 30);
    expect("its second translation unit", "soon", find<LookFunction>(rdc, "module_look_second"), true, 30);
    load_cubin(argv[3]);
    expect("cubin", "not added", look_by_cubin, false);
    if (call_for_cubin("nvshmem_efa_module_add_driver") != 0) stop("nvshmem_efa_module_add_driver failed");
    expect("cubin", "added", look_by_cubin, true);

    nvshmem_end(host);
    expect("executable", "after finalize", look, false);
    expect("library opened before", "after finalize", early_look, false);
    expect("cubin", "after finalize", look_by_cubin, false);

    nvshmem_start(host);
    expect("executable", "after the second init", look, true);
    expect("cubin", "after the second init", look_by_cubin, true);
    if (call_for_cubin("nvshmem_efa_module_remove_driver") != 0) stop("nvshmem_efa_module_remove_driver failed");
    dlclose(early);
    nvshmem_end(host);
    expect("executable", "at the end", look, false);
    std::printf("%s\n", failures == 0 ? "good" : "FAILED");
    return failures == 0 ? 0 : 1;
}
