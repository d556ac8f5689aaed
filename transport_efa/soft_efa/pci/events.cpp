// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/events.h"

#include <algorithm>

#include "soft_efa/pci/efa_regs.h"

namespace nvshmem_efa::soft::pci {

void Events::on_cq_doorbell(uint32_t id, uint32_t value) {
    CqObject* cq = objects_->cqs.find(id);
    if (!cq || cq->eq == kNoId) return;
    cq->consumed = static_cast<uint16_t>(value & kCqDoorbellConsumerMask);
    if (!(value & kCqDoorbellArm)) return;
    if (!cq->is_armed) armed_.push_back(id);
    cq->is_armed = true;
    // Entries that came before the arming count too: the guest looked, found none, and then they came.
    if (announce(id)) std::erase(armed_, id);
}

void Events::on_eq_doorbell(uint32_t id, bool is_armed) {
    EqObject* eq = objects_->eqs.find(id);
    if (!eq) return;
    eq->is_armed = is_armed;
    if (!is_armed || !eq->has_unannounced) return;
    eq->is_armed = eq->has_unannounced = false;
    host_->raise(eq->vector);
}

void Events::poll() {
    std::erase_if(armed_, [this](uint32_t cq) { return announce(cq); });
}

bool Events::announce(uint32_t id) {
    CqObject* cq = objects_->cqs.find(id);
    if (!cq) return true;
    uint32_t written = 0;
    for (uint64_t ring : cq->rings) written += device_->cq_written(ring);
    if (static_cast<uint16_t>(written) == cq->consumed) return false;
    cq->is_armed = false;
    if (EqObject* eq = objects_->eqs.find(cq->eq)) push(*eq, id);
    return true;
}

void Events::push(EqObject& eq, uint32_t cq) {
    EqEntry entry{};
    entry.common = ((eq.written / eq.depth) & 1u) ^ 1u;
    entry.cq = static_cast<uint16_t>(cq);
    uint8_t* at = eq.entries + static_cast<size_t>(eq.written & (eq.depth - 1)) * sizeof entry;
    ++eq.written;
    constexpr size_t kAfterCommon = offsetof(EqEntry, reserved);
    const auto* bytes = reinterpret_cast<const uint8_t*>(&entry);
    std::memcpy(at + kAfterCommon, bytes + kAfterCommon, sizeof entry - kAfterCommon);
    // Release pairs with the driver's read of the phase bit, after which it reads the rest.
    __atomic_store_n(reinterpret_cast<uint32_t*>(at), entry.common, __ATOMIC_RELEASE);
    eq.has_unannounced = !eq.is_armed;
    if (!eq.is_armed) return;
    eq.is_armed = false;
    host_->raise(eq.vector);
}

}  // namespace nvshmem_efa::soft::pci
