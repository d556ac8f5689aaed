// SPDX-License-Identifier: Apache-2.0
// The memory in which posters of GPU queues keep their state: in the GPU that is current when it is made, or plain host
// memory where CPU threads post. The host writes and reads it while posters use it, by the calls below alone.
#pragma once

#include <memory>
#include <vector>

#include "cuda_stream.h"

namespace nvshmem_efa {

class PosterMemory {
   public:
    // `live_bytes`: what read_words() may be asked for, from the first byte on. All zero at first. Allocates: not beside a
    // spinning kernel.
    static Status create(MemoryKind posters, size_t bytes, size_t live_bytes, int64_t timeout_ms,
                         std::unique_ptr<PosterMemory>* memory);
    ~PosterMemory();
    PosterMemory(const PosterMemory&) = delete;
    PosterMemory& operator=(const PosterMemory&) = delete;

    MemoryKind kind() const { return stream_ ? MemoryKind::kCuda : MemoryKind::kHost; }
    // The byte at `offset` as posters see it.
    template <class T>
    T* at(size_t offset) const {
        return reinterpret_cast<T*>(base_ + offset);
    }

    // One thread at a time. Each returns when it is done, also while kernels run.
    Status write(size_t offset, const void* from, size_t bytes);
    // Release at system scope: posters that see the value see what was written before. Pairs with the device API's
    // acquire loads of n_chunks, n_locals and DeviceLocal::bytes.
    Status publish32(size_t offset, uint32_t value);
    Status publish64(size_t offset, uint64_t value);
    // 32-bit words that posters change, each read whole, all of them after the call began.
    Status read_words(const std::vector<size_t>& offsets, std::vector<uint32_t>* values);
    // A word that only the GPU's side can address, wherever it lies.
    Status read_gpu_word(const uint64_t* at, uint64_t* value);

    // Ticks of order::clock_ticks() in a millisecond, for who posts here.
    Status ticks_per_ms(uint64_t* ticks) const;

   private:
    PosterMemory() = default;
    Status open(MemoryKind posters, size_t bytes, size_t live_bytes);
    Status finish(const char* what);

    uint64_t base_ = 0;
    size_t bytes_ = 0;
    size_t staging_bytes_ = 0;
    int64_t timeout_ms_ = 0;
    bool is_abandoned_ = false;
    std::unique_ptr<cuda::MarkedStream> stream_;  // null: host memory
};

}  // namespace nvshmem_efa
