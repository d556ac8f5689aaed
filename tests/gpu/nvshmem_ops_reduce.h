// SPDX-License-Identifier: Apache-2.0
// Reductions: the three forms of one of them, and its check.
#pragma once

#include "nvshmem_ops_coll.h"

namespace gpu_ops {
namespace {

struct Sum { template <class T> static __device__ T of(T a, T b) { return a + b; } };
struct Max { template <class T> static __device__ T of(T a, T b) { return a > b ? a : b; } };
struct Min { template <class T> static __device__ T of(T a, T b) { return a < b ? a : b; } };
struct Xor { template <class T> static __device__ T of(T a, T b) { return a ^ b; } };
struct And { template <class T> static __device__ T of(T a, T b) { return a & b; } };

// got[i] must be the reduction of element first + i over all PEs.
template <class Op, class T>
__global__ void check_reduced(const T* got, size_t count, size_t first, uint64_t seed, int npes, Trouble* trouble) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        T wanted = value<T>(seed, 0, first + i);
        for (int pe = 1; pe < npes; ++pe) wanted = Op::of(wanted, value<T>(seed, pe, first + i));
        if (got[i] != wanted) report(trouble, kValueWrong, i, uint64_t(wanted), uint64_t(got[i]));
    }
}

// One collective in its three forms.
#define REDUCE_FORMS(TYPE, T, OP)                                                                                      \
    __global__ void TYPE##_##OP##_kernel(T* dest, const T* source, size_t count) {                                    \
        nvshmemx_##TYPE##_##OP##_reduce_block(NVSHMEM_TEAM_WORLD, dest, source, count);                               \
    }                                                                                                                  \
    int TYPE##_##OP##_run(const Job& job, Where where, T* dest, T* source, size_t count) {                             \
        if (where == Where::kHost) return nvshmem_##TYPE##_##OP##_reduce(NVSHMEM_TEAM_WORLD, dest, source, count);     \
        if (where == Where::kStream)                                                                                   \
            return nvshmemx_##TYPE##_##OP##_reduce_on_stream(NVSHMEM_TEAM_WORLD, dest, source, count, job.stream);     \
        void* arguments[] = {&dest, &source, &count};                                                                 \
        launch_together(job, reinterpret_cast<const void*>(TYPE##_##OP##_kernel), dim3(1), dim3(128), arguments);      \
        return 0;                                                                                                      \
    }

template <class Op, class T, class Call>
void check_reduce(Run& run, Where where, const char* type, Call call) {
    const Job& job = run.job;
    const size_t most = counts(run, where).back();
    Symmetric<T> dest(most), source(most);
    DeviceTrouble trouble;
    for (size_t count : counts(run, where)) {
        char text[96];
        snprintf(text, sizeof text, "%s %s, %zu elements", form_name(where), type, count);
        const uint64_t seed = mix2(run.seed, count);
        fill_values<<<64, 256, 0, job.stream>>>(source.get(), count, seed, job.pe);
        LAUNCH_CHECK();
        fill(job, dest.get(), dest.bytes(), pattern_key(seed, kPoisonPe));
        meet(job, text);
        if (int status = call(job, where, dest.get(), source.get(), count)) run.fail("%s: status %d", text, status);
        CUDA_CHECK(cudaStreamSynchronize(job.stream));
        check_reduced<Op, T><<<64, 256, 0, job.stream>>>(dest.get(), count, 0, seed, job.npes, trouble.get());
        LAUNCH_CHECK();
        run.check(trouble, text);
        run.add_digest(digest(job, dest.get(), count * sizeof(T)));
        meet(job, text);
    }
}

}  // namespace
}  // namespace gpu_ops
