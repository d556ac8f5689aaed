// SPDX-License-Identifier: Apache-2.0
// Plugin ABI 3 has no put_signal: NVSHMEM's proxy calls rma, fence, amo for a kernel's put_signal, and rma, amo without
// a fence for an on-stream one (seen on NVSHMEM 3.4.5; it relies on queues that keep order). So on ABI 3 the proxy
// lane's newest put is held back until the next call shows whether it is the data of a signal. If it is, both leave as
// one put_signal: one network hop, and in order with or without the fence. If not, it leaves first.
#pragma once

#include <atomic>
#include <mutex>

#include "transport.h"

namespace nvshmem_efa::plugin {

class HeldPut {
   public:
    // Holds `put` back (its handles are copied), after posting what was held before.
    Status hold(Transport& transport, const RmaOp& put);
    // The held put's PE is fenced: remembered, and passed on for what was posted before.
    Status fence(Transport& transport, int pe);
    // A signal to `signal.pe`: with the held put if it goes there. `is_done` is false when it was not held, and then
    // everything earlier is posted and the signal is the caller's.
    Status signal(Transport& transport, const AmoOp& signal, bool* is_done);
    // Posts what is held. Before every other operation of the proxy lane.
    Status flush(Transport& transport);
    // From progress(), which the proxy calls between two requests of one kernel's put_signal too: posts what has been
    // held for kHoldNs.
    Status flush_if_late(Transport& transport);

   private:
    Status flush_locked(Transport& transport);

    std::mutex mutex_;
    static constexpr uint64_t kHoldNs = 4000;

    std::atomic<bool> is_held_{false};  // changed under the lock
    bool is_fenced_ = false;
    uint64_t held_since_ns_ = 0;
    RmaOp put_;
    MemHandle remote_handle_, local_handle_;
};

}  // namespace nvshmem_efa::plugin
