// SPDX-License-Identifier: Apache-2.0
// Completion events: an armed CQ with entries that the guest has not read puts one entry into its event queue, and an
// armed event queue raises its vector. Arming is for one event.
#pragma once

#include "soft_efa/pci/function_host.h"
#include "soft_efa/pci/objects.h"

namespace nvshmem_efa::soft::pci {

class Events {
   public:
    Events(Objects* objects, const Device* device, FunctionHost* host)
        : objects_(objects), device_(device), host_(host) {}

    void on_cq_doorbell(uint32_t cq, uint32_t value);
    void on_eq_doorbell(uint32_t eq, bool is_armed);
    void poll();  // after each step of the device
    void forget_cq(uint32_t cq) { std::erase(armed_, cq); }
    void reset() { armed_.clear(); }

   private:
    bool announce(uint32_t cq);  // true when the CQ is no longer armed
    void push(EqObject& eq, uint32_t cq);

    Objects* objects_;
    const Device* device_;
    FunctionHost* host_;
    std::vector<uint32_t> armed_;  // completion queues
};

}  // namespace nvshmem_efa::soft::pci
