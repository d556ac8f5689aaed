// SPDX-License-Identifier: Apache-2.0
// How the agent changes one word of host or GPU memory: the single serialiser that signals and atomics go through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fabric/fabric.h"
#include "nvshmem_efa/records.h"
#include "status.h"

namespace nvshmem_efa {

struct WordRequest {
    uint64_t addr = 0;  // aligned to its size
    uint64_t operand = 0;
    uint64_t compare = 0;
    uint64_t fetched = 0;  // out: the value before
    uint8_t bytes = 8;     // 2, 4 or 8
    WordOp op = WordOp::kFetch;
    WordType type = WordType::kInteger;
    bool needs_fetch = false;  // false lets an engine skip the read for kSet
};

// The value of a word after `request` was applied to `before`. Pure; upper bytes beyond request.bytes are ignored.
uint64_t word_apply(const WordRequest& request, uint64_t before);

// Applies requests to memory of one kind. One thread at a time calls it.
class WordEngine {
   public:
    virtual ~WordEngine() = default;
    virtual const char* name() const = 0;  // "cpu", "stream", "gdrcopy", "gpu-warp"
    // Applies in order; requests to one word see each other. On return every change is visible to a kernel that
    // spins on the word, and `fetched` is set where needed. Never allocates device memory; needs no SM, except
    // "gpu-warp". A failure names the first request that was not applied.
    virtual Status apply(WordRequest* requests, size_t count) = 0;
};

std::unique_ptr<WordEngine> make_cpu_words();

// Engine for GPU memory of the current context, chosen by NVSHMEM_EFA_AMO and NVSHMEM_EFA_GDRCOPY.
Status make_cuda_words(std::unique_ptr<WordEngine>* engine);

}  // namespace nvshmem_efa
