// SPDX-License-Identifier: Apache-2.0
// A device that does nothing: rings in host memory, completions on request. What is measured over it is our own code.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "fabric/fabric.h"

namespace nvshmem_efa::perf {

class NullNic final : public Nic {
   public:
    NullNic() {
        info_.name = "null0";
        info_.pci_path = "/sys";
        NicCaps& caps = info_.caps;
        caps.rdma_read = caps.rdma_write = caps.unsolicited_write_recv = caps.inline_write = true;
        caps.max_sq_depth = 8192;
        caps.max_rq_depth = 4096;
        caps.max_cq_depth = 65536;
        caps.max_inline_small = kInlineSendSmallMax;
        caps.max_inline_large = kInlineLargeMax;
        caps.max_tx_batch_units = 16;
        caps.mtu = 8192;
        caps.max_rdma_bytes = uint64_t{1} << 30;
    }

    const NicInfo& info() const override { return info_; }
    PeerAddress address() const override { return {}; }
    Status register_memory(const MemoryAttr&, MemoryRegion* region) override {
        region->lkey = region->rkey = ++keys_;
        return Status();
    }
    Status deregister_memory(const MemoryRegion&) override { return Status(); }
    Status create_cq(const CqAttr& attr, Cq* cq) override {
        queues_.push_back(std::vector<uint64_t>(attr.depth * 4));
        cq->entries = queues_.back().data();
        cq->entry_bytes = 32;
        cq->depth = attr.depth;
        cq->handle = queues_.size();
        return Status();
    }
    Status destroy_cq(uint64_t) override { return Status(); }
    Status create_qp(const QpAttr& attr, Qp* qp) override {
        const uint32_t slot = attr.large_slots ? kSlotBytesLarge : kSlotBytesSmall;
        qp->qp_num = ++qps_;
        qp->qkey = attr.qkey;
        qp->sq_slots = take(size_t{attr.sq_depth} * slot);
        qp->sq_doorbell = static_cast<uint32_t*>(take(64));
        qp->sq_slot_bytes = slot;
        qp->sq_depth = attr.sq_depth;
        qp->sq_max_batch = info_.caps.max_tx_batch_units * kSlotBytesSmall / slot;
        qp->rq_slots = take(size_t{attr.rq_depth} * sizeof(RecvWqe));
        qp->rq_doorbell = static_cast<uint32_t*>(take(64));
        qp->rq_depth = attr.rq_depth;
        qp->handle = qps_;
        sends_.push_back({static_cast<uint8_t*>(qp->sq_slots), qp->sq_doorbell, slot, attr.sq_depth, 0, attr.send_cq, 0});
        return Status();
    }
    Status destroy_qp(uint64_t) override { return Status(); }
    Status create_address_handle(const PeerAddress&, AddressHandle* ah) override {
        ah->ahn = 1;
        ah->handle = 1;
        return Status();
    }
    Status destroy_address_handle(const AddressHandle&) override { return Status(); }
    Status create_counter(const CounterAttr&, uint64_t*) override {
        return Status::error(Code::kUnsupported, nullptr, "the null device has no counters");
    }
    Status attach_counter(uint64_t, uint64_t, uint32_t) override {
        return Status::error(Code::kUnsupported, nullptr, "the null device has no counters");
    }
    Status destroy_counter(uint64_t) override { return Status(); }

    // Completes everything that was rung. Returns how many.
    uint32_t complete_all() {
        uint32_t total = 0;
        for (Send& send : sends_) {
            const uint32_t rung = __atomic_load_n(send.doorbell, __ATOMIC_ACQUIRE);
            auto* cq = reinterpret_cast<TxCqe*>(queues_[send.cq - 1].data());
            const auto depth = static_cast<uint32_t>(queues_[send.cq - 1].size() / 4);
            for (; send.done != rung; ++send.done, ++send.written, ++total) {
                const auto* meta = reinterpret_cast<const TxMeta*>(send.slots + size_t{send.done & (send.depth - 1)} * send.slot);
                TxCqe* entry = cq + size_t{send.written & (depth - 1)} * 2;
                *entry = TxCqe{};
                entry->req_id = meta->req_id;
                const uint8_t phase = ((send.written / depth) & 1) ? 0 : 1;
                entry->flags = static_cast<uint8_t>(phase | (1u << kCqeQueueShift) | ((meta->ctrl1 & 7u) << kCqeOpShift));
            }
        }
        return total;
    }

   private:
    struct Send {
        uint8_t* slots;
        volatile uint32_t* doorbell;
        uint32_t slot, depth, done;
        uint64_t cq;
        uint32_t written;
    };
    void* take(size_t bytes) {
        buffers_.push_back(std::make_unique<uint64_t[]>((bytes + 63) / 8 + 8));
        return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(buffers_.back().get()) + 63) / 64 * 64);
    }

    NicInfo info_;
    std::deque<std::vector<uint64_t>> queues_;
    std::vector<std::unique_ptr<uint64_t[]>> buffers_;
    std::vector<Send> sends_;
    uint32_t keys_ = 0, qps_ = 0;
};

}  // namespace nvshmem_efa::perf
