// SPDX-License-Identifier: Apache-2.0
// The device's own queue: its slots and doorbell mapped for the GPU, its completions told in the best place there is.
// The ladder: hardware counters in GPU memory, counters in host memory, CQ in GPU memory, CQ in host memory. Whoever
// asked for direct by name gets it or an error that names each step that failed; which rung it was stands in kind().
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "gpu_mapping.h"
#include "gpu_memory.h"
#include "gpu_ring.h"
#include "log.h"
#include "peer_mapping.h"

namespace nvshmem_efa {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kErrorsAt = 64;  // in a page of counters: a line of its own
constexpr size_t kEntriesAt = kPage;
constexpr uint32_t kCounted = kCountSend | kCountRead | kCountWrite;

class DirectRing final : public GpuRing {
   public:
    DirectRing(Nic& nic, const GpuRingAttr& attr) : nic_(nic), attr_(attr) {}
    ~DirectRing() override;
    Status open();
    const GpuRingView& view() const override { return view_; }
    Status failure() const override { return Status(); }
    const char* kind() const override { return kind_; }

   private:
    bool is_for_gpu() const { return attr_.posters == MemoryKind::kCuda; }
    void open_gpu_memory(uint32_t cq_depth);
    Status open_cq(uint32_t cq_depth);
    Status open_queue(uint32_t depth);
    bool open_gpu_counters();
    bool open_host_counters();
    Status make_counter(uint8_t* words, MemoryKind kind);
    Status map_cq();
    Status map_queue();
    void note(Status&& failed);

