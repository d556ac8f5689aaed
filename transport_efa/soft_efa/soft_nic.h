// SPDX-License-Identifier: Apache-2.0
// A software device behind the seam. What drives it - the virtual world, or this process's engine - is its host.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "clock.h"
#include "device.h"
#include "fabric/fabric.h"

namespace nvshmem_efa::soft {

class NicHost {
   public:
    virtual ~NicHost() = default;
    virtual std::mutex& lock() = 0;  // held around every use of a device, its port's data calls and its wire
    virtual MemoryPort& memory() = 0;
    virtual Clock& clock() = 0;
    virtual Status join_job(const JobSecret& secret) = 0;     // lock not held
    virtual void describe(PeerAddress* address) = 0;          // lock not held
    virtual Status connect(const PeerAddress& peer) = 0;      // lock held; may be released and taken again
    virtual int fetch_fd(const PeerAddress& owner, uint64_t export_id, uint32_t index) = 0;  // lock not held
    virtual void progress() = 0;                              // lock not held
    virtual void step_locked() = 0;                           // lock held
    virtual uint64_t timeout_ms() const = 0;
    // Taking the lock, on a thread that must not starve behind the one that drives the devices.
    std::unique_lock<std::mutex> take_lock() {
        waiting_.fetch_add(1, std::memory_order_relaxed);
        std::unique_lock<std::mutex> held(lock());
        waiting_.fetch_sub(1, std::memory_order_relaxed);
        return held;
    }
    bool is_wanted() const { return waiting_.load(std::memory_order_relaxed) != 0; }
    std::mutex& registration_lock() { return registration_lock_; }

   private:
    std::mutex registration_lock_;  // one add_local(), remove_local() or attach() at a time
    std::atomic<int> waiting_{0};
};

class SoftNic final : public Nic {
   public:
    SoftNic(std::shared_ptr<NicHost> host, Device* device, int rail);
    ~SoftNic() override;

    const NicInfo& info() const override { return info_; }
    PeerAddress address() const override;
    Status join_job(const JobSecret& secret) override { return host_->join_job(secret); }
    Status register_memory(const MemoryAttr& attr, MemoryRegion* region) override;
    Status deregister_memory(const MemoryRegion& region) override;
    Status attach_peer_memory(const PeerAddress& owner, const MemoryShare& share) override;
    Status create_cq(const CqAttr& attr, Cq* cq) override;
    Status destroy_cq(uint64_t handle) override;
    Status create_qp(const QpAttr& attr, Qp* qp) override;
    Status destroy_qp(uint64_t handle) override;
    Status create_address_handle(const PeerAddress& peer, AddressHandle* ah) override;
    Status destroy_address_handle(const AddressHandle& ah) override;
    Status create_counter(const CounterAttr& attr, uint64_t* handle) override;
    Status attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) override;
    Status destroy_counter(uint64_t handle) override;
    void progress() override { host_->progress(); }

    Device& device() { return *device_; }

   private:
    Status settle(std::unique_lock<std::mutex>& held);
    std::shared_ptr<NicHost> host_;
    Device* device_;
    NicInfo info_;
    // What this Nic made, to be destroyed with it. Guarded by the host's lock.
    std::unordered_map<uint32_t, MemoryAttr> regions_;
    std::vector<uint64_t> cqs_, qps_, counters_;
    std::vector<AddressHandle> handles_;
};

}  // namespace nvshmem_efa::soft
