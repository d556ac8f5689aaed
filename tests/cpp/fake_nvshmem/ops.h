// SPDX-License-Identifier: Apache-2.0
// A connected stub host with two pieces of registered memory, and the calls that most tests make.
#pragma once

#include "fake_nvshmem/stub_host.h"

namespace fake {

inline constexpr int kHostQp = 0;
inline constexpr int kDefaultQp = 1;
alignas(16) inline unsigned char remote_memory[4096];
alignas(16) inline unsigned char local_memory[4096];

template <class V>
struct Ops {
    StubHost<V> host;
    abi::MemHandleBytes remote_handle = host.handle(remote_memory, sizeof remote_memory);
    abi::MemHandleBytes local_handle = host.handle(local_memory, sizeof local_memory);
    Recorded& recorded = host.recorded;

    int rma(int opcode, size_t nelems, int elembytes, int qp, int is_nbi = 1, ptrdiff_t src = 1, ptrdiff_t dst = 1) {
        abi::RmaMemdesc remote{remote_memory + 64, 0xdead, &remote_handle};
        abi::RmaMemdesc local{local_memory + 32, 0xdead, &local_handle};
        const abi::RmaBytesdesc bytes{nelems, elembytes, src, dst};
        const int result = host.t->host_ops.rma(host.t, 2, {opcode, is_nbi, 0, nullptr}, &remote, &local, bytes, qp);
        const bool is_held = std::is_same_v<V, V3> && qp == kDefaultQp && opcode == 1 && is_nbi;
        return result == 0 && is_held ? release_held() : result;
    }
    // ABI 3 holds the proxy's newest put back for some microseconds; the host's idle loop lets it go.
    int release_held() {
        const size_t before = recorded.rmas.size();
        for (int i = 0; i < 100'000 && recorded.rmas.size() == before; ++i)
            if (const int result = host.t->host_ops.progress(host.t)) return result;
        return 0;
    }
    int amo(int opcode, int bytes, int qp, void* result = nullptr, int is_float = 0) {
        abi::AmoMemdesc target{};
        target.remote = {remote_memory + 128, 0, &remote_handle};
        target.value = 0x1122334455667788ull;
        target.compare = 0x99;
        target.ret_ptr = result;
        target.ret_flag = 77;
        typename V::Verb verb{};
        verb.desc = opcode;
        if constexpr (requires { verb.is_float; }) verb.is_float = is_float;
        return host.t->host_ops.amo(host.t, 2, nullptr, verb, &target, {0, bytes}, qp);
    }
};

}  // namespace fake
