// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/commands.h"

namespace nvshmem_efa::soft::pci {
namespace {

template <size_t N>
bool is_zero(const uint8_t (&bytes)[N]) {
    for (uint8_t byte : bytes) {
        if (byte) return false;
    }
    return true;
}

}  // namespace

uint32_t Commands::counter_of(uint32_t handle) {
    const EventCounterObject* counter = objects_.event_counters.find(Objects::id_of(handle));
    return counter && counter->handle == handle ? Objects::id_of(handle) : kNoId;
}

AdminStatus Commands::create_counter(const CreateEventCounterCommand& command, AdminReply* reply) {
    if (!device_.caps().completion_counters)
        return refuse(AdminStatus::kUnsupportedOpcode, "this device has no event counters");
    if (command.reserved) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    DomainObject* uar = objects_.uars.find(command.uar);
    if (!uar || command.addr % sizeof(uint64_t) != 0)
        return refuse(AdminStatus::kIllegalParameter, "no UAR %u, or a word at 0x%llx", command.uar,
                      static_cast<unsigned long long>(command.addr));
    if (objects_.event_counters.is_full())
        return refuse(AdminStatus::kNoResources, "all %u event counters are in use", objects_.event_counters.used());
    EventCounterObject counter;
    uint8_t* word = nullptr;
    if (Status status = parts_.memory->map_contiguous(command.addr, sizeof(uint64_t), &counter.pages, &word);
        !status.ok())
        return refuse(status);
    counter.word = reinterpret_cast<uint64_t*>(word);
    counter.uar = command.uar;
    const uint32_t id = objects_.event_counters.add(std::move(counter));
    const uint32_t handle = objects_.event_counters.find(id)->handle = objects_.new_handle(id);
    ++uar->users;
    parts_.counters->set(id, 0);
    reply->set(CreateEventCounterReply{handle, 0});
    return AdminStatus::kSuccess;
}

AdminStatus Commands::destroy_counter(uint32_t handle) {
    const uint32_t id = counter_of(handle);
    if (id == kNoId) return refuse(AdminStatus::kIllegalParameter, "no event counter 0x%x", handle);
    const EventCounterObject& counter = *objects_.event_counters.find(id);
    if (counter.users != 0)
        return refuse(AdminStatus::kResourceBusy, "event counter 0x%x counts %u events", handle, counter.users);
    --objects_.uars.find(counter.uar)->users;
    objects_.event_counters.remove(id);
    return AdminStatus::kSuccess;
}

// A mask without events is no mistake: the driver attaches the failures of operations that have none.
AdminStatus Commands::attach_counter(const AttachEventCounterCommand& command, bool is_detach) {
    if (!is_zero(command.reserved)) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    const uint32_t counter = counter_of(command.handle), qp = qp_of(command.qp);
    if (counter == kNoId || qp == kNoId)
        return refuse(AdminStatus::kIllegalParameter, "no event counter 0x%x or queue pair 0x%x", command.handle,
                      command.qp);
    if (command.type != kAttachToQpEvents || (command.events & ~kQpEventsMask))
        return refuse(AdminStatus::kIllegalParameter, "events 0x%x of kind %u", command.events, command.type);
    Status status = is_detach ? parts_.counters->detach(qp, counter, command.events)
                              : parts_.counters->attach(qp, counter, command.events);
    return status.ok() ? AdminStatus::kSuccess : refuse(status);
}

AdminStatus Commands::modify_counter(const ModifyEventCounterCommand& command) {
    if (!is_zero(command.reserved)) return refuse(AdminStatus::kMalformedRequest, "reserved bits are set");
    const uint32_t id = counter_of(command.handle);
    if (id == kNoId) return refuse(AdminStatus::kIllegalParameter, "no event counter 0x%x", command.handle);
    if (command.operation > kCounterAdd || command.value > EventCounters::kValueMax)
        return refuse(AdminStatus::kIllegalParameter, "operation %u with 0x%llx", command.operation,
                      static_cast<unsigned long long>(command.value));
    parts_.counters->poll();  // what was counted so far belongs to the old value
    const uint64_t before = command.operation == kCounterAdd ? objects_.event_counters.find(id)->value : 0;
    parts_.counters->set(id, before + command.value);
    return AdminStatus::kSuccess;
}

}  // namespace nvshmem_efa::soft::pci
