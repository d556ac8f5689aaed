// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/commands.h"

#include <cstdarg>
#include <cstdio>

#include "log.h"

namespace nvshmem_efa::soft::pci {
namespace {

// The driver shares one handle per destination and domain; older ones make one per caller.
constexpr uint32_t kHandlesMax = 1u << 16;

AdminStatus admin_status(Code code) {
    switch (code) {
        case Code::kOk: return AdminStatus::kSuccess;
        case Code::kResource: return AdminStatus::kNoResources;
        case Code::kProtocol: return AdminStatus::kMalformedRequest;
        case Code::kInvalidArgument:
        case Code::kUnsupported:
        case Code::kPeer:
        case Code::kTimeout: return AdminStatus::kIllegalParameter;
        default: return AdminStatus::kUnknownError;
    }
}

}  // namespace

AdminStatus Commands::refuse(AdminStatus status, const char* format, ...) const {
    char why[256];
    va_list args;
    va_start(args, format);
    std::vsnprintf(why, sizeof why, format, args);
    va_end(args);
    EFA_LOG(kDebug, "pci", "%s: admin status %u: %s", device_.name().c_str(), static_cast<unsigned>(status), why);
    return status;
}

AdminStatus Commands::refuse(const Status& status) const {
    return refuse(admin_status(status.code()), "%s", status.message());
}

AdminStatus Commands::handle(const AdminCommand& command, AdminReply* reply) {
    const AdminStatus status = execute(command, reply);
    if (status != AdminStatus::kSuccess)
        EFA_LOG(kDebug, "pci", "%s: admin command %u with opcode %u was refused", device_.name().c_str(), command.id,
                command.opcode);
    return status;
}

AdminStatus Commands::execute(const AdminCommand& command, AdminReply* reply) {
    switch (static_cast<AdminOpcode>(command.opcode)) {
        case AdminOpcode::kCreateQp: return create_qp(command.as<CreateQpCommand>(), reply);
        case AdminOpcode::kModifyQp: return modify_qp(command.as<ModifyQpCommand>());
        case AdminOpcode::kQueryQp: return query_qp(command.as<QpHandleCommand>().handle, reply);
        case AdminOpcode::kDestroyQp: return destroy_qp(command.as<QpHandleCommand>().handle);
        case AdminOpcode::kCreateAh: return create_ah(command.as<CreateAhCommand>(), reply);
        case AdminOpcode::kDestroyAh: return destroy_ah(command.as<DestroyAhCommand>());
        case AdminOpcode::kRegMr: return reg_mr(command, reply);
        case AdminOpcode::kDeregMr: return dereg_mr(command.as<DeregMrCommand>().lkey);
        case AdminOpcode::kCreateCq: return create_cq(command.as<CreateCqCommand>(), reply);
        case AdminOpcode::kDestroyCq: return destroy_cq(command.as<DestroyCqCommand>().cq);
        case AdminOpcode::kGetFeature: return get_feature(command.as<FeatureCommand>(), reply);
        case AdminOpcode::kSetFeature: return set_feature(command.as<FeatureCommand>(), command.flags);
        case AdminOpcode::kGetStats: return get_stats(command.as<StatsCommand>(), reply);
        case AdminOpcode::kAllocPd: return add_domain(objects_.pds, "protection domain", reply);
        case AdminOpcode::kDeallocPd:
            return remove_domain(objects_.pds, "protection domain", command.as<IdBody>().id);
        case AdminOpcode::kAllocUar: return add_domain(objects_.uars, "UAR", reply);
        case AdminOpcode::kDeallocUar: return remove_domain(objects_.uars, "UAR", command.as<IdBody>().id);
        case AdminOpcode::kCreateEq: return create_eq(command.as<CreateEqCommand>(), reply);
        case AdminOpcode::kDestroyEq: return destroy_eq(command.as<IdBody>().id);
        case AdminOpcode::kCreateEventCounter: return create_counter(command.as<CreateEventCounterCommand>(), reply);
        case AdminOpcode::kDestroyEventCounter:
            return destroy_counter(command.as<DestroyEventCounterCommand>().handle);
        case AdminOpcode::kAttachEventCounter: return attach_counter(command.as<AttachEventCounterCommand>(), false);
        case AdminOpcode::kDetachEventCounter: return attach_counter(command.as<AttachEventCounterCommand>(), true);
        case AdminOpcode::kModifyEventCounter: return modify_counter(command.as<ModifyEventCounterCommand>());
        case AdminOpcode::kAllocMr:
        case AdminOpcode::kService:
            return refuse(AdminStatus::kUnsupportedOpcode, "opcode %u", command.opcode);
    }
    return refuse(AdminStatus::kBadOpcode, "there is no opcode %u", command.opcode);
}

AdminStatus Commands::add_domain(IdTable<DomainObject>& table, const char* what, AdminReply* reply) {
    const uint32_t id = table.add(DomainObject{});
    if (id == kNoId) return refuse(AdminStatus::kNoResources, "all %u of kind %s are in use", table.used(), what);
    reply->set(IdBody{static_cast<uint16_t>(id), 0});
    return AdminStatus::kSuccess;
}

AdminStatus Commands::remove_domain(IdTable<DomainObject>& table, const char* what, uint32_t id) {
    const DomainObject* domain = table.find(id);
    if (!domain) return refuse(AdminStatus::kIllegalParameter, "no %s %u", what, id);
    if (domain->users != 0)
        return refuse(AdminStatus::kResourceBusy, "%s %u has %u users", what, id, domain->users);
    table.remove(id);
    return AdminStatus::kSuccess;
}

AdminStatus Commands::create_ah(const CreateAhCommand& command, AdminReply* reply) {
    DomainObject* pd = objects_.pds.find(command.pd);
    if (!pd) return refuse(AdminStatus::kIllegalParameter, "no protection domain %u", command.pd);
    if (command.reserved != 0) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    if (objects_.n_handles >= kHandlesMax) return refuse(AdminStatus::kNoResources, "%u handles", kHandlesMax);
    Gid gid;
    std::memcpy(gid.raw, command.gid, sizeof gid.raw);
    if (Status status = parts_.host->find_peer(gid); !status.ok()) return refuse(status);
    AddressHandle handle;
    if (Status status = device_.create_address_handle(gid, &handle, command.pd); !status.ok()) return refuse(status);
    if (objects_.handles[{handle.ahn, command.pd}]++ == 0) ++pd->users;
    ++objects_.n_handles;
    reply->set(IdBody{handle.ahn, 0});
    return AdminStatus::kSuccess;
}

AdminStatus Commands::destroy_ah(const DestroyAhCommand& command) {
    const auto at = objects_.handles.find({command.ah, command.pd});
    if (at == objects_.handles.end())
        return refuse(AdminStatus::kIllegalParameter, "no address handle %u in domain %u", command.ah, command.pd);
    AddressHandle handle;
    handle.ahn = command.ah;
    handle.handle = command.ah;
    if (Status status = device_.destroy_address_handle(handle, command.pd); !status.ok()) return refuse(status);
    --objects_.n_handles;
    if (--at->second == 0) {
        --objects_.pds.find(command.pd)->users;
        objects_.handles.erase(at);
    }
    return AdminStatus::kSuccess;
}

void Commands::destroy_all() {
    std::vector<uint32_t> names;
    objects_.qps.for_each([&](uint32_t, const QpObject& qp) { names.push_back(qp.handle); });
    for (uint32_t handle : names) destroy_qp(handle);
    names.clear();
    objects_.cqs.for_each([&](uint32_t id, const CqObject&) { names.push_back(id); });
    for (uint32_t id : names) destroy_cq(id);
    names.clear();
    for (const auto& [lkey, mr] : objects_.mrs) names.push_back(lkey);
    for (uint32_t lkey : names) dereg_mr(lkey);
    const auto handles = objects_.handles;
    for (const auto& [key, times] : handles) {
        for (uint32_t i = 0; i < times; ++i) destroy_ah(DestroyAhCommand{key.first, key.second});
    }
    objects_.qps.clear();
    objects_.cqs.clear();
    objects_.event_counters.clear();
    objects_.eqs.clear();
    objects_.pds.clear();
    objects_.uars.clear();
    parts_.events->reset();
    parts_.counters->reset();
    aenq_groups_ = 0;
}

}  // namespace nvshmem_efa::soft::pci
