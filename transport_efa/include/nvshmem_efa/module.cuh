// SPDX-License-Identifier: Apache-2.0
// Including this is all that a program does to post from its kernels: `nvshmem_efa_state` is the device state's address
// from nvshmem_init to nvshmem_finalize, and null before and after, whether the module was loaded before or after init.
// One such variable a translation unit. For nvcc; for NVRTC, where the host makes one call
// (nvshmem_efa_module_add_driver() in api.h); and for CPU compilers, where posters are threads. docs/modules.md.
#pragma once

#include "nvshmem_efa/device_state.h"

#if defined(__CUDACC_RTC__)

// Visible by name: the host finds them with cuModuleGetGlobal(). One program a module.
extern "C" {
__device__ const nvshmem_efa::DeviceState* nvshmem_efa_state = nullptr;
// Never read. Its size says what this was compiled for, which the host learns without a copy: module_layout_bytes().
__device__ char nvshmem_efa_state_layout[nvshmem_efa::kDeviceStateVersion * 4096 + sizeof(nvshmem_efa::DeviceState)];
}

#else

#include <dlfcn.h>

#include "nvshmem_efa/module_record.h"

// Not inline: an inline variable would be one for the whole process, and the copies of CUDA's runtime in two libraries
// would each take it for theirs.
#if defined(__CUDACC__)
[[maybe_unused]] static __device__ const nvshmem_efa::DeviceState* nvshmem_efa_state = nullptr;
#else
[[maybe_unused]] static const nvshmem_efa::DeviceState* nvshmem_efa_state = nullptr;
#endif

// Records of this module while the library is not loaded. Exported from shared libraries even if they hide all else.
extern "C" __attribute__((weak, visibility("default"))) nvshmem_efa_module* nvshmem_efa_modules_waiting;
__attribute__((weak, visibility("default"))) nvshmem_efa_module* nvshmem_efa_modules_waiting = nullptr;

namespace nvshmem_efa {
namespace {  // each translation unit's own, so that modules built with different versions of this header can meet

int module_locate(void** address) {
#if defined(__CUDACC__)
    const cudaError_t error = cudaGetSymbolAddress(address, static_cast<const void*>(&nvshmem_efa_state));
    if (error != cudaSuccess) static_cast<void>(cudaGetLastError());  // ours: the program must not take it for its own
    return static_cast<int>(error);
#else
    *address = &nvshmem_efa_state;
    return 0;
#endif
}

const char* module_error_text([[maybe_unused]] int code) {
#if defined(__CUDACC__)
    return cudaGetErrorString(static_cast<cudaError_t>(code));
#else
    return "";
#endif
}

// nvshmem_efa_module_add() of the library or else of the switch, if one of them is in the process.
using ModuleAdd = int (*)(nvshmem_efa_module*);
ModuleAdd module_add_function() {
    if (void* found = dlsym(RTLD_DEFAULT, "nvshmem_efa_module_add")) return reinterpret_cast<ModuleAdd>(found);
    const char* const names[] = {"libnvshmem_efa.so", "libnvshmem_efa_shim.so"};  // loaded, but not for everybody to see
    for (const char* name : names) {
        void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
        if (!library) continue;
        void* found = dlsym(library, "nvshmem_efa_module_add");
        dlclose(library);  // neither is ever unloaded
        if (found) return reinterpret_cast<ModuleAdd>(found);
    }
    return nullptr;
}

struct ModuleRegistration {
    nvshmem_efa_module record = {};

    ModuleRegistration() {
        record.bytes = sizeof record;
        record.version = NVSHMEM_EFA_MODULE_VERSION;
        record.state_version = kDeviceStateVersion;
        record.state_bytes = sizeof(DeviceState);
#if !defined(__CUDACC__)
        record.is_host = 1;
#endif
        record.source = __BASE_FILE__;
        record.locate = module_locate;
        record.error_text = module_error_text;
        if (const ModuleAdd add = module_add_function()) {
            static_cast<void>(add(&record));  // a refusal is printed, and the symbol stays null
            return;
        }
        record.next = nvshmem_efa_modules_waiting;
        nvshmem_efa_modules_waiting = &record;
    }

    ~ModuleRegistration() {
        if (record.forget) {
            record.forget(&record);
            return;
        }
        for (nvshmem_efa_module** at = &nvshmem_efa_modules_waiting; *at; at = &(*at)->next) {
            if (*at != &record) continue;
            *at = record.next;
            return;
        }
    }

    ModuleRegistration(const ModuleRegistration&) = delete;
    ModuleRegistration& operator=(const ModuleRegistration&) = delete;
};

[[maybe_unused]] const ModuleRegistration module_registration;

}  // namespace
}  // namespace nvshmem_efa

#endif
