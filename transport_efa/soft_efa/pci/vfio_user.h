// SPDX-License-Identifier: Apache-2.0
// The PCI side of a device model, spoken over a unix socket: vfio-user, protocol 0.x as QEMU 10.1+ speaks it
// (`-device vfio-user-pci`). Knows nothing of EFA. One client at a time, one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "guest_memory.h"
#include "status.h"

namespace nvshmem_efa::soft::pci {

inline constexpr int kBars = 6;

struct Bar {
    uint64_t bytes = 0;  // power of two, at least a page; 0: no such BAR
    bool is_64 = false;  // takes the next BAR's place too
    bool is_prefetchable = false;
    // A file that the guest maps: its loads and stores do not come here as messages. Sealed with F_SEAL_SHRINK, since
    // QEMU gets it. -1: every access is a message.
    int fd = -1;
};

struct PciIdentity {
    uint16_t vendor = 0, device = 0, subsystem_vendor = 0, subsystem = 0;
    uint8_t revision = 0;
    uint32_t class_code = 0;  // 24 bits
    Bar bars[kBars];
    uint16_t msix_vectors = 0;
    int msix_bar = 0;
    uint32_t msix_table_offset = 0, msix_pba_offset = 0;
};

// What stands behind the PCI front. Called from VfioUserServer::service only.
class PciFunction {
   public:
    virtual ~PciFunction() = default;
    virtual const PciIdentity& identity() const = 0;
    // Accesses within the BAR's size; bytes is 1, 2, 4 or 8, and the offset a multiple of it. Never the MSI-X table and
    // pending bits (QEMU and the server keep them).
    virtual uint64_t bar_read(int bar, uint64_t offset, uint32_t bytes) = 0;
    virtual void bar_write(int bar, uint64_t offset, uint64_t value, uint32_t bytes) = 0;
    virtual void reset() = 0;  // function-level reset, and the end of a client: no access to guest memory afterwards
};

class VfioUserServer {
   public:
    // Listens at `socket_path` (mode 0600; an existing socket nobody listens at is replaced, all else is an error).
    static Status create(const std::string& socket_path, PciFunction* function, GuestMemory* memory,
                         std::unique_ptr<VfioUserServer>* server);
    virtual ~VfioUserServer() = default;  // closes, and removes the socket's file

    // Descriptor to poll for POLLIN: the listening socket, or the client's.
    virtual int fd() const = 0;
    // Handles what has come, without waiting. kPeer when the client left (the server then listens again); kProtocol
    // when it broke the rules: it is cut off, with what was wrong.
    virtual Status service() = 0;
    virtual bool has_client() const = 0;
    // Raises an MSI-X vector if the guest has enabled and set it up; else nothing. Safe for any number.
    virtual void raise(uint32_t vector) = 0;
};

}  // namespace nvshmem_efa::soft::pci
