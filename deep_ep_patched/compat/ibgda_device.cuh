// SPDX-License-Identifier: Apache-2.0
// Stands in for the one device header through which DeepEP V1's kernels reach the network, so that DeepEP built from its
// own sources posts to EFA: the same names and meanings, on the queues of nvshmem-efa. docs/deepep-from-sources.md says
// how to put it in place, and what it does not keep.
//
// Those kernels rely on one thing that EFA does not have: what goes to one (PE, QP) arrives in order, so a flag that was
// added after its data is seen after its data. Here a flag leaves when the data before it, on the same (PE, QP), is
// complete, and the PE's agent changes the word. That also keeps second copies of a payload away from readers: they
// come before the sender's completion only, and nobody is told of the data before that. Failures: nothing is posted any
// more, an error record says why, and the next NVSHMEM call of the host reports it; the kernels run into their own
// time-outs.
#pragma once

#if __has_include("configs.cuh") && __has_include("exception.cuh") && __has_include("utils.cuh")
#include "configs.cuh"  // DeepEP's own: some of its sources get them by way of the header that this one replaces
#include "exception.cuh"
#include "utils.cuh"
#endif

// NVSHMEM declares nvshmem_ptr() and nvshmemx_barrier_all_block(). Under NVRTC and on the CPU the includer does.
#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#include <nvshmem.h>
#include <nvshmemx.h>
#endif
#if defined(__CUDACC__)
#include "nvshmem_efa/module.cuh"
#define NVSHMEM_EFA_COMPAT __device__ inline
#else
#define NVSHMEM_EFA_COMPAT inline
#endif
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/wait.cuh"

