// SPDX-License-Identifier: Apache-2.0
// A private stream whose progress the CPU reads from pinned memory: no event, no stream synchronisation, no SM.
#pragma once

#include <memory>
#include <string>

#include "cuda_driver.h"

namespace nvshmem_efa::cuda {

// One thread at a time. Device and pinned memory are allocated in create() and never after.
class MarkedStream {
   public:
    using Ticket = uint64_t;

    // On the current context of the calling thread, which it keeps; kMissing when there is none.
    // `scratch_bytes` of pinned, zeroed host memory come with it, 64-byte aligned.
    static Status create(size_t scratch_bytes, std::unique_ptr<MarkedStream>* stream);
    // Waits for no work. After abandon(), leaks on purpose what the GPU may still write to.
    ~MarkedStream();
    MarkedStream(const MarkedStream&) = delete;
    MarkedStream& operator=(const MarkedStream&) = delete;

    const Driver& driver() const { return *driver_; }
    Context context() const { return context_; }
    Device device() const { return device_; }
    Stream stream() const { return stream_; }
    void* scratch() const { return pinned_ + kMarkerBytes; }

    // Enqueues a marker behind everything that is in the stream. The context must be current.
    Status mark(Ticket* ticket);
    // The same marker as an operation for a caller's own cuStreamBatchMemOp, which takes effect with the call.
    MemOp mark_op(Ticket* ticket);
    // True when the marker has landed: all work before it is complete and visible.
    bool reached(Ticket ticket) const;
    // `what` names the wait in a kTimeout error.
    Status wait(Ticket ticket, int64_t timeout_ms, const char* what);
    void abandon() { abandoned_ = true; }

   private:
    static constexpr size_t kMarkerBytes = 64;  // the marker's own line

    MarkedStream() = default;
    Status open(size_t scratch_bytes);

    const Driver* driver_ = nullptr;
    Context context_ = nullptr;
    Device device_ = 0;
    Stream stream_ = nullptr;
    uint8_t* pinned_ = nullptr;
    DevicePtr marker_addr_ = 0;
    Ticket last_ = 0;
    bool abandoned_ = false;
};

}  // namespace nvshmem_efa::cuda
