// SPDX-License-Identifier: Apache-2.0
// broadcast, alltoall, fcollect.
#include "nvshmem_ops_coll.h"

namespace gpu_ops {
namespace {

constexpr int kRoot = 1;

// got[i] must be element first + i of `pe`.
template <class T>
__global__ void check_values(const T* got, size_t count, size_t first, uint64_t seed, int pe, Trouble* trouble) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        const T wanted = value<T>(seed, pe, first + i);
        if (got[i] != wanted) report(trouble, kValueWrong, i, uint64_t(wanted), uint64_t(got[i]));
    }
}

#define MOVE_FORMS(NAME, EXTRA_DECLARED, EXTRA)                                                                        \
    __global__ void NAME##_kernel(int* dest, const int* source, size_t count EXTRA_DECLARED) {                        \
        nvshmemx_int_##NAME##_block(NVSHMEM_TEAM_WORLD, dest, source, count EXTRA);                                    \
    }
#define WITH_ROOT , int root
#define ROOT , root
MOVE_FORMS(broadcast, WITH_ROOT, ROOT)
MOVE_FORMS(alltoall, , )
MOVE_FORMS(fcollect, , )

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
