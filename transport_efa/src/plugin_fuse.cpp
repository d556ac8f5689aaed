// SPDX-License-Identifier: Apache-2.0
#include "plugin_fuse.h"

namespace nvshmem_efa::plugin {

Status HeldPut::flush_locked(Transport& transport) {
    if (!is_held_) return Status();
    is_held_ = false;
    EFA_TRY(transport.rma(Lane::kProxy, put_));
    return is_fenced_ ? transport.fence(Lane::kProxy, put_.pe) : Status();
}

Status HeldPut::flush(Transport& transport) {
    const std::lock_guard lock(mutex_);
    return flush_locked(transport);
}

Status HeldPut::flush_if_late(Transport& transport) {
    if (!is_held_.load(std::memory_order_relaxed)) return Status();
    const std::lock_guard lock(mutex_);
    return real_clock().now_ns() - held_since_ns_ < kHoldNs ? Status() : flush_locked(transport);
}

Status HeldPut::hold(Transport& transport, const RmaOp& put) {
    const std::lock_guard lock(mutex_);
    EFA_TRY(flush_locked(transport));
    put_ = put;
    if (put.remote_handle) {
        remote_handle_ = *put.remote_handle;
        put_.remote_handle = &remote_handle_;
    }
    if (put.local_handle) {
        local_handle_ = *put.local_handle;
        put_.local_handle = &local_handle_;
    }
    held_since_ns_ = real_clock().now_ns();
    is_held_ = true;
    is_fenced_ = false;
    return Status();
}

Status HeldPut::fence(Transport& transport, int pe) {
    const std::lock_guard lock(mutex_);
    is_fenced_ = is_fenced_ || (is_held_ && put_.pe == pe);
    return transport.fence(Lane::kProxy, pe);
}

Status HeldPut::signal(Transport& transport, const AmoOp& signal, bool* is_done) {
    const std::lock_guard lock(mutex_);
    *is_done = is_held_ && put_.pe == signal.pe;
    if (!*is_done) {
        EFA_TRY(flush_locked(transport));
        // Puts of several pieces: all but the last were posted. A signal is ordered behind them too.
        return transport.fence(Lane::kProxy, signal.pe);
    }
    is_held_ = false;
    // As above, for the pieces before this one: put_signal pays for the fence before it posts.
    EFA_TRY(transport.fence(Lane::kProxy, signal.pe));
    PutSignalOp op;
    op.puts = &put_;
    op.n_puts = 1;
    op.signal = signal;
    return transport.put_signal(Lane::kProxy, op);
}

}  // namespace nvshmem_efa::plugin
