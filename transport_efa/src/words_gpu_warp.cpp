// SPDX-License-Identifier: Apache-2.0
// Words in GPU memory, changed by a warp of our own: atomic with the GPU's own atomics. The warp stays while there is
// work and ends when idle, so that calls which wait for every kernel return. What it costs: docs/agent.md.
#include <algorithm>
#include <string>

#include "clock.h"
#include "cuda_stream.h"
#include "log.h"
#include "words_check.h"
#include "words_cuda.h"
#include "words_gpu_warp_ptx.h"
#include "words_gpu_warp_ring.h"

namespace nvshmem_efa {
namespace {

constexpr const char* kKernel = "nvshmem_efa_atomics_warp";

// words_gpu_warp.cu numbers the operations by itself, because nvcc reads only the ring's header.
static_assert(static_cast<int>(WordOp::kFetch) == 0 && static_cast<int>(WordOp::kSet) == 1 &&
              static_cast<int>(WordOp::kAdd) == 2 && static_cast<int>(WordOp::kAnd) == 3 &&
              static_cast<int>(WordOp::kOr) == 4 && static_cast<int>(WordOp::kXor) == 5 &&
              static_cast<int>(WordOp::kSwap) == 6 && static_cast<int>(WordOp::kCompareSwap) == 7);

class GpuWarpWords final : public WordEngine {
   public:
    GpuWarpWords(std::unique_ptr<cuda::MarkedStream> stream, int64_t timeout_ms)
        : stream_(std::move(stream)), timeout_ms_(timeout_ms), ring_(static_cast<WarpRing*>(stream_->scratch())) {}
    ~GpuWarpWords() override;
    const char* name() const override { return "gpu-warp"; }

    Status start();
    Status apply(WordRequest* requests, size_t count) override;

   private:
    Status load();
    Status launch(uint64_t first_batch);
    bool has_ended() const;
    void post(const WordRequest* requests, size_t count);
    Status collect(uint64_t batch, WordRequest* requests, size_t count);
    bool stop();
    // False when the deadline passed.
    bool await(const uint64_t* word, uint64_t value);