    Nic& nic_;
    const GpuRingAttr attr_;
    cuda::GpuMemory gpu_memory_;  // counters, then CQ entries
    uint8_t* page_ = nullptr;     // counters in host memory
    bool is_cq_on_gpu_ = false;
    Cq cq_;
    Qp qp_;
    uint64_t counter_ = 0;
    cuda::GpuMapping page_map_, cq_map_, slots_map_, doorbell_map_;
    GpuRingView view_;
    const char* kind_ = "direct";
    std::string notes_;  // steps of the ladder that failed
};

// The order matters: a queue that goes while the GPU's page tables still hold its memory leaves them pointing into
// somebody else's; and memory goes after those that write it.
DirectRing::~DirectRing() {
    for (cuda::GpuMapping* mapping : {&slots_map_, &doorbell_map_, &cq_map_, &page_map_}) mapping->unmap();
    if (qp_.handle) (void)nic_.destroy_qp(qp_.handle);
    if (counter_) (void)nic_.destroy_counter(counter_);
    if (cq_.handle) (void)nic_.destroy_cq(cq_.handle);
    gpu_memory_.release();
    if (page_) munmap(page_, kPage);
}

void DirectRing::note(Status&& failed) {
    EFA_LOG(kDebug, "gpu", "direct ring on %s: %s", nic_.info().name.c_str(), failed.message());
    notes_ += (notes_.empty() ? "" : " | ") + std::string(failed.message());
}

Status DirectRing::open() {
    const NicCaps& caps = nic_.info().caps;
    if (!is_power_of_two(attr_.depth))
        return Status::error(Code::kInvalidArgument, "use a power of two", "a send queue of %u slots", attr_.depth);
    if (is_for_gpu() && !cuda::has_current_gpu())
        return Status::error(Code::kMissing, "select a GPU (cudaSetDevice and a first CUDA call) before NVSHMEM starts",
                             "this thread has no current CUDA context");
    const uint32_t depth = std::min(attr_.depth, caps.max_sq_depth);
    // Beside counters nobody takes entries out: the half that the device cannot yet have gone over tells an error's status.
    const uint32_t cq_depth = 2 * depth <= caps.max_cq_depth ? 2 * depth : depth;
    if (is_for_gpu()) open_gpu_memory(cq_depth);
    EFA_TRY(open_cq(cq_depth));
    EFA_TRY(open_queue(depth));
    if (!caps.completion_counters) {
        note(Status::error(Code::kUnsupported, "they need p5en or newer, efa.ko 3.3 and rdma-core v65",
                           "%s has no completion counters", nic_.info().name.c_str()));
    } else if (!open_gpu_counters()) {
        (void)open_host_counters();
    }
    EFA_TRY(map_cq());
    return is_for_gpu() ? map_queue() : Status();
}

void DirectRing::open_gpu_memory(uint32_t cq_depth) {
    const NicCaps& caps = nic_.info().caps;
    if (!caps.completion_counters && !caps.cq_ext_mem) return;  // nothing would use it
    Status status = gpu_memory_.allocate_zeroed(kEntriesAt + size_t{cq_depth} * sizeof(RxCqeEx));
    if (!status.ok()) note(std::move(status));
}

Status DirectRing::open_cq(uint32_t cq_depth) {
    CqAttr attr;
    attr.depth = cq_depth;
    if (gpu_memory_.data() && nic_.info().caps.cq_ext_mem) {
        attr.memory = gpu_memory_.data() + kEntriesAt;
        attr.memory_bytes = size_t{cq_depth} * sizeof(RxCqeEx);
        Status status = nic_.create_cq(attr, &cq_);
        is_cq_on_gpu_ = status.ok();
        if (is_cq_on_gpu_) return Status();
        note(std::move(status).with_context("completion queue in GPU memory"));
        attr.memory = nullptr;
        attr.memory_bytes = 0;
    } else if (is_for_gpu() && !nic_.info().caps.cq_ext_mem) {
        note(Status::error(Code::kUnsupported, "it needs efa.ko 2.17 and rdma-core v59",
                           "%s cannot put a completion queue into GPU memory", nic_.info().name.c_str()));
    }
    return nic_.create_cq(attr, &cq_);
}

Status DirectRing::open_queue(uint32_t depth) {
    QpAttr attr;
    attr.send_cq = attr.recv_cq = cq_.handle;  // it receives nothing
    attr.sq_depth = depth;
    attr.req_id_64 = nic_.info().caps.req_id_64;
    attr.unsolicited_recv = nic_.info().caps.unsolicited_write_recv;  // as the agents it sends to: both ends must agree
    attr.unsolicited_recv = nic_.info().caps.unsolicited_write_recv;  // as the agents it sends to: both ends must agree
    attr.qkey = attr_.qkey;
    EFA_TRY(nic_.create_qp(attr, &qp_));
    if (qp_.sq_slot_bytes != kSlotBytesSmall)
        return Status::error(Code::kUnsupported, "report this with the device's name and driver version",
                             "the device gave slots of %u bytes for 64", qp_.sq_slot_bytes);
    view_.slots = static_cast<uint8_t*>(qp_.sq_slots);
    view_.doorbell = const_cast<uint32_t*>(qp_.sq_doorbell);
    if (!is_for_gpu()) {
        view_.slots_at_gpu = view_.slots;
        view_.doorbell_at_gpu = view_.doorbell;
    }
    view_.depth = qp_.sq_depth;
    view_.max_batch = qp_.sq_max_batch;
    view_.qp_num = qp_.qp_num;
    view_.qkey = qp_.qkey;
    view_.req_id_64 = qp_.req_id_64;
    view_.slots_are_readable = false;
    return Status();
}

Status DirectRing::make_counter(uint8_t* words, MemoryKind kind) {
    CounterAttr attr;
    attr.completions = reinterpret_cast<uint64_t*>(words);
    attr.errors = reinterpret_cast<uint64_t*>(words + kErrorsAt);
    attr.kind = kind;
    EFA_TRY(nic_.create_counter(attr, &counter_));
    Status status = nic_.attach_counter(qp_.handle, counter_, kCounted);
    if (!status.ok()) {
        (void)nic_.destroy_counter(counter_);
        counter_ = 0;
    }
    return status;
}

bool DirectRing::open_gpu_counters() {
    if (!gpu_memory_.data()) return false;
    if (Status status = make_counter(gpu_memory_.data(), MemoryKind::kCuda); !status.ok()) {
        note(std::move(status).with_context("completion counters in GPU memory"));
        return false;
    }
    view_.completions_at_gpu = reinterpret_cast<const uint64_t*>(gpu_memory_.data());
    view_.errors_at_gpu = reinterpret_cast<const uint64_t*>(gpu_memory_.data() + kErrorsAt);
    kind_ = "direct (counters in GPU memory)";
    return true;
}

bool DirectRing::open_host_counters() {
    void* page = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        note(Status::error(Code::kResource, "free memory", "no memory for completion counters: %s", strerror(errno)));
        return false;
    }
    page_ = static_cast<uint8_t*>(page);
    Status status;
    if (is_for_gpu()) status = page_map_.map(page_, kPage, 0, "completion counters");
    if (status.ok()) status = make_counter(page_, MemoryKind::kHost);
    if (!status.ok()) {
        note(std::move(status).with_context("completion counters in host memory"));
        return false;
    }
    view_.completions = view_.completions_at_gpu = reinterpret_cast<const uint64_t*>(page_);
    view_.errors = view_.errors_at_gpu = reinterpret_cast<const uint64_t*>(page_ + kErrorsAt);
    if (is_for_gpu()) {
        view_.completions_at_gpu = page_map_.at_gpu(view_.completions);
        view_.errors_at_gpu = page_map_.at_gpu(view_.errors);
    }
    kind_ = "direct (counters in host memory)";
    return true;
}

