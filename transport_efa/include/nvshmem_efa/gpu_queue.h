// SPDX-License-Identifier: Apache-2.0
// A send queue that the GPU posts to: its description (a POD, the same for all posters), its state, its error record.
// Posting: gpu_queue_shared.h (any number of posters) or gpu_queue_owned.h (one owner). docs/gpu-queue.md has the
// argument. The same code runs on the CPU, where tests/cpp/test_gpu_queue.cpp proves it.
//
// There is no wait for one request: EFA completes requests in any order, and a counter says how many are done, not
// which. A queue can be waited for as a whole (quiet), and ring slots are handed out by count.
#pragma once

#include "nvshmem_efa/lane_group.h"

namespace nvshmem_efa {

inline constexpr uint32_t kGpuQueueDepthMax = 32768;  // distances within a ring fit 16 bits
inline constexpr uint32_t kDeferMax = 32;             // unrung slots after which a poster rings though others follow
inline constexpr uint8_t kStatusUnknown = 0xff;       // an error was counted, but no entry tells which

// What was waited for when the deadline passed; kCompletion: nothing, a request completed with an error.
enum class GpuQueueWait : uint8_t { kCompletion = 0, kCredits = 1, kBatch = 2, kTurn = 3, kQuiet = 4, kHold = 5 };

// In memory that the host sees (pinned). Filled once, by the first who finds a reason.
struct GpuQueueError {
    uint32_t is_set;  // stored last, with release; 0 until then
    uint32_t qp_num;
    uint32_t pe;
    uint32_t slot;  // slot number of the request, if it is known
    uint64_t remote_addr;
    uint8_t opcode;  // SendOpcode
    uint8_t status;  // CqeStatus, kStatusUnknown, or kOk when a deadline passed
    GpuQueueWait waited;
    uint8_t reserved[5];
    uint64_t posted;     // slots reserved by then, modulo 2^32
    uint64_t completed;  // requests completed by then, modulo 2^32
    uint64_t reserved1[2];
};
static_assert(sizeof(GpuQueueError) == 64, "the host reads the error record at fixed offsets");

// In GPU memory; changed by posters, but for host_hold. A line for each word that posters fight for.
struct GpuQueueState {
    alignas(64) uint32_t head;       // next slot to reserve
    alignas(64) uint64_t turn;       // how far slots are written and rung: struct Turn, written by whose turn it is
    alignas(64) uint64_t completed;  // requests known to be complete; never goes back, so it does not wrap
    // Read together, by one load.
    alignas(16) uint32_t failed;     // 1: the first failure has been claimed
    uint32_t hold;                   // how many quiets ask the sharing posters to pause
    uint32_t host_hold;              // 1: so does a quiet of the host, which alone writes it (GpuLane::drain())
    uint32_t reserved;
    alignas(64) uint32_t cq_lock;    // 1: somebody reads the counters or the CQ
    uint32_t cq_consumed;
};

// GpuQueueState::turn. The poster whose first slot is `written` has the turn: nobody else changes the word.
struct Turn {
    uint32_t written;    // all slots before this one hold their requests
    uint32_t unrung;     // of those, not yet told by a doorbell
    uint32_t unsettled;  // of those, not yet told by a doorbell that is known to be out
};
NVSHMEM_EFA_HD inline uint64_t turn_pack(const Turn& turn) {
    return static_cast<uint64_t>(turn.unsettled) << 48 | static_cast<uint64_t>(turn.unrung) << 32 | turn.written;
}
NVSHMEM_EFA_HD inline Turn turn_unpack(uint64_t word) {
    return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32) & 0xffffu, static_cast<uint32_t>(word >> 48)};
}

// What was posted in a slot, for the error record. One entry a slot.
using GpuQueueNote = order::Bytes16;

struct GpuQueue {
    uint8_t* slots;      // 64 bytes each, 64-byte aligned
    uint32_t* doorbell;
    GpuQueueState* state;
    // Where an error record's pe and address come from: notes that posters write (null: none; they make a post 0.1 us
    // slower), else the ring, where it can be read; the pe also from a 64-bit request id. Else they stay 0.
    GpuQueueNote* notes;
    GpuQueueError* error;
    // Completion source: counters (31 bits, written by the device alone), or, when `completions` is null, the CQ.
    const uint64_t* completions;
    const uint64_t* errors;
    const uint8_t* cq_entries;  // beside counters: where the status of a counted error is looked up; may be null then
    uint32_t* cq_consumer;      // may be null; gets cq_consumed, for a soft device that tells overruns
    uint64_t wait_ticks;        // deadline of every wait, in ticks of order::clock_ticks()
    uint32_t qp_num;
    uint32_t depth;
    uint32_t depth_log2;
    uint32_t max_batch;  // the device's: slots that may be written before a doorbell; 0 means no limit
    uint32_t batch;      // slots that are reserved together at most
    uint32_t ring_at;    // unrung slots at which posters ring although others follow
    uint32_t cq_depth;
    uint32_t cq_depth_log2;
    uint32_t cq_entry_bytes;
    uint32_t first_slot;     // where the slot numbers began
    uint32_t counter_bias;   // completion counter - slots completed, modulo 2^31
    uint32_t errors_before;  // what the error counter held at the start
    bool req_id_64;
    bool slots_are_readable;  // host memory; a device's own queue memory is write-only
};

