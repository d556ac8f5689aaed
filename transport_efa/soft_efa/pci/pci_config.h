// SPDX-License-Identifier: Apache-2.0
// The configuration space of a PCI Express endpoint, 4096 bytes: header, power management, MSI-X, PCI Express.
// QEMU reads all of it once, then shows the guest its own copy of the BARs and of MSI-X (it sizes BARs itself) and
// passes every write through; a client that relies on us gets the same answers, since writes are masked as in a device.
#pragma once

#include "soft_efa/pci/vfio_user.h"

namespace nvshmem_efa::soft::pci {

inline constexpr uint32_t kConfigBytes = 4096;

// Sizes, places of MSI-X, descriptors of BARs (sealed against shrinking, large enough); kInvalidArgument.
Status check_identity(const PciIdentity& identity);

class PciConfig {
   public:
    explicit PciConfig(const PciIdentity& identity);
    void reset();

    // Both false when the access leaves the configuration space. Any size and alignment.
    bool read(uint64_t offset, void* to, uint64_t bytes) const;
    // `*wants_reset`: a function-level reset was asked for; everything but this space is the caller's to reset.
    bool write(uint64_t offset, const void* from, uint64_t bytes, bool* wants_reset);

    bool msix_enabled() const;

   private:
    void put(uint32_t offset, uint64_t value, uint32_t bytes, uint64_t writable_bits = 0);
    void put_bars(const PciIdentity& identity);
    void put_capabilities(const PciIdentity& identity);

    uint8_t initial_[kConfigBytes] = {};
    uint8_t writable_[kConfigBytes] = {};
    uint8_t now_[kConfigBytes] = {};
};

}  // namespace nvshmem_efa::soft::pci
