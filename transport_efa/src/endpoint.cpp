// SPDX-License-Identifier: Apache-2.0
#include "endpoint.h"

namespace nvshmem_efa {

Status Endpoint::open(Nic& nic, const EndpointAttr& attr, ControlMemory& memory) {
    const NicCaps& caps = nic.info().caps;
    nic_ = &nic;
    if (!is_power_of_two(attr.sq_depth) || attr.sq_depth > kSqDepthMax) {
        return Status::error(Code::kConfig, "use a power of two up to 4096", "send queue depth %u on %s", attr.sq_depth,
                             nic.info().name.c_str());
    }
    CqAttr cq_attr;
    cq_attr.depth = attr.sq_depth;
    EFA_TRY(nic.create_cq(cq_attr, &send_cq_));
    cq_attr.depth = attr.recv_cq_depth ? attr.recv_cq_depth : 16;
    EFA_TRY(nic.create_cq(cq_attr, &recv_cq_));
    QpAttr qp_attr;
    qp_attr.send_cq = send_cq_.handle;
    qp_attr.recv_cq = recv_cq_.handle;
    qp_attr.sq_depth = attr.sq_depth;
    qp_attr.rq_depth = attr.rq_depth ? attr.rq_depth : 16;
    qp_attr.large_slots = caps.inline_write;
    qp_attr.unsolicited_recv = caps.unsolicited_write_recv;
    qp_attr.qkey = attr.qkey;
    EFA_TRY(nic.create_qp(qp_attr, &qp_));
    if (!send_ring_init(ring_, qp_.sq_slots, qp_.sq_doorbell, qp_.sq_slot_bytes, qp_.sq_depth, qp_.sq_max_batch) ||
        !recv_ring_init(recv_ring_, qp_.rq_slots, qp_.rq_doorbell, qp_.rq_depth) ||
        !cq_ring_init(cq_ring_, send_cq_.entries, send_cq_.entry_bytes, send_cq_.depth) ||
        !cq_ring_init(recv_cq_ring_, recv_cq_.entries, recv_cq_.entry_bytes, recv_cq_.depth)) {
        return Status::error(Code::kInternal, "report this with the device's name and driver version",
                             "%s gave queues of a shape that EFA does not have", nic.info().name.c_str());
    }
    const bool large = qp_.sq_slot_bytes == kSlotBytesLarge;
    inline_write_max_ = large && caps.inline_write ? caps.max_inline_large : 0;
    inline_send_max_ = large ? caps.max_inline_large : caps.max_inline_small;
    cells_ = static_cast<uint8_t*>(memory.take(size_t{attr.sq_depth} * kCellBytes));
    if (attr.rq_depth) recv_buffers_ = static_cast<uint8_t*>(memory.take(size_t{attr.rq_depth} * kRecvBytes));
    if (!cells_ || (attr.rq_depth && !recv_buffers_))
        return Status::error(Code::kInternal, nullptr, "control memory is smaller than its parts");
    lkey_ = memory.lkey(attr.rail);
    const uint32_t depth = ring_.depth < attr.sq_depth ? ring_.depth : attr.sq_depth;
    recv_buffers_count_ = attr.rq_depth;
    requests_.resize(depth);
    generation_.assign(depth, 0);
    is_open_.assign(depth, 0);
    free_ids_.reserve(depth);
    for (uint32_t id = depth; id-- > 0;) free_ids_.push_back(static_cast<uint16_t>(id));
    return Status();
}

void Endpoint::close() {
    if (!nic_) return;
    if (qp_.handle) (void)nic_->destroy_qp(qp_.handle);
    if (send_cq_.handle) (void)nic_->destroy_cq(send_cq_.handle);
    if (recv_cq_.handle) (void)nic_->destroy_cq(recv_cq_.handle);
    nic_ = nullptr;
}

bool Endpoint::has_room() const { return !free_ids_.empty() && has_room_again(); }

uint32_t Endpoint::room() const {
    const uint32_t ids = static_cast<uint32_t>(free_ids_.size());
    const uint32_t credits = send_ring_credits(ring_);
    return ids < credits ? ids : credits;
}

bool Endpoint::has_room_again() const {
    return send_ring_credits(ring_) != 0;
}

uint32_t Endpoint::take_id(const Request& request) {
    const uint16_t index = free_ids_.back();
    free_ids_.pop_back();
    requests_[index] = request;
    is_open_[index] = 1;
    return index | (uint32_t{generation_[index]} << kIdIndexBits);
}

void Endpoint::begin(SendWqe& wqe, SendOpcode opcode, const WqeTarget& target, uint32_t id, uint32_t* index) {
    if (send_ring_batch_is_full(ring_)) ring();
    if (!send_ring_reserve(ring_, *index)) damage_ = "a descriptor was posted without room for it";
    wqe_begin(wqe, opcode, target, id, qp_.req_id_64, send_ring_phase(ring_, *index));
}

void Endpoint::post_write(const Remote& remote, const Local& local, uint32_t bytes, const uint32_t* immediate,
                          const Request& request) {
    SendWqe wqe;
    uint32_t index = 0;
    begin(wqe, SendOpcode::kRdmaWrite, remote.target, take_id(request), &index);
    wqe_set_remote(wqe, remote.addr, bytes, remote.rkey);
    wqe_set_local(wqe, local.addr, bytes, local.lkey);
    if (immediate) wqe_set_immediate(wqe, *immediate);
    commit(wqe, index);
}

void Endpoint::post_read(const Remote& remote, const Local& local, uint32_t bytes, const Request& request) {
    SendWqe wqe;
    uint32_t index = 0;
    begin(wqe, SendOpcode::kRdmaRead, remote.target, take_id(request), &index);
    wqe_set_remote(wqe, remote.addr, bytes, remote.rkey);
    wqe_set_local(wqe, local.addr, bytes, local.lkey);
    commit(wqe, index);
}

void Endpoint::post_write_copy(const Remote& remote, const void* bytes, uint32_t n, const Request& request) {
    const uint32_t id = take_id(request);
    SendWqe wqe;
    uint32_t index = 0;
    begin(wqe, SendOpcode::kRdmaWrite, remote.target, id, &index);
    wqe_set_remote(wqe, remote.addr, n, remote.rkey);
    if (n <= inline_write_max_) {
        wqe_set_write_inline(wqe, bytes, n);
    } else {
        memcpy(reinterpret_cast<void*>(cell(id)), bytes, n);
        wqe_set_local(wqe, cell(id), n, lkey_);
    }
    commit(wqe, index);
}

void Endpoint::post_send_copy(const WqeTarget& target, const void* bytes, uint32_t n, Request request) {
    request.bytes = n;
    request.target = target;
    const uint32_t id = take_id(request);
    memcpy(reinterpret_cast<void*>(cell(id)), bytes, n);  // kept even when sent inline: a refused SEND is sent again
    SendWqe wqe;
    uint32_t index = 0;
    begin(wqe, SendOpcode::kSend, target, id, &index);
    if (n <= inline_send_max_) {
        wqe_set_send_inline(wqe, bytes, n);
    } else {
        wqe_add_send_sge(wqe, cell(id), n, lkey_);
    }
    commit(wqe, index);
}

void Endpoint::post_send_again(const Completion& refused) {
    SendWqe wqe;
    uint32_t index = 0;
    begin(wqe, SendOpcode::kSend, refused.request.target, refused.id, &index);
    const uint64_t bytes = cell(refused.id);
    if (refused.request.bytes <= inline_send_max_) {
        wqe_set_send_inline(wqe, reinterpret_cast<const void*>(bytes), refused.request.bytes);
    } else {
        wqe_add_send_sge(wqe, bytes, refused.request.bytes, lkey_);
    }
    commit(wqe, index);
}

void Endpoint::ring() {
    if (send_ring_unrung(ring_) == 0) return;
    send_ring_ring(ring_);
    ++doorbells_;
}

bool Endpoint::next_completion(Completion* completion) {
    const uint8_t* entry = cq_ring_peek(cq_ring_);
    if (!entry) return false;
    TxCqe cqe;
    memcpy(&cqe, entry, sizeof cqe);
    cq_ring_pop(cq_ring_);
    const uint32_t id = static_cast<uint32_t>(cqe_req_id(cqe, qp_.req_id_64));
    const uint32_t index = id & kIdIndexMask;
    const bool known = index < requests_.size() && is_open_[index] && generation_[index] == ((id >> kIdIndexBits) & 0xf);
    if (!known || !send_ring_complete(ring_, 1)) {
        damage_ = "completion with request id " + std::to_string(id) + " which is not in flight";
        return false;
    }
    completion->request = requests_[index];
    completion->status = static_cast<CqeStatus>(cqe.status);
    completion->id = id;
    const bool refused = completion->status == CqeStatus::kRnr && completion->request.kind == RequestKind::kRecord;
    if (!refused) release(id);
    return true;
}

void Endpoint::release(uint32_t id) {
    const uint16_t index = static_cast<uint16_t>(id & kIdIndexMask);
    generation_[index] = static_cast<uint8_t>((generation_[index] + 1) & 0xf);
    is_open_[index] = 0;
    free_ids_.push_back(index);
}

bool Endpoint::is_writing(uint32_t owner, uint64_t addr, uint64_t bytes) const {
    for (size_t id = 0; id < requests_.size(); ++id) {
        const Request& request = requests_[id];
        if (!is_open_[id] || request.kind != RequestKind::kWrite || request.owner != owner) continue;
        if (addr < request.remote + request.bytes && request.remote < addr + bytes) return true;
    }
    return false;
}

void Endpoint::forget(const Tracker* tracker) {
    for (Request& request : requests_)
        if (request.tracker == tracker) request.tracker = nullptr;
}

void Endpoint::post_receives() {
    uint32_t index = 0;
    bool posted = false;
    for (uint16_t id = 0; id < recv_buffers_count_ && recv_ring_reserve(recv_ring_, index); ++id) {
        recv_wqe_set(*recv_ring_slot(recv_ring_, index), reinterpret_cast<uint64_t>(recv_buffers_ + size_t{id} * kRecvBytes),
                     kRecvBytes, lkey_, id);
        posted = true;
    }
    if (posted) recv_ring_ring(recv_ring_);
}

bool Endpoint::next_receive(const RxCqeEx** cqe) {
    const uint8_t* entry = cq_ring_peek(recv_cq_ring_);
    *cqe = reinterpret_cast<const RxCqeEx*>(entry);
    return entry != nullptr;
}

const uint8_t* Endpoint::receive_buffer(uint16_t req_id) const {
    return req_id < recv_buffers_count_ ? recv_buffers_ + size_t{req_id} * kRecvBytes : nullptr;
}

void Endpoint::pop_receive() {
    const auto* cqe = reinterpret_cast<const RxCqeEx*>(cq_ring_peek(recv_cq_ring_));
    const bool used_buffer = (cqe->base.flags & kCqeUnsolicited) == 0;
    const uint16_t id = cqe->base.req_id;
    cq_ring_pop(recv_cq_ring_);
    if (!used_buffer) return;
    // The buffer that was consumed goes back, whichever it was: completions come in any order.
    uint32_t index = 0;
    if (!recv_ring_complete(recv_ring_, 1) || !recv_ring_reserve(recv_ring_, index) || !receive_buffer(id)) {
        damage_ = "receive completion for buffer " + std::to_string(id) + " which was not posted";
        return;
    }
    recv_wqe_set(*recv_ring_slot(recv_ring_, index), reinterpret_cast<uint64_t>(recv_buffers_ + size_t{id} * kRecvBytes),
                 kRecvBytes, lkey_, id);
    recv_ring_ring(recv_ring_);
}

}  // namespace nvshmem_efa
