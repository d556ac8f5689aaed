// SPDX-License-Identifier: Apache-2.0
// The device API through a module's own state, at each scope: one call of each family. Results: docs/kernels.md.
#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/module.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

using namespace nvshmem_efa;

// Symmetric memory of the caller: `source` is sent to `dest` of the PE, whose `words` change: [0] signal, [1] sum.
struct ProbeArgs {
    char* dest;
    const char* source;
    uint64_t* words;
    uint64_t bytes;
    int32_t pe;
    int32_t* result;  // 1: all calls were good, 0: one failed, -1: the module has no state
};

namespace {

__device__ void answer(const ProbeArgs& args, bool is_good) {
    if (threadIdx.x == 0 && blockIdx.x == 0) *args.result = is_good ? 1 : 0;
}

__device__ const DeviceState* state_or_answer(const ProbeArgs& args) {
    const DeviceState* state = nvshmem_efa_state;
    if (!state && threadIdx.x == 0 && blockIdx.x == 0) *args.result = -1;
    return state;
}

}  // namespace

// One thread: the data is complete, then the word changes.
extern "C" __global__ void probe_thread(const __grid_constant__ ProbeArgs args) {
    const DeviceState* state = state_or_answer(args);
    if (!state) return;
    uint64_t before = 0;
    answer(args, put_nbi(*state, args.dest, args.source, args.bytes, args.pe) && quiet(*state, args.pe) &&
                     atomic_fetch_add(*state, args.words + 1, uint64_t{1}, args.pe, &before));
}

// One warp: data and signal in one go.
extern "C" __global__ void probe_warp(const __grid_constant__ ProbeArgs args) {
    const DeviceState* state = state_or_answer(args);
    if (!state) return;
    const bool is_good = put_signal_nbi_warp(*state, args.dest, args.source, args.bytes, args.words, 1, SignalOp::kAdd, args.pe);
    answer(args, quiet_warp(*state) && is_good);
}

// One block.
extern "C" __global__ void probe_block(const __grid_constant__ ProbeArgs args) {
    const DeviceState* state = state_or_answer(args);
    if (!state) return;
    const bool is_good = put_nbi_block(*state, args.dest, args.source, args.bytes, args.pe);
    answer(args, quiet_block(*state) && is_good);
}
