// SPDX-License-Identifier: Apache-2.0
// A send queue of a device, as posters that are not its owner see it: where they store slots and the doorbell, and where
// they read completions. Three kinds stand behind it; who posts does not ask which.
// Making and ending one are control calls, on a thread where the posters' GPU is current (posters == kCuda).
#pragma once

#include <cstdint>
#include <memory>

#include "fabric/fabric.h"

namespace nvshmem_efa {

struct GpuRingAttr {
    uint32_t depth = 0;  // slots, a power of two
    uint32_t qkey = 0;
    MemoryKind posters = MemoryKind::kHost;  // kHost: CPU threads; kCuda: the GPU that is current on the calling thread
};

// Pointers as the host sees them; ..._at_gpu as posters see them (the same where posters are CPU threads). A pointer that
// one of the two cannot use is null for it; counters that only the GPU sees are read back by copies. Nothing here
// changes while the ring lives.
struct GpuRingView {
    uint8_t* slots = nullptr;  // 64 bytes each
    uint8_t* slots_at_gpu = nullptr;
    uint32_t* doorbell = nullptr;
    uint32_t* doorbell_at_gpu = nullptr;
    // SEND, WRITE and READ completions so far, and those with an error; the device or its stand-in writes them, they
    // count modulo 2^31 (ring.h, kCounterMask31). A payload is placed before its completion is counted.
    const uint64_t* completions = nullptr;
    const uint64_t* completions_at_gpu = nullptr;
    const uint64_t* errors = nullptr;
    const uint64_t* errors_at_gpu = nullptr;
    const uint8_t* cq_entries = nullptr;  // where the status of a counted error is looked up; may be null
    const uint8_t* cq_entries_at_gpu = nullptr;
    uint32_t cq_depth = 0;
    uint32_t cq_entry_bytes = 0;
    uint32_t depth = 0;      // slots, a power of two; may be less than was asked for
    uint32_t max_batch = 0;  // slots that may be written before a doorbell; 0 means no limit
    uint32_t qp_num = 0;
    uint32_t qkey = 0;
    bool req_id_64 = false;
    bool slots_are_readable = false;  // host memory; a device's own queue memory is write-only
};

class GpuRing {
   public:
    // Ends the queue. Pre: nobody posts any more. Requests in flight are given up.
    virtual ~GpuRing() = default;
    virtual const GpuRingView& view() const = 0;
    // What the ring's own machinery died of, for good (a relay thread that had to stop); OK else. Any thread.
    virtual Status failure() const = 0;
    virtual const char* kind() const = 0;  // "soft", "relay", "direct (counters in GPU memory)"
};

// The kind that the settings ask for, or an error. Without a wish: in mode soft the software device's own, or a relay
// where it has no counters; else, for a GPU, direct if it can be had, and a relay with a warning that says why not; for CPU
// threads a relay.
struct Knobs;
Status make_gpu_ring(const Knobs& knobs, Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring);

// The software device's ring is host memory, which the posters write themselves.
Status make_soft_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring);
// A ring in host memory, which a CPU thread forwards to the device's queue.
Status make_relay_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring);
// The device's own queue memory and doorbell, mapped for the GPU.
Status make_direct_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring);

}  // namespace nvshmem_efa
