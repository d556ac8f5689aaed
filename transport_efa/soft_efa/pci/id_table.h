// SPDX-License-Identifier: Apache-2.0
// Objects that the guest names by number, up to a bound.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace nvshmem_efa::soft::pci {

inline constexpr uint32_t kNoId = 0xffffffffu;

template <class T>
class IdTable {
   public:
    explicit IdTable(uint32_t bound) : bound_(bound) {}

    uint32_t add(T&& object) {  // kNoId at the bound
        uint32_t id;
        if (!free_.empty()) {
            id = free_.back();
            free_.pop_back();
            slots_[id] = std::move(object);
        } else if (slots_.size() < bound_) {
            id = static_cast<uint32_t>(slots_.size());
            slots_.emplace_back(std::move(object));
        } else {
            return kNoId;
        }
        ++used_;
        return id;
    }
    T* find(uint32_t id) { return id < slots_.size() && slots_[id] ? &*slots_[id] : nullptr; }
    void remove(uint32_t id) {
        if (!find(id)) return;
        slots_[id].reset();
        free_.push_back(id);
        --used_;
    }
    bool is_full() const { return used_ >= bound_; }
    uint32_t used() const { return used_; }
    void clear() {
        slots_.clear();
        free_.clear();
        used_ = 0;
    }
    // Calls visit(id, object) for all of them; it must not add or remove.
    template <class Visit>
    void for_each(Visit&& visit) {
        for (uint32_t id = 0; id < slots_.size(); ++id) {
            if (slots_[id]) visit(id, *slots_[id]);
        }
    }

   private:
    uint32_t bound_;
    uint32_t used_ = 0;
    std::vector<std::optional<T>> slots_;
    std::vector<uint32_t> free_;
};

}  // namespace nvshmem_efa::soft::pci
