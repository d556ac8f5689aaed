// SPDX-License-Identifier: Apache-2.0
// Keeps the records of modules until libnvshmem_efa.so is loaded, which may be after the constructors of the program:
// nobody can find a list in a program, whose symbols are not exported. Called inside the loader, under its lock.
// As the rest of the switch: nothing but libc.
#include <dlfcn.h>
#include <errno.h>

#include "nvshmem_efa/api.h"

// Taken by the library (plugin_modules.cpp), by this name.
extern "C" __attribute__((visibility("default"))) nvshmem_efa_module* nvshmem_efa_modules_waiting;
nvshmem_efa_module* nvshmem_efa_modules_waiting = nullptr;

namespace {

void forget_waiting(nvshmem_efa_module* module) {
    for (nvshmem_efa_module** at = &nvshmem_efa_modules_waiting; *at; at = &(*at)->next) {
        if (*at != module) continue;
        *at = module->next;
        return;
    }
}

using Add = int (*)(nvshmem_efa_module*);

Add library_add() {
    void* library = dlopen("libnvshmem_efa.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return nullptr;
    void* found = dlsym(library, "nvshmem_efa_module_add");
    dlclose(library);  // it is never unloaded
    return reinterpret_cast<Add>(found);
}

}  // namespace

int nvshmem_efa_module_add(nvshmem_efa_module* module) {
    if (const Add add = library_add()) return add(module);
    // Places of a record of another version are unknown; the library will say so to those that come to it.
    if (module->version != NVSHMEM_EFA_MODULE_VERSION || module->bytes != sizeof *module) return EINVAL;
    module->forget = forget_waiting;
    module->next = nvshmem_efa_modules_waiting;
    nvshmem_efa_modules_waiting = module;
    return 0;
}
