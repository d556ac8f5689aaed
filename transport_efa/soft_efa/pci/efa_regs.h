// SPDX-License-Identifier: Apache-2.0
// The registers of an EFA function (BAR 0). All are 32 bits wide and little-endian.
// Source of offsets and bits: efa_regs_defs.h of the Linux driver.
#pragma once

#include <cstdint>

namespace nvshmem_efa::soft::pci {

enum Register : uint32_t {
    kRegVersion = 0x00,            // of the admin protocol: [7:0] minor, [15:8] major
    kRegControllerVersion = 0x04,  // [7:0] subminor, [15:8] minor, [23:16] major, [31:24] implementation
    kRegCaps = 0x08,
    kRegAqBaseLo = 0x10,  // admin queue: guest address of the commands
    kRegAqBaseHi = 0x14,
    kRegAqCaps = 0x18,     // [15:0] depth, [31:16] bytes of an entry
    kRegAcqBaseLo = 0x20,  // admin completion queue
    kRegAcqBaseHi = 0x24,
    kRegAcqCaps = 0x28,     // [15:0] depth, [23:16] bytes of an entry, [31:24] MSI-X vector
    kRegAqDoorbell = 0x2c,  // absolute producer count, 16 bits
    kRegAenqCaps = 0x34,    // asynchronous events; fields as in kRegAcqCaps
    kRegAenqBaseLo = 0x38,
    kRegAenqBaseHi = 0x3c,
    kRegAenqDoorbell = 0x40,  // consumer count
    kRegIntrMask = 0x4c,      // bit 0: no interrupts for admin completions, the driver polls
    kRegDevCtl = 0x54,
    kRegDevSts = 0x58,
    kRegReadRequest = 0x5c,  // [15:0] number of the request, [31:16] offset of the register; answered by DMA
    kRegReadAnswerLo = 0x60,
    kRegReadAnswerHi = 0x64,
    kRegEqDoorbell = 0x68,  // [15:0] event queue, bit 31: arm
    kRegistersEnd = 0x6c,
};

// kRegCaps
inline constexpr uint32_t kCapsContiguousQueues = 1u << 0;
inline constexpr uint32_t kCapsResetTimeoutShift = 1;   // 5 bits, units of 100 ms
inline constexpr uint32_t kCapsAddressBitsShift = 8;    // 8 bits
inline constexpr uint32_t kCapsAdminTimeoutShift = 16;  // 4 bits, units of 100 ms; 0: the driver's own (30 s)

// kRegDevCtl
inline constexpr uint32_t kCtlReset = 1u << 0;
inline constexpr uint32_t kCtlResetReasonShift = 28;

// kRegDevSts
inline constexpr uint32_t kStsReady = 1u << 0;
inline constexpr uint32_t kStsResetInProgress = 1u << 3;
inline constexpr uint32_t kStsResetFinished = 1u << 4;
inline constexpr uint32_t kStsFatalError = 1u << 5;

inline constexpr uint32_t kIntrMaskAdmin = 1u << 0;
inline constexpr uint32_t kEqDoorbellArm = 1u << 31;

// What the device writes to the guest's memory for a read request. The number of the request goes last.
struct ReadAnswer {
    uint16_t request;
    uint16_t offset;  // of the register; kReadAnswerNone if there is none to read there
    uint32_t value;
};
static_assert(sizeof(ReadAnswer) == 8);
inline constexpr uint16_t kReadAnswerNone = 0xffff;

// Where things lie in the BARs.
inline constexpr int kRegisterBar = 0, kSendQueueBar = 2, kDoorbellBar = 4;
inline constexpr uint32_t kMsixTableOffset = 0x1000, kMsixPbaOffset = 0x1800, kRegisterBarBytes = 0x2000;
inline constexpr uint32_t kDoorbellPage = 4096;           // one per queue pair and one per completion queue
inline constexpr uint32_t kReceiveDoorbellOffset = 0x800;  // within a queue pair's page; the send doorbell is at 0

// Doorbell of a completion queue: [15:0] consumer count, [30:29] number of the arming, bit 31: arm.
inline constexpr uint32_t kCqDoorbellConsumerMask = 0xffff;
inline constexpr uint32_t kCqDoorbellArm = 1u << 31;

}  // namespace nvshmem_efa::soft::pci
