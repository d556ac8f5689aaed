/* SPDX-License-Identifier: Apache-2.0
 * C API of libnvshmem_efa.so (all but the switch) and libnvshmem_efa_shim.so (the switch). Stable; safe from any thread.
 * Error codes are those of docs/troubleshooting.md. */
#ifndef NVSHMEM_EFA_API_H
#define NVSHMEM_EFA_API_H

#include <stddef.h>
#include <stdint.h>

#include "nvshmem_efa/module_record.h"

#ifdef __cplusplus
extern "C" {
#endif

#define NVSHMEM_EFA_API __attribute__((visibility("default")))

/* "0.1.0" */
NVSHMEM_EFA_API const char* nvshmem_efa_version(void);

/* The plugin ABI numbers that this library serves: fills up to `capacity` of them, returns how many there are. */
NVSHMEM_EFA_API int nvshmem_efa_abi_list(int* numbers, int capacity);

typedef struct nvshmem_efa_knob {
    const char* name;          /* "NVSHMEM_EFA_MODE" */
    const char* type;          /* "enum", "int" or "text" */
    const char* default_value;
    const char* range;         /* "a|b|c", "10..3600000" or "" */
    const char* doc;
} nvshmem_efa_knob;

/* The table of settings; strings live as long as the library. Returns 0, or 1 when there is no such index. */
NVSHMEM_EFA_API int nvshmem_efa_knob_count(void);
NVSHMEM_EFA_API int nvshmem_efa_knob_get(int index, nvshmem_efa_knob* knob);

/* Parses this process's environment. Returns 0 and an empty text, or an error code and its message. Warnings (names that
 * are not settings) follow on lines of their own that start with "warning: ". The text is cut to `capacity` and
 * terminated; `length`, which may be null, gets its full length. */
NVSHMEM_EFA_API int nvshmem_efa_check_settings(char* text, size_t capacity, size_t* length);

/* The last error that the plugin reported in this process, "" and code 0 when there was none. `code` may be null.
 * The text is the calling thread's until its next call. */
NVSHMEM_EFA_API const char* nvshmem_efa_last_error(int* code);

/* Mode and devices of the transport that is up in this process, "" when there is none. The text is the calling
 * thread's until its next call. */
NVSHMEM_EFA_API const char* nvshmem_efa_describe(void);

/* Counts since init of the transport that is up or, after its finalize, its last ones: one JSON object of integers,
 * "{}" before the first init. Names that start with soft_ are the software devices' own. Exact only while no operation
 * is under way. The text is the calling thread's until its next call. */
NVSHMEM_EFA_API const char* nvshmem_efa_stats_json(void);

/* Modules whose kernels post: docs/modules.md. Programs that include module.cuh do not call this: a
 * constructor in it does, and nobody else may. It is in the switch too, which keeps records until this library is loaded.
 * All three return 0, or an error code with its text in nvshmem_efa_last_error(). */
NVSHMEM_EFA_API int nvshmem_efa_module_add(nvshmem_efa_module* module);
/* For a CUmodule, such as one that NVRTC made, whose program includes module.cuh. It must be removed before it is
 * unloaded. Not beside a kernel that waits for the calling thread: CUDA may wait for the GPU to find a symbol. */
NVSHMEM_EFA_API int nvshmem_efa_module_add_driver(void* cu_module);
NVSHMEM_EFA_API int nvshmem_efa_module_remove_driver(void* cu_module);
/* What is registered: a JSON list of {"name", "has_state", "trouble"}. The text is the calling thread's until its next call. */
NVSHMEM_EFA_API const char* nvshmem_efa_modules_json(void);

/* The device state (nvshmem_efa/device_state.h) of the transport that is up: its address as posters see it, GPU memory
 * where a GPU was current when NVSHMEM started, else host memory for CPU threads. Valid from the first barrier on until
 * finalize, at one address. Version and size are this library's, also on failure; device_state_fits() compares them with a
 * header's. Returns 0, or an error code; nvshmem_efa_last_error() then has its text. */
NVSHMEM_EFA_API int nvshmem_efa_device_state(void** at_posters, uint32_t* version, size_t* bytes);

/* The switch, in libnvshmem_efa_shim.so; its constructor calls this too. Call it before NVSHMEM reads its options.
 * 1: NVSHMEM_REMOTE_TRANSPORT=efa was asked for and this plugin is in place; 0: it was not asked for, nothing changed;
 * -1: it was asked for and cannot be had (printed to stderr). Not safe beside a thread that changes the environment. */
NVSHMEM_EFA_API int nvshmem_efa_select(void);

#ifdef __cplusplus
}
#endif

#endif