// Completes a description whose pointers, shapes and deadline the caller has set, and starts its state (both in memory
// of the caller's, who copies them to where posters see them). Counter words may hold anything; software cannot reset
// them. `first_slot` other than 0 is for tests. False: a shape that cannot work.
NVSHMEM_EFA_HD inline bool gpu_queue_init(GpuQueue& queue, GpuQueueState& state, uint64_t counter_now,
                                          uint64_t errors_now, uint32_t first_slot = 0) {
    if (!is_power_of_two(queue.depth) || queue.depth > kGpuQueueDepthMax) return false;
    if (queue.max_batch > kGpuQueueDepthMax) return false;
    if (!queue.slots || !queue.doorbell || !queue.state || !queue.error || queue.wait_ticks == 0) return false;
    if (queue.completions ? !queue.errors : !queue.cq_entries) return false;
    if (queue.cq_entries && !is_power_of_two(queue.cq_depth)) return false;
    if (queue.cq_entries && queue.cq_entry_bytes != 16 && queue.cq_entry_bytes != 32) return false;
    if (!queue.completions && queue.cq_depth < queue.depth) return false;  // each request in flight needs an entry
    queue.depth_log2 = log2_exact(queue.depth);
    queue.cq_depth_log2 = queue.cq_entries ? log2_exact(queue.cq_depth) : 0;
    // Half of what the device holds: then the fence of each doorbell also settles the one before in time, and one
    // fence a doorbell is enough (see Turn::unsettled). With max_batch 1 there is no half: it takes a second fence.
    queue.batch = queue.max_batch == 0 ? queue.depth : queue.max_batch == 1 ? 1 : queue.max_batch / 2;
    if (queue.batch > queue.depth) queue.batch = queue.depth;
    queue.ring_at = queue.batch < kDeferMax ? queue.batch : kDeferMax;
    queue.first_slot = first_slot;
    queue.counter_bias = (static_cast<uint32_t>(counter_now) - first_slot) & kCounterMask31;
    queue.errors_before = static_cast<uint32_t>(errors_now);
    state = GpuQueueState{};
    state.head = first_slot;
    state.turn = turn_pack({first_slot, 0, 0});
    state.completed = first_slot;
    return true;
}

// ---- failure ----

NVSHMEM_EFA_HD inline bool gpu_queue_has_failed(const GpuQueue& queue) {
    return order::load_relaxed_gpu(&queue.state->failed) != 0;
}

// Claims the queue's failure; the first caller's record stands. Always false, so that callers can return it.
NVSHMEM_EFA_COLD inline bool gpu_queue_fail(GpuQueue queue, GpuQueueError what) {
    if (order::exchange_acquire_gpu(&queue.state->failed, 1) != 0) return false;
    GpuQueueError& record = *queue.error;
    what.is_set = 0;
    what.qp_num = queue.qp_num;
    what.posted = order::load_relaxed_gpu(&queue.state->head);
    what.completed = static_cast<uint32_t>(order::load_acquire_gpu(&queue.state->completed));
    record.qp_num = what.qp_num;
    record.pe = what.pe;
    record.slot = what.slot;
    record.remote_addr = what.remote_addr;
    record.opcode = what.opcode;
    record.status = what.status;
    record.waited = what.waited;
    record.posted = what.posted;
    record.completed = what.completed;
    order::store_release_sys(&record.is_set, 1);  // pairs with the host's acquire load of is_set, in gpu_queue_error()
    return false;
}

#if !defined(__CUDACC_RTC__)
// The record, once there is one. The acquire pairs with the release at the end of gpu_queue_fail().
inline const GpuQueueError* gpu_queue_error(const GpuQueueError* record) {
    return __atomic_load_n(&record->is_set, __ATOMIC_ACQUIRE) ? record : nullptr;
}
#endif

// A wait's clock; it starts at the first look, so that those who need not wait do not read it.
struct WaitClock {
    uint64_t start = 0;
    bool has_started = false;
    NVSHMEM_EFA_HD bool has_passed(uint64_t ticks) {
        const uint64_t now = order::clock_ticks();
        if (!has_started) {
            start = now;
            has_started = true;
        }
        return now - start > ticks;
    }
};

NVSHMEM_EFA_COLD inline bool fail_wait(GpuQueue queue, GpuQueueWait waited, uint32_t pe, uint32_t slot) {
    GpuQueueError what{};
    what.waited = waited;
    what.pe = pe;
    what.slot = slot;
    return gpu_queue_fail(queue, what);
}

}  // namespace nvshmem_efa
