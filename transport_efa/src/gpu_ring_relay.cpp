// SPDX-License-Identifier: Apache-2.0
#include "gpu_mapping.h"
#include "relay.h"

namespace nvshmem_efa {
namespace {

class RelayRing final : public GpuRing {
   public:
    explicit RelayRing(std::unique_ptr<RelayQueue> queue) : queue_(std::move(queue)), view_(queue_->view()) {}
    ~RelayRing() override {
        if (thread_) thread_->remove(*queue_);
    }
    const GpuRingView& view() const override { return view_; }
    Status failure() const override { return queue_->failure(); }
    const char* kind() const override { return "relay"; }

    Status map_for_gpu() {
        EFA_TRY(mapping_.map(queue_->memory(), queue_->memory_bytes(), 0, "a relay ring"));
        view_.slots_at_gpu = mapping_.at_gpu(view_.slots);
        view_.doorbell_at_gpu = mapping_.at_gpu(view_.doorbell);
        view_.completions_at_gpu = mapping_.at_gpu(view_.completions);
        view_.errors_at_gpu = mapping_.at_gpu(view_.errors);
        view_.cq_entries_at_gpu = mapping_.at_gpu(view_.cq_entries);
        return Status();
    }
    Status start() {
        EFA_TRY(RelayThread::of_process(&thread_));
        thread_->add(*queue_);
        return Status();
    }

   private:
    std::shared_ptr<RelayThread> thread_;
    std::unique_ptr<RelayQueue> queue_;
    cuda::GpuMapping mapping_;  // goes before the memory that it maps
    GpuRingView view_;
};

}  // namespace

Status make_relay_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    std::unique_ptr<RelayQueue> queue;
    EFA_TRY(RelayQueue::open(nic, attr, &queue));
    auto made = std::make_unique<RelayRing>(std::move(queue));
    if (attr.posters == MemoryKind::kCuda) EFA_TRY(made->map_for_gpu());
    EFA_TRY(made->start());
    *ring = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa
