// SPDX-License-Identifier: Apache-2.0
// For tests of GpuRings: a queue of CPU posters over a ring, and a device of paper, whose part the test plays itself.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace ring_rig {
void step();
}
#define NVSHMEM_EFA_STEP_HOOK ::ring_rig::step  // called before each access of a poster

#include "check.h"
#include "gpu_ring.h"
#include "nvshmem_efa/gpu_queue_shared.h"

namespace ring_rig {

using namespace nvshmem_efa;

inline constexpr uint64_t kWaitTicks = 60'000'000'000;  // some 20 s

// Posters that wait leave the processor to those waited for: here they outnumber the cores.
inline void step() {
    static thread_local uint32_t n = 0;
    if (++n % 16 == 0) std::this_thread::yield();
}

// What posters need over a ring's view.
struct RingQueue {
    GpuQueueState state{};
    std::vector<GpuQueueNote> notes;
    GpuQueueError error{};
    GpuQueue queue{};

    explicit RingQueue(const GpuRingView& view, uint32_t first_slot = 0, uint64_t completions_now = 0)
        : notes(view.depth) {
        queue.slots = view.slots_at_gpu;
        queue.doorbell = view.doorbell_at_gpu;
        queue.state = &state;
        queue.notes = notes.data();
        queue.error = &error;
        queue.completions = view.completions_at_gpu;
        queue.errors = view.errors_at_gpu;
        queue.cq_entries = view.cq_entries_at_gpu;
        queue.cq_depth = view.cq_depth;
        queue.cq_entry_bytes = view.cq_entry_bytes;
        queue.wait_ticks = kWaitTicks;
        queue.qp_num = view.qp_num;
        queue.depth = view.depth;
        queue.max_batch = view.max_batch;
        queue.req_id_64 = view.req_id_64;
        queue.slots_are_readable = view.slots_are_readable;
        CHECK(gpu_queue_init(queue, state, completions_now, 0, first_slot));
    }
    bool post(const SendWqe& wqe, uint32_t pe = 1) { return shared_post(queue, OneThread{}, wqe, pe); }
    bool quiet() { return shared_quiet(queue, 1); }
};

// Zeroed memory on pages of its own, as a device's is.
class Pages {
   public:
    ~Pages() { std::free(data_); }
    Pages() = default;
    Pages(const Pages&) = delete;
    void make(size_t bytes) {
        std::free(data_);
        const size_t whole = (bytes + 4095) / 4096 * 4096;
        data_ = static_cast<uint8_t*>(std::aligned_alloc(4096, whole));
        std::memset(data_, 0, whole);
    }
    uint8_t* data() const { return data_; }
    uint8_t& operator[](size_t at) const { return data_[at]; }

   private:
    uint8_t* data_ = nullptr;
};

// Rings of plain memory; nothing moves them but the test.
class PaperNic final : public Nic {
   public:
    NicInfo the_info{.name = "paper0", .pci_path = {}, .numa_node = -1, .driver_version = {}, .caps = {}};
    std::string fails;  // the call that fails, by name
    uint32_t slot_bytes = kSlotBytesSmall, max_batch = 0, cq_entry_bytes = 32;
    uint32_t extra_depth = 0;  // the device gives more slots than it was asked for
    std::map<std::string, int> live;
    std::vector<std::string> calls;

    Pages slots, entries, doorbells;
    uint32_t sq_depth = 0, cq_depth = 0;
    uint32_t& doorbell() const { return *reinterpret_cast<uint32_t*>(doorbells.data() + 128); }
    uint32_t completed = 0;  // entries written
    int progress_calls = 0;
    CqAttr cq_attr{};
    CounterAttr counter_attr{};
    uint32_t counted_ops = 0;
    std::function<void(const char*)> on_call;

