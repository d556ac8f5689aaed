// SPDX-License-Identifier: Apache-2.0
// Every admin command, on top of the device model. A command either does all that it says or changes nothing.
//   commands.cpp          the table of opcodes, protection domains, UARs, address handles, the end of everything
//   command_features.cpp  GET_FEATURE, SET_FEATURE
//   command_stats.cpp     GET_STATS
//   command_memory.cpp    memory regions
//   command_cqs.cpp       completion queues, event queues
//   command_qps.cpp       queue pairs
//   command_counters.cpp  event counters
#pragma once

#include "soft_efa/pci/admin_queue.h"
#include "soft_efa/pci/efa_admin_features.h"
#include "soft_efa/pci/event_counters.h"
#include "soft_efa/pci/events.h"
#include "soft_efa/pci/objects.h"
#include "soft_efa/pci/send_queue_bar.h"

namespace nvshmem_efa::soft::pci {

struct CommandParts {  // what commands work on; all outlive them
    Profile profile;
    Device* device = nullptr;
    const GuestMemory* memory = nullptr;
    FunctionHost* host = nullptr;
    Objects* objects = nullptr;
    Events* events = nullptr;
    EventCounters* counters = nullptr;
    SendQueueBar* send_queues = nullptr;
};

class Commands final : public AdminHandler {
   public:
    explicit Commands(const CommandParts& parts) : parts_(parts), objects_(*parts.objects), device_(*parts.device) {}
    AdminStatus handle(const AdminCommand& command, AdminReply* reply) override;
    void destroy_all();  // a reset, or the end of the guest

   private:
    AdminStatus execute(const AdminCommand& command, AdminReply* reply);
    // Why a command was refused, for who writes a driver: in the log at level debug.
    [[gnu::format(printf, 3, 4)]] AdminStatus refuse(AdminStatus status, const char* format, ...) const;
    AdminStatus refuse(const Status& status) const;
    // domains and peers
    AdminStatus add_domain(IdTable<DomainObject>& table, const char* what, AdminReply* reply);
    AdminStatus remove_domain(IdTable<DomainObject>& table, const char* what, uint32_t id);
    AdminStatus create_ah(const CreateAhCommand& command, AdminReply* reply);
    AdminStatus destroy_ah(const DestroyAhCommand& command);
    // features and statistics
    AdminStatus get_feature(const FeatureCommand& command, AdminReply* reply);
    AdminStatus set_feature(const FeatureCommand& command, uint8_t flags);
    AdminStatus get_stats(const StatsCommand& command, AdminReply* reply);
    bool has_feature(Feature feature) const;
    DeviceAttr device_attr() const;
    QueueAttr1 queue_attr_1() const;
    QueueAttr2 queue_attr_2() const;
    // memory
    AdminStatus reg_mr(const AdminCommand& command, AdminReply* reply);
    AdminStatus dereg_mr(uint32_t lkey);
    // completion and event queues
    AdminStatus create_cq(const CreateCqCommand& command, AdminReply* reply);
    AdminStatus check_cq(const CreateCqCommand& command) const;
    AdminStatus destroy_cq(uint32_t id);
    AdminStatus create_eq(const CreateEqCommand& command, AdminReply* reply);
    AdminStatus destroy_eq(uint32_t id);
    // queue pairs
    AdminStatus create_qp(const CreateQpCommand& command, AdminReply* reply);
    AdminStatus check_qp(const CreateQpCommand& command, QpAttr* attr) const;
    AdminStatus modify_qp(const ModifyQpCommand& command);
    AdminStatus query_qp(uint32_t handle, AdminReply* reply);
    AdminStatus destroy_qp(uint32_t handle);
    AdminQpState state_of(const QpObject& qp) const;
    uint32_t qp_of(uint32_t handle);  // kNoId when there is none
    // event counters
    AdminStatus create_counter(const CreateEventCounterCommand& command, AdminReply* reply);
    AdminStatus destroy_counter(uint32_t handle);
    AdminStatus attach_counter(const AttachEventCounterCommand& command, bool is_detach);
    AdminStatus modify_counter(const ModifyEventCounterCommand& command);
    uint32_t counter_of(uint32_t handle);

    const CommandParts parts_;
    Objects& objects_;
    Device& device_;
    uint32_t aenq_groups_ = 0;
};

}  // namespace nvshmem_efa::soft::pci
