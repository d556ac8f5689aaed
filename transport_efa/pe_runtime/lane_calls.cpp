// SPDX-License-Identifier: Apache-2.0
#include "lane_calls.h"

#include <algorithm>

namespace nvshmem_efa::pe {

// Takes from `left` what lies under one remote and one local handle, and within the plugin's own limit.
Status LaneCalls::next_piece(abi::RmaOpcode opcode, Transfer& left, bool is_nbi, RmaCall* call) {
    Piece remote, local;
    uint64_t remote_address = 0, offset = 0;
    EFA_TRY(heap_.find_remote(left.pe, left.symmetric, &remote, &remote_address, &offset));
    EFA_TRY(heap_.find_local(left.local, &local));
    size_t bytes = std::min({left.bytes, remote.bytes, local.bytes});
    if (const uint64_t limit = port_.max_op_bytes()) bytes = std::min<size_t>(bytes, limit);
    call->opcode = opcode;
    call->is_nbi = is_nbi;
    call->pe = left.pe;
    call->remote = {reinterpret_cast<void*>(remote_address), offset, remote.handle};
    call->local = {left.local, 0, local.handle};
    call->n_elements = bytes;
    call->element_bytes = 1;
    left.symmetric = static_cast<char*>(left.symmetric) + bytes;
    left.local = static_cast<char*>(left.local) + bytes;
    left.bytes -= bytes;
    return Status();
}

Status LaneCalls::rma(abi::RmaOpcode opcode, const Transfer& transfer, bool is_nbi) {
    Transfer left = transfer;
    while (left.bytes > 0) {
        RmaCall call;
        EFA_TRY(next_piece(opcode, left, is_nbi, &call));
        EFA_TRY(port_.rma(caller_, call));
    }
    return Status();
}

Status LaneCalls::p(int pe, void* symmetric, uint64_t value, int bytes) {
    Piece remote;
    uint64_t remote_address = 0, offset = 0;
    EFA_TRY(heap_.find_remote(pe, symmetric, &remote, &remote_address, &offset));
    RmaCall call;
    call.opcode = abi::kOpP;
    call.pe = pe;
    call.remote = {reinterpret_cast<void*>(remote_address), offset, remote.handle};
    call.local = {&value, 0, nullptr};
    call.n_elements = 1;
    call.element_bytes = bytes;
    Status status = port_.rma(caller_, call);
    value = ~value;  // the plugin must have copied it: make a late reader see rubbish
    asm volatile("" : : "r"(&value) : "memory");
    return status;
}

Status LaneCalls::g(int pe, const void* symmetric, void* target, int bytes) {
    Piece remote, local;
    uint64_t remote_address = 0, offset = 0;
    EFA_TRY(heap_.find_remote(pe, symmetric, &remote, &remote_address, &offset));
    if (caller_ == Caller::kProxy) EFA_TRY(heap_.find_local(target, &local));
    RmaCall call;
    call.opcode = abi::kOpG;
    call.pe = pe;
    call.remote = {reinterpret_cast<void*>(remote_address), offset, remote.handle};
    call.local = {target, 0, local.handle};
    call.n_elements = 1;
    call.element_bytes = bytes;
    return port_.rma(caller_, call);
}

Status LaneCalls::strided(abi::RmaOpcode opcode, const Transfer& first, size_t n_elements, ptrdiff_t remote_stride,
                          ptrdiff_t local_stride) {
    Transfer left = first;
    RmaCall call;
    EFA_TRY(next_piece(opcode, left, false, &call));
    call.n_elements = n_elements;
    call.element_bytes = static_cast<int>(first.bytes);
    call.remote_stride = remote_stride;
    call.local_stride = local_stride;
    return port_.rma(caller_, call);
}

Status LaneCalls::describe_amo(int pe, void* symmetric, const Amo& amo, FetchSlot* slot, uint64_t tag, AmoCall* call) {
    Piece remote, local;
    uint64_t remote_address = 0, offset = 0;
    EFA_TRY(heap_.find_remote(pe, symmetric, &remote, &remote_address, &offset));
    call->opcode = amo.opcode;
    call->pe = pe;
    call->bytes = amo.bytes;
    call->is_float = amo.is_float;
    call->target.remote = {reinterpret_cast<void*>(remote_address), offset, remote.handle};
    call->target.value = amo.value;
    call->target.compare = amo.compare;
    if (amo.is_fetching()) {
        EFA_TRY(heap_.find_local(slot, &local));
        call->target.ret_ptr = slot;
        call->target.ret_flag = tag;
        call->target.ret_handle = local.handle;
    }
    return Status();
}

Status LaneCalls::amo(int pe, void* symmetric, const Amo& amo, FetchSlot* slot, uint64_t tag) {
    AmoCall call;
    EFA_TRY(describe_amo(pe, symmetric, amo, slot, tag, &call));
    return port_.amo(caller_, call);
}

Status LaneCalls::put_signal(const Transfer& transfer, void* signal_word, const Amo& signal) {
    AmoCall signal_call;
    EFA_TRY(describe_amo(transfer.pe, signal_word, signal, nullptr, 0, &signal_call));
    if (!port_.has_put_signal()) {
        EFA_TRY(rma(abi::kOpPut, transfer, true));
        EFA_TRY(port_.fence(caller_, transfer.pe));
        return port_.amo(caller_, signal_call);
    }
    puts_.clear();
    Transfer left = transfer;
    while (left.bytes > 0) EFA_TRY(next_piece(abi::kOpPutSignal, left, true, &puts_.emplace_back()));
    return port_.put_signal(caller_, puts_, signal_call);
}

Status LaneCalls::fence() {
    for (int pe = 0; pe < n_pes_; ++pe) EFA_TRY(port_.fence(caller_, pe));
    return Status();
}

Status LaneCalls::quiet() {
    for (int pe = 0; pe < n_pes_; ++pe) EFA_TRY(port_.quiet(caller_, pe));
    return Status();
}

Status LaneCalls::quiet(int pe) {
    if (pe < 0 || pe >= n_pes_)
        return Status::error(Code::kInvalidArgument, "PEs are numbered from 0",
                             "quiet: PE %d does not exist: the job has %d", pe, n_pes_);
    return port_.quiet(caller_, pe);
}

}  // namespace nvshmem_efa::pe
