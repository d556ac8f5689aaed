/* SPDX-License-Identifier: Apache-2.0
 * What a CUDA module and the library know of each other: docs/modules.md. C, and the same for every compiler; programs
 * include module.cuh, which fills the record. */
#ifndef NVSHMEM_EFA_MODULE_RECORD_H
#define NVSHMEM_EFA_MODULE_RECORD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NVSHMEM_EFA_MODULE_VERSION 1u /* of this record; `bytes` and `version` keep their places in all versions */

/* One translation unit's symbol. The record belongs to the module and lives until `forget` has returned. */
typedef struct nvshmem_efa_module {
    uint32_t bytes;         /* sizeof this record */
    uint32_t version;       /* NVSHMEM_EFA_MODULE_VERSION */
    uint32_t state_version; /* kDeviceStateVersion and sizeof(DeviceState) of the headers that it was built with */
    uint32_t state_bytes;
    uint32_t is_host; /* 1: the symbol is a variable of the CPU, for posters that are threads */
    uint32_t reserved;
    const char* source; /* file name, for messages */
    /* Where the symbol lies, on the GPU that is current on the calling thread; returns 0, or an error of CUDA's runtime. */
    int (*locate)(void** address);
    const char* (*error_text)(int code);
    /* Set by nvshmem_efa_module_add(); the module calls it before it goes away. After it nobody uses the record. */
    void (*forget)(struct nvshmem_efa_module* module);
    struct nvshmem_efa_module* next; /* while the record waits in a list */
} nvshmem_efa_module;

/* Lists where records wait for libnvshmem_efa.so: a variable of this name in every module, and one in the switch. The
 * library takes them when it is loaded. All of this happens inside the dynamic loader, under its lock. */
#define NVSHMEM_EFA_MODULES_WAITING "nvshmem_efa_modules_waiting"

#ifdef __cplusplus
}
#endif

#endif
