// SPDX-License-Identifier: Apache-2.0
// One PE of a GPU job: start with a unique id that PE 0 passes through a file, events for the launcher, a watchdog.
// The launcher (tests/gpu/launch.py) reads the lines that begin with "@@ "; everything else is log.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace gpu_ops {

struct Job {
    int pe = -1;
    int npes = 0;
    uint64_t seed = 1;
    size_t max_bytes = 256u << 20;  // largest transfer that a case may use
    double scale = 1.0;             // multiplies message counts
    std::string dir;                // private folder of this job; the unique id travels through it
    bool p2p = false;               // the baseline: peers are mapped, no transport is in between
    bool amo_gpu = false;           // NVSHMEM_EFA_AMO=gpu: remote AMOs are atomic with local GPU atomics
    int cycle = 0;                  // how often NVSHMEM was initialised before in this process
    cudaStream_t stream = nullptr;
};

// Exit codes that the launcher knows.
enum ExitCode { kExitGood = 0, kExitCaseFailed = 1, kExitUsage = 2, kExitCuda = 3, kExitHang = 4, kExitStopped = 5 };

[[noreturn]] void die(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

#define CUDA_CHECK(expression)                                                                               \
    do {                                                                                                     \
        cudaError_t cuda_check_error = (expression);                                                         \
        if (cuda_check_error != cudaSuccess)                                                                 \
            ::gpu_ops::die(::gpu_ops::kExitCuda, "%s:%d: %s failed: %s", __FILE__, __LINE__, #expression,    \
                           cudaGetErrorString(cuda_check_error));                                            \
    } while (0)
#define LAUNCH_CHECK() CUDA_CHECK(cudaGetLastError())

// Writes one event line. `fields` is the inside of a JSON object without braces.
void event(const char* kind, const std::string& fields);
std::string quoted(const std::string& text);  // as a JSON string

// What this PE is doing now; the watchdog prints it when the deadline passes.
void stage(const char* format, ...) __attribute__((format(printf, 1, 2)));
// (Re)arms the watchdog: at the deadline it prints a "watchdog" event with the stage, gives the launcher time to look at
// the processes, and ends this one with kExitHang. 0 disarms.
void watchdog(double seconds, const std::string& what);

// Picks the GPU (pe modulo the number of GPUs), exchanges the unique id, initialises NVSHMEM, makes the stream.
void start_pe(Job& job);
// Prints the transport's counters as a "stats" event, when one that has counters is loaded.
void print_stats();
// Finalises NVSHMEM; start_pe may be called again after it.
void finish_pe(Job& job);
// Waits for the stream, then host barrier over all PEs.
void meet(const Job& job, const char* where);

// Kernels that wait for other PEs are started this way, so that all their blocks are resident together.
void launch_together(const Job& job, const void* kernel, dim3 grid, dim3 block, void** arguments);

}  // namespace gpu_ops
