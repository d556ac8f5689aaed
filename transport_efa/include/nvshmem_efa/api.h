/* SPDX-License-Identifier: Apache-2.0
 * C API of libnvshmem_efa.so (all but the switch) and libnvshmem_efa_shim.so (the switch). Stable; safe from any thread.
 * Text goes to the caller's buffer, cut to fit and terminated; the return value is the full length without the zero. */
#ifndef NVSHMEM_EFA_API_H
#define NVSHMEM_EFA_API_H

#include <stddef.h>
#include <stdint.h>

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

/* Parses this process's environment. Returns 0 and an empty text, or an error code (docs/troubleshooting.md) and its
 * message. Warnings (names that are not settings) follow on lines of their own that start with "warning: ". */
NVSHMEM_EFA_API int nvshmem_efa_check_settings(char* text, size_t capacity, size_t* length);

/* The last error that the plugin reported in this process: its code (0: none yet) and its message. */
NVSHMEM_EFA_API int nvshmem_efa_last_error(char* text, size_t capacity);

/* Mode and devices of the transport that is up in this process; length 0 when there is none. */
NVSHMEM_EFA_API size_t nvshmem_efa_describe(char* text, size_t capacity);

typedef struct nvshmem_efa_stats {
    uint64_t struct_bytes; /* set by the caller to sizeof(nvshmem_efa_stats); grows at the end only */
    uint64_t puts, gets, amos, signals;
    uint64_t bytes_put, bytes_got;
    uint64_t work_requests, doorbells;
    uint64_t fence_waits, rnr_retries;
    uint64_t agent_records, agent_immediates;
} nvshmem_efa_stats;

/* Counts since init of the transport that is up, or, after its finalize, its last ones. Returns 0, or 1 when none was.
 * Exact only while no operation is under way. */
NVSHMEM_EFA_API int nvshmem_efa_stats_get(nvshmem_efa_stats* stats);

/* The switch, in libnvshmem_efa_shim.so; its constructor calls this too. Call it before NVSHMEM reads its options.
 * 1: NVSHMEM_REMOTE_TRANSPORT=efa was asked for and this plugin is in place; 0: it was not asked for, nothing changed;
 * -1: it was asked for and cannot be had (printed to stderr). Not safe beside a thread that changes the environment. */
NVSHMEM_EFA_API int nvshmem_efa_select(void);

#ifdef __cplusplus
}
#endif

#endif
