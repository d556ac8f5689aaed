// SPDX-License-Identifier: Apache-2.0
// The engines for GPU memory over the fake driver, and an oracle for them.
#pragma once

#include "words_cuda.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "check.h"
#include "fake_cuda/fake_cuda.h"
#include "fake_gdrapi/fake_gdrapi.h"
#include "knobs.h"
#include "words_gpu_warp_ring.h"

namespace words_rig {

using namespace nvshmem_efa;

// The atomics warp of words_gpu_warp.cu, played on the stream's thread.
inline void play_warp(void* parameter) {
    auto* ring = static_cast<WarpRing*>(parameter);
    const uint64_t launch = __atomic_load_n(&ring->launch, __ATOMIC_ACQUIRE);
    __atomic_store_n(&ring->hello, launch, __ATOMIC_RELEASE);
    for (uint64_t n = ring->first;; ++n) {
        WarpBatch& batch = ring->batches[n % kWarpBatches];
        WarpAnswer& answer = ring->answers[n % kWarpBatches];
        uint64_t sequence = 0;
        const auto idle_until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(kWarpIdleNs);
        while ((sequence = __atomic_load_n(&batch.sequence, __ATOMIC_ACQUIRE)) != n + 1 && sequence != kWarpStop &&
               std::chrono::steady_clock::now() < idle_until)
            std::this_thread::yield();
        if (sequence != n + 1) break;
        for (uint64_t i = 0; i < batch.count; ++i) {
            WordRequest request;
            request.addr = reinterpret_cast<uint64_t>(fake_cuda_cpu(batch.requests[i].addr));
            request.operand = batch.requests[i].operand, request.compare = batch.requests[i].compare;
            request.bytes = static_cast<uint8_t>(batch.requests[i].bytes);
            request.op = static_cast<WordOp>(batch.requests[i].op);
            request.type = batch.requests[i].is_float ? WordType::kFloat : WordType::kInteger;
            request.needs_fetch = true;
            static auto cpu = make_cpu_words();
            if (!cpu->apply(&request, 1).ok()) std::abort();
            answer.results[i] = request.fetched;
        }
        __atomic_store_n(&answer.done, n + 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&ring->bye, launch, __ATOMIC_RELEASE);
}

inline void start(uint64_t seed) {
    fake_cuda_reset(seed);
    fake_gdr_reset();
    fake_cuda_use_device(0);
    fake_cuda_kernel(&play_warp);
}

inline std::unique_ptr<WordEngine> make(const std::string& name) {
    std::unique_ptr<WordEngine> engine, fallback;
    if (name == "stream") CHECK_OK(make_stream_words(10000, &engine));
    if (name == "gdrcopy") {
        CHECK_OK(make_stream_words(10000, &fallback));
        CHECK_OK(make_gdrcopy_words(std::move(fallback), &engine));
    }
    if (name == "gpu-warp") CHECK_OK(make_gpu_warp_words(10000, &engine));
    CHECK_EQ(std::string(engine->name()), name);
    return engine;
}

inline WordRequest set(uint64_t addr, uint64_t value, uint8_t bytes = 8) {
    WordRequest request;
    request.addr = addr, request.operand = value, request.bytes = bytes, request.op = WordOp::kSet;
    return request;
}

inline WordRequest add(uint64_t addr, uint64_t value, uint8_t bytes = 8) {
    WordRequest request = set(addr, value, bytes);
    request.op = WordOp::kAdd, request.needs_fetch = true;
    return request;
}

inline uint64_t word_at(uint64_t addr) { return __atomic_load_n(static_cast<uint64_t*>(fake_cuda_cpu(addr)), __ATOMIC_ACQUIRE); }

inline WordRequest random_request(std::mt19937_64& random, uint64_t base, size_t room) {
    WordRequest request;
    request.bytes = static_cast<uint8_t>(2u << (random() % 3));
    request.addr = base + random() % (room / request.bytes) * request.bytes;
    request.op = static_cast<WordOp>(random() % 8);
    request.type = random() % 4 == 0 ? WordType::kFloat : WordType::kInteger;
    request.operand = random() % 2 ? random() : random() % 4;
    request.compare = random() % 2 ? random() % 4 : random();
    request.needs_fetch = random() % 2;
    return request;
}

inline void run_random_batches(const std::string& name, uint64_t seed, int batches, size_t room) {
    start(seed);
    std::mt19937_64 random(seed);
    const uint64_t device = fake_cuda_alloc(room);
    std::vector<uint8_t> oracle(room);
    for (auto& byte : oracle) byte = static_cast<uint8_t>(random() % 3);
    std::memcpy(fake_cuda_cpu(device), oracle.data(), room);
    auto engine = make(name);
    fake_cuda_forbid_allocation(1);
    for (int turn = 0; turn < batches; ++turn) {
        std::vector<WordRequest> requests(1 + random() % (turn % 16 == 0 ? 600 : 12));
        for (auto& request : requests) request = random_request(random, device, room);
        CHECK_OK(engine->apply(requests.data(), requests.size()));
        for (const auto& request : requests) {
            uint64_t before = 0;
            std::memcpy(&before, &oracle[request.addr - device], request.bytes);
            const bool must_fetch = request.op != WordOp::kSet || request.needs_fetch;
            if (must_fetch) CHECK_EQ(request.fetched, before);
            const uint64_t after = word_apply(request, before);
            std::memcpy(&oracle[request.addr - device], &after, request.bytes);
        }
        if (std::memcmp(fake_cuda_cpu(device), oracle.data(), room) != 0)
            check::fail(__FILE__, __LINE__, name + ": memory differs after batch " + std::to_string(turn));
    }
    CHECK_EQ(fake_cuda_violations(), uint64_t{0});
    fake_cuda_forbid_allocation(0);
    engine.reset();
    fake_cuda_free(device);
}

}  // namespace words_rig
