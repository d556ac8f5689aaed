// SPDX-License-Identifier: Apache-2.0
// How requests get into the slots of a GpuQueue: by one poster, or by the lanes of a warp together.
#pragma once

#include "nvshmem_efa/gpu_queue.h"

namespace nvshmem_efa {

// The 64 bytes of a request, whole words: what is merged byte by byte from the fields of a SendWqe is merged once.
struct SlotBytes {
    order::Bytes16 piece[4];
};
NVSHMEM_EFA_HD inline SlotBytes slot_template(const SendWqe& wqe) {
    uint64_t words[8];
    memcpy(words, &wqe, sizeof words);
    return {{{words[0], words[1]}, {words[2], words[3]}, {words[4], words[5]}, {words[6], words[7]}}};
}

// Adds what depends on the slot: phase bit and request id, which the queue owns.
NVSHMEM_EFA_HD inline SlotBytes slot_bytes(const GpuQueue& queue, uint32_t slot, const SlotBytes& from, uint32_t pe) {
    SlotBytes bytes = from;
    // Both lie in the first four bytes: request id, opcode, phase.
    constexpr uint32_t kOurs = 0xffffu | static_cast<uint32_t>(kCtrl2Phase) << 24;
    const uint32_t phase = (slot >> queue.depth_log2 & 1u) << 24;
    const uint32_t first = (static_cast<uint32_t>(from.piece[0].low) & ~kOurs) | (slot & 0xffffu) | phase;
    bytes.piece[0].low = (from.piece[0].low & ~0xffffffffull) | first;
    // Of a 64-bit id: the slot number, 32 bits of it, and then the pe.
    const uint64_t id = static_cast<uint64_t>(pe & 0xffffu) << 32 | (slot & 0xffff0000u);
    if (queue.req_id_64) bytes.piece[1].high = (from.piece[1].high & 0xffffull) | id;
    return bytes;
}

NVSHMEM_EFA_HD inline uint8_t* slot_at(const GpuQueue& queue, uint32_t slot) {
    return queue.slots + static_cast<size_t>(slot & (queue.depth - 1)) * kSlotBytesSmall;
}

// {remote address, slot number | pe << 32 | opcode << 48}
NVSHMEM_EFA_HD inline void note_write(const GpuQueue& queue, uint32_t slot, const SlotBytes& bytes, uint32_t pe) {
    if (!queue.notes) return;
    const uint64_t opcode = bytes.piece[0].low >> 16 & kCtrl1OpcodeMask;
    const uint64_t remote = bytes.piece[2].high;
    const uint64_t who = opcode << 48 | static_cast<uint64_t>(pe & 0xffffu) << 32 | slot;
    order::store_note(queue.notes + (slot & (queue.depth - 1)), {remote, who});
}
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, ctrl1) == 2 && offsetof(SendWqe, rdma.remote.addr_lo) == 0x28);

// One poster, one slot.
NVSHMEM_EFA_HD inline void slot_write(const GpuQueue& queue, uint32_t slot, const SlotBytes& from, uint32_t pe) {
    const SlotBytes bytes = slot_bytes(queue, slot, from, pe);
    uint8_t* at = slot_at(queue, slot);
    void* const to[4] = {at, at + 16, at + 32, at + 48};
    order::store_four(to, bytes.piece);
    note_write(queue, slot, bytes, pe);
}

#if defined(__CUDACC__)
// One of four by selects: an index would put the array into local memory.
__device__ inline order::Bytes16 pick4(const order::Bytes16 (&from)[4], uint32_t index) {
    const bool is_odd = index & 1u, is_high = index & 2u;
    const order::Bytes16 low{is_odd ? from[1].low : from[0].low, is_odd ? from[1].high : from[0].high};
    const order::Bytes16 high{is_odd ? from[3].low : from[2].low, is_odd ? from[3].high : from[2].high};
    return {is_high ? high.low : low.low, is_high ? high.high : low.high};
}

inline constexpr uint32_t kQuadSlotsMax = 8;

// Four lanes whose places in the warp are 4m..4m+3, wherever one of them is.
__device__ inline bool has_whole_quads(uint32_t mask) { return (mask & 0x11111111u) * 0xfu == mask; }

// `4 * rows` slots by as many lanes, in whole quads, so that each store instruction covers `64 * rows` contiguous bytes:
// what a bus of 64-byte writes likes best (docs/gpu-queue.md). Lane q of quad k gives its request to slot q * rows + k,
// and writes piece q of slots k, rows + k, 2 * rows + k, 3 * rows + k. All lanes of `mask` call it; those whose `place`
// among the writers is not below 4 * rows only lend their hands.
__device__ inline void slots_write_quads(const GpuQueue& queue, uint32_t first, uint32_t rows, uint32_t place,
                                         uint32_t mask, const SlotBytes& from, uint32_t pe) {
    const uint32_t quarter = place & 3u, row = place >> 2;
    const uint32_t mine = first + quarter * rows + row;
    const SlotBytes bytes = slot_bytes(queue, mine, from, pe);
    order::Bytes16 got[4];  // got[i]: piece `quarter` of lane quarter ^ i of the same four
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        got[i] = pick4(bytes.piece, quarter ^ i);  // the piece that that lane writes
        if (i == 0) continue;
        got[i].low = __shfl_xor_sync(mask, static_cast<unsigned long long>(got[i].low), i);
        got[i].high = __shfl_xor_sync(mask, static_cast<unsigned long long>(got[i].high), i);
    }
    if (row >= rows) return;
    void* to[4];
    order::Bytes16 out[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        to[i] = slot_at(queue, first + i * rows + row) + quarter * 16;
        out[i] = pick4(got, quarter ^ i);
    }
    order::store_four(to, out);
    note_write(queue, mine, bytes, pe);
}
#endif

// Writes `n` slots from `first` on: those of members done..done+n-1.
template <class Group>
NVSHMEM_EFA_HD inline void slots_write(const GpuQueue& queue, uint32_t first, const Group& group, uint32_t done,
                                       uint32_t n, const SlotBytes& from, uint32_t pe) {
#if defined(__CUDA_ARCH__)
    if constexpr (Group::kIsOfWarp) {
        // Measured on an H200 (docs/gpu-queue.md): the exchange pays for itself at 32, and at 4 once many warps
        // fill the bus; in between, each lane does as well alone, and sooner.
        if (n == 32) return slots_write_quads(queue, first, 8, group.rank(), 0xffffffffu, from, pe);
        if (n <= kQuadSlotsMax && ((n | done) & 3u) == 0 && has_whole_quads(group.mask()))
            return slots_write_quads(queue, first, n >> 2, group.rank() - done, group.mask(), from, pe);
    }
#endif
    const uint32_t place = group.rank() - done;
    if (place < n) slot_write(queue, first + place, from, pe);
}

}  // namespace nvshmem_efa
