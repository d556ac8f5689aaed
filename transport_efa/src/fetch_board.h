// SPDX-License-Identifier: Apache-2.0
// What lanes and this PE's agent tell each other: fetching atomics that wait for their reply (the agent delivers the
// values), and that the agent had to stop.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "agent_record.h"

namespace nvshmem_efa {

struct PendingFetch {
    const ReplySlot* reply = nullptr;
    uint32_t seq = 0;
    uint8_t bytes = 8;
    MemoryKind result_kind = MemoryKind::kHost;
    uint64_t* result = nullptr;  // {value, flag}
    uint64_t flag = 0;
    std::atomic<uint32_t>* outstanding = nullptr;  // the lane's count towards that PE
    std::atomic<uint8_t>* slot_is_busy = nullptr;  // cleared when the reply slot may be written again
};

class FetchBoard {
   public:
    void add(const PendingFetch& fetch) {
        const std::lock_guard lock(mutex_);
        incoming_.push_back(fetch);
        count_.store(static_cast<uint32_t>(incoming_.size()), std::memory_order_release);  // pairs with take()
    }
    // Moves what was added to the end of `fetches`. Cheap when there is nothing.
    void take(std::vector<PendingFetch>* fetches) {
        if (count_.load(std::memory_order_acquire) == 0) return;
        const std::lock_guard lock(mutex_);
        fetches->insert(fetches->end(), incoming_.begin(), incoming_.end());
        incoming_.clear();
        count_.store(0, std::memory_order_relaxed);
    }

    void stop(const std::string& why) {
        const std::lock_guard lock(mutex_);
        why_ = why;
        stopped_.store(true, std::memory_order_release);  // pairs with stopped(): why_ does not change after it
    }
    bool stopped() const { return stopped_.load(std::memory_order_acquire); }
    const std::string& why_stopped() const { return why_; }

   private:
    std::atomic<bool> stopped_{false};
    std::string why_;
    std::mutex mutex_;
    std::atomic<uint32_t> count_{0};
    std::vector<PendingFetch> incoming_;
};

}  // namespace nvshmem_efa
