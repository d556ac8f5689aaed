// SPDX-License-Identifier: Apache-2.0
// The register block: what the driver stores and reads, the reset handshake, and reads that are answered by DMA.
#pragma once

#include "soft_efa/pci/efa_regs.h"
#include "soft_efa/pci/guest_memory.h"

namespace nvshmem_efa::soft::pci {

// Where the guest put a queue, from its base and caps registers.
struct QueueRegisters {
    uint64_t addr = 0;
    uint32_t depth = 0;
    uint32_t entry_bytes = 0;
    uint32_t vector = 0;  // not of the command queue
};

class RegisterEvents {
   public:
    virtual ~RegisterEvents() = default;
    virtual void on_reset(uint32_t reason) = 0;  // everything the guest made is to go
    virtual void on_admin_doorbell(uint16_t producer) = 0;
    virtual void on_eq_doorbell(uint16_t eq, bool is_armed) = 0;
};

class Registers {
   public:
    Registers(uint8_t admin_minor, const GuestMemory* memory, RegisterEvents* events)
        : admin_minor_(admin_minor), memory_(memory), events_(events) {}

    // Stores to an offset that is no register, or that only the device writes, change nothing.
    void write(uint32_t offset, uint32_t value);
    // False, and `*value` all ones, when there is nothing to read at this offset.
    bool read(uint32_t offset, uint32_t* value) const;
    void power_on();  // as after a function-level reset

    QueueRegisters admin_queue() const;
    QueueRegisters admin_completions() const;
    bool is_admin_masked() const { return intr_mask_ & kIntrMaskAdmin; }
    bool is_fatal() const { return status_ & kStsFatalError; }
    // The driver broke the admin queue's rules: the device says so and takes no commands until it is reset.
    void set_fatal() { status_ |= kStsFatalError; }

   private:
    void control(uint32_t value);
    void answer_read(uint32_t request);
    uint32_t* stored(uint32_t offset);

    uint8_t admin_minor_;
    const GuestMemory* memory_;
    RegisterEvents* events_;
    uint32_t aq_[3] = {};    // base lo, base hi, caps
    uint32_t acq_[3] = {};
    uint32_t aenq_[3] = {};  // base lo, base hi, caps
    uint32_t aenq_consumed_ = 0;
    uint32_t intr_mask_ = 0;
    uint32_t control_ = 0;
    uint32_t status_ = kStsReady;
    uint32_t answer_[2] = {};
};

}  // namespace nvshmem_efa::soft::pci
