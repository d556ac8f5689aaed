// SPDX-License-Identifier: Apache-2.0
// What the GPU executor needs of CUDA: memory of one GPU that peers map, the kernels, and launches on the caller's stream.
// Through the driver API, which is loaded at run time.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda_driver.h"

namespace nvshmem_efa::ep {

class GpuRuntime;

// Memory of the runtime's GPU, or a peer's that is mapped here. Ends before its runtime, and behind the last kernel.
class GpuBlock {
   public:
    GpuBlock() = default;
    ~GpuBlock() { release(); }
    GpuBlock(GpuBlock&& other) noexcept { *this = static_cast<GpuBlock&&>(other); }
    GpuBlock& operator=(GpuBlock&& other) noexcept;

    uint8_t* data() const { return reinterpret_cast<uint8_t*>(addr_); }  // the GPU's address; null: none
    size_t bytes() const { return bytes_; }

   private:
    friend class GpuRuntime;
    void release();
    const GpuRuntime* runtime_ = nullptr;
    cuda::DevicePtr addr_ = 0;
    size_t bytes_ = 0;
    enum class Kind : uint8_t { kOwn, kMapped, kSameProcess } kind_ = Kind::kOwn;
};

// How a peer finds a block: by CUDA's handle in another process, by its address in the same one.
struct GpuShare {
    cuda::IpcHandle handle;
    uint64_t process = 0;  // drawn at random once a process
    uint64_t context = 0;
    uint64_t address = 0;
    uint64_t bytes = 0;
};
static_assert(sizeof(GpuShare) == 96, "it travels between processes");

class GpuRuntime {
   public:
    // On the GPU whose context is current on this thread; kMissing when there is none.
    static Status open(int64_t timeout_ms, std::unique_ptr<GpuRuntime>* runtime);
    ~GpuRuntime();  // leaks modules and what kernels may still write to, when one has not ended
    GpuRuntime(const GpuRuntime&) = delete;
    GpuRuntime& operator=(const GpuRuntime&) = delete;

    // Alone in its allocation. `what` names it in errors. The first waits until it is all zeroes.
    Status allocate(size_t bytes, const char* what, GpuBlock* block);
    Status allocate_as_it_is(size_t bytes, const char* what, GpuBlock* block);
    Status share(const GpuBlock& block, GpuShare* share) const;
    // A peer's block, which outlives this one where the peer is of this process.
    Status open_shared(const GpuShare& share, GpuBlock* block) const;

    // A cubin, copied; several may be loaded. Its kernels are looked up now: CUDA may load one lazily, and then waits for
    // kernels that run.
    Status load_kernels(const void* image, size_t bytes);
    void use_stream(void* stream) { stream_ = static_cast<cuda::Stream>(stream); }  // of the calls from now on
    // One parameter, by value. `what` names the kernel in errors. Waits for nothing.
    Status launch(const char* symbol, const char* what, uint32_t blocks, uint32_t threads, const void* parameter);
    uint32_t multiprocessors() const { return multiprocessors_; }
    Status is_capturing(bool* is) const;  // the stream's work goes into a graph

    // All that was launched, on whatever stream, has ended. kTimeout: something runs on; nothing of it is freed then.
    Status wait(const char* what);
    Status look(const char* what) const;  // whether the stream's work has failed; waits for nothing
    Status write(void* gpu, const void* host, size_t bytes);  // both wait
    Status read(void* host, const void* gpu, size_t bytes);
    Status fill_host(size_t bytes, void** host, void** gpu);  // pinned, zeroed, until the runtime ends

   private:
    friend class GpuBlock;
    GpuRuntime() = default;
    Status named(cuda::Result result, const std::string& what, const char* hint = nullptr) const;
    Status zero(cuda::DevicePtr addr, size_t bytes);
    void is_busy(cuda::Stream stream);

    const cuda::Driver* driver_ = nullptr;
    cuda::Context context_ = nullptr;
    cuda::Stream own_ = nullptr;
    cuda::Stream stream_ = nullptr;  // `own_`, until the caller names one; null is then the default stream
    uint32_t multiprocessors_ = 0;
    int64_t timeout_ms_ = 0;
    bool is_stuck_ = false;
    std::vector<cuda::Stream> busy_;  // streams that were given work since the last wait
    std::vector<void*> pinned_;
    std::vector<cuda::Module> modules_;
    std::vector<std::pair<std::string, cuda::Function>> functions_;
    std::vector<std::vector<uint8_t>> images_;
};

}  // namespace nvshmem_efa::ep
