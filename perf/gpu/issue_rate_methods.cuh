// SPDX-License-Identifier: Apache-2.0
// What issue_rate.cu times. Each method posts kBatch requests, one a lane, and rings once; post() is what is timed.
#pragma once

#include <type_traits>

#include "nvshmem_efa/gpu_queue_owned.h"
#include "nvshmem_efa/gpu_queue_shared.h"

namespace issue_rate {

using namespace nvshmem_efa;

// Requests are told apart by their remote address: how many of this poster's came before.
__device__ inline void number_request(SendWqe& wqe, uint32_t number) { wqe.rdma.remote.addr_lo = number; }

template <int kBatch>
using Group = std::conditional_t<kBatch == 1, OneThread, std::conditional_t<kBatch == 32, FullWarp, SomeLanes>>;

template <int kBatch>
__device__ Group<kBatch> poster_group() {
    if constexpr (kBatch == 1) return {};
    if constexpr (kBatch == 32) return full_warp();
    if constexpr (kBatch > 1 && kBatch < 32) return lanes_of((1u << kBatch) - 1u);
}

// ---- the queue's own methods ----

// kIsCopied: the description in registers, as a kernel has it that posts often; else read from global memory each time.
template <int kBatch, bool kIsCopied = true>
struct Owned {
    static constexpr const char* kName = kIsCopied ? "owned" : "owned_ref";
    std::conditional_t<kIsCopied, GpuQueue, const GpuQueue&> queue;
    OwnedCursor cursor;
    Group<kBatch> group;
    __device__ explicit Owned(const GpuQueue& with)
        : queue(with), cursor(owned_begin(queue)), group(poster_group<kBatch>()) {}
    __device__ bool post(const SendWqe& wqe) {
        const bool is_good = owned_post(queue, cursor, group, wqe, 1);
        owned_ring(queue, cursor, group);
        return is_good;
    }
    __device__ bool end() {
        const bool is_good = owned_quiet(queue, cursor, group, 1);
        owned_end(queue, cursor, group);
        return is_good;
    }
};

// The same with the notes of the error record, which a queue in a device's own memory needs for the remote address.
template <int kBatch>
struct OwnedNotes : Owned<kBatch> {
    static constexpr const char* kName = "owned_notes";
    __device__ static GpuQueue with_notes(GpuQueue queue) {
        queue.notes = reinterpret_cast<GpuQueueNote*>(queue.cq_consumer);  // no CQ here: its field carries the address
        queue.cq_consumer = nullptr;
        return queue;
    }
    __device__ explicit OwnedNotes(const GpuQueue& with) : Owned<kBatch>(with_notes(with)) {}
};

template <int kBatch, bool kIsCopied = true>
struct Shared {
    static constexpr const char* kName = kIsCopied ? "shared" : "shared_ref";
    std::conditional_t<kIsCopied, GpuQueue, const GpuQueue&> queue;
    Group<kBatch> group;
    __device__ explicit Shared(const GpuQueue& with) : queue(with), group(poster_group<kBatch>()) {}
    __device__ bool post(const SendWqe& wqe) { return shared_post(queue, group, wqe, 1); }
    __device__ bool end() { return group.rank() != 0 || shared_quiet(queue, 1); }
};

// ---- ceilings ----

// How a doorbell is ordered behind its slots.
enum class Bell {
    kRelease,   // st.release.sys, as the queues do it
    kFence,     // fence.acq_rel.sys and a relaxed store: drops the L1 cache as well
    kAllLanes,  // each lane its own fence, then lane 0's store: the warp need not diverge
};
// What else a shared post must do, one at a time: each adds its own part to the bare stores.
enum class Extra { kNone, kTakeSlots, kPassTurn, kBoth };

// The ceiling: the same bytes and one release a doorbell, and nothing of a queue (no credits, no error record, no notes).
template <int kBatch, Bell kBell = Bell::kRelease, Extra kExtra = Extra::kNone>
struct Bare {
    static constexpr const char* kName = kExtra == Extra::kTakeSlots  ? "bare_atomic"
                                         : kExtra == Extra::kPassTurn ? "bare_turn"
                                         : kExtra == Extra::kBoth     ? "bare_both"
                                         : kBell == Bell::kRelease    ? "bare_stores"
                                         : kBell == Bell::kFence      ? "bare_fence"
                                                                      : "bare_lanes";
    static constexpr unsigned kMask = (kBatch == 32 ? 0u : 1u << kBatch % 32) - 1u;
    GpuQueue queue;
    uint32_t slot;
    __device__ explicit Bare(const GpuQueue& with) : queue(with), slot(with.first_slot) {}
    __device__ bool post(const SendWqe& wqe) {
        const uint32_t lane = kBatch == 1 ? 0 : lane_number();
        if constexpr (kExtra == Extra::kTakeSlots || kExtra == Extra::kBoth) {
            if (lane == 0) {
                slot = kBatch == 1 ? order::fetch_increment_relaxed_gpu(&queue.state->head, ~(queue.depth >> 16))
                                   : order::fetch_add_relaxed_gpu(&queue.state->head, kBatch);
                const uint64_t turn = order::load_before_branch_gpu(&queue.state->turn);
                const uint64_t completed = order::load_before_branch_gpu(&queue.state->completed);
                if (turn + completed == ~0ull) return false;  // a use of both
            }
            if constexpr (kBatch > 1) slot = __shfl_sync(kMask, slot, 0);
        }
        if constexpr (kBatch == 32) {
            slots_write_quads(queue, slot, 8, lane, 0xffffffffu, slot_template(wqe), 1);
        } else {
            slot_write(queue, slot + lane, slot_template(wqe), 1);
        }
        slot += kBatch;
        if constexpr (kBell == Bell::kAllLanes) order::fence_sys();
        if constexpr (kBatch > 1) __syncwarp(kMask);
        if (lane == 0) {
            if constexpr (kBell == Bell::kFence) order::fence_sys();
            if constexpr (kBell == Bell::kRelease) order::store_doorbell(queue.doorbell, slot);
            else asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(queue.doorbell), "r"(slot) : "memory");
            if constexpr (kExtra == Extra::kPassTurn || kExtra == Extra::kBoth)
                order::store_release_gpu(&queue.state->turn, uint64_t{slot});
        }
        return true;
    }
    __device__ bool end() { return true; }
};

