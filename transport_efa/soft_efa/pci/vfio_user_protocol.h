// SPDX-License-Identifier: Apache-2.0
// vfio-user on the wire: numbers and layouts (QEMU's docs/interop/vfio-user.rst; its flags are those of linux/vfio.h).
// Everything is little-endian, as the hosts that QEMU runs this on.
#pragma once

#include <bit>
#include <cstdint>

namespace nvshmem_efa::soft::pci {

static_assert(std::endian::native == std::endian::little);

enum class VfioUserCommand : uint16_t {
    kVersion = 1,
    kDmaMap = 2,
    kDmaUnmap = 3,
    kDeviceGetInfo = 4,
    kDeviceGetRegionInfo = 5,
    kDeviceGetRegionIoFds = 6,
    kDeviceGetIrqInfo = 7,
    kDeviceSetIrqs = 8,
    kRegionRead = 9,
    kRegionWrite = 10,
    kDeviceReset = 13,
    kRegionWriteMulti = 15,
};

struct VfioUserHeader {
    uint16_t id;
    uint16_t command;
    uint32_t bytes;  // with this header
    uint32_t flags;
    uint32_t error;  // an errno, in replies
};
static_assert(sizeof(VfioUserHeader) == 16);

inline constexpr uint32_t kVfioUserTypeMask = 0xf, kVfioUserReply = 1;
inline constexpr uint32_t kVfioUserNoReply = 1 << 4, kVfioUserError = 1 << 5;

struct VfioUserVersion {  // then JSON text and its NUL, both optional
    uint16_t major, minor;
};
static_assert(sizeof(VfioUserVersion) == 4);

struct VfioUserDmaMap {  // with the file's descriptor, or none: not mappable
    uint32_t argsz, flags;
    uint64_t offset, address, size;
};
static_assert(sizeof(VfioUserDmaMap) == 32);

struct VfioUserDmaUnmap {  // sent back as it came
    uint32_t argsz, flags;
    uint64_t address, size;
};
static_assert(sizeof(VfioUserDmaUnmap) == 24);

struct VfioUserDeviceInfo {
    uint32_t argsz, flags, regions, irqs;
};
static_assert(sizeof(VfioUserDeviceInfo) == 16);

struct VfioUserRegionInfo {
    uint32_t argsz, flags, index, cap_offset;
    uint64_t size, offset;
};
static_assert(sizeof(VfioUserRegionInfo) == 32);

struct VfioUserIrqInfo {
    uint32_t argsz, flags, index, count;
};
static_assert(sizeof(VfioUserIrqInfo) == 16);

struct VfioUserIrqSet {  // then a byte a vector (DATA_BOOL), or a descriptor a vector (DATA_EVENTFD; none: taken away)
    uint32_t argsz, flags, index, start, count;
};
static_assert(sizeof(VfioUserIrqSet) == 20);

struct VfioUserRegionAccess {  // then `count` bytes: in a write, and in the reply to a read
    uint64_t offset;
    uint32_t region, count;
};
static_assert(sizeof(VfioUserRegionAccess) == 16);

struct VfioUserMultiWrite {  // a u64 count of these, then they themselves
    VfioUserRegionAccess access;
    uint8_t data[8];
};
static_assert(sizeof(VfioUserMultiWrite) == 24);

// What this server takes, and says so in its version reply.
inline constexpr uint32_t kVfioUserTransferMax = 4096;  // the configuration space in one read, as QEMU does
inline constexpr uint32_t kVfioUserFdsMax = 16;         // eventfds in one message; QEMU sends no more
inline constexpr uint32_t kVfioUserMessageMax = 16384;  // QEMU's largest: 200 writes in one message

}  // namespace nvshmem_efa::soft::pci
