// SPDX-License-Identifier: Apache-2.0
// The software device's queue as posters see it: its ring and completion queue lie in host memory anyway, its counters
// in a page of ours.
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "gpu_mapping.h"
#include "gpu_ring.h"

namespace nvshmem_efa {

namespace {

constexpr size_t kCounterPage = 4096;
constexpr size_t kSoftErrorsAt = 64;  // on a line of its own, as the completions change all the time
constexpr uint32_t kRecvCqDepth = 16, kRecvDepth = 16;  // nothing is received here

class SoftRing final : public GpuRing {
   public:
    explicit SoftRing(Nic& nic) : nic_(nic) {}
    ~SoftRing() override;
    const GpuRingView& view() const override { return view_; }
    Status failure() const override { return Status(); }
    const char* kind() const override { return "soft"; }
    Status open(const GpuRingAttr& attr);

   private:
    Status open_queue(const GpuRingAttr& attr);
    Status map_for_gpu();

    Nic& nic_;
    Cq send_cq_, recv_cq_;
    Qp qp_;
    uint64_t counter_ = 0;
    uint8_t* counters_ = nullptr;
    cuda::GpuMapping slots_map_, doorbell_map_, counters_map_, cq_map_;
    GpuRingView view_;
};

SoftRing::~SoftRing() {
    // Mappings before the memory they are of; the queue before what counts and reports for it.
    for (cuda::GpuMapping* mapping : {&slots_map_, &doorbell_map_, &counters_map_, &cq_map_}) mapping->unmap();
    if (qp_.handle) (void)nic_.destroy_qp(qp_.handle);
    if (counter_) (void)nic_.destroy_counter(counter_);
    if (send_cq_.handle) (void)nic_.destroy_cq(send_cq_.handle);
    if (recv_cq_.handle) (void)nic_.destroy_cq(recv_cq_.handle);
    if (counters_) munmap(counters_, kCounterPage);
}

Status SoftRing::open_queue(const GpuRingAttr& attr) {
    const NicCaps& caps = nic_.info().caps;
    CqAttr cq;
    cq.depth = 2 * attr.depth;  // nobody takes entries out: the newest half is where an error's entry is found
    EFA_TRY(nic_.create_cq(cq, &send_cq_));
    cq.depth = kRecvCqDepth;
    EFA_TRY(nic_.create_cq(cq, &recv_cq_));
    QpAttr qp;
    qp.send_cq = send_cq_.handle;
    qp.recv_cq = recv_cq_.handle;
    qp.sq_depth = attr.depth;
    qp.rq_depth = kRecvDepth;
    qp.req_id_64 = caps.req_id_64;
    qp.unsolicited_recv = caps.unsolicited_write_recv;  // as the agents it sends to: both ends must agree
    qp.qkey = attr.qkey;
    EFA_TRY(nic_.create_qp(qp, &qp_));
    void* page = mmap(nullptr, kCounterPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return Status::error(Code::kResource, "free memory", "no memory for completion counters: %s", strerror(errno));
    counters_ = static_cast<uint8_t*>(page);
    CounterAttr counter;
    counter.completions = reinterpret_cast<uint64_t*>(counters_);
    counter.errors = reinterpret_cast<uint64_t*>(counters_ + kSoftErrorsAt);
    EFA_TRY(nic_.create_counter(counter, &counter_));
    return nic_.attach_counter(qp_.handle, counter_, kCountSend | kCountRead | kCountWrite);
}

Status SoftRing::map_for_gpu() {
    const size_t cq_bytes = size_t{send_cq_.depth} * send_cq_.entry_bytes;
    EFA_TRY(slots_map_.map(view_.slots, size_t{view_.depth} * kSlotBytesSmall, 0, "a send ring"));
    EFA_TRY(doorbell_map_.map(view_.doorbell, sizeof *view_.doorbell, 0, "a doorbell"));
    EFA_TRY(counters_map_.map(counters_, kCounterPage, 0, "completion counters"));
    EFA_TRY(cq_map_.map(const_cast<uint8_t*>(view_.cq_entries), cq_bytes, 0, "a completion queue"));
    view_.slots_at_gpu = slots_map_.at_gpu(view_.slots);
    view_.doorbell_at_gpu = doorbell_map_.at_gpu(view_.doorbell);
    view_.completions_at_gpu = counters_map_.at_gpu(view_.completions);
    view_.errors_at_gpu = counters_map_.at_gpu(view_.errors);
    view_.cq_entries_at_gpu = cq_map_.at_gpu(view_.cq_entries);
    return Status();
}

Status SoftRing::open(const GpuRingAttr& attr) {
    if (!nic_.info().caps.completion_counters) {
        return Status::error(Code::kUnsupported, "use a relay ring, or NVSHMEM_EFA_SOFT_PROFILE=efa3",
                             "%s has no completion counters, so posters could not tell what is complete",
                             nic_.info().name.c_str());
    }
    EFA_TRY(open_queue(attr));
    view_.slots = view_.slots_at_gpu = static_cast<uint8_t*>(qp_.sq_slots);
    view_.doorbell = view_.doorbell_at_gpu = const_cast<uint32_t*>(qp_.sq_doorbell);
    view_.completions = view_.completions_at_gpu = reinterpret_cast<const uint64_t*>(counters_);
    view_.errors = view_.errors_at_gpu = reinterpret_cast<const uint64_t*>(counters_ + kSoftErrorsAt);
    view_.cq_entries = view_.cq_entries_at_gpu = static_cast<const uint8_t*>(send_cq_.entries);
    view_.cq_depth = send_cq_.depth;
    view_.cq_entry_bytes = send_cq_.entry_bytes;
    view_.depth = qp_.sq_depth;
    view_.max_batch = qp_.sq_max_batch;
    view_.qp_num = qp_.qp_num;
    view_.qkey = qp_.qkey;
    view_.req_id_64 = qp_.req_id_64;
    view_.slots_are_readable = true;
    return attr.posters == MemoryKind::kCuda ? map_for_gpu() : Status();
}

}  // namespace

Status make_soft_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    auto made = std::make_unique<SoftRing>(nic);
    EFA_TRY(made->open(attr).with_context("a send queue for the GPU on " + nic.info().name));
    *ring = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa
