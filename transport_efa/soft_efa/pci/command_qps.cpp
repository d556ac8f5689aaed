// SPDX-License-Identifier: Apache-2.0
// Queue pairs: rings in BAR 2 and the guest's memory, doorbells in the doorbell BAR, the states of verbs.
#include <algorithm>
#include <bit>

#include "nvshmem_efa/ring.h"
#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/efa_regs.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint64_t kRingAlign = 64;

struct Transition {
    bool is_valid = false;
    uint32_t required = 0;  // bits of the modify mask
};

// The states of verbs for UD and SRD. Any state but RESET may also go to RESET and to ERR.
Transition transition(AdminQpState from, AdminQpState to) {
    using S = AdminQpState;
    if (to == S::kReset) return {true};
    if (to == S::kError) return {from != S::kReset};
    if (from == S::kReset && to == S::kInit) return {true, kModifyQkey};
    if (from == S::kInit && (to == S::kInit || to == S::kRtr)) return {true};
    if (from == S::kRtr && to == S::kRts) return {true, kModifySqPsn};
    if (from == S::kRts && (to == S::kRts || to == S::kSqd)) return {true};
    if (from == S::kSqd && (to == S::kRts || to == S::kSqd)) return {true};
    if (from == S::kSqe && to == S::kRts) return {true};
    return {};
}

QpState model_state(AdminQpState state) {
    if (state == AdminQpState::kReset || state == AdminQpState::kInit) return QpState::kReset;
    return state == AdminQpState::kError ? QpState::kError : QpState::kReady;
}

}  // namespace

uint32_t Commands::qp_of(uint32_t handle) {
    const QpObject* qp = objects_.qps.find(Objects::id_of(handle));
    return qp && qp->handle == handle ? Objects::id_of(handle) : kNoId;
}

// The model stops a queue pair that breaks the rules; the guest learns it here.
AdminQpState Commands::state_of(const QpObject& qp) const {
    return device_.qp_state(qp.model_handle) == QpState::kError ? AdminQpState::kError : qp.state;
}

AdminStatus Commands::check_qp(const CreateQpCommand& command, QpAttr* attr) const {
    const NicCaps& caps = device_.caps();
    if ((command.flags & kQpFlagsReserved) || command.reserved || command.reserved2)
        return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (command.flags & (kQpFlagSqVirtual | kQpFlagRqVirtual))
        return refuse(AdminStatus::kIllegalParameter, "this device has no rings in memory regions");
    if (command.type != kQpTypeUd && command.type != kQpTypeSrd)
        return refuse(AdminStatus::kIllegalParameter, "no queue pairs of type %u", command.type);
    // The ring holds a power of two of slots; their size follows from the number that the program asked for.
    const uint32_t least = std::max<uint32_t>({1, command.sq_depth, parts_.profile.pci.min_sq_depth});
    if (command.sq_depth > caps.max_sq_depth || command.sq_bytes > caps.max_sq_depth * kSlotBytesSmall)
        return refuse(AdminStatus::kIllegalParameter, "a send queue of %u slots in %u bytes", command.sq_depth,
                      command.sq_bytes);
    attr->sq_depth = std::bit_ceil(least);
    attr->large_slots = command.sq_bytes == attr->sq_depth * kSlotBytesLarge;
    const bool has_ring = attr->large_slots || command.sq_bytes == attr->sq_depth * kSlotBytesSmall;
    if (!has_ring && !(command.sq_depth == 0 && command.sq_bytes == 0))
        return refuse(AdminStatus::kIllegalParameter, "a send queue of %u slots in %u bytes", command.sq_depth,
                      command.sq_bytes);
    attr->rq_depth = command.rq_bytes / sizeof(RecvWqe);
    if (command.rq_bytes % sizeof(RecvWqe) != 0 || command.rq_depth > attr->rq_depth ||
        (attr->rq_depth != 0 && !is_power_of_two(attr->rq_depth)) || attr->rq_depth > caps.max_rq_depth ||
        command.rq_addr % kRingAlign != 0)
        return refuse(AdminStatus::kIllegalParameter, "a receive queue of %u slots in %u bytes at 0x%llx",
                      command.rq_depth, command.rq_bytes, static_cast<unsigned long long>(command.rq_addr));
    attr->unsolicited_recv = command.flags & kQpFlagUnsolicited;
    attr->req_id_64 = command.flags & kQpFlagReqId64;
    return AdminStatus::kSuccess;
}

