// SPDX-License-Identifier: Apache-2.0
// The application thread's operations: NVSHMEM's host API, QP HOST.
#include "clock.h"
#include "pe.h"

namespace nvshmem_efa::pe {
namespace {

Transfer transfer_of(int pe, const void* symmetric, const void* local, size_t bytes) {
    return {pe, const_cast<void*>(symmetric), const_cast<void*>(local), bytes};
}

}  // namespace

Status Pe::put(int pe, void* symmetric, const void* source, size_t bytes) {
    EFA_TRY(check());
    return finish(host_->rma(abi::kOpPut, transfer_of(pe, symmetric, source, bytes), false));
}

Status Pe::put_nbi(int pe, void* symmetric, const void* source, size_t bytes) {
    if (is_failed()) return check();
    return finish(host_->rma(abi::kOpPut, transfer_of(pe, symmetric, source, bytes), true));
}

Status Pe::get(int pe, const void* symmetric, void* target, size_t bytes) {
    EFA_TRY(check());
    return finish(host_->rma(abi::kOpGet, transfer_of(pe, symmetric, target, bytes), false));
}

Status Pe::get_nbi(int pe, const void* symmetric, void* target, size_t bytes) {
    if (is_failed()) return check();
    return finish(host_->rma(abi::kOpGet, transfer_of(pe, symmetric, target, bytes), true));
}

Status Pe::p(int pe, void* symmetric, uint64_t value, int bytes) {
    if (is_failed()) return check();
    return finish(host_->p(pe, symmetric, value, bytes));
}

Status Pe::g(int pe, const void* symmetric, int bytes, uint64_t* value) {
    EFA_TRY(check());
    uint64_t fetched = 0;
    EFA_TRY(finish(host_->g(pe, symmetric, &fetched, bytes)));
    *value = fetched;
    return Status();
}

Status Pe::iput(int pe, void* symmetric, const void* source, int element_bytes, size_t n, ptrdiff_t remote_stride,
                ptrdiff_t local_stride) {
    EFA_TRY(check());
    const Transfer first = transfer_of(pe, symmetric, source, static_cast<size_t>(element_bytes));
    return finish(host_->strided(abi::kOpPut, first, n, remote_stride, local_stride));
}

Status Pe::iget(int pe, const void* symmetric, void* target, int element_bytes, size_t n, ptrdiff_t remote_stride,
                ptrdiff_t local_stride) {
    EFA_TRY(check());
    const Transfer first = transfer_of(pe, symmetric, target, static_cast<size_t>(element_bytes));
    return finish(host_->strided(abi::kOpGet, first, n, remote_stride, local_stride));
}

Status Pe::amo(int pe, void* symmetric, const Amo& amo, uint64_t* fetched) {
    if (is_failed()) return check();
    if (!amo.is_fetching()) return finish(host_->amo(pe, symmetric, amo, nullptr, 0));
    FetchSlot& slot = internal_->host_slot;
    const uint64_t tag = ++host_tag_;
    EFA_TRY(finish(host_->amo(pe, symmetric, amo, &slot, tag)));
    EFA_TRY(finish(host_->quiet(pe)));
    EFA_TRY(wait_until(&slot.flag, Compare::kEqual, tag, pe).with_context("a fetching atomic"));
    if (fetched) *fetched = amo.bytes >= 8 ? slot.value : slot.value & ((uint64_t{1} << (8 * amo.bytes)) - 1);
    return Status();
}

Status Pe::put_signal(int pe, void* symmetric, const void* source, size_t bytes, void* signal_word, const Amo& signal) {
    if (is_failed()) return check();
    return finish(host_->put_signal(transfer_of(pe, symmetric, source, bytes), signal_word, signal));
}

Status Pe::fence() {
    if (is_failed()) return check();
    return finish(host_->fence());
}

Status Pe::quiet() {
    EFA_TRY(check());
    return finish(host_->quiet());
}

}  // namespace nvshmem_efa::pe
