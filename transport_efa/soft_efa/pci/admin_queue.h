// SPDX-License-Identifier: Apache-2.0
// The admin queue's rings: takes commands from the guest's memory in order, hands each to its handler, and writes the
// completion. Commands are checked here as entries (phase, checksum, length), by the handler as requests.
#pragma once

#include "soft_efa/pci/efa_admin.h"
#include "soft_efa/pci/guest_memory.h"
#include "soft_efa/pci/registers.h"

namespace nvshmem_efa::soft::pci {

class AdminHandler {
   public:
    virtual ~AdminHandler() = default;
    virtual AdminStatus handle(const AdminCommand& command, AdminReply* reply) = 0;
};

class AdminQueue {
   public:
    AdminQueue(const GuestMemory* memory, AdminHandler* handler) : memory_(memory), handler_(handler) {}

    // Executes all commands up to the guest's count; `*done` of them were completed. An error breaks the queue: the
    // guest's rings are not RAM, or not what the protocol says.
    Status ring(const QueueRegisters& commands, const QueueRegisters& completions, uint16_t producer, uint32_t* done);
    void reset() { taken_ = completed_ = 0; }

   private:
    Status take(const QueueRegisters& commands);
    Status complete(const QueueRegisters& completions, uint16_t id, AdminStatus status, const AdminReply& reply);

    const GuestMemory* memory_;
    AdminHandler* handler_;
    uint32_t taken_ = 0;
    uint32_t completed_ = 0;
    AdminCommand command_;
    bool is_intact_ = false;  // its checksum, where it has one
};

}  // namespace nvshmem_efa::soft::pci
