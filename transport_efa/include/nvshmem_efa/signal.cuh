// SPDX-License-Identifier: Apache-2.0
// Device API, signals: a word of the target that changes after the data is there. See put.cuh for what all calls share.
#pragma once

#include "nvshmem_efa/device_records.h"
#include "nvshmem_efa/device_scope.h"

namespace nvshmem_efa {

enum class SignalOp : uint8_t { kSet, kAdd };

namespace device {

NVSHMEM_EFA_HD inline WordCall signal_call(SignalOp op, uint64_t value) {
    return {op == SignalOp::kSet ? WordOp::kSet : WordOp::kAdd, WordType::kInteger, 8, value, 0};
}

// One hop: the data write carries the record's number as its immediate, and the agent applies the record when as many
// writes of that number have arrived as the record says. Data of up to kImmediatesPerRecord pieces.
NVSHMEM_EFA_HD inline bool signal_by_count(const DeviceState& state, const Piece* pieces, uint32_t n, AgentRecord& record,
                                           uint32_t pe, uint32_t poster) {
    const Route route = route_of(state, poster);
    const Gate gate = gate_load(state);
    if (!take_number(state, pe, &record.seq) || !gate_pass(state, gate, pe)) return fail_peer(state, pe);
    record.n_writes = static_cast<uint16_t>(n);
    SendWqe last = piece_wqe(state, SendOpcode::kRdmaWrite, pieces[0], route.rail, pe);
    wqe_set_immediate(last, record.seq);
    if (n == 2) {
        if (!post(state, route.queue, last, pe)) return fail_peer(state, pe);
        last = piece_wqe(state, SendOpcode::kRdmaWrite, pieces[1], route.rail, pe);
        wqe_set_immediate(last, record.seq);
    }
    return post_two(state, route.queue, last, record_wqe(state, record, route.rail, pe), pe) || fail_peer(state, pe);
}

}  // namespace device

// Changes the 8-byte word `signal` of the PE.
NVSHMEM_EFA_HD inline bool signal_op(const DeviceState& state, uint64_t* signal, uint64_t value, SignalOp op, int pe) {
    AgentRecord record;
    return device::make_record(state, device::address(signal), device::signal_call(op, value), pe, false, &record) &&
           device::post_record(state, record, static_cast<uint32_t>(pe), device::poster_number());
}

// A put, and then the signal: whoever sees the signal sees this put's data. It says nothing about other puts. Where the
// target cannot count arrivals, and for data of more than two requests, it waits for the data's completion in between.
NVSHMEM_EFA_HD inline bool put_signal_nbi(const DeviceState& state, void* dest, const void* source, size_t bytes,
                                          uint64_t* signal, uint64_t value, SignalOp op, int pe) {
    AgentRecord record;
    if (!device::make_record(state, device::address(signal), device::signal_call(op, value), pe, false, &record)) return false;
    const auto at = static_cast<uint32_t>(pe);
    const uint32_t poster = device::poster_number();
    if (bytes == 0) return device::post_record(state, record, at, poster);
    if ((state.flags & (kCountByImmediate | kGatedSignals)) == kCountByImmediate) {
        device::Piece pieces[kImmediatesPerRecord]{};
        uint64_t done = 0;
        uint32_t n = 0;
        for (; n < kImmediatesPerRecord && done < bytes; ++n) {
            if (!device::cut_piece(state, device::address(dest) + done, device::address(source) + done, bytes - done,
                                   state.segment_bytes, at, &pieces[n]))
                return false;
            done += pieces[n].bytes;
        }
        if (done == bytes) return device::signal_by_count(state, pieces, n, record, at, poster);
    }
    // The number is taken after the wait, so that nobody waits for a record that waits for data.
    return device::transfer(state, SendOpcode::kRdmaWrite, device::address(dest), device::address(source), bytes, pe, poster, false) &&
           device::drain_queue(state, device::route_of(state, poster).queue, at) && device::post_record(state, record, at, poster);
}

#if defined(__CUDACC__)
__device__ inline bool put_signal_nbi_warp(const DeviceState& state, void* dest, const void* source, size_t bytes,
                                           uint64_t* signal, uint64_t value, SignalOp op, int pe) {
    return device::by_warp([&] { return put_signal_nbi(state, dest, source, bytes, signal, value, op, pe); });
}
__device__ inline bool put_signal_nbi_block(const DeviceState& state, void* dest, const void* source, size_t bytes,
                                            uint64_t* signal, uint64_t value, SignalOp op, int pe) {
    return device::by_block([&] { return put_signal_nbi(state, dest, source, bytes, signal, value, op, pe); });
}
#endif

}  // namespace nvshmem_efa
