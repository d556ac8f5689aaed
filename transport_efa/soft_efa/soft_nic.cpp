// SPDX-License-Identifier: Apache-2.0
#include "soft_nic.h"

#include <algorithm>

#include "log.h"

namespace nvshmem_efa::soft {
namespace {

// NVSHMEM wants a path for its distance arithmetic. This one exists everywhere and is near to nothing.
constexpr const char* kHarmlessPath = "/sys/devices/virtual";

}  // namespace

SoftNic::SoftNic(std::shared_ptr<NicHost> host, Device* device, int rail) : host_(std::move(host)), device_(device) {
    info_.name = "soft" + std::to_string(rail);
    info_.pci_path = kHarmlessPath;
    info_.driver_version = "software";
    info_.caps = device->caps();
    info_.caps.cq_ext_mem = false;  // see create_cq()
}

SoftNic::~SoftNic() {
    auto held = host_->take_lock();
    while (!qps_.empty()) {
        (void)device_->destroy_qp(qps_.back());
        qps_.pop_back();
    }
    for (uint64_t counter : counters_) (void)device_->destroy_counter(counter);
    for (uint64_t cq : cqs_) (void)device_->destroy_cq(cq);
    for (const AddressHandle& ah : handles_) (void)device_->destroy_address_handle(ah);
    for (const auto& [lkey, attr] : regions_) (void)device_->deregister_memory(lkey);
    const Status status = settle(held);
    if (!status.ok()) EFA_LOG(kError, "soft", "closing %s: %s", info_.name.c_str(), status.message());
    held.unlock();
    const std::lock_guard guard(host_->registration_lock());
    for (const auto& [lkey, attr] : regions_) host_->memory().remove_local(attr);
}

// Waits until no copy refers to memory that is about to go.
Status SoftNic::settle(std::unique_lock<std::mutex>& held) {
    Deadline deadline(host_->clock(), host_->timeout_ms());
    const MemoryPort::Ticket last = device_->last_copy();
    while (last != 0 && !host_->memory().done(last)) {
        if (deadline.passed())
            return Status::error(Code::kTimeout, "is the GPU hung?", "%s: copies do not end", info_.name.c_str());
        host_->step_locked();
        held.unlock();
        deadline.relax();
        held.lock();
    }
    return Status();
}

PeerAddress SoftNic::address() const {
    PeerAddress address;
    address.gid = device_->gid();
    host_->describe(&address);
    return address;
}

Status SoftNic::register_memory(const MemoryAttr& attr, MemoryRegion* region) {
    *region = MemoryRegion{};
    const std::lock_guard guard(host_->registration_lock());
    EFA_TRY(host_->memory().add_local(attr, &region->share));
    const auto held = host_->take_lock();
    Status status = device_->register_memory(attr, region);
    if (status.ok()) {
        regions_[region->lkey] = attr;
    } else {
        host_->memory().remove_local(attr);
    }
    return status;
}

Status SoftNic::deregister_memory(const MemoryRegion& region) {
    const std::lock_guard guard(host_->registration_lock());
    MemoryAttr attr;
    {
        auto held = host_->take_lock();
        const auto found = regions_.find(region.lkey);
        if (found == regions_.end())
            return Status::error(Code::kInvalidArgument, nullptr, "%s: no memory region has lkey 0x%x",
                                 info_.name.c_str(), region.lkey);
        attr = found->second;
        EFA_TRY(device_->deregister_memory(region.lkey));
        regions_.erase(found);
        EFA_TRY(settle(held));
    }
    host_->memory().remove_local(attr);
    return Status();
}

Status SoftNic::attach_peer_memory(const PeerAddress& owner, const MemoryShare& share) {
    const std::lock_guard guard(host_->registration_lock());
    return host_->memory().attach(share, [this, &owner](uint64_t export_id, uint32_t index) {
        return host_->fetch_fd(owner, export_id, index);
    });
}

Status SoftNic::create_cq(const CqAttr& attr, Cq* cq) {
    if (attr.memory)
        return Status::error(Code::kUnsupported, "leave CqAttr::memory empty",
                             "%s cannot put a completion queue into the caller's memory", info_.name.c_str());
    const auto held = host_->take_lock();
    EFA_TRY(device_->create_cq(attr, cq));
    cqs_.push_back(cq->handle);
    return Status();
}

Status SoftNic::destroy_cq(uint64_t handle) {
    const auto held = host_->take_lock();
    EFA_TRY(device_->destroy_cq(handle));
    std::erase(cqs_, handle);
    return Status();
}

Status SoftNic::create_qp(const QpAttr& attr, Qp* qp) {
    const auto held = host_->take_lock();
    EFA_TRY(device_->create_qp(attr, qp));
    qps_.push_back(qp->handle);
    return Status();
}

Status SoftNic::destroy_qp(uint64_t handle) {
    const auto held = host_->take_lock();
    EFA_TRY(device_->destroy_qp(handle));
    std::erase(qps_, handle);
    return Status();
}

Status SoftNic::create_address_handle(const PeerAddress& peer, AddressHandle* ah) {
    const auto held = host_->take_lock();
    EFA_TRY(host_->connect(peer));
    EFA_TRY(device_->create_address_handle(peer.gid, ah));
    handles_.push_back(*ah);
    return Status();
}

Status SoftNic::destroy_address_handle(const AddressHandle& ah) {
    const auto held = host_->take_lock();
    EFA_TRY(device_->destroy_address_handle(ah));
    const auto found = std::find_if(handles_.begin(), handles_.end(),
                                    [&ah](const AddressHandle& mine) { return mine.ahn == ah.ahn; });
    if (found != handles_.end()) handles_.erase(found);
    return Status();
}

Status SoftNic::create_counter(const CounterAttr& attr, uint64_t* handle) {
    const auto held = host_->take_lock();
    EFA_TRY(device_->create_counter(attr, handle));
    counters_.push_back(*handle);
    return Status();
}

Status SoftNic::attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) {
    const auto held = host_->take_lock();
    return device_->attach_counter(qp_handle, counter_handle, counter_ops);
}

Status SoftNic::destroy_counter(uint64_t handle) {
    auto held = host_->take_lock();
    EFA_TRY(device_->destroy_counter(handle));
    std::erase(counters_, handle);
    return settle(held);
}

}  // namespace nvshmem_efa::soft
