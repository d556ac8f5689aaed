// SPDX-License-Identifier: Apache-2.0
// Collectives of the world team: by the host, on a stream, and inside a kernel. Values are small whole numbers, so that
// sums of reals are exact in any order.
#include "nvshmem_ops.h"

namespace gpu_ops {
namespace {

enum class Where { kHost, kStream, kDevice };
constexpr int kRoot = 1;

template <class T>
__host__ __device__ inline T value(uint64_t seed, int pe, uint64_t i) {
    return static_cast<T>(mix2(seed + pe, i) % 997);
}

template <class T>
__global__ void fill_values(T* at, size_t count, uint64_t seed, int pe) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        at[i] = value<T>(seed, pe, i);
}

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

// got[i] must be element first + i of `pe`.
template <class T>
__global__ void check_values(const T* got, size_t count, size_t first, uint64_t seed, int pe, Trouble* trouble) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        const T wanted = value<T>(seed, pe, first + i);
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
REDUCE_FORMS(int, int, sum)
REDUCE_FORMS(float, float, sum)
REDUCE_FORMS(double, double, min)
REDUCE_FORMS(longlong, long long, max)
REDUCE_FORMS(uint64, uint64_t, xor)
REDUCE_FORMS(uint, unsigned, and)

#define MOVE_FORMS(NAME, EXTRA_DECLARED, EXTRA)                                                                        \
    __global__ void NAME##_kernel(int* dest, const int* source, size_t count EXTRA_DECLARED) {                        \
        nvshmemx_int_##NAME##_block(NVSHMEM_TEAM_WORLD, dest, source, count EXTRA);                                    \
    }
#define WITH_ROOT , int root
#define ROOT , root
MOVE_FORMS(broadcast, WITH_ROOT, ROOT)
MOVE_FORMS(alltoall, , )
MOVE_FORMS(fcollect, , )

const char* form_name(Where where) {
    return where == Where::kHost ? "host" : where == Where::kStream ? "on stream" : "device";
}

std::vector<size_t> counts(const Run& run, Where where) {
    std::vector<size_t> all = {1, 7, 1000, 65539};
    if (where != Where::kDevice && run.job.scale >= 1) all.push_back(1 << 20);
    return all;
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

void check_all_reduces(Run& run, Where where) {
    check_reduce<Sum, int>(run, where, "int sum", int_sum_run);
    check_reduce<Sum, float>(run, where, "float sum", float_sum_run);
    check_reduce<Min, double>(run, where, "double min", double_min_run);
    check_reduce<Max, long long>(run, where, "longlong max", longlong_max_run);
    check_reduce<Xor, uint64_t>(run, where, "uint64 xor", uint64_xor_run);
    check_reduce<And, unsigned>(run, where, "uint and", uint_and_run);
}

GPU_CASE(reduce_host, "coll", 50, 120) { check_all_reduces(run, Where::kHost); }
GPU_CASE(reduce_stream, "coll", 51, 120) { check_all_reduces(run, Where::kStream); }
GPU_CASE(reduce_device, "coll", 52, 120) { check_all_reduces(run, Where::kDevice); }

void move(const Job& job, Where where, const char* what, int* dest, int* source, size_t count) {
    const nvshmem_team_t team = NVSHMEM_TEAM_WORLD;
    int root = kRoot;
    int status = 0;
    if (where == Where::kDevice) {
        void* arguments[] = {&dest, &source, &count, &root};
        const void* kernel = what[0] == 'b'   ? reinterpret_cast<const void*>(broadcast_kernel)
                             : what[0] == 'a' ? reinterpret_cast<const void*>(alltoall_kernel)
                                              : reinterpret_cast<const void*>(fcollect_kernel);
        launch_together(job, kernel, dim3(1), dim3(128), arguments);
    } else if (where == Where::kStream) {
        status = what[0] == 'b'   ? nvshmemx_int_broadcast_on_stream(team, dest, source, count, root, job.stream)
                 : what[0] == 'a' ? nvshmemx_int_alltoall_on_stream(team, dest, source, count, job.stream)
                                  : nvshmemx_int_fcollect_on_stream(team, dest, source, count, job.stream);
    } else {
        status = what[0] == 'b'   ? nvshmem_int_broadcast(team, dest, source, count, root)
                 : what[0] == 'a' ? nvshmem_int_alltoall(team, dest, source, count)
                                  : nvshmem_int_fcollect(team, dest, source, count);
    }
    if (status) die(kExitCaseFailed, "%s %s gave %d", form_name(where), what, status);
}

void check_move(Run& run, Where where, const char* what) {
    const Job& job = run.job;
    const size_t most = counts(run, where).back();
    Symmetric<int> dest(most * job.npes), source(most * job.npes);
    DeviceTrouble trouble;
    for (size_t count : counts(run, where)) {
        char text[96];
        snprintf(text, sizeof text, "%s %s, %zu elements", form_name(where), what, count);
        const uint64_t seed = mix2(run.seed, count);
        fill_values<<<64, 256, 0, job.stream>>>(source.get(), count * job.npes, seed, job.pe);
        LAUNCH_CHECK();
        fill(job, dest.get(), dest.bytes(), pattern_key(seed, kPoisonPe));
        meet(job, text);
        move(job, where, what, dest.get(), source.get(), count);
        CUDA_CHECK(cudaStreamSynchronize(job.stream));
        for (int pe = 0; pe < job.npes; ++pe) {
            if (what[0] == 'b' && pe > 0) break;
            const int owner = what[0] == 'b' ? kRoot : pe;
            const size_t first = what[0] == 'a' ? job.pe * count : 0;
            check_values<<<64, 256, 0, job.stream>>>(dest.get() + pe * count, count, first, seed, owner, trouble.get());
            LAUNCH_CHECK();
        }
        run.check(trouble, text);
        run.add_digest(digest(job, dest.get(), count * (what[0] == 'b' ? 1 : job.npes) * sizeof(int)));
        meet(job, text);
    }
}

GPU_CASE(broadcast_host, "coll", 53, 60) { check_move(run, Where::kHost, "broadcast"); }
GPU_CASE(broadcast_stream, "coll", 54, 60) { check_move(run, Where::kStream, "broadcast"); }
GPU_CASE(broadcast_device, "coll", 55, 60) { check_move(run, Where::kDevice, "broadcast"); }
GPU_CASE(alltoall_host, "coll", 56, 60) { check_move(run, Where::kHost, "alltoall"); }
GPU_CASE(alltoall_stream, "coll", 57, 60) { check_move(run, Where::kStream, "alltoall"); }
GPU_CASE(alltoall_device, "coll", 57, 60) { check_move(run, Where::kDevice, "alltoall"); }
GPU_CASE(fcollect_host, "coll", 58, 60) { check_move(run, Where::kHost, "fcollect"); }
GPU_CASE(fcollect_stream, "coll", 59, 60) { check_move(run, Where::kStream, "fcollect"); }
GPU_CASE(fcollect_device, "coll", 59, 60) { check_move(run, Where::kDevice, "fcollect"); }

}  // namespace
}  // namespace gpu_ops