// Beside counters the entries only tell what went wrong, so that a ring may do without.
Status DirectRing::map_cq() {
    const bool has_counters = counter_ != 0;
    view_.cq_depth = cq_.depth;
    view_.cq_entry_bytes = cq_.entry_bytes;
    if (is_cq_on_gpu_) {
        view_.cq_entries_at_gpu = gpu_memory_.data() + kEntriesAt;
        if (!has_counters) kind_ = "direct (CQ in GPU memory)";
        return Status();
    }
    view_.cq_entries = view_.cq_entries_at_gpu = static_cast<const uint8_t*>(cq_.entries);
    if (is_for_gpu()) {
        auto* const entries = const_cast<uint8_t*>(view_.cq_entries);
        Status status = cq_map_.map(entries, size_t{cq_.depth} * cq_.entry_bytes, 0, "the device's completion queue");
        view_.cq_entries_at_gpu = status.ok() ? cq_map_.at_gpu(view_.cq_entries) : nullptr;
        if (!status.ok()) note(std::move(status).with_context("completion queue in host memory"));
    }
    if (!has_counters && view_.cq_entries_at_gpu) kind_ = "direct (CQ in host memory)";
    if (has_counters || view_.cq_entries_at_gpu) return Status();
    return Status::error(Code::kUnsupported, "enable one of them, or use NVSHMEM_EFA_MODE=relay, which needs none",
                         "the GPU can be told of completions in no way")
        .with_context(notes_);
}

Status DirectRing::map_queue() {
    const std::string hint = peer_mapping_hint();
    const size_t bytes = size_t{view_.depth} * kSlotBytesSmall;
    EFA_TRY(slots_map_.map(view_.slots, bytes, cuda::kHostIoMemory, "the device's send queue", hint.c_str()));
    EFA_TRY(doorbell_map_.map(view_.doorbell, sizeof(uint32_t), cuda::kHostIoMemory, "the device's doorbell", hint.c_str()));
    view_.slots_at_gpu = slots_map_.at_gpu(view_.slots);
    view_.doorbell_at_gpu = doorbell_map_.at_gpu(view_.doorbell);
    return Status();
}

}  // namespace

Status make_direct_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    auto made = std::make_unique<DirectRing>(nic, attr);
    EFA_TRY(made->open().with_context("direct ring on " + nic.info().name));
    *ring = std::move(made);
    return Status();
}

}  // namespace nvshmem_efa
