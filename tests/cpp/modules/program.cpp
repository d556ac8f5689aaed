// SPDX-License-Identifier: Apache-2.0
// A program with kernels of its own, which loads libraries in an order that its arguments give:
//   library, shim, module, second: loads MODULES/<that file>, for itself only; unload: the module again
//   init=N, finalize: as NVSHMEM would, with a state at address N
//   show: prints what the program and the module have;  list: what is registered
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "nvshmem_efa/module.cuh"

namespace {

std::map<std::string, void*> handles;

void load(const std::string& what, const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) std::printf("%s\n", dlerror());
    if (!handle) std::exit(2);
    handles[what] = handle;
}

template <class Function>
Function find(const char* what, const char* name) {
    const auto at = handles.find(what);
    void* found = dlsym(at == handles.end() ? RTLD_DEFAULT : at->second, name);
    if (!found) std::printf("no %s\n", name);
    if (!found) std::exit(2);
    return reinterpret_cast<Function>(found);
}

void show() {
    std::printf("program=%lu", reinterpret_cast<unsigned long>(__atomic_load_n(&nvshmem_efa_state, __ATOMIC_ACQUIRE)));
    for (const char* name : {"module_first", "module_second"}) {
        if (handles.count("module")) std::printf(" %s=%lu", name, find<unsigned long (*)()>("module", name)());
    }
    std::printf("\n");
}

void act(const std::string& what) {
    if (what == "library") load(what, LIBRARY);
    if (what == "shim") load(what, SHIM);
    if (what == "module") load(what, MODULE);
    if (what == "unload") {
        dlclose(handles["module"]);
        handles.erase("module");
        if (dlopen(MODULE, RTLD_NOW | RTLD_NOLOAD)) std::printf("the module is still there\n");
    }
    if (what.rfind("init=", 0) == 0) find<int (*)(unsigned long)>("library", "test_publish")(std::strtoul(what.c_str() + 5, nullptr, 10));
    if (what == "finalize") find<void (*)()>("library", "test_withdraw")();
    if (what == "show") show();
    if (what == "list") std::printf("%s\n", find<const char* (*)()>("library", "nvshmem_efa_modules_json")());
}

}  // namespace

int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) act(argv[i]);
    return 0;
}
