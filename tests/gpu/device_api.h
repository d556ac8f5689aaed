// SPDX-License-Identifier: Apache-2.0
// The GPU program of the device API: what its parts share. See device_api.cu.
#pragma once

#include "image.h"
#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

namespace gpu_ops {

using nvshmem_efa::DeviceState;

// The plugin's C API, as far as it is used here. Loaded by NVSHMEM, not by us.
struct Plugin {
    int (*device_state)(void** state, uint32_t* version, size_t* bytes) = nullptr;
    const char* (*last_error)(int* code) = nullptr;
    const char* (*stats_json)() = nullptr;
};
Plugin find_plugin();

// What a call of the device API that returned false is reported as.
inline constexpr unsigned kCallFailed = 5;
__device__ inline bool expect(bool is_good, Trouble* trouble, unsigned line) {
    if (!is_good) report(trouble, kCallFailed, line, 1, 0);
    return is_good;
}
#define EXPECT(call) expect((call), plan.trouble, __LINE__)

// Prints the timings as "perf" events. Collective.
void measure_device_api(const Job& job, const DeviceState* state);

}  // namespace gpu_ops