namespace deep_ep {

// ---- what the calls below are made of ----

namespace efa {

using nvshmem_efa::DeviceState;
namespace order = nvshmem_efa::order;
namespace device = nvshmem_efa::device;

inline constexpr int kQpsPerPe = 256;        // that kernels may name; they check that it is at least what they use
inline constexpr uint32_t kLines = 4096;     // a power of two

// What stands for a queue pair. QPs that share a line share a queue, and wait for each other's data: more than was asked.
struct alignas(16) Line {
    uint64_t posted;   // puts
    uint64_t settled;  // a value of `posted` of which all puts are known to be complete
};

#if defined(__CUDACC__)
// One table a translation unit: a flag waits for puts of its own one. Zero is a good start whenever NVSHMEM is.
static __device__ Line line_table[kLines];
NVSHMEM_EFA_COMPAT Line* lines() { return line_table; }
NVSHMEM_EFA_COMPAT const DeviceState* device_state() { return nvshmem_efa_state; }
#else
Line* lines();                      // of the PE that calls: a test has several in one process
const DeviceState* device_state();
#endif

// Neighbouring QPs of a PE, and the same QP of neighbouring PEs, lie on different rails and queues.
NVSHMEM_EFA_COMPAT uint32_t line_of(int pe, int qp_id) {
    return (static_cast<uint32_t>(pe) * (kQpsPerPe + 1) + static_cast<uint32_t>(qp_id) % kQpsPerPe) % kLines;
}

// A request to the PE is missing, and an error record says why: no flag may follow it.
NVSHMEM_EFA_COMPAT void give_up(const DeviceState& state, int pe) {
    if (pe >= 0 && pe < state.n_pes) device::fail_peer(state, static_cast<uint32_t>(pe));
}

// Waits until nothing is in flight on the line's queue. A failed request may look complete to who comes late; but a queue
// takes nothing after a failure, and the flag would go to the same one.
NVSHMEM_EFA_COMPAT bool drain_line(const DeviceState& state, uint32_t line, int pe) {
    const uint32_t queue = device::route_of(state, line).queue;
    return device::queue_is_idle(state.queues[queue]) || device::drain_queue(state, queue, static_cast<uint32_t>(pe));
}

// Waits until the line's puts that the caller knows of are complete; costs two loads when they are known to be.
NVSHMEM_EFA_COMPAT bool settle_line(const DeviceState& state, uint32_t line, int pe) {
    Line& at = lines()[line];
    // Acquire: who sees a put counted also sees, in queue_is_idle() and shared_quiet(), the slot that it took. Pairs with
    // the add in post_data(), which comes behind the slot.
    const uint64_t posted = order::load_acquire_gpu(&at.posted);
    // Only stores come behind this one. Pairs with the release below: whoever settled saw the completions.
    if (order::load_before_branch_gpu(&at.settled) >= posted) return true;
    if (!drain_line(state, line, pe)) return false;
    order::max_release_gpu(&at.settled, posted);  // pairs with the load above, by other callers
    return true;
}

// One thread: all requests of a put.
NVSHMEM_EFA_COMPAT bool post_data(uint64_t there, uint64_t here, size_t bytes, int pe, int qp_id) {
    const DeviceState* state = device_state();
    if (!state || bytes == 0) return true;
    const uint32_t line = line_of(pe, qp_id);
    if (!device::transfer(*state, nvshmem_efa::SendOpcode::kRdmaWrite, there, here, bytes, pe, line, false)) {
        give_up(*state, pe);
        return false;
    }
    // Counted after its slot is taken, not before: else a flag of somebody else could settle the put while it is not yet
    // in the queue. Pairs with the acquire in settle_line().
    order::add_behind_branch_gpu(&lines()[line].posted, 1);
    return true;
}

// One thread: a change of a 4-byte word, by the PE's agent, behind the data on the line.
NVSHMEM_EFA_COMPAT void post_word(nvshmem_efa::WordOp op, const void* word, int value, int pe, int qp_id) {
    const DeviceState* state = device_state();
    if (!state) return;
    const uint32_t line = line_of(pe, qp_id);
    const device::WordCall call{op, nvshmem_efa::WordType::kInteger, 4, static_cast<uint32_t>(value), 0};
    nvshmem_efa::AgentRecord record;
    // The record takes its number after the wait, so that no other record waits for data that is not its own.
    if (!device::make_record(*state, device::address(word), call, pe, false, &record) || !settle_line(*state, line, pe) ||
        !device::post_record(*state, record, static_cast<uint32_t>(pe), line))
        give_up(*state, pe);
}

// What kernels look at in the state that the other header's function returns.
struct QueueNumbers {
    int num_rc_per_pe;  // 0 where the GPU has no queues: the kernels' own checks then stop them
    int num_devices_initialized;
    NVSHMEM_EFA_COMPAT const QueueNumbers* operator->() const { return this; }
};

}  // namespace efa

// ---- the names that DeepEP's kernels use ----

NVSHMEM_EFA_COMPAT efa::QueueNumbers ibgda_get_state() {
    const efa::DeviceState* state = efa::device_state();
    return {state && state->queues_per_rail != 0 ? efa::kQpsPerPe : 0, 1};
}

// Where this PE can load and store the PE's copy of `ptr`; 0: only by the network.
NVSHMEM_EFA_COMPAT uint64_t nvshmemi_get_p2p_ptr(const uint64_t& ptr, const int& rank, const int& dst_rank) {
    return rank == dst_rank ? ptr : reinterpret_cast<uint64_t>(nvshmem_ptr(reinterpret_cast<const void*>(ptr), dst_rank));
}

// All 32 lanes call, with the same arguments. `here` must stay as it is until a flag on the same (PE, QP) was added after
// it, or until a quiet. Every call rings: who posts behind it takes the doorbell over, so that there is nothing to defer.
template <bool kAlwaysDoPostSend = false>
NVSHMEM_EFA_COMPAT void nvshmemi_ibgda_put_nbi_warp(uint64_t req_rptr, uint64_t req_lptr, size_t bytes, int dst_pe,
                                                    int qp_id, int lane_id, int message_idx) {
    static_cast<void>(message_idx);
#if defined(__CUDACC__)
    static_cast<void>(lane_id);
    static_cast<void>(efa::device::by_warp([&] { return efa::post_data(req_rptr, req_lptr, bytes, dst_pe, qp_id); }));
#else
    if (lane_id == 0) static_cast<void>(efa::post_data(req_rptr, req_lptr, bytes, dst_pe, qp_id));
#endif
}

// One thread. The low 4 bytes of the word change, when all data that was put before to this (PE, QP) is placed. With
// `is_local_copy` the word is this PE's own, has 8 bytes, and changes at once.
NVSHMEM_EFA_COMPAT void nvshmemi_ibgda_amo_nonfetch_add(void* rptr, const int& value, int pe, int qp_id, bool is_local_copy = false) {
    if (!is_local_copy) return efa::post_word(nvshmem_efa::WordOp::kAdd, rptr, value, pe, qp_id);
    const auto operand = static_cast<unsigned long long>(static_cast<long long>(value));
#if defined(__CUDACC__)
    atomicAdd(static_cast<unsigned long long*>(rptr), operand);
#else
    // Relaxed, as on the GPU: the kernels order it by fences of their own.
    __atomic_fetch_add(static_cast<unsigned long long*>(rptr), operand, __ATOMIC_RELAXED);
#endif
}

// One thread. Values of one PE reach the word in the order of the calls, behind its data as above.
NVSHMEM_EFA_COMPAT void nvshmemi_ibgda_rma_p(int* rptr, const int value, int dst_pe, int qp_id) {
    efa::post_word(nvshmem_efa::WordOp::kSet, rptr, value, dst_pe, qp_id);
}
// Nothing takes a caller's immediate here: the PE's agent counts by them.
NVSHMEM_EFA_COMPAT void nvshmemi_ibgda_rma_p(int* rptr, const int value, int dst_pe, int qp_id, uint32_t imm) = delete;

// One thread. All that was posted to (PE, QP) is complete: data placed, words changed.
NVSHMEM_EFA_COMPAT void nvshmemi_ibgda_quiet(int dst_pe, int qp_id) {
    const efa::DeviceState* state = efa::device_state();
    if (!state || !efa::device::pe_is_good(*state, dst_pe, 0)) return;
    if (!efa::drain_line(*state, efa::line_of(dst_pe, qp_id), dst_pe) ||
        !efa::device::quiet_peer(*state, static_cast<uint32_t>(dst_pe)))
        efa::give_up(*state, dst_pe);
}

// In front of NVSHMEM's own, for callers in this namespace: a barrier of NVSHMEM waits for what it has posted itself,
// and knows nothing of these queues.
NVSHMEM_EFA_COMPAT void nvshmemx_barrier_all_block() {
    if (const efa::DeviceState* state = efa::device_state()) {
#if defined(__CUDACC__)
        static_cast<void>(nvshmem_efa::quiet_block(*state));
#else
        static_cast<void>(nvshmem_efa::quiet(*state));
#endif
    }
    ::nvshmemx_barrier_all_block();
}

}  // namespace deep_ep

#undef NVSHMEM_EFA_COMPAT
