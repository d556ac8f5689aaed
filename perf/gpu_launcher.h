/* SPDX-License-Identifier: Apache-2.0
 * C API of libnvshmem_efa_bench.so: launches the kernels of `nvshmem-efa bench transport` through the driver API, which is
 * loaded at run time. Called by python/nvshmem_efa/bench_gpu.py. One thread at a time uses a launcher.
 * Calls return 0 or a code of docs/troubleshooting.md, whose text nvshmem_efa_bench_error() has. */
#ifndef NVSHMEM_EFA_BENCH_GPU_LAUNCHER_H
#define NVSHMEM_EFA_BENCH_GPU_LAUNCHER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NVSHMEM_EFA_BENCH_API __attribute__((visibility("default")))

typedef struct nvshmem_efa_bench nvshmem_efa_bench;

typedef struct nvshmem_efa_bench_launch {
    const char* kernel;
    const void* args; /* the kernel's one parameter */
    uint32_t blocks;
    uint32_t threads;
    uint32_t deadline_ms;
    uint32_t reserved;
} nvshmem_efa_bench_launch;

/* Loads a cubin into the calling thread's current context, gives its module the device state, and allocates `out_bytes`
 * of GPU memory for what kernels report. `image` must stay. Not beside a running kernel. */
NVSHMEM_EFA_BENCH_API int nvshmem_efa_bench_open(const void* image, uint64_t out_bytes, nvshmem_efa_bench** bench);
/* The GPU's address of that memory. */
NVSHMEM_EFA_BENCH_API uint64_t nvshmem_efa_bench_out(const nvshmem_efa_bench* bench);
/* Zeroes the first `bytes` of it, runs the kernel to its end, and copies them to `out`. A kernel that runs on past the
 * deadline is a timeout, and the launcher of no more use. */
NVSHMEM_EFA_BENCH_API int nvshmem_efa_bench_run(nvshmem_efa_bench* bench, const nvshmem_efa_bench_launch* launch, void* out,
                                                uint64_t bytes);
/* Frees all of it. While a kernel may still run it is a timeout, and the launcher stays as it is. */
NVSHMEM_EFA_BENCH_API int nvshmem_efa_bench_close(nvshmem_efa_bench* bench);
/* Of the calling thread's last call that failed; its own until the next. */
NVSHMEM_EFA_BENCH_API const char* nvshmem_efa_bench_error(void);

#ifdef __cplusplus
}
#endif

#endif
