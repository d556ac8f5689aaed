// SPDX-License-Identifier: Apache-2.0
// Queues and address handles of a VerbsNic, and its end. Memory: verbs_memory.cpp. Counters: verbs_counters.cpp.
#include "fabric/verbs_nic.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "fabric/verbs_errno.h"
#include "log.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr uint8_t kPort = 1;

}  // namespace

VerbsNic::VerbsNic(std::unique_ptr<OpenDevice> device, NicInfo info, DmabufExporter export_dmabuf)
    : device_(std::move(device)), info_(std::move(info)), export_dmabuf_(std::move(export_dmabuf)) {}

VerbsNic::~VerbsNic() {
    const auto check = [&](const char* call, int error) {
        if (error) EFA_LOG(kWarn, "verbs", "%s failed on %s: %s", call, name().c_str(), errno_text(error).c_str());
    };
    for (auto& [handle, qp] : qps_) check("ibv_destroy_qp", api().destroy_qp(qp.qp));
    for (auto& [handle, counter] : counters_) check("ibv_destroy_comp_cntr", api().destroy_counter(counter.counter));
    for (auto& [handle, cq] : cqs_) check("ibv_destroy_cq", api().destroy_cq(cq.cq));
    for (auto& [handle, ah] : ahs_) check("ibv_destroy_ah", api().destroy_ah(ah.ah));
    for (auto& [handle, mr] : regions_) check("ibv_dereg_mr", api().dereg_mr(mr));
}  // device_ goes last: protection domain, then context

PeerAddress VerbsNic::address() const {
    PeerAddress address;
    address.gid = device_->gid();
    return address;
}

Status VerbsNic::create_cq(const CqAttr& attr, Cq* cq) {
    Dmabuf external;
    if (attr.memory != nullptr) {
        if (!device_->caps().cq_ext_mem || attr.memory_kind != MemoryKind::kCuda) {
            return Status::error(Code::kUnsupported, "leave CqAttr::memory empty; docs/verbs.md lists what this needs",
                                 "%s cannot put a completion queue into the caller's memory", name().c_str());
        }
        const uint64_t needed = uint64_t{round_up_to_power_of_two(attr.depth)} * sizeof(RxCqeEx);
        if (attr.memory_bytes < needed) {
            return Status::error(Code::kInvalidArgument,
                                 "give 32 bytes an entry, the depth rounded up to a power of two",
                                 "a completion queue of %u entries needs %llu bytes, and has %zu", attr.depth,
                                 static_cast<unsigned long long>(needed), attr.memory_bytes);
        }
        EFA_TRY(export_dmabuf_(attr.memory, attr.memory_bytes, &external).with_context("completion queue memory"));
    }
    const std::lock_guard lock(mutex_);
    MadeCq made;
    EFA_TRY(make_cq(*device_, attr, attr.memory ? &external : nullptr, &made));
    const uint64_t handle = next_handle_++;
    cqs_[handle] = {made.cq, 0};
    *cq = {.entries = made.attr.buffer,
           .entry_bytes = made.attr.entry_size,
           .depth = made.attr.num_entries,
           .handle = handle};
    return Status();
}

Status VerbsNic::destroy_cq(uint64_t handle) {
    const std::lock_guard lock(mutex_);
    CqObject* cq = nullptr;
    EFA_TRY(find(cqs_, handle, "completion queue", &cq));
    if (cq->n_qps != 0) {
        return Status::error(Code::kInvalidArgument, "destroy its queue pairs first",
                             "completion queue %llu of %s is in use by %u queue pairs",
                             static_cast<unsigned long long>(handle), name().c_str(), cq->n_qps);
    }
    const int error = api().destroy_cq(cq->cq);
    if (error != 0) return call_failed(name(), "ibv_destroy_cq", "", error);
    cqs_.erase(handle);
    return Status();
}

