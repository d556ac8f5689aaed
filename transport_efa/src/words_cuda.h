// SPDX-License-Identifier: Apache-2.0
// The engines for words in GPU memory. make_cuda_words() in words.h chooses; tests and measurements make one by name.
// All of them work in the current context of the thread that makes them.
#pragma once

#include <memory>

#include "words.h"

namespace nvshmem_efa {

// Copies and stream memory operations on a private stream: the default, and what "gdrcopy" falls back on.
Status make_stream_words(int64_t timeout_ms, std::unique_ptr<WordEngine>* engine);

// Loads and stores of the CPU through GDRCopy's mapping. kMissing when libgdrapi or its kernel driver is not there.
// With `fallback`, words whose page cannot be mapped go there; with null they are an error. Moved from on success only.
Status make_gdrcopy_words(std::unique_ptr<WordEngine>&& fallback, std::unique_ptr<WordEngine>* engine);

// A warp on the GPU which executes system-scope atomics, and ends when idle. Fails by name when the warp does not start in time.
Status make_gpu_warp_words(int64_t timeout_ms, std::unique_ptr<WordEngine>* engine);

}  // namespace nvshmem_efa