    PaperNic() {
        the_info.caps.max_sq_depth = 64;
        the_info.caps.max_cq_depth = 1024;
        doorbells.make(4096);
    }
    // Writes the next completion.
    void complete(uint16_t req_id, CqeStatus status = CqeStatus::kOk) {
        TxCqe entry{};
        entry.req_id = req_id;
        entry.status = static_cast<uint8_t>(status);
        const uint32_t phase = (completed / cq_depth & 1u) ^ 1u;
        entry.flags = static_cast<uint8_t>(phase | static_cast<uint32_t>(CqeQueue::kSend) << kCqeQueueShift |
                                           static_cast<uint32_t>(SendOpcode::kRdmaWrite) << kCqeOpShift);
        std::memcpy(&entries[size_t{completed % cq_depth} * cq_entry_bytes], &entry, sizeof entry);
        ++completed;
    }
    SendWqe slot(uint32_t index) const {
        SendWqe wqe;
        std::memcpy(&wqe, &slots[size_t{index % sq_depth} * slot_bytes], kSlotBytesSmall);
        return wqe;
    }

    const NicInfo& info() const override { return the_info; }
    PeerAddress address() const override { return {}; }
    Status register_memory(const MemoryAttr&, MemoryRegion*) override { return enter("register_memory"); }
    Status deregister_memory(const MemoryRegion&) override { return Status(); }
    Status create_cq(const CqAttr& attr, Cq* cq) override {
        EFA_TRY(enter(attr.memory ? "create_cq_in_gpu" : "create_cq"));
        ++live["cq"];
        cq_attr = attr;
        cq_depth = attr.depth;
        entries.make(size_t{cq_depth} * cq_entry_bytes);
        const void* at = attr.memory ? attr.memory : entries.data();
        *cq = {.entries = at, .entry_bytes = cq_entry_bytes, .depth = cq_depth, .handle = 1};
        return Status();
    }
    Status destroy_cq(uint64_t) override {
        --live["cq"];
        return enter("destroy_cq");
    }
    Status create_qp(const QpAttr& attr, Qp* qp) override {
        EFA_TRY(enter("create_qp"));
        ++live["qp"];
        sq_depth = attr.sq_depth + extra_depth;
        slots.make(size_t{sq_depth} * slot_bytes);
        *qp = Qp();
        qp->qp_num = 77;
        qp->qkey = attr.qkey;
        qp->sq_slots = slots.data();
        qp->sq_doorbell = &doorbell();
        qp->sq_slot_bytes = slot_bytes;
        qp->sq_depth = sq_depth;
        qp->sq_max_batch = max_batch;
        qp->req_id_64 = attr.req_id_64;
        qp->handle = 2;
        return Status();
    }
    Status destroy_qp(uint64_t) override {
        --live["qp"];
        return enter("destroy_qp");
    }
    Status create_address_handle(const PeerAddress&, AddressHandle*) override { return enter("create_ah"); }
    Status destroy_address_handle(const AddressHandle&) override { return Status(); }
    Status create_counter(const CounterAttr& attr, uint64_t* handle) override {
        EFA_TRY(enter(attr.kind == MemoryKind::kCuda ? "create_gpu_counter" : "create_counter"));
        ++live["counter"];
        counter_attr = attr;
        *handle = 3;
        return Status();
    }
    Status attach_counter(uint64_t, uint64_t, uint32_t ops) override {
        EFA_TRY(enter("attach_counter"));
        counted_ops = ops;
        return Status();
    }
    Status destroy_counter(uint64_t) override {
        --live["counter"];
        return enter("destroy_counter");
    }
    bool is_empty() { return live["cq"] == 0 && live["qp"] == 0 && live["counter"] == 0; }
    void progress() override { ++progress_calls; }

   private:
    Status enter(const char* call) {
        calls.push_back(call);
        if (on_call) on_call(call);
        if (fails != call) return Status();
        return Status::error(Code::kResource, "test", "%s failed", call);
    }
};

}  // namespace ring_rig
