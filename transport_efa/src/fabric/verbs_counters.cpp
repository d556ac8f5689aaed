// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <utility>

#include "fabric/verbs_errno.h"
#include "fabric/verbs_nic.h"

namespace nvshmem_efa::verbs {
namespace {

constexpr struct {
    uint32_t ours;
    uint32_t library;
} kOps[] = {
    {kCountSend, kAttachSend},   {kCountRecv, kAttachRecv},
    {kCountRead, kAttachRead},   {kCountRemoteRead, kAttachRemoteRead},
    {kCountWrite, kAttachWrite}, {kCountRemoteWrite, kAttachRemoteWrite},
};

uint32_t library_ops(uint32_t ours) {
    uint32_t ops = 0;
    for (const auto& op : kOps) {
        if (ours & op.ours) ops |= op.library;
    }
    return ops;
}

uint32_t all_our_ops() {
    uint32_t ops = 0;
    for (const auto& op : kOps) ops |= op.ours;
    return ops;
}

EfaMemoryLocation locate(uint64_t* word, const Dmabuf& dmabuf) {
    EfaMemoryLocation location = {};
    location.type = kEfaMemoryVa;
    location.ptr = reinterpret_cast<uint8_t*>(word);
    if (dmabuf.fd() >= 0) {
        location.type = kEfaMemoryDmabuf;
        location.ptr = nullptr;  // the library would read through it, and the CPU cannot
        location.fd = dmabuf.fd();
        location.offset = dmabuf.offset();
    }
    return location;
}

}  // namespace

Status VerbsNic::create_counter(const CounterAttr& attr, uint64_t* handle) {
    if (!device_->caps().completion_counters) {
        return Status::error(Code::kUnsupported, "counters need p5en or newer, efa.ko 3.3 and rdma-core v65",
                             "%s has no completion counters", name().c_str());
    }
    if (attr.completions == nullptr || attr.errors == nullptr) {
        return Status::error(Code::kInvalidArgument, "give both words", "a counter on %s without memory",
                             name().c_str());
    }
    Dmabuf completions, errors;
    if (attr.kind == MemoryKind::kCuda) {
        EFA_TRY(export_dmabuf_(attr.completions, sizeof(uint64_t), &completions).with_context("counter memory"));
        EFA_TRY(export_dmabuf_(attr.errors, sizeof(uint64_t), &errors).with_context("counter memory"));
    }
    IbvCompCounterInitAttr init = {};
    EfaCompCounterInitAttr efa = {};
    efa.flags = kEfaCounterExtCompletions | kEfaCounterExtErrors;
    efa.completions = locate(attr.completions, completions);
    efa.errors = locate(attr.errors, errors);
    const std::lock_guard lock(mutex_);
    errno = 0;
    IbvCompCounter* counter = api().efa_create_counter(device_->context(), &init, &efa, sizeof(efa));
    if (counter == nullptr) {
        const std::string what = std::to_string(counters_.size()) + " exist, " +
                                 std::to_string(device_->caps().max_counters) + " are promised";
        return call_failed(name(), "efadv_create_comp_cntr", what, errno);
    }
    *handle = next_handle_++;
    counters_[*handle] = {counter, 0};
    return Status();
}

// The device takes counters only in RESET and INIT; afterwards the queue is made ready again, attached or not.
Status VerbsNic::attach_and_ready(QpObject& qp, IbvCompCounter* counter, uint32_t library_ops) {
    EFA_TRY(reset_qp(*device_, qp.qp));
    IbvAttachCompCounterAttr attr = {};
    attr.op_mask = library_ops;
    const int error = api().attach_counter(qp.qp, counter, &attr);
    EFA_TRY(ready_qp(*device_, qp.qp, qp.qkey));
    return error == 0 ? Status() : call_failed(name(), "ibv_qp_attach_comp_cntr", "", error);
}

Status VerbsNic::attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) {
    const std::lock_guard lock(mutex_);
    QpObject* qp = nullptr;
    CounterObject* counter = nullptr;
    EFA_TRY(find(qps_, qp_handle, "queue pair", &qp));
    EFA_TRY(find(counters_, counter_handle, "counter", &counter));
    if (counter_ops == 0 || (counter_ops & ~all_our_ops()) != 0 || (counter_ops & qp->counted_ops) != 0) {
        return Status::error(Code::kInvalidArgument, "one counter for each operation of a queue pair",
                             "counter operations 0x%x on queue pair %u of %s: unknown, none, or counted already (0x%x)",
                             counter_ops, qp->qp->qp_num, name().c_str(), qp->counted_ops);
    }
    EFA_TRY(attach_and_ready(*qp, counter->counter, library_ops(counter_ops)));
    qp->counted_ops |= counter_ops;
    qp->counters.push_back(counter_handle);
    ++counter->n_qps;
    return Status();
}

Status VerbsNic::destroy_counter(uint64_t handle) {
    const std::lock_guard lock(mutex_);
    CounterObject* counter = nullptr;
    EFA_TRY(find(counters_, handle, "counter", &counter));
    if (counter->n_qps != 0) {
        return Status::error(Code::kInvalidArgument, "destroy its queue pairs first",
                             "counter %llu of %s is attached %u times", static_cast<unsigned long long>(handle),
                             name().c_str(), counter->n_qps);
    }
    const int error = api().destroy_counter(counter->counter);
    if (error != 0) return call_failed(name(), "ibv_destroy_comp_cntr", "", error);
    counters_.erase(handle);
    return Status();
}

}  // namespace nvshmem_efa::verbs
