// SPDX-License-Identifier: Apache-2.0
// Uses every call of the device API, to be compiled only: by nvcc and by NVRTC, for every architecture we serve, with
// warnings as errors.
#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/counted.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

using namespace nvshmem_efa;

extern "C" __global__ void transfers(const DeviceState* state, char* to, const char* from, size_t bytes, int pe, bool* result) {
    const DeviceState& s = *state;
    bool good = put_nbi(s, to, from, bytes, pe) && get_nbi(s, to, from, bytes, pe);
    good = put(s, to, from, bytes, pe) && get(s, to, from, bytes, pe) && good;
    good = put_nbi_warp(s, to, from, bytes, pe) && get_nbi_warp(s, to, from, bytes, pe) && good;
    good = put_nbi_block(s, to, from, bytes, pe) && get_nbi_block(s, to, from, bytes, pe) && good;
    *result = good;
}

extern "C" __global__ void counted(const DeviceState* state, char* to, const char* from, size_t bytes, int pe, uint32_t* result) {
    const DeviceState& s = *state;
    bool good = put_counted_nbi(s, to, from, bytes, pe, 1) && wait_arrivals(s, pe, 1, 7);
    good = put_counted_nbi_warp(s, to, from, bytes, pe, 1) && wait_arrivals_warp(s, pe, 1, 7) && good;
    good = put_counted_nbi_block(s, to, from, bytes, pe, 1) && wait_arrivals_block(s, pe, 1, 7) && good;
    *result = good ? counted_requests(s, to, from, bytes, pe) + arrivals(s, pe, 1) : 0;
}

extern "C" __global__ void one_put(const DeviceState* state, char* to, const char* from, size_t bytes, int pe, bool* result) {
    *result = put_nbi(*state, to, from, bytes, pe);
}

extern "C" __global__ void one_put_signal(const DeviceState* state, char* to, const char* from, size_t bytes, uint64_t* signal, int pe) {
    put_signal_nbi(*state, to, from, bytes, signal, 1, SignalOp::kAdd, pe);
}

extern "C" __global__ void signals(const DeviceState* state, char* to, const char* from, size_t bytes, uint64_t* signal, int pe) {
    const DeviceState& s = *state;
    put_signal_nbi(s, to, from, bytes, signal, 1, SignalOp::kAdd, pe);
    put_signal_nbi_warp(s, to, from, bytes, signal, 1, SignalOp::kSet, pe);
    put_signal_nbi_block(s, to, from, bytes, signal, 1, SignalOp::kSet, pe);
    signal_op(s, signal, 7, SignalOp::kSet, pe);
    quiet(s);
    quiet(s, pe);
    quiet_warp(s);
    quiet_block(s);
    fence(s);
    fence(s, pe);
    wait_until(s, signal, Cmp::kGe, uint64_t{2});
    int32_t* word = reinterpret_cast<int32_t*>(to);
    wait_until(s, word, Cmp::kNe, 0);
    wait_until_for(s, word, Cmp::kLe, 0, 1000);
    if (test(s, word, Cmp::kEq, 3)) *word = 4;
}

template <class T>
__device__ T integers(const DeviceState& s, T* word, int pe) {
    T sum{}, old{};
    atomic_inc(s, word, pe);
    atomic_and(s, word, T{1}, pe);
    atomic_or(s, word, T{1}, pe);
    atomic_xor(s, word, T{1}, pe);
    atomic_fetch_inc(s, word, pe, &old), sum += old;
    atomic_fetch_and(s, word, T{1}, pe, &old), sum += old;
    atomic_fetch_or(s, word, T{1}, pe, &old), sum += old;
    atomic_fetch_xor(s, word, T{1}, pe, &old), sum += old;
    return sum;
}

template <class T>
__device__ T numbers(const DeviceState& s, T* word, int pe) {
    T sum{}, old{};
    p(s, word, T{2}, pe);
    g(s, &old, word, pe), sum += old;
    atomic_set(s, word, T{1}, pe);
    atomic_add(s, word, T{1}, pe);
    atomic_fetch(s, word, pe, &old), sum += old;
    atomic_fetch_add(s, word, T{1}, pe, &old), sum += old;
    atomic_swap(s, word, T{1}, pe, &old), sum += old;
    atomic_compare_swap(s, word, T{1}, T{2}, pe, &old), sum += old;
    return sum;
}

extern "C" __global__ void words(const DeviceState* state, void* word, int pe, double* result) {
    const DeviceState& s = *state;
    *result = static_cast<double>(integers(s, static_cast<int32_t*>(word), pe)) + integers(s, static_cast<uint32_t*>(word), pe) +
              static_cast<double>(integers(s, static_cast<long long*>(word), pe)) + static_cast<double>(integers(s, static_cast<uint64_t*>(word), pe));
    *result += numbers(s, static_cast<int32_t*>(word), pe) + static_cast<double>(numbers(s, static_cast<uint64_t*>(word), pe));
    *result += numbers(s, static_cast<float*>(word), pe) + numbers(s, static_cast<double*>(word), pe);
    p(s, static_cast<uint16_t*>(word), uint16_t{1}, pe);
}