AdminStatus Commands::create_qp(const CreateQpCommand& command, AdminReply* reply) {
    QpAttr attr;
    if (const AdminStatus status = check_qp(command, &attr); status != AdminStatus::kSuccess) return status;
    DomainObject* pd = objects_.pds.find(command.pd);
    DomainObject* uar = objects_.uars.find(command.uar);
    CqObject* send_cq = objects_.cqs.find(command.send_cq);
    CqObject* recv_cq = objects_.cqs.find(command.recv_cq);
    if (!pd || !uar || !send_cq || !recv_cq)
        return refuse(AdminStatus::kIllegalParameter, "no protection domain %u, UAR %u or completion queues %u, %u",
                      command.pd, command.uar, command.send_cq, command.recv_cq);
    if (attr.req_id_64 && !send_cq->is_req_id_64)
        return refuse(AdminStatus::kIllegalParameter, "64-bit request ids into a completion queue without them");
    const uint32_t send_ring = send_cq->next_ring % send_cq->rings.size();
    const uint32_t recv_ring = (recv_cq->next_ring + (recv_cq == send_cq)) % recv_cq->rings.size();
    attr.send_cq = send_cq->rings[send_ring];
    attr.recv_cq = recv_cq->rings[recv_ring];

    QpObject made;
    made.type = command.type;
    made.pd = command.pd, made.uar = command.uar, made.send_cq = command.send_cq, made.recv_cq = command.recv_cq;
    made.sq_bytes = attr.sq_depth * (attr.large_slots ? kSlotBytesLarge : kSlotBytesSmall);
    uint8_t* rq = nullptr;
    if (command.rq_bytes != 0) {
        if (Status status = parts_.memory->map_contiguous(command.rq_addr, command.rq_bytes, &made.rq_pages, &rq);
            !status.ok())
            return refuse(status);
    }
    const uint32_t id = objects_.qps.add(std::move(made));
    if (id == kNoId) return refuse(AdminStatus::kNoResources, "all %u queue pairs are in use", objects_.qps.used());
    objects_.doorbells[id] = DoorbellPair{};
    parts_.send_queues->prepare(id, objects_.qps.find(id)->sq_bytes);
    QpRings rings;
    rings.sq = parts_.send_queues->data() + parts_.send_queues->offset_of(id);
    rings.sq_doorbell = &objects_.doorbells[id].send;
    rings.rq = rq;
    rings.rq_doorbell = &objects_.doorbells[id].receive;
    rings.domain = command.pd;
    rings.is_ud = command.type == kQpTypeUd;
    Qp model;
    if (Status status = device_.create_qp(attr, rings, &model); !status.ok()) {
        objects_.qps.remove(id);
        parts_.send_queues->release(id);
        return refuse(status);
    }
    QpObject& qp = *objects_.qps.find(id);
    qp.model_handle = model.handle;
    qp.handle = objects_.new_handle(id);
    ++pd->users, ++uar->users, ++send_cq->users, ++recv_cq->users;
    send_cq->next_ring = send_ring + 1;
    recv_cq->next_ring = recv_ring + 1;

    CreateQpReply body{};
    body.handle = qp.handle;
    body.qp_num = static_cast<uint16_t>(model.qp_num);
    body.send_sub_cq = static_cast<uint16_t>(send_ring);
    body.recv_sub_cq = static_cast<uint16_t>(recv_ring);
    body.sq_doorbell = id * kDoorbellPage;
    body.rq_doorbell = id * kDoorbellPage + kReceiveDoorbellOffset;
    body.sq_offset = parts_.send_queues->offset_of(id);
    reply->set(body);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::modify_qp(const ModifyQpCommand& command) {
    const uint32_t id = qp_of(command.handle);
    if (id == kNoId) return refuse(AdminStatus::kIllegalParameter, "no queue pair 0x%x", command.handle);
    QpObject& qp = *objects_.qps.find(id);
    if ((command.mask & ~kModifyAll) || command.reserved)
        return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    const AdminQpState current = state_of(qp);
    const bool has_state = command.mask & kModifyState;
    if (has_state && command.state >= kQpStates)
        return refuse(AdminStatus::kIllegalParameter, "no state %u", command.state);
    // The driver's idea of the state may be behind: the model stops queue pairs on its own.
    if ((command.mask & kModifyCurrentState) && current != AdminQpState::kError &&
        command.current_state != static_cast<uint32_t>(current))
        return refuse(AdminStatus::kIllegalParameter, "the queue pair is in state %u, not %u",
                      static_cast<unsigned>(current), command.current_state);
    const AdminQpState next = has_state ? static_cast<AdminQpState>(command.state) : current;
    const Transition step = has_state ? transition(current, next) : Transition{true};
    if (!step.is_valid || (command.mask & step.required) != step.required)
        return refuse(AdminStatus::kIllegalParameter, "from state %u to %u with mask 0x%x",
                      static_cast<unsigned>(current), static_cast<unsigned>(next), command.mask);
    const uint32_t qkey = command.mask & kModifyQkey ? command.qkey : qp.qkey;
    uint8_t rnr_retry = qp.rnr_retry;
    if (command.mask & kModifyRnrRetry) {
        if (!device_.caps().rnr_retry || qp.type != kQpTypeSrd || command.rnr_retry > kRnrRetryForever)
            return refuse(AdminStatus::kIllegalParameter, "%u RNR retries on this queue pair", command.rnr_retry);
        rnr_retry = command.rnr_retry;
    }
    if (Status status = device_.set_qp_options(qp.model_handle, qkey, rnr_retry); !status.ok()) return refuse(status);
    if (has_state) {
        if (Status status = device_.set_qp_state(qp.model_handle, model_state(next)); !status.ok())
            return refuse(status);
        if (next == AdminQpState::kReset) parts_.send_queues->prepare(id, qp.sq_bytes);
        qp.state = next;
    }
    qp.qkey = next == AdminQpState::kReset ? 0 : qkey;
    qp.rnr_retry = rnr_retry;
    if (command.mask & kModifySqPsn) qp.sq_psn = command.sq_psn;
    return AdminStatus::kSuccess;
}

AdminStatus Commands::query_qp(uint32_t handle, AdminReply* reply) {
    const uint32_t id = qp_of(handle);
    if (id == kNoId) return refuse(AdminStatus::kIllegalParameter, "no queue pair 0x%x", handle);
    const QpObject& qp = *objects_.qps.find(id);
    QueryQpReply body{};
    body.state = static_cast<uint32_t>(state_of(qp));
    body.qkey = qp.qkey;
    body.sq_psn = qp.sq_psn;
    body.rnr_retry = qp.rnr_retry;
    reply->set(body);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::destroy_qp(uint32_t handle) {
    const uint32_t id = qp_of(handle);
    if (id == kNoId) return refuse(AdminStatus::kIllegalParameter, "no queue pair 0x%x", handle);
    const QpObject& qp = *objects_.qps.find(id);
    if (Status status = device_.destroy_qp(qp.model_handle); !status.ok()) return refuse(status);
    parts_.counters->release(id);
    parts_.send_queues->release(id);
    --objects_.pds.find(qp.pd)->users;
    --objects_.uars.find(qp.uar)->users;
    --objects_.cqs.find(qp.send_cq)->users;
    --objects_.cqs.find(qp.recv_cq)->users;
    objects_.qps.remove(id);
    return AdminStatus::kSuccess;
}

}  // namespace nvshmem_efa::soft::pci
