// SPDX-License-Identifier: Apache-2.0
// The C API of modules, and those that were loaded before this library.
#include <dlfcn.h>
#include <link.h>

#include <string>
#include <vector>

#include "module_registry.h"
#include "nvshmem_efa/api.h"
#include "plugin.h"

namespace nvshmem_efa::plugin {
namespace {

template <class Call>
int guarded(const char* operation, Call call) noexcept {
    try {
        const Status status = call();
        report(status, operation);
        return static_cast<int>(status.code());
    } catch (...) {
        return static_cast<int>(Code::kResource);
    }
}

void forget_module(nvshmem_efa_module* module) {
    guarded("nvshmem_efa_module_remove", [module] {
        module_registry().remove(module);
        return Status();
    });
}

// The list in one loaded object, if it has one.
nvshmem_efa_module** waiting_list(const char* object) {
    void* handle = dlopen(*object ? object : nullptr, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return nullptr;
    void* list = dlsym(handle, NVSHMEM_EFA_MODULES_WAITING);
    dlclose(handle);
    return static_cast<nvshmem_efa_module**>(list);
}

// Inside the loader and under its lock, as are all who put records into these lists or take them out: nobody else
// touches them meanwhile, and from then on modules find this library.
__attribute__((constructor)) void take_waiting_modules() {
    guarded("modules that were loaded before", [] {
        std::vector<std::string> objects;
        const auto note = [](dl_phdr_info* info, size_t /*size*/, void* out) {
            static_cast<std::vector<std::string>*>(out)->push_back(info->dlpi_name ? info->dlpi_name : "");
            return 0;
        };
        dl_iterate_phdr(note, &objects);
        for (const std::string& object : objects) {
            nvshmem_efa_module** list = waiting_list(object.c_str());
            nvshmem_efa_module* module = list ? *list : nullptr;
            if (list) *list = nullptr;
            while (module) {
                nvshmem_efa_module* const next = module->next;
                module->next = nullptr;
                module->forget = nullptr;
                nvshmem_efa_module_add(module);
                module = next;
            }
        }
        return Status();
    });
}

}  // namespace
}  // namespace nvshmem_efa::plugin

int nvshmem_efa_module_add(nvshmem_efa_module* module) {
    using namespace nvshmem_efa;
    const int code = plugin::guarded("nvshmem_efa_module_add", [module] { return module_registry().add(module); });
    if (code == 0) module->forget = plugin::forget_module;
    return code;
}

int nvshmem_efa_module_add_driver(void* cu_module) {
    using namespace nvshmem_efa;
    return plugin::guarded("nvshmem_efa_module_add_driver", [cu_module] { return module_registry().add_driver(cu_module); });
}

int nvshmem_efa_module_remove_driver(void* cu_module) {
    using namespace nvshmem_efa;
    return plugin::guarded("nvshmem_efa_module_remove_driver", [cu_module] { return module_registry().remove_driver(cu_module); });
}

const char* nvshmem_efa_modules_json(void) {
    thread_local std::string text;
    try {
        text = nvshmem_efa::module_registry().json();
        return text.c_str();
    } catch (...) {
        return "[]";
    }
}
