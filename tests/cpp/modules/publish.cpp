// SPDX-License-Identifier: Apache-2.0
// Stands for NVSHMEM's init and finalize in a copy of the library.
#include "module_registry.h"
#include "modules/module.h"

MODULE_EXPORT int test_publish(unsigned long state) {
    return static_cast<int>(nvshmem_efa::module_registry_publish(reinterpret_cast<void*>(state), nvshmem_efa::MemoryKind::kHost).code());
}
MODULE_EXPORT void test_withdraw() { nvshmem_efa::module_registry_withdraw(); }
