// SPDX-License-Identifier: Apache-2.0
// A program that uses NVSHMEM: fake_program <path of the host library> <abi> [select]
// Prints where its transport came from. `select` calls the switch's C function from a library already loaded.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    if (argc > 3) {
        void* shim = dlopen(argv[3], RTLD_NOW);
        const auto select = shim ? reinterpret_cast<int (*)()>(dlsym(shim, "nvshmem_efa_select")) : nullptr;
        std::printf("select %d\n", select ? select() : -9);
    }
    void* host = dlopen(argv[1], RTLD_NOW);
    if (!host) {
        std::printf("no host library: %s\n", dlerror());
        return 1;
    }
    const auto transport = reinterpret_cast<const char* (*)(int)>(dlsym(host, "fake_host_transport"));
    std::printf("%s\n", transport ? transport(std::atoi(argv[2])) : "not a fake host library");
    return 0;
}
