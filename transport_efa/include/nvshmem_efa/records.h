// SPDX-License-Identifier: Apache-2.0
// What a PE, its CPU threads or its GPU, sends to another PE's agent, and what comes back: for host and device. See
// docs/ordering.md for why this is exact on SRD.
#pragma once

#include "nvshmem_efa/wqe.h"
#if defined(__CUDACC__)
#include "nvshmem_efa/memory_order.h"
#endif

namespace nvshmem_efa {

// What is done to a word. Numbers are ours, and part of what PEs say to each other.
enum class WordOp : uint8_t { kFetch, kSet, kAdd, kAnd, kOr, kXor, kSwap, kCompareSwap };

// kFloat: 2 bytes is IEEE half, 4 single, 8 double. Only kAdd cares.
enum class WordType : uint8_t { kInteger, kFloat };

inline constexpr uint8_t kRecordFetch = 1u << 0;  // reply with the old value
inline constexpr uint8_t kRecordFloat = 1u << 1;

// One signal or atomic: an inline SEND of exactly 32 bytes, which every device can carry in a 64-byte slot.
// Records of one (PE, lane) are numbered from 0 and applied in that order; a put_signal's data writes carry the same
// number as their immediate, and the record waits for `n_writes` of them.
struct AgentRecord {
    uint64_t addr;
    uint64_t operand;
    uint64_t compare;
    uint32_t seq;
    uint16_t n_writes;
    uint8_t op : 4;         // WordOp
    uint8_t bytes_log2 : 4;
    uint8_t flags;
};
static_assert(sizeof(AgentRecord) == 32, "a record is what a 64-byte slot carries");
#if !defined(__CUDACC_RTC__)
static_assert(offsetof(AgentRecord, seq) == 24 && offsetof(AgentRecord, flags) == 31);
#endif

// A fetched value. Each half carries the record's number, so that a half that has not arrived is told from one that
// has: nothing finer than an aligned 8-byte word is promised to arrive whole.
struct ReplySlot {
    uint64_t low;   // value bits 0..31, number in the upper half
    uint64_t high;  // value bits 32..63, number in the upper half
};
static_assert(sizeof(ReplySlot) == 16, "agents write replies at fixed places");

NVSHMEM_EFA_HD inline ReplySlot reply_encode(uint64_t value, uint32_t seq) {
    const uint64_t tag = static_cast<uint64_t>(seq) << 32;
    return {tag | (value & 0xffffffffu), tag | (value >> 32)};
}
NVSHMEM_EFA_HD inline bool reply_decode(const ReplySlot& slot, uint32_t seq, uint64_t* value) {
    // Acquire: what the requester does with the value comes after. Pairs with the device's placement of the reply.
#if defined(__CUDA_ARCH__)
    const uint64_t low = order::load_acquire_sys(&slot.low);
    const uint64_t high = order::load_acquire_sys(&slot.high);
#else
    const uint64_t low = __atomic_load_n(&slot.low, __ATOMIC_ACQUIRE);
    const uint64_t high = __atomic_load_n(&slot.high, __ATOMIC_ACQUIRE);
#endif
    if ((low >> 32) != seq || (high >> 32) != seq) return false;
    *value = (low & 0xffffffffu) | (high << 32);
    return true;
}
// A number that slot `index` of a window never carries.
NVSHMEM_EFA_HD inline uint32_t reply_never(uint32_t index) { return index ^ 1u; }

// The ack word: how many records of a (PE, lane) were applied, all of them from the first on.
inline constexpr uint64_t kAckRefused = 1ull << 63;  // the agent refused a record: see its log
NVSHMEM_EFA_HD inline uint32_t ack_applied(uint64_t word) { return static_cast<uint32_t>(word); }

// An agent takes in up to this many counted data writes a record of the window: a put_signal of more pieces waits for
// its data's completions instead. The host's lanes keep count and may exceed it for single records.
inline constexpr uint32_t kImmediatesPerRecord = 2;

}  // namespace nvshmem_efa
