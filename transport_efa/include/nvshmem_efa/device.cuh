// SPDX-License-Identifier: Apache-2.0
// The whole device API, also without the state: nvshmem_efa::here::put_nbi(dest, source, bytes, pe) and so on are the
// calls of put.cuh, signal.cuh, amo.cuh, wait.cuh and counted.cuh on the state of the module that includes this (module.cuh). False
// while NVSHMEM is not initialised.
#pragma once

#include "nvshmem_efa/amo.cuh"
#include "nvshmem_efa/counted.cuh"
#include "nvshmem_efa/module.cuh"
#include "nvshmem_efa/put.cuh"
#include "nvshmem_efa/signal.cuh"
#include "nvshmem_efa/wait.cuh"

// Static, as the module's variable is: each translation unit calls with its own.
#if defined(__CUDACC__)
#define NVSHMEM_EFA_HERE_FUNCTION static __device__ inline
#else
#define NVSHMEM_EFA_HERE_FUNCTION static inline
#endif
#define NVSHMEM_EFA_HERE(name)                                                                    \
    template <class... Arguments>                                                                 \
    NVSHMEM_EFA_HERE_FUNCTION bool name(Arguments... arguments) {                                 \
        return nvshmem_efa_state && ::nvshmem_efa::name(*nvshmem_efa_state, arguments...);        \
    }

namespace nvshmem_efa::here {

NVSHMEM_EFA_HERE(put_nbi)
NVSHMEM_EFA_HERE(get_nbi)
NVSHMEM_EFA_HERE(put)
NVSHMEM_EFA_HERE(get)
NVSHMEM_EFA_HERE(p)
NVSHMEM_EFA_HERE(g)
NVSHMEM_EFA_HERE(signal_op)
NVSHMEM_EFA_HERE(put_counted_nbi)
NVSHMEM_EFA_HERE(wait_arrivals)
NVSHMEM_EFA_HERE(put_signal_nbi)
NVSHMEM_EFA_HERE(atomic_add)
NVSHMEM_EFA_HERE(atomic_inc)
NVSHMEM_EFA_HERE(atomic_set)
NVSHMEM_EFA_HERE(atomic_and)
NVSHMEM_EFA_HERE(atomic_or)
NVSHMEM_EFA_HERE(atomic_xor)
NVSHMEM_EFA_HERE(atomic_fetch)
NVSHMEM_EFA_HERE(atomic_fetch_add)
NVSHMEM_EFA_HERE(atomic_fetch_inc)
NVSHMEM_EFA_HERE(atomic_fetch_and)
NVSHMEM_EFA_HERE(atomic_fetch_or)
NVSHMEM_EFA_HERE(atomic_fetch_xor)
NVSHMEM_EFA_HERE(atomic_swap)
NVSHMEM_EFA_HERE(atomic_compare_swap)
NVSHMEM_EFA_HERE(quiet)
NVSHMEM_EFA_HERE(fence)
NVSHMEM_EFA_HERE(wait_until)
NVSHMEM_EFA_HERE(wait_until_for)
NVSHMEM_EFA_HERE(test)
#if defined(__CUDACC__)
NVSHMEM_EFA_HERE(put_nbi_warp)
NVSHMEM_EFA_HERE(put_nbi_block)
NVSHMEM_EFA_HERE(get_nbi_warp)
NVSHMEM_EFA_HERE(get_nbi_block)
NVSHMEM_EFA_HERE(put_signal_nbi_warp)
NVSHMEM_EFA_HERE(put_signal_nbi_block)
NVSHMEM_EFA_HERE(put_counted_nbi_warp)
NVSHMEM_EFA_HERE(put_counted_nbi_block)
NVSHMEM_EFA_HERE(wait_arrivals_warp)
NVSHMEM_EFA_HERE(wait_arrivals_block)
NVSHMEM_EFA_HERE(quiet_warp)
NVSHMEM_EFA_HERE(quiet_block)
#endif

}  // namespace nvshmem_efa::here
