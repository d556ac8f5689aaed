// SPDX-License-Identifier: Apache-2.0
// The host library's way to its remote transport: reads the variable, compares it with a fixed list, loads the plugin by
// bare name (this library has DT_RPATH=$ORIGIN, as the real one). Says where nvshmemt_init came from.
#include <dlfcn.h>
#include <strings.h>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

extern "C" __attribute__((visibility("default"))) void nvshmemx_vendor_get_version_info(int* major, int* minor, int* patch) {
    *major = 3;
    *minor = 4;
    *patch = 5;
}

extern "C" __attribute__((visibility("default"))) const char* fake_host_transport(int abi) {
    static char answer[4096];
    const char* value = std::getenv("NVSHMEM_REMOTE_TRANSPORT");
    const char* chosen = nullptr;
    for (const char* name : {"ibrc", "ucx", "ibdevx", "libfabric"}) {
        if (value && strcasecmp(value, name) == 0) chosen = name;
    }
    if (!chosen) return "unknown name, nothing loaded";
    char file[128];
    std::snprintf(file, sizeof file, "nvshmem_transport_%s.so.%d", chosen, abi);
    void* plugin = dlopen(file, RTLD_NOW);
    if (!plugin) {
        std::snprintf(answer, sizeof answer, "not loaded: %s", dlerror());
        return answer;
    }
    Dl_info info{};
    void* const init = dlsym(plugin, "nvshmemt_init");
    std::snprintf(answer, sizeof answer, "%s", init && dladdr(init, &info) ? info.dli_fname : "no entry point");
    return answer;
}
