// SPDX-License-Identifier: Apache-2.0
// What one of NVSHMEM's two threads does to the plugin: finds handles, cuts at chunk borders, fills the structs.
// One thread at a time uses an object; the two lanes have one each and run at once.
#pragma once

#include <cstdint>
#include <vector>

#include "heap.h"
#include "plugin_port.h"
#include "status.h"

namespace nvshmem_efa::pe {

// Where a fetched value lands: value first, then flag. In the symmetric heap.
struct alignas(16) FetchSlot {
    uint64_t value;
    uint64_t flag;
};

struct Amo {
    abi::AmoOpcode opcode = abi::kAmoSet;
    uint64_t value = 0;
    uint64_t compare = 0;
    int bytes = 8;
    bool is_float = false;  // the value is an IEEE number of `bytes`; ABI 6 on

    bool is_fetching() const { return opcode >= abi::kAmoFetch; }
};

// One contiguous transfer, in a caller's terms.
struct Transfer {
    int pe = 0;
    void* symmetric = nullptr;  // our address of the remote side
    void* local = nullptr;
    size_t bytes = 0;
};

class LaneCalls {
   public:
    LaneCalls(PluginPort& port, SymmetricHeap& heap, Caller caller, int n_pes)
        : port_(port), heap_(heap), caller_(caller), n_pes_(n_pes) {}

    Status rma(abi::RmaOpcode opcode, const Transfer& transfer, bool is_nbi);  // PUT, GET
    // P: the value goes from the stack, with no handle. 1, 2, 4 or 8 bytes.
    Status p(int pe, void* symmetric, uint64_t value, int bytes);
    // G: to a slot of the heap (proxy), or to the caller's stack with no handle (host).
    Status g(int pe, const void* symmetric, void* target, int bytes);
    // Strided elements, counted in elements; one handle must cover each side.
    Status strided(abi::RmaOpcode opcode, const Transfer& first, size_t n_elements, ptrdiff_t remote_stride,
                   ptrdiff_t local_stride);
    // Fetching: the plugin writes value, then flag = `tag`, to `slot`.
    Status amo(int pe, void* symmetric, const Amo& amo, FetchSlot* slot, uint64_t tag);
    // ABI 4 on: put_signal. ABI 3: rma, fence, amo, as NVSHMEM's proxy does.
    Status put_signal(const Transfer& transfer, void* signal_word, const Amo& signal);
    Status fence();  // every PE
    Status quiet();  // every PE
    Status quiet(int pe);

   private:
    Status next_piece(abi::RmaOpcode opcode, Transfer& left, bool is_nbi, RmaCall* call);
    Status describe_amo(int pe, void* symmetric, const Amo& amo, FetchSlot* slot, uint64_t tag, AmoCall* call);

    PluginPort& port_;
    SymmetricHeap& heap_;
    const Caller caller_;
    const int n_pes_;
    std::vector<RmaCall> puts_;
};

}  // namespace nvshmem_efa::pe
