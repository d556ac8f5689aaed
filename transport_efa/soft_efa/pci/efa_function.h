// SPDX-License-Identifier: Apache-2.0
// One EFA function behind the PCI front: registers, admin queue, doorbells and events in front of a device of the
// model. The caller drives both: after each step of the device it calls poll(). One thread.
#pragma once

#include <memory>

#include "soft_efa/pci/commands.h"
#include "soft_efa/pci/registers.h"
#include "soft_efa/pci/vfio_user.h"

namespace nvshmem_efa::soft::pci {

class EfaFunction final : public PciFunction, private RegisterEvents {
   public:
    // The profile with which the model's device is to be made for this front: a guest asks for source addresses and for
    // CQs in its own memory on any device, and the model keeps one counter per queue pair and operation here.
    static Profile device_profile(const Profile& profile);

    // `profile` is the front's own, not device_profile(). All pointers outlive the function.
    static Status create(const Profile& profile, Device* device, const GuestMemory* memory, FunctionHost* host,
                         std::unique_ptr<EfaFunction>* function);
    ~EfaFunction() override;

    const PciIdentity& identity() const override { return identity_; }
    uint64_t bar_read(int bar, uint64_t offset, uint32_t bytes) override;
    void bar_write(int bar, uint64_t offset, uint64_t value, uint32_t bytes) override;
    void reset() override;

    void poll();  // gives the guest the counts and events of the steps since the last call
    bool is_fatal() const { return registers_.is_fatal(); }

   private:
    EfaFunction(const Profile& profile, Device* device, const GuestMemory* memory, FunctionHost* host,
                std::unique_ptr<SendQueueBar> send_queues);
    void on_reset(uint32_t reason) override;
    void on_admin_doorbell(uint16_t producer) override;
    void on_eq_doorbell(uint16_t eq, bool is_armed) override;
    void on_doorbell(uint64_t offset, uint32_t value);
    void free_everything();

    Profile profile_;
    Device* device_;
    FunctionHost* host_;
    PciIdentity identity_;
    std::unique_ptr<SendQueueBar> send_queues_;
    Objects objects_;
    Events events_;
    EventCounters counters_;
    Commands commands_;
    AdminQueue admin_;
    Registers registers_;
};

}  // namespace nvshmem_efa::soft::pci
