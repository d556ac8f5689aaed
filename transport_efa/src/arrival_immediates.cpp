// SPDX-License-Identifier: Apache-2.0
// Counted puts as writes with immediate: one queue a rail receives them, and posters read its completions.
#include <algorithm>
#include <bit>

#include "arrival_queues.h"
#include "endpoint.h"
#include "log.h"

namespace nvshmem_efa {

namespace {

// Entries that may wait to be read. Where receives are unsolicited, nothing stops senders, so as many as are of use.
constexpr uint32_t kUnsolicitedDepthMax = 32768;
// Where each takes a receive descriptor, and one that is missing is an error at the sender (RNR).
constexpr uint32_t kReceiveDepthMax = 8192;

}  // namespace

Status ArrivalQueues::open_immediates(const Job& job, const std::vector<std::unique_ptr<Nic>>& nics, const ArrivalAttr& attr) {
    uint32_t depth_min = kUnsolicitedDepthMax;
    for (size_t i = 0; i < n_rails_; ++i) {
        Rail& rail = *rails_.emplace_back(std::make_unique<Rail>());
        rail.nic = nics[i].get();
        const NicCaps& caps = rail.nic->info().caps;
        const uint32_t wanted = caps.unsolicited_write_recv ? kUnsolicitedDepthMax : std::min(kReceiveDepthMax, caps.max_rq_depth);
        const uint32_t depth = std::bit_floor(std::min(wanted, caps.max_cq_depth));
        depth_min = std::min(depth_min, depth);
        EFA_TRY(open_entries(&rail, depth, attr));
        EFA_TRY(open_receiver(&rail, depth, attr));
        EFA_TRY(show_to_posters(&rail, attr));
        for (size_t index = i; index < n_; index += n_rails_) made_[index].qp_num = static_cast<uint16_t>(rail.qp.qp_num);
    }
    unread_max_ = depth_min / static_cast<uint32_t>(job.n_pes);
    return Status();
}

// In the memory of the GPU that the payloads go to where that can be had, as counters are: see open_counters().
Status ArrivalQueues::open_entries(Rail* rail, uint32_t depth, const ArrivalAttr& attr) {
    CqAttr cq;
    cq.depth = depth;
    if (attr.posters == MemoryKind::kCuda && !attr.is_soft) {
        const size_t bytes = size_t{depth} * sizeof(RxCqeEx);
        Status status = rail->nic->info().caps.cq_ext_mem
                            ? rail->gpu_entries.allocate_zeroed(bytes)
                            : Status::error(Code::kUnsupported, "it needs efa.ko 2.17 and rdma-core v59",
                                            "%s cannot put a completion queue into GPU memory", rail->nic->info().name.c_str());
        if (status.ok()) {
            cq.memory = rail->gpu_entries.data();
            cq.memory_bytes = bytes;
            status = rail->nic->create_cq(cq, &rail->cq);
        }
        if (status.ok()) return Status();
        EFA_LOG(kWarn, "gpu", "completions of arrivals go to host memory, where nothing orders them behind payloads in GPU memory: %s", status.message());
        rail->gpu_entries.release();
        cq.memory = nullptr;
        cq.memory_bytes = 0;
    }
    return rail->nic->create_cq(cq, &rail->cq);
}

Status ArrivalQueues::open_receiver(Rail* rail, uint32_t depth, const ArrivalAttr& attr) {
    QpAttr qp;
    qp.send_cq = qp.recv_cq = rail->cq.handle;  // nothing is sent
    qp.sq_depth = kIdleSqDepth;
    qp.unsolicited_recv = rail->nic->info().caps.unsolicited_write_recv;  // as the senders' queues: both ends must agree
    qp.rq_depth = qp.unsolicited_recv ? 0 : depth;
    qp.qkey = attr.qkey;
    EFA_TRY(rail->nic->create_qp(qp, &rail->qp));
    if (rail->qp.rq_depth > rail->cq.depth || !is_power_of_two(rail->cq.depth))
        return Status::error(Code::kInternal, "report this with the device's name and driver version",
                             "%s gave %u receive slots and %u completions for %u", rail->nic->info().name.c_str(), rail->qp.rq_depth,
                             rail->cq.depth, depth);
    return qp.unsolicited_recv ? Status() : fill_receives(rail);
}

// A write's immediate takes a descriptor and leaves its buffer alone: all name the same one, and are never changed.
Status ArrivalQueues::fill_receives(Rail* rail) {
    if (!host_memory_) EFA_TRY(map_host_memory(kRecvBytes, MemoryKind::kHost));
    MemoryAttr buffer;
    buffer.addr = host_memory_;
    buffer.bytes = bytes_;
    EFA_TRY(rail->nic->register_memory(buffer, &rail->buffer));
    RecvRing ring;
    if (!recv_ring_init(ring, rail->qp.rq_slots, rail->qp.rq_doorbell, rail->qp.rq_depth))
        return Status::error(Code::kInternal, nullptr, "%s gave a receive queue of %u slots", rail->nic->info().name.c_str(), rail->qp.rq_depth);
    uint32_t index = 0;
    while (recv_ring_reserve(ring, index))
        recv_wqe_set(*recv_ring_slot(ring, index), reinterpret_cast<uint64_t>(host_memory_), kRecvBytes, rail->buffer.lkey,
                     static_cast<uint16_t>(index));
    recv_ring_ring(ring);
    return Status();
}

Status ArrivalQueues::show_to_posters(Rail* rail, const ArrivalAttr& attr) {
    ArrivalQueue& queue = queues_.emplace_back();
    queue = ArrivalQueue{};
    queue.cq_depth = rail->cq.depth;
    queue.cq_depth_log2 = log2_exact(rail->cq.depth);
    queue.cq_entry_bytes = rail->cq.entry_bytes;
    queue.recv_depth = rail->qp.rq_depth;
    auto* const entries = static_cast<uint8_t*>(const_cast<void*>(rail->cq.entries));
    auto* const doorbell = const_cast<uint32_t*>(rail->qp.rq_doorbell);
    queue.cq_entries = rail->gpu_entries.data() ? rail->gpu_entries.data() : entries;
    queue.recv_doorbell = doorbell;
    if (attr.posters == MemoryKind::kHost) return Status();
    if (!rail->gpu_entries.data()) {
        EFA_TRY(rail->entries_map.map(entries, size_t{rail->cq.depth} * rail->cq.entry_bytes, 0, "completions of arrivals"));
        queue.cq_entries = rail->entries_map.at_gpu(entries);
    }
    if (queue.recv_depth == 0) return Status();
    EFA_TRY(rail->doorbell_map.map(doorbell, sizeof *doorbell, attr.is_soft ? 0 : cuda::kHostIoMemory, "the doorbell of arrivals"));
    queue.recv_doorbell = rail->doorbell_map.at_gpu(doorbell);
    return Status();
}

void ArrivalQueues::close_immediates() {
    for (const auto& rail : rails_) {
        rail->entries_map.unmap();
        rail->doorbell_map.unmap();
        if (rail->qp.handle) (void)rail->nic->destroy_qp(rail->qp.handle);
        if (rail->cq.handle) (void)rail->nic->destroy_cq(rail->cq.handle);
        if (rail->buffer.handle) (void)rail->nic->deregister_memory(rail->buffer);
        rail->gpu_entries.release();
    }
}

}  // namespace nvshmem_efa
