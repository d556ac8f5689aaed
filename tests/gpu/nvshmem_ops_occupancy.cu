// SPDX-License-Identifier: Apache-2.0
// Signals must reach GPU memory although no SM is free: every GPU is filled with blocks that spin on the signal word.
#include "nvshmem_ops.h"

#include <chrono>
#include <thread>

namespace gpu_ops {
namespace {

constexpr int kFillerThreads = 128;
constexpr int kPayload = 20000;

__device__ bool spin_until(volatile uint64_t* word, uint64_t value, Trouble* trouble) {
    const uint64_t deadline = now_ns() + kWaitNs;
    while (*word < value) {
        if (now_ns() > deadline) {
            report(trouble, kWaitTimedOut, reinterpret_cast<uint64_t>(word), value, *word);
            return false;
        }
    }
    return true;
}

__global__ void __launch_bounds__(kFillerThreads, 16) filler(uint64_t* word, uint64_t until, unsigned* resident, Trouble* trouble) {
    if (threadIdx.x == 0) atomicAdd(resident, 1u);
    spin_until(word, until, trouble);
}

// Even PE: send, wait for the answer. Odd PE: wait, answer. The word counts rounds.
__global__ void driver(char* dest, const char* source, uint64_t* word, const volatile unsigned* go, uint64_t seed,
                       uint64_t rounds, int me, int partner, Trouble* trouble) {
    __shared__ int good;
    if (threadIdx.x == 0) {
        const uint64_t deadline = now_ns() + kWaitNs;
        good = 1;
        while (*go == 0 && good)
            if (now_ns() > deadline) good = 0;
    }
    __syncthreads();
    if (!good) return;  // the host said what was missing
    const uint64_t key = pattern_key(seed, partner);
    for (uint64_t r = 1; r <= rounds; ++r) {
        for (int half = 0; half < 2; ++half) {
            const uint64_t offset = r % 1000;
            if ((half == 0) == (me % 2 == 0)) {
                if (threadIdx.x == 0)
                    nvshmem_putmem_signal_nbi(dest + offset, source + offset, kPayload, word, r, NVSHMEM_SIGNAL_SET, partner);
                continue;
            }
            if (threadIdx.x == 0) good = wait_at_least(word, r, trouble);
            __syncthreads();
            if (!good) return;
            volatile unsigned char* at = reinterpret_cast<unsigned char*>(dest) + offset;
            for (int b = threadIdx.x; b < kPayload; b += blockDim.x) {
                const unsigned char wanted = pattern_at(key, offset + b), found = at[b];
                if (found != wanted) report(trouble, kByteWrong, r << 32 | b, wanted, found);
                at[b] = 0;
            }
            __threadfence_system();
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) nvshmem_quiet();
}

// Waits until the number of resident blocks stops growing, and returns it. Copy engines need no SM.
unsigned wait_until_full(const unsigned* resident, unsigned* pinned, cudaStream_t copies) {
    unsigned last = 0;
    int unchanged = 0;
    for (int i = 0; i < 500 && unchanged < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        CUDA_CHECK(cudaMemcpyAsync(pinned, resident, sizeof *pinned, cudaMemcpyDeviceToHost, copies));
        CUDA_CHECK(cudaStreamSynchronize(copies));
        unchanged = *pinned == last && last > 0 ? unchanged + 1 : 0;
        last = *pinned;
    }
    return last;
}

GPU_CASE(full_gpu, "signal", 8, 90) {
    const Job& job = run.job;
    if (job.npes % 2) throw Skip{"needs an even number of PEs"};
    int gpus = 0, device = 0, per_sm = 0;
    CUDA_CHECK(cudaGetDeviceCount(&gpus));
    if (gpus < job.npes) throw Skip{"needs a GPU for each PE"};
    CUDA_CHECK(cudaGetDevice(&device));
    cudaDeviceProp properties;
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, filler, kFillerThreads, 0));
    const int full = per_sm * kFillerThreads, most = properties.maxThreadsPerMultiProcessor;
    if (full != most) run.fail("the filler takes %d of %d threads of an SM: it does not fill the GPU", full, most);

    const uint64_t rounds = run.scaled(300, 10);
    Symmetric<char> dest(kPayload + 1000), source(kPayload + 1000);
    Symmetric<uint64_t> word(1);
    DeviceTrouble trouble, filler_trouble;
    Device<unsigned> resident_blocks(1);
    unsigned* shared = nullptr;  // [0] go, read by the driver while it runs; [16] a copy of resident_blocks
    CUDA_CHECK(cudaHostAlloc(reinterpret_cast<void**>(&shared), 128, cudaHostAllocMapped));
    shared[0] = 0;
    cudaStream_t second, copies;
    CUDA_CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&copies, cudaStreamNonBlocking));
    fill(job, source.get(), source.bytes(), pattern_key(run.seed, job.pe));
    meet(job, run.name);

    stage("full_gpu: launch the driver block, then fill the GPU");
    driver<<<1, 128, 0, job.stream>>>(dest.get(), source.get(), word.get(), shared, run.seed, rounds, job.pe, job.pe ^ 1,
                                      trouble.get());
    LAUNCH_CHECK();
    const int blocks = per_sm * properties.multiProcessorCount;
    filler<<<blocks, kFillerThreads, 0, second>>>(word.get(), rounds, resident_blocks.get(), filler_trouble.get());
    LAUNCH_CHECK();
    const unsigned resident = wait_until_full(resident_blocks.get(), shared + 16, copies);
    run.note("%u of %d filler blocks resident beside the driver, %d SMs", resident, blocks, properties.multiProcessorCount);
    if (resident < static_cast<unsigned>(per_sm * (properties.multiProcessorCount - 1)))
        run.fail("only %u of %d filler blocks are resident: the GPU is not full", resident, blocks);
    __atomic_store_n(&shared[0], 1u, __ATOMIC_RELEASE);  // pairs with the driver's volatile read of go
    stage("full_gpu: signals while every SM spins");
    run.check(trouble, "driver (place = round << 32 | byte)");
    CUDA_CHECK(cudaStreamSynchronize(second));
    run.check(filler_trouble, "spinning blocks");
    CUDA_CHECK(cudaStreamDestroy(second));
    CUDA_CHECK(cudaStreamDestroy(copies));
    CUDA_CHECK(cudaFreeHost(shared));
    meet(job, run.name);
    if (word.read()[0] != rounds) run.fail("the word ends at %llu", (unsigned long long)word.read()[0]);
    run.add_digest(word.read()[0]);
    meet(job, run.name);
}

}  // namespace
}  // namespace gpu_ops
