// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/event_counters.h"

#include <algorithm>

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint32_t kRemoteReadEvent = 8, kRemoteWriteEvent = 9;

// Which operation of the model an event is of (bit number of CounterOp).
uint32_t op_of(uint32_t event) {
    constexpr uint32_t kRemoteReadOp = 4, kRemoteWriteOp = 5;
    if (event == kRemoteReadEvent) return kRemoteReadOp;
    if (event == kRemoteWriteEvent) return kRemoteWriteOp;
    return event / 2;
}

uint32_t is_failure(uint32_t event) { return event < kRemoteReadEvent ? event & 1u : 0; }

}  // namespace

Status EventCounters::count_in_model(QpObject& qp, uint32_t op) {
    if (!qp.counts) qp.counts = std::make_unique<OpCounts>();
    OpCounts& counts = *qp.counts;
    if (counts.model_handle[op] != 0) return Status();
    CounterAttr attr;
    attr.completions = &counts.words[op][0];
    attr.errors = &counts.words[op][1];
    uint64_t handle = 0;
    EFA_TRY(device_->create_counter(attr, &handle));
    Status status = device_->attach_counter(qp.model_handle, handle, 1u << op);
    if (!status.ok()) {
        (void)device_->destroy_counter(handle);
        return status;
    }
    counts.model_handle[op] = handle;
    return Status();
}

Status EventCounters::attach(uint32_t qp_id, uint32_t counter_id, uint32_t events) {
    QpObject& qp = *objects_->qps.find(qp_id);
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if ((events >> event & 1u) && qp.event_counter[event] != kNoId)
            return Status::error(Code::kInvalidArgument, "one counter per queue pair and event",
                                 "%s: queue pair %u already counts event %u", device_->name().c_str(), qp_id, event);
    }
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if (events >> event & 1u) EFA_TRY(count_in_model(qp, op_of(event)));
    }
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if (!(events >> event & 1u)) continue;
        qp.event_counter[event] = counter_id;
        qp.events_seen[event] = qp.counts->words[op_of(event)][is_failure(event)];
        ++objects_->event_counters.find(counter_id)->users;
    }
    if (events != 0 && std::find(counting_.begin(), counting_.end(), qp_id) == counting_.end())
        counting_.push_back(qp_id);
    return Status();
}

Status EventCounters::detach(uint32_t qp_id, uint32_t counter_id, uint32_t events) {
    QpObject& qp = *objects_->qps.find(qp_id);
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if ((events >> event & 1u) && qp.event_counter[event] != counter_id)
            return Status::error(Code::kInvalidArgument, nullptr, "%s: queue pair %u does not count event %u there",
                                 device_->name().c_str(), qp_id, event);
    }
    collect(qp);
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if (!(events >> event & 1u)) continue;
        qp.event_counter[event] = kNoId;
        --objects_->event_counters.find(counter_id)->users;
    }
    return Status();
}

void EventCounters::set(uint32_t counter_id, uint64_t value) {
    EventCounterObject& counter = *objects_->event_counters.find(counter_id);
    counter.value = value & kValueMax;
    // Release pairs with the program's acquire load of its counter.
    __atomic_store_n(counter.word, counter.value, __ATOMIC_RELEASE);
}

void EventCounters::poll() {
    for (uint32_t qp : counting_) collect(*objects_->qps.find(qp));
}

void EventCounters::collect(QpObject& qp) {
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if (qp.event_counter[event] == kNoId) continue;
        const uint64_t now = qp.counts->words[op_of(event)][is_failure(event)];
        const uint64_t n = (now - qp.events_seen[event]) & kCounterMask31;
        if (n == 0) continue;
        qp.events_seen[event] = now;
        add(*objects_->event_counters.find(qp.event_counter[event]), n);
    }
}

void EventCounters::add(EventCounterObject& counter, uint64_t n) {
    counter.value = (counter.value + n) & kValueMax;
    // Release pairs with the program's acquire load of its counter: what it counts is in memory.
    __atomic_store_n(counter.word, counter.value, __ATOMIC_RELEASE);
}

void EventCounters::release(uint32_t qp_id) {
    QpObject& qp = *objects_->qps.find(qp_id);
    if (!qp.counts) return;
    collect(qp);
    std::erase(counting_, qp_id);
    for (uint32_t event = 0; event < kQpEvents; ++event) {
        if (qp.event_counter[event] == kNoId) continue;
        --objects_->event_counters.find(qp.event_counter[event])->users;
        qp.event_counter[event] = kNoId;
    }
    for (uint64_t& handle : qp.counts->model_handle) {
        if (handle != 0) (void)device_->destroy_counter(handle);
        handle = 0;
    }
}

}  // namespace nvshmem_efa::soft::pci
