// SPDX-License-Identifier: Apache-2.0
// Completion counters: two words of the caller's memory that only the device writes.
#include <bit>

#include "device.h"

namespace nvshmem_efa::soft {

Status Device::create_counter(const CounterAttr& attr, uint64_t* handle) {
    if (!caps().completion_counters)
        return Status::error(Code::kUnsupported, "poll the completion queue instead", "%s (%s) has no counters",
                             name().c_str(), options_.profile.name);
    size_t index = 0;
    while (index < counters_.size() && counters_[index].is_live) ++index;
    if (index >= caps().max_counters)
        return Status::error(Code::kResource, "share counters between queue pairs",
                             "%s: the device has no more completion counters (%u)", name().c_str(),
                             caps().max_counters);
    if (!attr.completions || reinterpret_cast<uint64_t>(attr.completions) % 8 != 0 ||
        reinterpret_cast<uint64_t>(attr.errors) % 8 != 0)
        return Status::error(Code::kInvalidArgument, "give aligned 8-byte words", "%s: counter words at %p and %p",
                             name().c_str(), static_cast<void*>(attr.completions), static_cast<void*>(attr.errors));
    if (attr.kind == MemoryKind::kCuda && !counter_staging_) {
        counter_staging_ = static_cast<uint64_t*>(memory_->alloc_host(caps().max_counters * 2 * sizeof(uint64_t)));
        if (!counter_staging_) return Status::error(Code::kResource, "free memory", "%s: no host memory", name().c_str());
    }
    if (index == counters_.size()) counters_.emplace_back();
    counters_[index] = CounterState{};
    counters_[index].is_live = true;
    counters_[index].attr = attr;
    *handle = index + 1;
    return Status();
}

Status Device::attach_counter(uint64_t qp_handle, uint64_t counter_handle, uint32_t counter_ops) {
    const uint32_t qp_at = qp_index(qp_handle);
    if (qp_at == kNone || counter_handle == 0 || counter_handle > counters_.size() ||
        !counters_[counter_handle - 1].is_live)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such queue pair or counter", name().c_str());
    QpSlot& qp = qps_[qp_at];
    if (counter_ops == 0 || counter_ops >= (1u << std::size(qp.counters)))
        return Status::error(Code::kInvalidArgument, "use the CounterOp bits", "%s: counter mask 0x%x", name().c_str(),
                             counter_ops);
    if (qp.parsed != 0 || qp.received != 0)
        return Status::error(Code::kInvalidArgument, "attach counters before the first request",
                             "%s: queue pair %u is already in use", name().c_str(), qp.qp_num);
    for (uint32_t bit = 0; bit < std::size(qp.counters); ++bit) {
        if ((counter_ops >> bit & 1u) && qp.counters[bit] != kNone)
            return Status::error(Code::kInvalidArgument, "one counter per queue pair and kind",
                                 "%s: queue pair %u already counts 0x%x", name().c_str(), qp.qp_num, 1u << bit);
    }
    for (uint32_t bit = 0; bit < std::size(qp.counters); ++bit) {
        if (!(counter_ops >> bit & 1u)) continue;
        qp.counters[bit] = static_cast<uint32_t>(counter_handle - 1);
        ++counters_[counter_handle - 1].users;
    }
    return Status();
}

Status Device::destroy_counter(uint64_t handle) {
    if (handle == 0 || handle > counters_.size() || !counters_[handle - 1].is_live)
        return Status::error(Code::kInvalidArgument, nullptr, "%s: no such counter", name().c_str());
    if (counters_[handle - 1].users != 0)
        return Status::error(Code::kInvalidArgument, "destroy its queue pairs first",
                             "%s: a counter is still attached to queue pairs", name().c_str());
    write_gpu_counters();
    counters_[handle - 1].is_live = false;
    return Status();
}

void Device::count(const QpSlot& qp, CounterOp op, bool is_error) {
    const uint32_t index = qp.counters[std::countr_zero(static_cast<uint32_t>(op))];
    if (index == kNone) return;
    CounterState& counter = counters_[index];
    uint64_t& value = is_error ? counter.errors : counter.completions;
    value = (value + 1) & kCounterMask31;
    if (counter.attr.kind == MemoryKind::kCuda) {
        if (!counter.is_dirty) dirty_counters_.push_back(index);
        counter.is_dirty = true;
        return;
    }
    uint64_t* word = is_error ? counter.attr.errors : counter.attr.completions;
    // Release pairs with the program's acquire load of its counter: what it counts is in memory.
    if (word) __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

// A staged value may be replaced while the copy runs: the newer one is as true, its payload was placed before.
void Device::write_gpu_counters() {
    for (uint32_t index : dirty_counters_) {
        CounterState& counter = counters_[index];
        counter.is_dirty = false;
        uint64_t* staged = counter_staging_ + 2 * static_cast<size_t>(index);
        staged[0] = counter.completions;
        staged[1] = counter.errors;
        uint64_t* const words[2] = {counter.attr.completions, counter.attr.errors};
        for (int i = 0; i < 2; ++i) {
            if (!words[i]) continue;
            counter_ticket_ = start_copy(MemoryAddr{MemoryKind::kCuda, reinterpret_cast<uint64_t>(words[i])},
                                         MemoryAddr{MemoryKind::kHost, reinterpret_cast<uint64_t>(staged + i)}, 8);
        }
    }
    dirty_counters_.clear();
}

void Device::set_counter_for_test(uint64_t handle, uint64_t completions) {
    counters_[handle - 1].completions = completions & kCounterMask31;
}

}  // namespace nvshmem_efa::soft
