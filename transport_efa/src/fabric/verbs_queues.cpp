// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs_queues.h"

#include <algorithm>
#include <bit>
#include <cerrno>

#include "fabric/verbs_errno.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr uint8_t kPortNumber = 1;
// Retries of the device when a receiver is not ready, before it reports status RNR; 7 would retry without end, and
// every wait of ours has a deadline.
constexpr uint8_t kRnrRetries = 3;

Status not_that_deep(const OpenDevice& device, const char* queue, uint32_t depth, uint32_t depth_max) {
    return Status::error(Code::kInvalidArgument, "lower NVSHMEM_EFA_SQ_DEPTH or NVSHMEM_EFA_RQ_DEPTH",
                         "a %s queue of %u entries on %s, which has at most %u", queue, depth, device.name().c_str(),
                         depth_max);
}

Status not_able_to(const OpenDevice& device, const char* capability) {
    return Status::error(Code::kUnsupported, "ask NicInfo::caps first; docs/verbs.md lists what each capability needs",
                         "%s has no %s", device.name().c_str(), capability);
}

Status bad_ring(const OpenDevice& device, const char* call, uint32_t entry_bytes, uint32_t entries) {
    return Status::error(Code::kUnsupported, "this rdma-core or driver is newer than we know; see docs/verbs.md",
                         "%s on %s reports a ring of %u entries of %u bytes, which we cannot post to", call,
                         device.name().c_str(), entries, entry_bytes);
}

Status check_qp_attr(const OpenDevice& device, const QpAttr& attr) {
    const NicCaps& caps = device.caps();
    const uint32_t sq_max = attr.large_slots ? caps.max_sq_depth / 2 : caps.max_sq_depth;
    if (attr.large_slots && !caps.inline_write) return not_able_to(device, "128-byte slots (inline write)");
    if (attr.unsolicited_recv && !caps.unsolicited_write_recv) return not_able_to(device, "unsolicited write receive");
    if (attr.req_id_64 && !caps.req_id_64) return not_able_to(device, "64-bit request ids");
    if (attr.sq_depth == 0) {
        return Status::error(Code::kInvalidArgument, "give at least one slot", "a send queue of no slots on %s",
                             device.name().c_str());
    }
    // libefa rounds depths up; what does not fit after that is EINVAL from the driver, not a smaller queue.
    if (attr.sq_depth > sq_max || round_up_to_power_of_two(attr.sq_depth) > sq_max) {
        return not_that_deep(device, "send", attr.sq_depth, sq_max);
    }
    if (attr.rq_depth > caps.max_rq_depth || round_up_to_power_of_two(attr.rq_depth) > caps.max_rq_depth) {
        return not_that_deep(device, "receive", attr.rq_depth, caps.max_rq_depth);
    }
    return Status();
}

uint64_t send_ops_of(const NicCaps& caps) {
    uint64_t ops = kSendOpSend | kSendOpSendImm;
    if (caps.rdma_write) ops |= kSendOpRdmaWrite | kSendOpRdmaWriteImm;
    if (caps.rdma_read) ops |= kSendOpRdmaRead;
    return ops;
}

Status query_rings(const OpenDevice& device, const QpAttr& attr, MadeQp* made) {
    const int error = device.api().efa_query_qp_wqs(made->qp, &made->sq, &made->rq, sizeof(made->sq));
    if (error != 0) return call_failed(device.name(), "efadv_query_qp_wqs", "", error);
    const uint32_t slot_bytes = attr.large_slots ? kSlotBytesLarge : kSlotBytesSmall;
    const EfaWqAttr& sq = made->sq;
    if (sq.entry_size != slot_bytes || !is_power_of_two(sq.num_entries) || !sq.buffer || !sq.doorbell) {
        return bad_ring(device, "efadv_query_qp_wqs (send)", sq.entry_size, sq.num_entries);
    }
    const EfaWqAttr& rq = made->rq;
    if (attr.rq_depth != 0 &&
        (rq.entry_size != sizeof(RecvWqe) || !is_power_of_two(rq.num_entries) || !rq.buffer || !rq.doorbell)) {
        return bad_ring(device, "efadv_query_qp_wqs (receive)", rq.entry_size, rq.num_entries);
    }
    return Status();
}

Status modify(const OpenDevice& device, IbvQp* qp, IbvQpAttr attr, int mask, const char* state) {
    const int error = device.api().modify_qp(qp, &attr, mask);
    if (error == 0) return Status();
    return call_failed(device.name(), "ibv_modify_qp", "queue pair " + std::to_string(qp->qp_num) + " to " + state,
                       error);
}

}  // namespace

uint32_t round_up_to_power_of_two(uint32_t value) {
    return value > (1u << 31) ? 0xffffffffu : value == 0 ? 0 : std::bit_ceil(value);
}

uint32_t round_down_to_power_of_two(uint32_t value) { return std::bit_floor(value); }