// What a library does that knows nothing of who else posts: build in local memory, eight stores of 8 bytes a slot, a
// full fence before the doorbell and one after it.
template <int kBatch>
struct TwoFences {
    static constexpr const char* kName = "two_fences";
    GpuQueue queue;
    uint32_t slot;
    __device__ explicit TwoFences(const GpuQueue& with) : queue(with), slot(with.first_slot) {}
    __device__ bool post(const SendWqe& wqe) {
        const uint32_t lane = kBatch == 1 ? 0 : lane_number();
        volatile uint64_t built[8];
        const SlotBytes bytes = slot_bytes(queue, slot + lane, slot_template(wqe), 1);
        for (int i = 0; i < 8; ++i) built[i] = i & 1 ? bytes.piece[i / 2].high : bytes.piece[i / 2].low;
        auto* to = reinterpret_cast<volatile uint64_t*>(slot_at(queue, slot + lane));
        for (int i = 0; i < 8; ++i) to[i] = built[i];
        slot += kBatch;
        __threadfence_system();
        if (kBatch > 1) __syncwarp((kBatch == 32 ? 0u : 1u << kBatch) - 1u);
        if (lane == 0) *reinterpret_cast<volatile uint32_t*>(queue.doorbell) = slot;
        __threadfence_system();
        return true;
    }
    __device__ bool end() { return true; }
};

}  // namespace issue_rate
