// SPDX-License-Identifier: Apache-2.0
// Producer and consumer arithmetic of EFA rings: slots, phase bits, credits, doorbell values.
// PODs and pure functions, one owner at a time (callers that share a ring lock it). Counters are free-running
// 32-bit values; a depth is a power of two. Source of the rules: docs/efa-descriptors.md, section "Rings".
#pragma once

#include "nvshmem_efa/wqe.h"

namespace nvshmem_efa {

inline constexpr uint32_t kCounterMask31 = 0x7fffffffu;  // hardware completion counters wrap at 2^31

NVSHMEM_EFA_HD constexpr bool is_power_of_two(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

NVSHMEM_EFA_HD constexpr uint32_t log2_exact(uint32_t power_of_two) {
    uint32_t shift = 0;
    while ((1u << shift) < power_of_two) ++shift;
    return shift;
}

// How far `submitted` is ahead of a hardware counter that wraps at 2^31.
NVSHMEM_EFA_HD constexpr uint32_t counter_lag31(uint32_t submitted, uint32_t counter) {
    return (submitted - counter) & kCounterMask31;
}

// A send ring: slots in the device's (write-combined) memory or in host memory, and the doorbell word.
struct SendRing {
    uint8_t* slots = nullptr;
    volatile uint32_t* doorbell = nullptr;
    uint32_t slot_bytes = 0;  // kSlotBytesSmall or kSlotBytesLarge
    uint32_t depth = 0;       // slots, a power of two
    uint32_t depth_log2 = 0;
    uint32_t max_batch = 0;  // slots that may be written before a doorbell; 0 means no limit
    uint32_t posted = 0;     // slots written
    uint32_t rung = 0;       // producer value last stored to the doorbell
    uint32_t completed = 0;  // completions counted; they come in any order, so this is a count, not a position
};

NVSHMEM_EFA_HD inline bool send_ring_init(SendRing& ring, void* slots, volatile uint32_t* doorbell, uint32_t slot_bytes,
                                          uint32_t depth, uint32_t max_batch) {
    if (!is_power_of_two(depth)) return false;
    if (slot_bytes != kSlotBytesSmall && slot_bytes != kSlotBytesLarge) return false;
    ring = SendRing{};
    ring.slots = static_cast<uint8_t*>(slots);
    ring.doorbell = doorbell;
    ring.slot_bytes = slot_bytes;
    ring.depth = depth;
    ring.depth_log2 = log2_exact(depth);
    ring.max_batch = max_batch;
    return true;
}

// The phase bit of a send descriptor: 0 on the first lap, flipped on every wrap.
NVSHMEM_EFA_HD inline uint32_t send_ring_phase(const SendRing& ring, uint32_t index) {
    return (index >> ring.depth_log2) & 1u;
}

NVSHMEM_EFA_HD inline uint8_t* send_ring_slot(const SendRing& ring, uint32_t index) {
    return ring.slots + static_cast<size_t>(index & (ring.depth - 1)) * ring.slot_bytes;
}

NVSHMEM_EFA_HD inline uint32_t send_ring_in_flight(const SendRing& ring) { return ring.posted - ring.completed; }
NVSHMEM_EFA_HD inline uint32_t send_ring_credits(const SendRing& ring) { return ring.depth - send_ring_in_flight(ring); }
NVSHMEM_EFA_HD inline uint32_t send_ring_unrung(const SendRing& ring) { return ring.posted - ring.rung; }

// True when the next slot may be written only after a doorbell (the device's max_batch).
NVSHMEM_EFA_HD inline bool send_ring_batch_is_full(const SendRing& ring) {
    return ring.max_batch != 0 && send_ring_unrung(ring) >= ring.max_batch;
}

// Claims the next slot. False, and nothing changed, when the ring is full or a doorbell is due first.
NVSHMEM_EFA_HD inline bool send_ring_reserve(SendRing& ring, uint32_t& index) {
    if (send_ring_credits(ring) == 0 || send_ring_batch_is_full(ring)) return false;
    index = ring.posted;
    ++ring.posted;
    return true;
}

// The doorbell takes the absolute producer counter, not an increment.
NVSHMEM_EFA_HD inline uint32_t send_ring_doorbell_value(const SendRing& ring) { return ring.posted; }

// Counts `n` completions. False when more completed than were in flight (a device or program error).
NVSHMEM_EFA_HD inline bool send_ring_complete(SendRing& ring, uint32_t n) {
    if (n > send_ring_in_flight(ring)) return false;
    ring.completed += n;
    return true;
}

// A receive ring: descriptors in host memory, no phase bit.
struct RecvRing {
    uint8_t* slots = nullptr;
    volatile uint32_t* doorbell = nullptr;
    uint32_t depth = 0;
    uint32_t posted = 0;
    uint32_t completed = 0;
};

NVSHMEM_EFA_HD inline bool recv_ring_init(RecvRing& ring, void* slots, volatile uint32_t* doorbell, uint32_t depth) {
    if (!is_power_of_two(depth)) return false;
    ring = RecvRing{};
    ring.slots = static_cast<uint8_t*>(slots);
    ring.doorbell = doorbell;
    ring.depth = depth;
    return true;
}

NVSHMEM_EFA_HD inline bool recv_ring_reserve(RecvRing& ring, uint32_t& index) {
    if (ring.posted - ring.completed >= ring.depth) return false;
    index = ring.posted++;
    return true;
}

NVSHMEM_EFA_HD inline RecvWqe* recv_ring_slot(const RecvRing& ring, uint32_t index) {
    return reinterpret_cast<RecvWqe*>(ring.slots) + (index & (ring.depth - 1));
}

// The receive doorbell is 16 bits of the producer counter, zero-extended.
NVSHMEM_EFA_HD inline uint32_t recv_ring_doorbell_value(const RecvRing& ring) { return ring.posted & 0xffffu; }

NVSHMEM_EFA_HD inline bool recv_ring_complete(RecvRing& ring, uint32_t n) {
    if (n > ring.posted - ring.completed) return false;
    ring.completed += n;
    return true;
}

// A completion ring that the device writes.
struct CqRing {
    const uint8_t* entries = nullptr;
    uint32_t entry_bytes = 0;  // 16 or 32, as the device says; never assumed
    uint32_t depth = 0;
    uint32_t depth_log2 = 0;
    uint32_t consumed = 0;
};

NVSHMEM_EFA_HD inline bool cq_ring_init(CqRing& ring, const void* entries, uint32_t entry_bytes, uint32_t depth) {
    if (!is_power_of_two(depth) || (entry_bytes != 16 && entry_bytes != 32)) return false;
    ring = CqRing{};
    ring.entries = static_cast<const uint8_t*>(entries);
    ring.entry_bytes = entry_bytes;
    ring.depth = depth;
    ring.depth_log2 = log2_exact(depth);
    return true;
}

// The phase of a fresh completion: 1 on the first lap, flipped on every wrap.
NVSHMEM_EFA_HD inline uint32_t cq_ring_phase(const CqRing& ring, uint32_t index) {
    return ((index >> ring.depth_log2) & 1u) ^ 1u;
}

NVSHMEM_EFA_HD inline const uint8_t* cq_ring_entry(const CqRing& ring, uint32_t index) {
    return ring.entries + static_cast<size_t>(index & (ring.depth - 1)) * ring.entry_bytes;
}

#if !defined(__CUDA_ARCH__)
// ---- host access to the rings ----

// Drains the CPU's write-combining buffers, so that slots reach the device before what is stored next.
inline void wc_flush() {
#if defined(__x86_64__)
    __builtin_ia32_sfence();
#elif defined(__aarch64__)
    asm volatile("dmb oshst" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// Writes a reserved slot in ascending 64-bit stores, which a write-combining mapping merges into one burst.
inline void send_ring_write(const SendRing& ring, uint32_t index, const SendWqe& wqe) {
    auto* to = reinterpret_cast<volatile uint64_t*>(send_ring_slot(ring, index));
    const auto* from = reinterpret_cast<const uint8_t*>(&wqe);
    for (uint32_t i = 0; i < ring.slot_bytes / 8; ++i) {
        uint64_t word;
        memcpy(&word, from + i * 8, 8);
        to[i] = word;
    }
}

// Publishes all written slots. The flush before the doorbell pairs with the device's fetch of the slots (the soft
// device: doorbell load-acquire in soft_efa); the flush after it keeps the next batch's stores behind this doorbell
// (the device's rule for write-combined send queues).
inline void send_ring_ring(SendRing& ring) {
    if (ring.posted == ring.rung) return;
    wc_flush();
    __atomic_store_n(ring.doorbell, send_ring_doorbell_value(ring), __ATOMIC_RELEASE);
    wc_flush();
    ring.rung = ring.posted;
}

// Publishes receive descriptors: release pairs with the device's fetch after the doorbell.
inline void recv_ring_ring(const RecvRing& ring) {
    wc_flush();
    __atomic_store_n(ring.doorbell, recv_ring_doorbell_value(ring), __ATOMIC_RELEASE);
}

// The next completion, or null. The acquire pairs with the device's write of the phase bit, which it writes last.
// The entry stays valid until cq_ring_pop() and a further lap of the device.
inline const uint8_t* cq_ring_peek(const CqRing& ring) {
    const uint8_t* entry = cq_ring_entry(ring, ring.consumed);
    const uint8_t flags = __atomic_load_n(entry + offsetof(TxCqe, flags), __ATOMIC_ACQUIRE);
    if ((flags & kCqePhase) != cq_ring_phase(ring, ring.consumed)) return nullptr;
    return entry;
}

inline void cq_ring_pop(CqRing& ring) { ++ring.consumed; }
#endif  // !__CUDA_ARCH__

}  // namespace nvshmem_efa
