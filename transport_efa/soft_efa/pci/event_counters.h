// SPDX-License-Identifier: Apache-2.0
// Event counters: each is one word of the guest's memory, to which any events of any queue pairs may add. The model
// counts per queue pair and operation, good and failed, in words of ours; after each step the sums go to the guest.
// What a count stands for was placed in that step or before, so the guest never sees a count before its payload.
#pragma once

#include "soft_efa/pci/objects.h"

namespace nvshmem_efa::soft::pci {

class EventCounters {
   public:
    EventCounters(Objects* objects, Device* device) : objects_(objects), device_(device) {}

    // kInvalidArgument when the queue pair already counts one of the events, or is in use (the model's rule).
    Status attach(uint32_t qp, uint32_t counter, uint32_t events);
    Status detach(uint32_t qp, uint32_t counter, uint32_t events);
    void set(uint32_t counter, uint64_t value);
    void poll();
    // Before the queue pair leaves the table, and after the model has destroyed its own (which may count flushes).
    void release(uint32_t qp);
    void reset() { counting_.clear(); }

    static constexpr uint64_t kValueMax = kCounterMask31;

   private:
    Status count_in_model(QpObject& qp, uint32_t op);
    void collect(QpObject& qp);
    void add(EventCounterObject& counter, uint64_t n);

    Objects* objects_;
    Device* device_;
    std::vector<uint32_t> counting_;  // queue pairs with attached counters
};

}  // namespace nvshmem_efa::soft::pci
