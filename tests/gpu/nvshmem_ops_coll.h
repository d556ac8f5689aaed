// SPDX-License-Identifier: Apache-2.0
// What the collective cases share. Collectives of the world team: by the host, on a stream, and inside a kernel. Values
// are small whole numbers, so that sums of reals are exact in any order. The cases lie in several files because the device
// collectives take a minute to compile.
#pragma once

#include <cstdio>

#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

enum class Where { kHost, kStream, kDevice };

template <class T>
__host__ __device__ inline T value(uint64_t seed, int pe, uint64_t i) {
    return static_cast<T>(mix2(seed + pe, i) % 997);
}

template <class T>
__global__ void fill_values(T* at, size_t count, uint64_t seed, int pe) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        at[i] = value<T>(seed, pe, i);
}

const char* form_name(Where where) {
    return where == Where::kHost ? "host" : where == Where::kStream ? "on stream" : "device";
}

std::vector<size_t> counts(const Run& run, Where where) {
    std::vector<size_t> all = {1, 7, 1000, 65539};
    if (where != Where::kDevice && run.job.scale >= 1) all.push_back(1 << 20);
    return all;
}

}  // namespace
}  // namespace gpu_ops
