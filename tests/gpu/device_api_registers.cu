// SPDX-License-Identifier: Apache-2.0
// What one call of the device API costs a kernel: `nvcc -std=c++17 -O3 -arch=sm_90a -Itransport_efa/include -Xptxas -v
// -cubin -o /dev/null tests/gpu/device_api_registers.cu` prints the registers and the stack of each.
#include "nvshmem_efa/device.cuh"

using namespace nvshmem_efa;

extern "C" __global__ void one_put(const DeviceState* state, char* to, const char* from, size_t bytes, int pe, bool* is_good) {
    *is_good = put_nbi(*state, to, from, bytes, pe);
}
extern "C" __global__ void one_put_signal(const DeviceState* state, char* to, const char* from, size_t bytes, uint64_t* word,
                                          int pe, bool* is_good) {
    *is_good = put_signal_nbi(*state, to, from, bytes, word, uint64_t{1}, SignalOp::kAdd, pe);
}
extern "C" __global__ void one_add(const DeviceState* state, uint64_t* word, int pe, bool* is_good) {
    *is_good = atomic_add(*state, word, uint64_t{1}, pe);
}
