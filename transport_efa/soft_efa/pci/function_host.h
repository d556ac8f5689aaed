// SPDX-License-Identifier: Apache-2.0
// What an EFA function needs of the program that it runs in.
#pragma once

#include "fabric/fabric.h"
#include "status.h"

namespace nvshmem_efa::soft::pci {

class FunctionHost {
   public:
    virtual ~FunctionHost() = default;
    virtual void raise(uint32_t vector) = 0;  // an MSI-X interrupt
    // The fabric is to know this peer before an address handle is made for it; called for the function's own GID too.
    // An error refuses the handle. Called on the thread of the function: it must not wait long.
    virtual Status find_peer(const Gid& gid) = 0;
};

}  // namespace nvshmem_efa::soft::pci
