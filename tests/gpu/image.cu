// SPDX-License-Identifier: Apache-2.0
#include "image.h"

namespace gpu_ops {
namespace {

constexpr int kBlocks = 264;
constexpr int kThreads = 256;

__global__ void fill_kernel(unsigned char* where, size_t bytes, uint64_t key, uint64_t first_offset) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < bytes; i += size_t(gridDim.x) * blockDim.x)
        where[i] = pattern_at(key, first_offset + i);
}

__global__ void paint_kernel(unsigned char* image, const Op* ops, int count, uint64_t key) {
    for (int i = blockIdx.x; i < count; i += gridDim.x)
        for (uint64_t b = threadIdx.x; b < ops[i].bytes; b += blockDim.x)
            image[ops[i].dest + b] = pattern_at(key, ops[i].source + b);
}

__global__ void compare_kernel(const unsigned char* got, const unsigned char* wanted, size_t bytes, Trouble* trouble) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < bytes; i += size_t(gridDim.x) * blockDim.x)
        if (got[i] != wanted[i]) report(trouble, kByteWrong, i, wanted[i], got[i]);
}

__global__ void digest_kernel(const unsigned char* bytes, size_t count, unsigned long long* sum) {
    unsigned long long mine = 0;
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        mine += mix(i * 256 + bytes[i]);
    atomicAdd(sum, mine);
}

}  // namespace

std::vector<Op> random_plan(uint64_t seed, int count, size_t max_bytes, size_t source_bytes, size_t* extent) {
    static const uint64_t kEdges[] = {1,   2,   3,   4,    5,    7,    8,    9,    15,   16,   17,    31,    32,   33,
                                      47,  63,  64,  65,   95,   96,   97,   127,  128,  129,  255,   256,   257,  511,
                                      512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 7168, 8191, 8192, 8193, 65535, 65537};
    Random random(seed);
    std::vector<Op> plan;
    uint64_t at = 64 + random.below(64);
    for (int i = 0; i < count; ++i) {
        uint64_t bytes = 0;
        if (i < int(sizeof kEdges / sizeof kEdges[0])) bytes = kEdges[i];
        if (bytes == 0 || bytes > max_bytes) {
            uint64_t top = 1;
            while (top * 2 <= max_bytes) top *= 2;
            uint64_t limit = top;
            for (uint64_t halvings = random.below(64); halvings > 0 && limit > 1; --halvings)
                if (random.below(4) == 0) limit /= 2;
            bytes = 1 + random.below(limit);
        }
        plan.push_back({at, random.below(source_bytes - bytes), bytes});
        at += bytes + 1 + random.below(31);
    }
    *extent = at + 64;
    for (size_t i = plan.size(); i > 1; --i) std::swap(plan[i - 1], plan[random.below(i)]);
    return plan;
}

void fill(const Job& job, void* where, size_t bytes, uint64_t key, uint64_t first_offset) {
    fill_kernel<<<kBlocks, kThreads, 0, job.stream>>>(static_cast<unsigned char*>(where), bytes, key, first_offset);
    LAUNCH_CHECK();
}

void paint(const Job& job, char* image, const Op* device_ops, int count, uint64_t key) {
    paint_kernel<<<kBlocks, kThreads, 0, job.stream>>>(reinterpret_cast<unsigned char*>(image), device_ops, count, key);
    LAUNCH_CHECK();
}

void compare(const Job& job, const void* got, const void* wanted, size_t bytes, Trouble* trouble) {
    compare_kernel<<<kBlocks, kThreads, 0, job.stream>>>(static_cast<const unsigned char*>(got),
                                                         static_cast<const unsigned char*>(wanted), bytes, trouble);
    LAUNCH_CHECK();
}

uint64_t digest(const Job& job, const void* bytes, size_t count) {
    Device<unsigned long long> sum(1);
    digest_kernel<<<kBlocks, kThreads, 0, job.stream>>>(static_cast<const unsigned char*>(bytes), count, sum.get());
    LAUNCH_CHECK();
    CUDA_CHECK(cudaStreamSynchronize(job.stream));
    return sum.read()[0];
}

}  // namespace gpu_ops