Status VerbsNic::create_qp(const QpAttr& attr, Qp* qp) {
    const std::lock_guard lock(mutex_);
    CqObject *send_cq = nullptr, *recv_cq = nullptr;
    EFA_TRY(find(cqs_, attr.send_cq, "completion queue", &send_cq));
    EFA_TRY(find(cqs_, attr.recv_cq, "completion queue", &recv_cq));
    MadeQp made;
    EFA_TRY(make_qp(*device_, attr, send_cq->cq, recv_cq->cq, &made));
    Status ready = ready_qp(*device_, made.qp, attr.qkey);
    if (!ready.ok()) {
        api().destroy_qp(made.qp);
        return ready;
    }
    const uint64_t handle = next_handle_++;
    qps_[handle] = {made.qp, attr.send_cq, attr.recv_cq, attr.qkey, 0, {}};
    ++send_cq->n_qps;
    if (attr.recv_cq != attr.send_cq) ++recv_cq->n_qps;
    *qp = Qp();
    qp->qp_num = made.qp->qp_num;
    qp->qkey = attr.qkey;
    qp->sq_slots = made.sq.buffer;
    qp->sq_doorbell = made.sq.doorbell;
    qp->sq_slot_bytes = made.sq.entry_size;
    qp->sq_depth = made.sq.num_entries;
    qp->sq_max_batch = made.sq.max_batch == kEfaNoBatchLimit ? 0 : made.sq.max_batch;
    qp->req_id_64 = (made.sq.caps & kEfaWqCap64BitReqId) != 0;  // the library's choice, not ours: all or none
    if (attr.rq_depth != 0) {
        qp->rq_slots = made.rq.buffer;
        qp->rq_doorbell = made.rq.doorbell;
        qp->rq_depth = made.rq.num_entries;
    }
    qp->handle = handle;
    return Status();
}

Status VerbsNic::destroy_qp(uint64_t handle) {
    const std::lock_guard lock(mutex_);
    QpObject* qp = nullptr;
    EFA_TRY(find(qps_, handle, "queue pair", &qp));
    const int error = api().destroy_qp(qp->qp);
    if (error != 0) return call_failed(name(), "ibv_destroy_qp", "", error);
    --cqs_[qp->send_cq].n_qps;
    if (qp->recv_cq != qp->send_cq) --cqs_[qp->recv_cq].n_qps;
    for (const uint64_t counter : qp->counters) --counters_[counter].n_qps;
    qps_.erase(handle);
    return Status();
}

Status VerbsNic::create_address_handle(const PeerAddress& peer, AddressHandle* ah) {
    if (peer.gid == Gid()) {
        return Status::error(Code::kInvalidArgument, "exchange Nic::address() before making address handles",
                             "the peer's address is empty (on %s)", name().c_str());
    }
    const std::lock_guard lock(mutex_);
    for (auto& [handle, known] : ahs_) {
        if (known.gid != peer.gid) continue;
        ++known.references;
        *ah = {.ahn = known.ahn, .handle = handle};
        return Status();
    }
    IbvAhAttr attr = {};
    std::memcpy(attr.dgid.raw, peer.gid.raw, sizeof(attr.dgid.raw));
    attr.is_global = 1;
    attr.port_num = kPort;
    errno = 0;
    IbvAh* made = api().create_ah(device_->pd(), &attr);
    if (made == nullptr) return call_failed(name(), "ibv_create_ah", "", errno);
    EfaAhAttr numbered = {};
    const int error = api().efa_query_ah(made, &numbered, sizeof(numbered));
    if (error != 0) {
        api().destroy_ah(made);
        return call_failed(name(), "efadv_query_ah", "", error);
    }
    const uint64_t handle = next_handle_++;
    ahs_[handle] = {made, peer.gid, numbered.ahn, 1};
    *ah = {.ahn = numbered.ahn, .handle = handle};
    return Status();
}

Status VerbsNic::destroy_address_handle(const AddressHandle& ah) {
    const std::lock_guard lock(mutex_);
    AhObject* known = nullptr;
    EFA_TRY(find(ahs_, ah.handle, "address handle", &known));
    if (known->references > 1) {
        --known->references;
        return Status();
    }
    const int error = api().destroy_ah(known->ah);
    if (error != 0) return call_failed(name(), "ibv_destroy_ah", "", error);
    ahs_.erase(ah.handle);
    return Status();
}

}  // namespace nvshmem_efa::verbs
