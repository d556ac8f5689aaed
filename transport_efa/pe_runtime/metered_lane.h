// SPDX-License-Identifier: Apache-2.0
// Both lanes under one interface, counted, so that the demo and the conformance run do everything twice: as the
// application's host calls and as a GPU's requests through the proxy.
#pragma once

#include "clock.h"
#include "pe.h"
#include "record.h"

namespace nvshmem_efa::pe {

class Lane {
   public:
    Lane(Pe& pe, bool is_proxy) : pe_(pe), is_proxy_(is_proxy), meter_(is_proxy ? "proxy" : "host") {}

    Status put_nbi(int pe, void* symmetric, const void* source, size_t bytes);
    Status get_nbi(int pe, const void* symmetric, void* target, size_t bytes);
    Status put(int pe, void* symmetric, const void* source, size_t bytes);  // complete on return
    Status get(int pe, const void* symmetric, void* target, size_t bytes);
    Status p(int pe, void* symmetric, uint64_t value, int bytes);
    Status g(int pe, const void* symmetric, int bytes, uint64_t* value);
    Status amo(int pe, void* word, const Amo& amo, uint64_t* fetched = nullptr);
    Status signal(int pe, uint64_t* word, abi::AmoOpcode opcode, uint64_t value);
    Status put_signal(int pe, void* symmetric, const void* source, size_t bytes, uint64_t* word, abi::AmoOpcode opcode,
                      uint64_t value);
    Status fence();
    Status quiet();

    bool is_proxy() const { return is_proxy_; }
    void set_timed(bool is_timed) { is_timed_ = is_timed; }
    Meter& meter() { return meter_; }
    const Meter& meter() const { return meter_; }
    Pe& pe() { return pe_; }

   private:
    template <class Call>
    Status metered(Op op, size_t bytes, Call call) {
        meter_.count(op, bytes);
        if (!is_timed_) return call();
        const uint64_t start = real_clock().now_ns();
        Status status = call();
        meter_.time(op, real_clock().now_ns() - start);
        return status;
    }

    Pe& pe_;
    const bool is_proxy_;
    bool is_timed_ = false;
    Meter meter_;
};

}  // namespace nvshmem_efa::pe
