// SPDX-License-Identifier: Apache-2.0
// MSI-X as vfio-user has it: the client gives an eventfd for each vector that the guest has set up. QEMU keeps the
// table, its mask bits and what is pending behind them.
#pragma once

#include <vector>

#include "soft_efa/control_socket.h"

namespace nvshmem_efa::soft::pci {

class MsixVectors {
   public:
    explicit MsixVectors(uint32_t count) : vectors_(count) {}
    uint32_t count() const { return static_cast<uint32_t>(vectors_.size()); }

    // 0 or an errno. `fds`: one for each of `vectors` vectors from `start`, or none to take those away; they are taken.
    int set_eventfds(uint32_t start, uint32_t vectors, std::vector<Fd>* fds);
    void set_masked(uint32_t vector, bool is_masked);  // unmasking raises what came meanwhile
    void raise(uint32_t vector);                       // nothing without an eventfd
    void clear();                                      // no eventfds, no masks
    // The pending-bit array, 64 vectors a word.
    uint64_t pending(uint32_t word) const;

   private:
    struct Vector {
        Fd eventfd;
        bool is_masked = false, is_pending = false;
    };
    std::vector<Vector> vectors_;
};

}  // namespace nvshmem_efa::soft::pci
