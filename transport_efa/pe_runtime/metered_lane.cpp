// SPDX-License-Identifier: Apache-2.0
#include "metered_lane.h"

namespace nvshmem_efa::pe {
namespace {

Transfer transfer_of(int pe, const void* symmetric, const void* local, size_t bytes) {
    return {pe, const_cast<void*>(symmetric), const_cast<void*>(local), bytes};
}

}  // namespace

Status Lane::put_nbi(int pe, void* symmetric, const void* source, size_t bytes) {
    return metered(Op::kPutNbi, bytes, [&] {
        return is_proxy_ ? pe_.proxy().put_nbi(transfer_of(pe, symmetric, source, bytes))
                         : pe_.put_nbi(pe, symmetric, source, bytes);
    });
}

Status Lane::get_nbi(int pe, const void* symmetric, void* target, size_t bytes) {
    return metered(Op::kGetNbi, bytes, [&] {
        return is_proxy_ ? pe_.proxy().get_nbi(transfer_of(pe, symmetric, target, bytes))
                         : pe_.get_nbi(pe, symmetric, target, bytes);
    });
}

Status Lane::put(int pe, void* symmetric, const void* source, size_t bytes) {
    return metered(Op::kPut, bytes, [&] {
        if (!is_proxy_) return pe_.put(pe, symmetric, source, bytes);
        EFA_TRY(pe_.proxy().put_nbi(transfer_of(pe, symmetric, source, bytes)));
        return pe_.proxy().quiet();
    });
}

Status Lane::get(int pe, const void* symmetric, void* target, size_t bytes) {
    return metered(Op::kGet, bytes, [&] {
        if (!is_proxy_) return pe_.get(pe, symmetric, target, bytes);
        EFA_TRY(pe_.proxy().get_nbi(transfer_of(pe, symmetric, target, bytes)));
        return pe_.proxy().quiet();
    });
}

Status Lane::p(int pe, void* symmetric, uint64_t value, int bytes) {
    return metered(Op::kP, static_cast<size_t>(bytes), [&] {
        return is_proxy_ ? pe_.proxy().p(pe, symmetric, value, bytes) : pe_.p(pe, symmetric, value, bytes);
    });
}

Status Lane::g(int pe, const void* symmetric, int bytes, uint64_t* value) {
    return metered(Op::kG, static_cast<size_t>(bytes), [&] {
        return is_proxy_ ? pe_.proxy().g(pe, symmetric, bytes, value) : pe_.g(pe, symmetric, bytes, value);
    });
}

Status Lane::amo(int pe, void* word, const Amo& amo, uint64_t* fetched) {
    return metered(amo.is_fetching() ? Op::kAmoFetch : Op::kAmo, static_cast<size_t>(amo.bytes), [&] {
        return is_proxy_ ? pe_.proxy().amo(pe, word, amo, fetched) : pe_.amo(pe, word, amo, fetched);
    });
}

Status Lane::signal(int pe, uint64_t* word, abi::AmoOpcode opcode, uint64_t value) {
    const Amo amo{opcode, value};
    return metered(Op::kSignal, sizeof *word,
                   [&] { return is_proxy_ ? pe_.proxy().amo(pe, word, amo) : pe_.amo(pe, word, amo); });
}

Status Lane::put_signal(int pe, void* symmetric, const void* source, size_t bytes, uint64_t* word,
                        abi::AmoOpcode opcode, uint64_t value) {
    const Amo amo{opcode, value};
    // Not timed: what counts is when the other side sees it. The latency phase measures that.
    meter_.count(Op::kPutSignal, bytes);
    return is_proxy_ ? pe_.proxy().put_signal(transfer_of(pe, symmetric, source, bytes), word, amo)
                     : pe_.put_signal(pe, symmetric, source, bytes, word, amo);
}

Status Lane::fence() {
    return metered(Op::kFence, 0, [&] { return is_proxy_ ? pe_.proxy().fence() : pe_.fence(); });
}

Status Lane::quiet() {
    return metered(Op::kQuiet, 0, [&] { return is_proxy_ ? pe_.proxy().quiet() : pe_.quiet(); });
}

}  // namespace nvshmem_efa::pe
