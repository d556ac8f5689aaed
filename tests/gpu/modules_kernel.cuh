// SPDX-License-Identifier: Apache-2.0
// A module as a user writes it: a kernel that uses the state, and the include. No other host code knows of NVSHMEM.
#pragma once

#include "modules.h"
#include "nvshmem_efa/module.cuh"

static __global__ void look_kernel(int32_t* seen) {
    const nvshmem_efa::DeviceState* state = nvshmem_efa_state;
    seen[0] = state != nullptr;
    if (!state) return;
    seen[1] = static_cast<int32_t>(state->version);
    seen[2] = static_cast<int32_t>(state->bytes);
    seen[3] = state->pe;
    seen[4] = state->n_pes;
}

static bool look(int32_t seen[5]) {
    int32_t* out = nullptr;
    cudaError_t error = cudaMalloc(&out, 5 * sizeof *out);
    if (error == cudaSuccess) error = cudaMemset(out, 0, 5 * sizeof *out);
    if (error == cudaSuccess) {
        look_kernel<<<1, 1>>>(out);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess) error = cudaMemcpy(seen, out, 5 * sizeof *out, cudaMemcpyDeviceToHost);
    cudaFree(out);
    if (error != cudaSuccess) seen[1] = static_cast<int32_t>(error);
    return error == cudaSuccess;
}
