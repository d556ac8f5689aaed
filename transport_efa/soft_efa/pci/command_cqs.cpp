// SPDX-License-Identifier: Apache-2.0
// Completion queues in the guest's memory, one ring of the model per sub-queue, and event queues.
#include "nvshmem_efa/ring.h"
#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/efa_regs.h"

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kWordBytes = 4;
constexpr uint64_t kCqAlign = 64;

uint32_t entry_bytes_of(const CreateCqCommand& command) { return (command.caps2 & kCqEntryWordsMask) * kWordBytes; }

}  // namespace

AdminStatus Commands::check_cq(const CreateCqCommand& command) const {
    const PciShape& shape = parts_.profile.pci;
    if ((command.caps1 & kCqCaps1Reserved) || (command.caps2 & kCqCaps2Reserved) || command.reserved)
        return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (command.caps1 & kCqIsVirtual)
        return refuse(AdminStatus::kIllegalParameter, "this device has no rings in memory regions");
    const uint32_t entry_bytes = entry_bytes_of(command);
    if (entry_bytes != sizeof(TxCqe) && entry_bytes != sizeof(RxCqeEx))
        return refuse(AdminStatus::kIllegalParameter, "entries of %u bytes", entry_bytes);
    if ((command.caps2 & kCqSetSourceAddress) && entry_bytes != sizeof(RxCqeEx))
        return refuse(AdminStatus::kIllegalParameter, "source addresses need 32-byte entries");
    if ((command.caps2 & kCqReqId64) && !device_.caps().req_id_64)
        return refuse(AdminStatus::kIllegalParameter, "this device has no 64-bit request ids");
    if (command.n_sub_cqs != shape.sub_cqs_per_cq)
        return refuse(AdminStatus::kIllegalParameter, "%u sub-queues; this device has %u", command.n_sub_cqs,
                      shape.sub_cqs_per_cq);
    if (!is_power_of_two(command.sub_cq_depth) || command.sub_cq_depth > shape.max_sub_cq_depth)
        return refuse(AdminStatus::kIllegalParameter, "a depth of %u; powers of two up to %u", command.sub_cq_depth,
                      shape.max_sub_cq_depth);
    if (command.addr() % kCqAlign != 0)
        return refuse(AdminStatus::kIllegalParameter, "a ring at 0x%llx",
                      static_cast<unsigned long long>(command.addr()));
    return AdminStatus::kSuccess;
}

AdminStatus Commands::create_cq(const CreateCqCommand& command, AdminReply* reply) {
    if (const AdminStatus status = check_cq(command); status != AdminStatus::kSuccess) return status;
    DomainObject* uar = objects_.uars.find(command.uar);
    if (!uar) return refuse(AdminStatus::kIllegalParameter, "no UAR %u", command.uar);
    EqObject* eq = nullptr;
    CqObject cq;
    if (command.caps1 & kCqHasInterrupts) {
        eq = objects_.eqs.find(command.eq);
        if (!eq) return refuse(AdminStatus::kIllegalParameter, "no event queue %u", command.eq);
        cq.eq = command.eq;
    }
    if (objects_.cqs.is_full())
        return refuse(AdminStatus::kNoResources, "all %u completion queues are in use", objects_.cqs.used());
    const uint32_t entry_bytes = entry_bytes_of(command), ring_bytes = entry_bytes * command.sub_cq_depth;
    const size_t bytes = static_cast<size_t>(ring_bytes) * command.n_sub_cqs;
    if (Status status = parts_.memory->map_contiguous(command.addr(), bytes, &cq.pages, &cq.entries); !status.ok())
        return refuse(status);
    std::memset(cq.entries, 0, bytes);  // no entry has the first lap's phase
    for (uint32_t i = 0; i < command.n_sub_cqs; ++i) {
        uint64_t handle = 0;
        const CqEntries ring{cq.entries + static_cast<size_t>(i) * ring_bytes, entry_bytes, command.sub_cq_depth};
        Status status = device_.create_cq(ring, &handle);
        if (!status.ok()) {
            for (uint64_t made : cq.rings) (void)device_.destroy_cq(made);
            return refuse(status);
        }
        cq.rings.push_back(handle);
    }
    cq.uar = command.uar;
    cq.is_req_id_64 = command.caps2 & kCqReqId64;
    const uint32_t id = objects_.cqs.add(std::move(cq));
    ++uar->users;
    if (eq) ++eq->users;
    CreateCqReply body{};
    body.cq = static_cast<uint16_t>(id);
    body.sub_cq_depth = command.sub_cq_depth;
    body.doorbell = (parts_.profile.caps.max_qps + id) * kDoorbellPage;
    body.flags = kCqDoorbellIsValid;
    reply->set(body);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::destroy_cq(uint32_t id) {
    CqObject* cq = objects_.cqs.find(id);
    if (!cq) return refuse(AdminStatus::kIllegalParameter, "no completion queue %u", id);
    if (cq->users != 0)
        return refuse(AdminStatus::kResourceBusy, "completion queue %u has %u users", id, cq->users);
    for (uint64_t ring : cq->rings) {
        if (Status status = device_.destroy_cq(ring); !status.ok()) return refuse(status);
    }
    --objects_.uars.find(cq->uar)->users;
    if (EqObject* eq = objects_.eqs.find(cq->eq)) --eq->users;
    parts_.events->forget_cq(id);
    objects_.cqs.remove(id);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::create_eq(const CreateEqCommand& command, AdminReply* reply) {
    const PciShape& shape = parts_.profile.pci;
    if (command.reserved || (command.caps & ~kCqEntryWordsMask))
        return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if ((command.caps & kCqEntryWordsMask) * kWordBytes != sizeof(EqEntry) || (command.events & ~kEventOfCompletion))
        return refuse(AdminStatus::kIllegalParameter, "event entries of %u words for events 0x%x", command.caps,
                      command.events);
    if (!is_power_of_two(command.depth) || command.depth > shape.max_eq_depth)
        return refuse(AdminStatus::kIllegalParameter, "a depth of %u; powers of two up to %u", command.depth,
                      shape.max_eq_depth);
    if (command.vector > shape.max_eqs)  // vector 0 and one per event queue
        return refuse(AdminStatus::kIllegalParameter, "no MSI-X vector %u", command.vector);
    if (command.addr() % kCqAlign != 0)
        return refuse(AdminStatus::kIllegalParameter, "a ring at 0x%llx",
                      static_cast<unsigned long long>(command.addr()));
    if (objects_.eqs.is_full())
        return refuse(AdminStatus::kNoResources, "all %u event queues are in use", objects_.eqs.used());
    EqObject eq;
    const size_t bytes = command.depth * sizeof(EqEntry);
    if (Status status = parts_.memory->map_contiguous(command.addr(), bytes, &eq.pages, &eq.entries); !status.ok())
        return refuse(status);
    std::memset(eq.entries, 0, bytes);  // no entry has the first lap's phase
    eq.depth = command.depth;
    eq.vector = command.vector;
    reply->set(IdBody{static_cast<uint16_t>(objects_.eqs.add(std::move(eq))), 0});
    return AdminStatus::kSuccess;
}

AdminStatus Commands::destroy_eq(uint32_t id) {
    const EqObject* eq = objects_.eqs.find(id);
    if (!eq) return refuse(AdminStatus::kIllegalParameter, "no event queue %u", id);
    if (eq->users != 0) return refuse(AdminStatus::kResourceBusy, "event queue %u has %u users", id, eq->users);
    objects_.eqs.remove(id);
    return AdminStatus::kSuccess;
}

}  // namespace nvshmem_efa::soft::pci
