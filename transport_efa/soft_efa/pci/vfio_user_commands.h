// SPDX-License-Identifier: Apache-2.0
// The commands of one vfio-user client: checked, carried out, answered.
#pragma once

#include "soft_efa/pci/guest_memory.h"
#include "soft_efa/pci/msix_vectors.h"
#include "soft_efa/pci/pci_config.h"
#include "soft_efa/pci/vfio_user_channel.h"

namespace nvshmem_efa::soft::pci {

class VfioUserCommands {
   public:
    VfioUserCommands(PciFunction* function, GuestMemory* memory)
        : function_(function), memory_(memory), config_(function->identity()), vectors_(function->identity().msix_vectors) {}

    // A bad command is answered with an errno. An error returned: the client must be cut off.
    Status handle(VfioUserMessage* message, VfioUserChannel* channel);
    void raise(uint32_t vector);
    void end_client();  // everything that came from it is gone

   private:
    // What a command comes to: an errno, or the reply's body (and a descriptor).
    struct Answer {
        int error = 0;
        std::vector<uint8_t> body;
        int fd = -1;
    };
    Answer carry_out(VfioUserMessage* message);
    Status negotiate(const VfioUserMessage& message, VfioUserChannel* channel);

    Answer dma_map(VfioUserMessage* message);
    Answer dma_unmap(const VfioUserMessage& message);
    Answer device_info(const VfioUserMessage& message) const;
    Answer region_info(const VfioUserMessage& message) const;
    Answer irq_info(const VfioUserMessage& message) const;
    Answer set_irqs(VfioUserMessage* message);
    Answer region_read(const VfioUserMessage& message);
    Answer region_write(const VfioUserMessage& message);
    Answer region_write_multi(const VfioUserMessage& message);
    Answer device_reset();

    int bar_error(const VfioUserRegionAccess& access) const;
    bool is_msix_place(const VfioUserRegionAccess& access) const;
    uint64_t msix_read(const VfioUserRegionAccess& access) const;
    int write(const VfioUserRegionAccess& access, const uint8_t* data);
    void note_refusal(const VfioUserHeader& header, int error);

    PciFunction* function_;
    GuestMemory* memory_;
    PciConfig config_;
    MsixVectors vectors_;
    bool has_version_ = false;
    uint32_t refusals_ = 0;  // of this client; the first ones are logged
    bool named_missing_ram_ = false;
};

}  // namespace nvshmem_efa::soft::pci
