// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/pci/pci_config.h"

#include <fcntl.h>
#include <linux/pci_regs.h>
#include <sys/stat.h>

#include <cinttypes>
#include <cstring>

namespace nvshmem_efa::soft::pci {
namespace {

constexpr uint64_t kBarBytesMin = 4096;
constexpr uint64_t kMsixEntryBytes = PCI_MSIX_ENTRY_SIZE;
constexpr int kMsixVectorsMax = PCI_MSIX_FLAGS_QSIZE + 1;
constexpr uint32_t kPowerCap = 0x40, kMsixCap = 0x50, kExpressCap = 0x60;  // in the order of the list
constexpr uint32_t kExpressCapBytes = 0x3c;
constexpr uint32_t kLinkSpeed = PCI_EXP_LNKCAP_SLS_16_0GB, kLinkWidth = 16;

bool is_in_bar(const PciIdentity& identity, uint64_t offset, uint64_t bytes) {
    const uint64_t bar_bytes = identity.bars[identity.msix_bar].bytes;
    return offset <= bar_bytes && bytes <= bar_bytes - offset;
}

Status check_msix(const PciIdentity& identity) {
    if (identity.msix_vectors == 0) return Status();
    if (identity.msix_vectors > kMsixVectorsMax || identity.msix_bar < 0 || identity.msix_bar >= kBars) {
        return Status::error(Code::kInvalidArgument, "at most 2048 vectors, in one of six BARs", "%u MSI-X vectors in BAR %d",
                             identity.msix_vectors, identity.msix_bar);
    }
    const uint64_t table = identity.msix_table_offset, pba = identity.msix_pba_offset;
    const uint64_t table_bytes = identity.msix_vectors * kMsixEntryBytes;
    const uint64_t pba_bytes = (identity.msix_vectors + 63u) / 64 * 8;
    const bool is_apart = table + table_bytes <= pba || pba + pba_bytes <= table;
    if (table % 8 || pba % 8 || !is_in_bar(identity, table, table_bytes) || !is_in_bar(identity, pba, pba_bytes) || !is_apart) {
        return Status::error(Code::kInvalidArgument, "both begin at multiples of 8, lie within the BAR and do not overlap",
                             "MSI-X table at 0x%" PRIx64 " and pending bits at 0x%" PRIx64 " of BAR %d (0x%" PRIx64 " bytes)", table, pba,
                             identity.msix_bar, identity.bars[identity.msix_bar].bytes);
    }
    if (identity.bars[identity.msix_bar].fd >= 0) {
        return Status::error(Code::kInvalidArgument, "put it into a BAR without a file",
                             "the MSI-X table lies in BAR %d, which the guest maps", identity.msix_bar);
    }
    return Status();
}

Status check_bar(const PciIdentity& identity, int index) {
    const Bar& bar = identity.bars[index];
    const bool is_power_of_two = (bar.bytes & (bar.bytes - 1)) == 0;
    if (bar.bytes < kBarBytesMin || !is_power_of_two || (!bar.is_64 && bar.bytes > (uint64_t{1} << 31))) {
        return Status::error(Code::kInvalidArgument, "a power of two, at least 4096, at most 2^31 if not of 64 bits",
                             "BAR %d has 0x%" PRIx64 " bytes", index, bar.bytes);
    }
    if (bar.is_64 && (index + 1 == kBars || identity.bars[index + 1].bytes != 0)) {
        return Status::error(Code::kInvalidArgument, "leave the BAR after it out", "BAR %d has 64 bits and no room for them", index);
    }
    if (bar.fd < 0) return Status();
    struct stat file {};
    const int seals = fcntl(bar.fd, F_GET_SEALS);
    if (fstat(bar.fd, &file) != 0 || static_cast<uint64_t>(file.st_size) < bar.bytes || seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
        return Status::error(Code::kInvalidArgument, "use a memfd of the BAR's size with F_SEAL_SHRINK: QEMU gets it too",
                             "BAR %d's file is too small, or could be shrunk", index);
    }
    return Status();
}

}  // namespace

Status check_identity(const PciIdentity& identity) {
    for (int i = 0; i < kBars; ++i) {
        if (identity.bars[i].bytes != 0) EFA_TRY(check_bar(identity, i));
    }
    return check_msix(identity);
}

PciConfig::PciConfig(const PciIdentity& identity) {
    put(PCI_VENDOR_ID, identity.vendor, 2);
    put(PCI_DEVICE_ID, identity.device, 2);
    put(PCI_COMMAND, 0, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
    put(PCI_STATUS, PCI_STATUS_CAP_LIST, 2);
    put(PCI_REVISION_ID, identity.revision, 1);
    put(PCI_CLASS_PROG, identity.class_code, 3);
    put(PCI_CACHE_LINE_SIZE, 0, 1, 0xff);
    put(PCI_HEADER_TYPE, PCI_HEADER_TYPE_NORMAL, 1);
    put(PCI_SUBSYSTEM_VENDOR_ID, identity.subsystem_vendor, 2);
    put(PCI_SUBSYSTEM_ID, identity.subsystem, 2);
    put(PCI_CAPABILITY_LIST, kPowerCap, 1);
    put(PCI_INTERRUPT_LINE, 0, 1, 0xff);  // pin 0: no INTx, only MSI-X
    put_bars(identity);
    put_capabilities(identity);
    reset();
}

void PciConfig::put(uint32_t offset, uint64_t value, uint32_t bytes, uint64_t writable_bits) {
    for (uint32_t i = 0; i < bytes; ++i) {
        initial_[offset + i] = static_cast<uint8_t>(value >> (8 * i));
        writable_[offset + i] = static_cast<uint8_t>(writable_bits >> (8 * i));
    }
}

void PciConfig::put_bars(const PciIdentity& identity) {
    for (int i = 0; i < kBars; ++i) {
        const Bar& bar = identity.bars[i];
        if (bar.bytes == 0) continue;
        const uint64_t type = PCI_BASE_ADDRESS_SPACE_MEMORY | (bar.is_64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : PCI_BASE_ADDRESS_MEM_TYPE_32) |
                              (bar.is_prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
        // All ones written, the address bits below the size stay 0: how a BAR tells its size.
        put(PCI_BASE_ADDRESS_0 + 4 * static_cast<uint32_t>(i), type, bar.is_64 ? 8 : 4, ~(bar.bytes - 1));
    }
}

void PciConfig::put_capabilities(const PciIdentity& identity) {
    const uint32_t after_power = identity.msix_vectors ? kMsixCap : kExpressCap;
    put(kPowerCap, PCI_CAP_ID_PM | after_power << 8, 2);
    put(kPowerCap + PCI_PM_PMC, 3, 2);  // version 3: states D0 and D3 only, no wake-up
    put(kPowerCap + PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET, 2, PCI_PM_CTRL_STATE_MASK);
    if (identity.msix_vectors) {
        put(kMsixCap, PCI_CAP_ID_MSIX | kExpressCap << 8, 2);
        put(kMsixCap + PCI_MSIX_FLAGS, identity.msix_vectors - 1u, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
        put(kMsixCap + PCI_MSIX_TABLE, identity.msix_table_offset | static_cast<uint32_t>(identity.msix_bar), 4);
        put(kMsixCap + PCI_MSIX_PBA, identity.msix_pba_offset | static_cast<uint32_t>(identity.msix_bar), 4);
    }
    put(kExpressCap, PCI_CAP_ID_EXP, 2);
    put(kExpressCap + PCI_EXP_FLAGS, 2 | PCI_EXP_TYPE_ENDPOINT << 4, 2);
    put(kExpressCap + PCI_EXP_DEVCAP, 1 /* payload of 256 */ | PCI_EXP_DEVCAP_RBER | PCI_EXP_DEVCAP_FLR, 4);
    put(kExpressCap + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_RELAX_EN | PCI_EXP_DEVCTL_NOSNOOP_EN | PCI_EXP_DEVCTL_READRQ_512B, 2,
        0xffff & ~PCI_EXP_DEVCTL_BCR_FLR);
    put(kExpressCap + PCI_EXP_LNKCAP, kLinkSpeed | kLinkWidth << 4, 4);
    put(kExpressCap + PCI_EXP_LNKCTL, 0, 2, PCI_EXP_LNKCTL_RCB | PCI_EXP_LNKCTL_CCC | PCI_EXP_LNKCTL_ES);
    put(kExpressCap + PCI_EXP_LNKSTA, kLinkSpeed | kLinkWidth << PCI_EXP_LNKSTA_NLW_SHIFT, 2);
    put(kExpressCap + PCI_EXP_LNKCAP2, ((1u << kLinkSpeed) - 1) << 1, 4);  // every speed up to ours
    put(kExpressCap + PCI_EXP_LNKCTL2, kLinkSpeed, 2, 0xf);
    static_assert(kExpressCap + kExpressCapBytes <= 0x100);
}

void PciConfig::reset() { std::memcpy(now_, initial_, sizeof now_); }

bool PciConfig::read(uint64_t offset, void* to, uint64_t bytes) const {
    if (offset > kConfigBytes || bytes > kConfigBytes - offset) return false;
    if (bytes) std::memcpy(to, now_ + offset, bytes);
    return true;
}

bool PciConfig::write(uint64_t offset, const void* from, uint64_t bytes, bool* wants_reset) {
    *wants_reset = false;
    if (offset > kConfigBytes || bytes > kConfigBytes - offset) return false;
    const uint8_t* value = static_cast<const uint8_t*>(from);
    constexpr uint32_t kFlrByte = kExpressCap + PCI_EXP_DEVCTL + 1;
    for (uint64_t i = 0; i < bytes; ++i) {
        const uint64_t at = offset + i;
        const uint32_t power_state = at == kPowerCap + PCI_PM_CTRL ? value[i] & PCI_PM_CTRL_STATE_MASK : 0;
        if (power_state == 1 || power_state == 2) continue;
        now_[at] = static_cast<uint8_t>((now_[at] & ~writable_[at]) | (value[i] & writable_[at]));
        if (at == kFlrByte && (value[i] & (PCI_EXP_DEVCTL_BCR_FLR >> 8))) *wants_reset = true;
    }
    if (*wants_reset) reset();
    return true;
}

bool PciConfig::msix_enabled() const {
    return now_[kMsixCap] == PCI_CAP_ID_MSIX && (now_[kMsixCap + PCI_MSIX_FLAGS + 1] & (PCI_MSIX_FLAGS_ENABLE >> 8)) != 0;
}

}  // namespace nvshmem_efa::soft::pci