Status make_cq(const OpenDevice& device, const CqAttr& attr, const Dmabuf* external, MadeCq* made) {
    const NicCaps& caps = device.caps();
    if (attr.depth == 0 || attr.depth > caps.max_cq_depth || round_up_to_power_of_two(attr.depth) > caps.max_cq_depth) {
        return not_that_deep(device, "completion", attr.depth, caps.max_cq_depth);
    }
    IbvCqInitAttrEx init = {};
    init.cqe = attr.depth;
    EfaCqInitAttr efa = {};
    if (caps.cq_sgid) efa.wc_flags |= kEfaWcSgid;
    if (external != nullptr) {
        efa.flags |= kEfaCqExtMemDmabuf;
        efa.ext_buffer = static_cast<uint8_t*>(attr.memory);
        efa.ext_length = attr.memory_bytes;
        efa.ext_offset = external->offset();
        efa.ext_fd = external->fd();
    }
    errno = 0;
    made->cq = device.api().efa_create_cq(device.context(), &init, &efa, sizeof(efa));
    if (made->cq == nullptr) {
        const char* hint = external ? "the caller's memory must be physically contiguous and large enough" : nullptr;
        return call_failed(device.name(), "efadv_create_cq", std::to_string(attr.depth) + " entries", errno, hint);
    }
    Status status;
    const int error = device.api().efa_query_cq(made->cq, &made->attr, sizeof(made->attr));
    const EfaCqAttr& ring = made->attr;
    if (error != 0) {
        status = call_failed(device.name(), "efadv_query_cq", "", error);
    } else if ((ring.entry_size != 16 && ring.entry_size != 32) || !is_power_of_two(ring.num_entries) || !ring.buffer) {
        status = bad_ring(device, "efadv_query_cq", ring.entry_size, ring.num_entries);
    }
    if (!status.ok()) {
        device.api().destroy_cq(made->cq);
        *made = MadeCq();
    }
    return status;
}

Status make_qp(const OpenDevice& device, const QpAttr& attr, IbvCq* send_cq, IbvCq* recv_cq, MadeQp* made) {
    EFA_TRY(check_qp_attr(device, attr));
    const NicCaps& caps = device.caps();
    IbvQpInitAttrEx init = {};
    init.send_cq = send_cq;
    init.recv_cq = recv_cq;
    init.cap.max_send_wr = attr.sq_depth;
    init.cap.max_recv_wr = attr.rq_depth;
    init.cap.max_send_sge = device.max_send_sges();
    init.cap.max_recv_sge = 1;  // also without a receive queue: libefa divides by it
    init.cap.max_inline_data = attr.large_slots ? caps.max_inline_large : caps.max_inline_small;
    init.qp_type = kQpTypeDriver;
    init.comp_mask = kQpInitAttrPd | kQpInitAttrSendOps;
    init.pd = device.pd();
    init.send_ops_flags = send_ops_of(caps);
    EfaQpInitAttr efa = {};
    efa.driver_qp_type = kEfaDriverQpSrd;
    if (attr.large_slots) efa.flags |= kEfaQpInlineWrite;
    if (attr.unsolicited_recv) efa.flags |= kEfaQpUnsolicited;
    errno = 0;
    made->qp = device.api().efa_create_qp(device.context(), &init, &efa, sizeof(efa));
    if (made->qp == nullptr) {
        const std::string what =
            std::to_string(attr.sq_depth) + " send and " + std::to_string(attr.rq_depth) + " receive slots";
        return call_failed(device.name(), "efadv_create_qp_ex", what, errno);
    }
    Status status = query_rings(device, attr, made);
    if (!status.ok()) {
        device.api().destroy_qp(made->qp);
        *made = MadeQp();
    }
    return status;
}

Status reset_qp(const OpenDevice& device, IbvQp* qp) {
    IbvQpAttr attr = {};
    attr.qp_state = kQpStateReset;
    return modify(device, qp, attr, kQpMaskState, "RESET");
}

Status ready_qp(const OpenDevice& device, IbvQp* qp, uint32_t qkey) {
    IbvQpAttr init = {};
    init.qp_state = kQpStateInit;
    init.port_num = kPortNumber;
    init.qkey = qkey;
    EFA_TRY(modify(device, qp, init, kQpMaskState | kQpMaskPkeyIndex | kQpMaskPort | kQpMaskQkey, "INIT"));
    IbvQpAttr rtr = {};
    rtr.qp_state = kQpStateRtr;
    EFA_TRY(modify(device, qp, rtr, kQpMaskState, "RTR"));
    IbvQpAttr rts = {};
    rts.qp_state = kQpStateRts;
    int mask = kQpMaskState | kQpMaskSqPsn;
    if (device.caps().rnr_retry) {
        rts.rnr_retry = kRnrRetries;
        mask |= kQpMaskRnrRetry;
    }
    return modify(device, qp, rts, mask, "RTS");
}

}  // namespace nvshmem_efa::verbs
