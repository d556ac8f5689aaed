// SPDX-License-Identifier: Apache-2.0
// The kernels of `nvshmem-efa bench transport`: bench_bodies.h by threads of the GPU, through the module's own state.
#include "bench_bodies.h"
#include "nvshmem_efa/module.cuh"

using namespace nvshmem_efa;
using bench::Args;

namespace {

// Without a state nothing can be posted: round 0 has failed.
__device__ bool has_state(const Args& args) {
    if (!nvshmem_efa_state && threadIdx.x == 0) args.out[bench::kFailedRound] = 1;
    return nvshmem_efa_state != nullptr;
}

}  // namespace

// put, get, p and atomics by one thread.
extern "C" __global__ void bench_calls(const __grid_constant__ Args args) {
    if (has_state(args)) bench::time_calls(*nvshmem_efa_state, args);
}

// One thread a side. Of a PE that plays with itself, two blocks: side 2 means that the block's number is the side.
extern "C" __global__ void bench_put_signal(const __grid_constant__ Args args) {
    if (!has_state(args)) return;
    Args mine = args;
    if (args.side == 2) {
        mine.side = blockIdx.x;
        mine.out += blockIdx.x * (bench::kRecordWords + args.rounds);
    }
    bench::ping_pong(*nvshmem_efa_state, mine);
}

extern "C" __global__ void bench_alltoall(const __grid_constant__ Args args) {
    if (has_state(args)) bench::all_to_all(*nvshmem_efa_state, args);
}

// `in_flight` warps, each with one put, so that as many queues have something in flight (neighbours use different ones);
// then thread 0 waits for all. The sample is that wait. One block.
extern "C" __global__ void bench_quiet(const __grid_constant__ Args args) {
    if (!has_state(args)) return;
    const DeviceState& state = *nvshmem_efa_state;
    bench::Record record{args.out, args.warm_up, 0};
    const uint32_t warp = threadIdx.x / 32;
    for (uint32_t round = 0; round < args.warm_up + args.rounds; ++round) {
        bool is_good = true;
        if (threadIdx.x % 32 == 0 && warp < args.in_flight)
            is_good = put_nbi(state, args.dest + warp * 8, args.source + warp * 8, 8, args.peer);
        __syncthreads();
        if (threadIdx.x == 0) {
            record.begin(round);
            is_good = quiet(state) && is_good;
            record.end(round);
        }
        if (!__syncthreads_and(is_good)) {
            if (threadIdx.x == 0) record.fail(round);
            return;
        }
    }
    if (threadIdx.x == 0) record.finish();
}

// All threads strew; the first of each block waits for all that the block has posted. A record a block, without samples.
extern "C" __global__ void bench_rate(const __grid_constant__ Args args) {
    if (!has_state(args)) return;
    uint64_t* const out = args.out + blockIdx.x * bench::kRecordWords;
    if (threadIdx.x == 0) out[bench::kBeginNs] = bench::now_ns();
    bool is_good = bench::strew(*nvshmem_efa_state, args, blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x);
    is_good = __syncthreads_and(is_good) != 0;
    if (threadIdx.x != 0) return;
    is_good = quiet(*nvshmem_efa_state) && is_good;
    out[bench::kEndNs] = bench::now_ns();
    if (!is_good) out[bench::kFailedRound] = 1;
}

// ---- before and after: no posting ----

// `peer` is this PE here.
extern "C" __global__ void bench_fill(const __grid_constant__ Args args) {
    bench::fill(args, static_cast<uint32_t>(args.peer), threadIdx.x, blockDim.x);
}

// One block. `base`: where in the pattern `dest` begins.
extern "C" __global__ void bench_check(const __grid_constant__ Args args) {
    const uint64_t wrong = bench::wrong_bytes(args, args.base, threadIdx.x, blockDim.x);
    if (wrong) atomicAdd(reinterpret_cast<unsigned long long*>(args.out + bench::kWrongBytes), static_cast<unsigned long long>(wrong));
}
