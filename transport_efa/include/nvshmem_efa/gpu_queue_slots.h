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
inline constexpr uint32_t kQuadSlotsMax = 8;

// Four lanes whose places in the warp are 4m..4m+3, wherever one of them is.
__device__ inline bool has_whole_quads(uint32_t mask) { return (mask & 0x11111111u) * 0xfu == mask; }

// Lanes of one quad whose numbers differ in bit `bit` swap: who has it 0 gives `high` and gets the other's `low` in its
// place, and the other way round. Selects, because an index that a lane computes would put pieces into local memory.
__device__ inline void quad_swap(order::Bytes16& low, order::Bytes16& high, uint32_t bit, bool is_high, uint32_t mask) {
    const order::Bytes16 give{is_high ? low.low : high.low, is_high ? low.high : high.high};
    const order::Bytes16 got{__shfl_xor_sync(mask, static_cast<unsigned long long>(give.low), bit),
                             __shfl_xor_sync(mask, static_cast<unsigned long long>(give.high), bit)};
    low = {is_high ? got.low : low.low, is_high ? got.high : low.high};
    high = {is_high ? high.low : got.low, is_high ? high.high : got.high};
}

// `4 * rows` slots by as many lanes, in whole quads, so that each store instruction covers `64 * rows` contiguous bytes:
// what a bus of 64-byte writes likes best (docs/gpu-queue.md). Lane q of quad k gives its request to slot q * rows + k,
// and writes piece q of slots k, rows + k, 2 * rows + k, 3 * rows + k: the quad's pieces are a 4 x 4 matrix, transposed
// in two steps. All lanes of `mask` call it; those whose `place` among the writers is not below 4 * rows only lend their
// hands.
__device__ inline void slots_write_quads(const GpuQueue& queue, uint32_t first, uint32_t rows, uint32_t place,
                                         uint32_t mask, const SlotBytes& from, uint32_t pe) {
    const uint32_t quarter = place & 3u, row = place >> 2;
    const uint32_t mine = first + quarter * rows + row;
    const SlotBytes bytes = slot_bytes(queue, mine, from, pe);
    order::Bytes16 piece[4] = {bytes.piece[0], bytes.piece[1], bytes.piece[2], bytes.piece[3]};
    quad_swap(piece[0], piece[1], 1, quarter & 1u, mask);
    quad_swap(piece[2], piece[3], 1, quarter & 1u, mask);
    quad_swap(piece[0], piece[2], 2, quarter & 2u, mask);
    quad_swap(piece[1], piece[3], 2, quarter & 2u, mask);
    if (row >= rows) return;
    void* to[4];
    const uint32_t ring_mask = queue.depth * kSlotBytesSmall - 1;
    const uint32_t at = (first + row) * kSlotBytesSmall;
    NVSHMEM_EFA_UNROLL
    for (uint32_t i = 0; i < 4; ++i) to[i] = queue.slots + ((at + i * rows * kSlotBytesSmall & ring_mask) | quarter * 16);
    order::store_four(to, piece);
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
