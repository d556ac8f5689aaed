// SPDX-License-Identifier: Apache-2.0
// A Nic over an opened EFA device. Handles are numbers that are never used twice, so that a stale one is an error
// instead of a crash. What the caller leaves behind is destroyed in the device's order: queue pairs, counters and
// completion queues, address handles, memory regions, protection domain.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fabric/dmabuf.h"
#include "fabric/fabric.h"
#include "fabric/verbs_device.h"
#include "fabric/verbs_queues.h"

namespace nvshmem_efa::verbs {

class VerbsNic final : public Nic {
   public:
    VerbsNic(std::unique_ptr<OpenDevice> device, NicInfo info, DmabufExporter export_dmabuf);
    ~VerbsNic() override;

    const NicInfo& info() const override { return info_; }
    PeerAddress address() const override;
    Status register_memory(const MemoryAttr& attr, MemoryRegion* region) override;
    Status deregister_memory(const MemoryRegion& region) override;
    Status create_cq(const CqAttr& attr, Cq* cq) override;
    Status destroy_cq(uint64_t handle) override;
    Status create_qp(const QpAttr& attr, Qp* qp) override;
    Status destroy_qp(uint64_t handle) override;
    Status create_address_handle(const PeerAddress& peer, AddressHandle* ah) override;
    Status destroy_address_handle(const AddressHandle& ah) override;
    Status create_counter(const CounterAttr& attr, uint64_t* handle) override;
    Status attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) override;
    Status destroy_counter(uint64_t handle) override;

   private:
    struct CqObject {
        IbvCq* cq;
        uint32_t n_qps;
    };
    struct QpObject {
        IbvQp* qp;
        uint64_t send_cq, recv_cq;
        uint32_t qkey;
        uint32_t counted_ops;
        std::vector<uint64_t> counters;
    };
    struct AhObject {
        IbvAh* ah;
        Gid gid;
        uint16_t ahn;
        uint32_t references;
    };
    struct CounterObject {
        IbvCompCounter* counter;
        uint32_t n_qps;
    };

    Status register_cuda(const MemoryAttr& attr, int access, IbvMr** mr);
    Status attach_and_ready(QpObject& qp, IbvCompCounter* counter, uint32_t library_ops);
    template <class Object>
    Status find(std::map<uint64_t, Object>& objects, uint64_t handle, const char* kind, Object** object);

    const VerbsApi& api() const { return device_->api(); }
    const std::string& name() const { return device_->name(); }

    std::unique_ptr<OpenDevice> device_;
    NicInfo info_;
    DmabufExporter export_dmabuf_;
    std::mutex mutex_;  // guards what follows; the rings belong to the caller
    uint64_t next_handle_ = 1;
    std::map<uint64_t, IbvMr*> regions_;
    std::map<uint64_t, CqObject> cqs_;
    std::map<uint64_t, QpObject> qps_;
    std::map<uint64_t, AhObject> ahs_;
    std::map<uint64_t, CounterObject> counters_;
};

template <class Object>
Status VerbsNic::find(std::map<uint64_t, Object>& objects, uint64_t handle, const char* kind, Object** object) {
    const auto found = objects.find(handle);
    if (found == objects.end()) {
        return Status::error(Code::kInvalidArgument, "it was destroyed already, or belongs to another device",
                             "%s %llu is not known to %s", kind, static_cast<unsigned long long>(handle),
                             name().c_str());
    }
    *object = &found->second;
    return Status();
}

}  // namespace nvshmem_efa::verbs