    std::unique_ptr<cuda::MarkedStream> stream_;
    const int64_t timeout_ms_;
    WarpRing* ring_;
    cuda::Module module_ = nullptr;
    cuda::Function kernel_ = nullptr;
    cuda::DevicePtr device_ring_ = 0;
    uint64_t posted_ = 0;    // batches
    uint64_t launches_ = 0;  // the newest launch's number
    bool is_broken_ = false;
};

bool GpuWarpWords::await(const uint64_t* word, uint64_t value) {
    Deadline deadline(real_clock(), static_cast<uint64_t>(timeout_ms_));
    // pairs with the warp's st.release.sys of hello, done and bye (words_gpu_warp.cu)
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) {
        if (deadline.passed()) return false;
        deadline.relax();
    }
    return true;
}

Status GpuWarpWords::load() {
    const cuda::Driver& driver = stream_->driver();
    if (cuda::Result result = driver.module_load_data(&module_, kGpuWarpPtx))
        return cuda::driver_error(driver, result, "loading the atomics warp",
                                  "it needs a GPU of compute capability 7.0 or newer; NVSHMEM_EFA_AMO=agent needs none");
    if (cuda::Result result = driver.module_get_function(&kernel_, module_, kKernel))
        return cuda::driver_error(driver, result, "finding the atomics warp's kernel");
    if (cuda::Result result = driver.mem_host_get_device_pointer(&device_ring_, ring_, 0))
        return cuda::driver_error(driver, result, "cuMemHostGetDevicePointer of the warp's ring");
    return Status();
}

// Pre: no launch before this one is still taking batches. The stream keeps launches apart.
Status GpuWarpWords::launch(uint64_t first_batch) {
    ring_->first = first_batch;
    __atomic_store_n(&ring_->launch, launches_ + 1, __ATOMIC_RELEASE);  // pairs with the warp's ld.acquire.sys of launch
    void* parameters[] = {&device_ring_};
    const cuda::Result result =
        stream_->driver().launch_kernel(kernel_, 1, 1, 1, kWarpLanes, 1, 1, 0, stream_->stream(), parameters, nullptr);
    if (result != cuda::kSuccess) return cuda::driver_error(stream_->driver(), result, "launching the atomics warp");
    ++launches_;
    return Status();
}

bool GpuWarpWords::has_ended() const {
    return __atomic_load_n(&ring_->bye, __ATOMIC_ACQUIRE) == launches_;  // pairs with the warp's st.release.sys of bye
}

Status GpuWarpWords::start() {
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    EFA_TRY(load());
    EFA_TRY(launch(0));
    if (await(&ring_->hello, launches_)) return Status();
    is_broken_ = true;
    return Status::error(Code::kTimeout,
                         "another kernel fills the GPU: start NVSHMEM before it, or set NVSHMEM_EFA_AMO=agent",
                         "the atomics warp did not start on GPU %d within %lld ms", stream_->device(),
                         static_cast<long long>(timeout_ms_));
}

Status GpuWarpWords::apply(WordRequest* requests, size_t count) {
    if (is_broken_)
        return Status::error(Code::kDevice, "restart the program", "the atomics warp gave up after an earlier timeout");
    for (size_t i = 0; i < count; ++i) EFA_TRY(word_check(requests[i], i));
    // Batches are posted ahead of their answers, as far as the ring goes.
    size_t posted = 0, done = 0;
    uint64_t answered = posted_;
    while (done < count) {
        while (posted < count && posted_ - answered < kWarpBatches) {
            const size_t batch = std::min<size_t>(count - posted, kWarpLanes);
            post(requests + posted, batch);
            posted += batch;
        }
        const size_t batch = std::min<size_t>(count - done, kWarpLanes);
        EFA_TRY(collect(answered, requests + done, batch).with_context("word request " + std::to_string(done)));
        ++answered;
        done += batch;
    }
    return Status();
}

void GpuWarpWords::post(const WordRequest* requests, size_t count) {
    WarpBatch& batch = ring_->batches[posted_ % kWarpBatches];
    for (size_t i = 0; i < count; ++i) {
        WarpRequest& slot = batch.requests[i];
        slot.addr = requests[i].addr;
        slot.operand = requests[i].operand;
        slot.compare = requests[i].compare;
        slot.op = static_cast<uint32_t>(requests[i].op);
        slot.bytes = requests[i].bytes;
        slot.is_float = requests[i].type == WordType::kFloat;
    }
    batch.count = count;
    ++posted_;
    __atomic_store_n(&batch.sequence, posted_, __ATOMIC_RELEASE);  // pairs with the warp's ld.acquire.sys of sequence
}

Status GpuWarpWords::collect(uint64_t batch, WordRequest* requests, size_t count) {
    const WarpAnswer& answer = ring_->answers[batch % kWarpBatches];
    Deadline deadline(real_clock(), static_cast<uint64_t>(timeout_ms_));
    // pairs with the warp's st.release.sys of done
    while (__atomic_load_n(&answer.done, __ATOMIC_ACQUIRE) != batch + 1) {
        // It ended idle, perhaps just before this batch was posted. What it answered is visible once its end is; so
        // look again, and if the batch is still open, the next launch starts with it.
        if (has_ended() && __atomic_load_n(&answer.done, __ATOMIC_ACQUIRE) != batch + 1) {
            cuda::ScopedContext scope(stream_->driver(), stream_->context());
            if (Status status = launch(batch); !status.ok()) {
                is_broken_ = true;
                return status;
            }
        }
        if (!deadline.passed()) {
            deadline.relax();
            continue;
        }
        is_broken_ = true;
        cuda::ScopedContext scope(stream_->driver(), stream_->context());
        const cuda::Result state = stream_->driver().stream_query(stream_->stream());
        if (state != cuda::kSuccess && state != cuda::kErrorNotReady)
            return cuda::driver_error(stream_->driver(), state, "the atomics warp",
                                      "the address of every word must lie in memory of this GPU");
        return Status::error(Code::kTimeout, "a kernel that fills the GPU keeps the warp out: NVSHMEM_EFA_AMO=agent works there",
                             "the atomics warp on GPU %d did not answer within %lld ms", stream_->device(),
                             static_cast<long long>(timeout_ms_));
    }
    for (size_t i = 0; i < count; ++i) requests[i].fetched = answer.results[i] & word_mask(requests[i].bytes);
    return Status();
}

// True when the warp has ended, and its ring and code may go.
bool GpuWarpWords::stop() {
    if (launches_ == 0) return true;
    WarpBatch& next = ring_->batches[posted_ % kWarpBatches];
    __atomic_store_n(&next.sequence, kWarpStop, __ATOMIC_RELEASE);  // pairs with the warp's ld.acquire.sys of sequence
    // A warp that never started sees this whenever it does: it may run yet, so that its memory has to stay.
    if (is_broken_) return false;
    if (!await(&ring_->bye, launches_)) return false;
    Deadline deadline(real_clock(), static_cast<uint64_t>(timeout_ms_));
    while (stream_->driver().stream_query(stream_->stream()) == cuda::kErrorNotReady) {
        if (deadline.passed()) return false;
        deadline.relax();
    }
    return true;
}

GpuWarpWords::~GpuWarpWords() {
    cuda::ScopedContext scope(stream_->driver(), stream_->context());
    if (stop()) {
        if (module_) stream_->driver().module_unload(module_);
        return;
    }
    stream_->abandon();
    EFA_LOG(kWarn, "agent", "the atomics warp on GPU %d did not end; its memory is left to the process's end",
            stream_->device());
}

}  // namespace

Status make_gpu_warp_words(int64_t timeout_ms, std::unique_ptr<WordEngine>* engine) {
    std::unique_ptr<cuda::MarkedStream> stream;
    EFA_TRY(cuda::MarkedStream::create(sizeof(WarpRing), &stream));
    auto words = std::make_unique<GpuWarpWords>(std::move(stream), timeout_ms);
    EFA_TRY(words->start());
    *engine = std::move(words);
    return Status();
}

}  // namespace nvshmem_efa
