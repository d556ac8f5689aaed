// SPDX-License-Identifier: Apache-2.0
// Uses every name of deep_ep_patched/compat/ibgda_device.cuh as DeepEP V1's kernels do, to be compiled only: by nvcc with
// NVSHMEM's headers, and by NVRTC without.
#if defined(__CUDACC_RTC__)
__device__ inline void* nvshmem_ptr(const void* ptr, int pe) { return pe == 0 ? const_cast<void*>(ptr) : nullptr; }
__device__ inline void nvshmemx_barrier_all_block() { __syncthreads(); }
#endif
#include "ibgda_device.cuh"

namespace deep_ep {

namespace internode {

// A chunk of tokens and its tail; the credit that comes back.
extern "C" __global__ void compat_chunk(char* recv, const char* send, uint64_t* tail, uint64_t* head, size_t bytes, int n, int channels, int me) {
    const int channel = blockIdx.x, lane = threadIdx.x % 32, pe = threadIdx.x / 32;
    if (ibgda_get_state()->num_rc_per_pe != channels && ibgda_get_state()->num_rc_per_pe < 2 * channels) return;
    if (pe != me)
        nvshmemi_ibgda_put_nbi_warp<true>(reinterpret_cast<uint64_t>(recv), reinterpret_cast<uint64_t>(send), bytes, pe, channel, lane, 0);
    __syncwarp();
    if (lane == 0) nvshmemi_ibgda_amo_nonfetch_add(tail, n, pe, channel, pe == me);
    if (lane < 2) nvshmemi_ibgda_amo_nonfetch_add(head, n, lane, channel + channels, lane == me);
}

extern "C" __global__ void compat_quiet_all(int n_pes, int me) {
    const auto state = ibgda_get_state();
    const int qps = state->num_rc_per_pe * state->num_devices_initialized;
    for (int i = threadIdx.x; i < qps * (n_pes - 1); i += blockDim.x) nvshmemi_ibgda_quiet((i / qps + me + 1) % n_pes, i % qps);
}

}  // namespace internode

namespace internode_ll {

extern "C" __global__ void compat_token(uint64_t recv, uint64_t send, int* count, size_t bytes, int me, int pe, int expert, int slot) {
    const int lane = threadIdx.x % 32;
    const uint64_t near = nvshmemi_get_p2p_ptr(recv, me, pe);
    if (near == 0) {
        nvshmemi_ibgda_put_nbi_warp(recv, send, bytes, pe, expert, lane, slot);
        __syncwarp();
        if (lane == 0) nvshmemi_ibgda_amo_nonfetch_add(reinterpret_cast<int*>(count), -slot - 1, pe, expert);
    } else if (lane == 0) {
        *reinterpret_cast<int*>(near) = slot;
    }
}

extern "C" __global__ void compat_clean(int* words, int n, int* sync, int me, int pe) {
    nvshmemx_barrier_all_block();
    for (int i = threadIdx.x; i < n; i += blockDim.x) words[i] = 0;
    nvshmemx_barrier_all_block();
    if (threadIdx.x == 0) nvshmemi_ibgda_rma_p(sync + me, -1, pe, 0);
}

}  // namespace internode_ll

}  // namespace deep_ep
