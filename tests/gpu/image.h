// SPDX-License-Identifier: Apache-2.0
// What memory must hold, as a pure function: a byte depends on (seed, pe, offset) only. Expected images are painted by
// the GPU from the plan of operations and compared byte by byte, the untouched gaps (poison) included.
#pragma once

#include <nvshmem.h>
#include <nvshmemx.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pe_job.h"

namespace gpu_ops {

__host__ __device__ inline uint64_t mix(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
__host__ __device__ inline uint64_t mix2(uint64_t a, uint64_t b) { return mix(mix(a + 0x9e3779b97f4a7c15ull) ^ (b + 1)); }

constexpr int kPoisonPe = 0x7fff;  // the "PE" whose pattern fills memory that nothing may have written

__host__ __device__ inline uint64_t pattern_key(uint64_t seed, int pe) { return mix2(seed, static_cast<uint64_t>(pe)); }
__host__ __device__ inline unsigned char pattern_at(uint64_t key, uint64_t offset) {
    return static_cast<unsigned char>(mix(key + (offset >> 3) * 0x9e3779b97f4a7c15ull) >> ((offset & 7) * 8));
}

// Random numbers of the host, one stream a seed.
class Random {
   public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15ull); }
    uint64_t below(uint64_t n) { return next() % n; }

   private:
    uint64_t state_;
};

// The first thing that a kernel found wrong, and how many.
enum Wrong : unsigned { kNothing = 0, kByteWrong = 1, kWaitTimedOut = 2, kValueWrong = 3, kTicketWrong = 4 };
struct Trouble {
    unsigned count;
    unsigned timeouts;
    unsigned what;
    unsigned unused;
    unsigned long long where, wanted, found;
};

__device__ inline void report(Trouble* trouble, unsigned what, uint64_t where, uint64_t wanted, uint64_t found) {
    if (what == kWaitTimedOut) atomicAdd(&trouble->timeouts, 1u);
    if (atomicAdd(&trouble->count, 1u) == 0) {
        trouble->what = what;
        trouble->where = where;
        trouble->wanted = wanted;
        trouble->found = found;
    }
}

__device__ inline uint64_t now_ns() {
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

constexpr uint64_t kWaitNs = 15ull * 1000 * 1000 * 1000;

// Waits until *word >= value. False, with a report, when it did not come within kWaitNs.
__device__ inline bool wait_at_least(uint64_t* word, uint64_t value, Trouble* trouble) {
    const uint64_t deadline = now_ns() + kWaitNs;
    uint64_t seen;
    while ((seen = nvshmem_signal_fetch(word)) < value) {
        if (now_ns() > deadline) {
            report(trouble, kWaitTimedOut, reinterpret_cast<uint64_t>(word), value, seen);
            return false;
        }
    }
    __threadfence_system();  // acquire; pairs with the release order "data, then word" that the transport promises
    return true;
}

// One transfer: source offset, destination offset, length.
struct Op {
    uint64_t dest, source, bytes;
};

// `count` operations of 1..max_bytes at odd places with untouched gaps between; the edge sizes come first. *extent is the
// destination's size, guard included. Sources lie anywhere in source_bytes.
std::vector<Op> random_plan(uint64_t seed, int count, size_t max_bytes, size_t source_bytes, size_t* extent);

void fill(const Job& job, void* where, size_t bytes, uint64_t key, uint64_t first_offset = 0);
// Writes what the operations, sent by the owner of `key`, must leave in `image`.
void paint(const Job& job, char* image, const Op* device_ops, int count, uint64_t key);
void compare(const Job& job, const void* got, const void* wanted, size_t bytes, Trouble* trouble);
uint64_t digest(const Job& job, const void* bytes, size_t count);  // synchronises the stream

// Memory of this GPU.
template <class T>
class Device {
   public:
    explicit Device(size_t count) : count_(count) {
        CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T) + 1));
        CUDA_CHECK(cudaMemset(data_, 0, count * sizeof(T)));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    explicit Device(const std::vector<T>& from) : Device(from.size()) {
        CUDA_CHECK(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~Device() { cudaFree(data_); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    T* get() const { return data_; }
    size_t count() const { return count_; }
    std::vector<T> read() const {
        std::vector<T> out(count_);
        CUDA_CHECK(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return out;
    }

   private:
    T* data_ = nullptr;
    size_t count_;
};

// Symmetric memory, zeroed. Construct and destroy in the same order on every PE: both are collective.
template <class T>
class Symmetric {
   public:
    explicit Symmetric(size_t count) : count_(count) {
        stage("nvshmem_malloc of %zu bytes", count * sizeof(T));
        data_ = static_cast<T*>(nvshmem_malloc(count * sizeof(T)));
        if (!data_) die(kExitUsage, "nvshmem_malloc(%zu) gave null", count * sizeof(T));
        CUDA_CHECK(cudaMemset(data_, 0, count * sizeof(T)));
        CUDA_CHECK(cudaDeviceSynchronize());
    }
    ~Symmetric() { nvshmem_free(data_); }
    Symmetric(const Symmetric&) = delete;
    Symmetric& operator=(const Symmetric&) = delete;
    T* get() const { return data_; }
    size_t count() const { return count_; }
    size_t bytes() const { return count_ * sizeof(T); }
    std::vector<T> read() const {
        std::vector<T> out(count_);
        CUDA_CHECK(cudaMemcpy(out.data(), data_, bytes(), cudaMemcpyDeviceToHost));
        return out;
    }
    void write(const std::vector<T>& from) {
        CUDA_CHECK(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
        CUDA_CHECK(cudaDeviceSynchronize());
    }

   private:
    T* data_ = nullptr;
    size_t count_;
};

}  // namespace gpu_ops
