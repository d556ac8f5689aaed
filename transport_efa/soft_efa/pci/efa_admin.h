// SPDX-License-Identifier: Apache-2.0
// The admin queue of an EFA function: entries, opcodes, statuses, events. Payloads: efa_admin_objects.h (what is
// created and destroyed) and efa_admin_features.h (what is asked and told).
// Source of numbers and layouts: efa_admin_defs.h and efa_admin_cmds_defs.h of the Linux driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace nvshmem_efa::soft::pci {

enum class AdminOpcode : uint8_t {
    kCreateQp = 1,
    kModifyQp = 2,
    kQueryQp = 3,
    kDestroyQp = 4,
    kCreateAh = 5,
    kDestroyAh = 6,
    kRegMr = 7,
    kDeregMr = 8,
    kCreateCq = 9,
    kDestroyCq = 10,
    kGetFeature = 11,
    kSetFeature = 12,
    kGetStats = 13,
    kAllocPd = 14,
    kDeallocPd = 15,
    kAllocUar = 16,
    kDeallocUar = 17,
    kCreateEq = 18,
    kDestroyEq = 19,
    kAllocMr = 20,  // kernel memory for fast registration: this device has none, as those in use
    kService = 21,  // the vendor's own
    kCreateEventCounter = 25,
    kDestroyEventCounter = 26,
    kAttachEventCounter = 27,
    kModifyEventCounter = 28,
    kDetachEventCounter = 29,
};

enum class AdminStatus : uint8_t {
    kSuccess = 0,
    kNoResources = 1,  // ENOMEM at the driver's caller
    kBadOpcode = 2,    // EINVAL, as all below but kUnsupportedOpcode
    kUnsupportedOpcode = 3,  // EOPNOTSUPP
    kMalformedRequest = 4,
    kIllegalParameter = 5,
    kUnknownError = 6,
    kResourceBusy = 7,
};

// flags of a command
inline constexpr uint8_t kAdminPhase = 1u << 0;
inline constexpr uint8_t kAdminHasControlData = 1u << 1;  // the payload names a buffer in the guest's memory
inline constexpr uint8_t kAdminIsIndirect = 1u << 2;      // that buffer is a chain of page lists
inline constexpr uint16_t kAdminCommandIdMask = 0x0fff;

inline constexpr uint32_t kAdminEntryBytes = 64;       // protocol 0.1 and 0.2, and completions always
inline constexpr uint32_t kAdminLongEntryBytes = 128;  // commands of protocol 0.3
inline constexpr uint32_t kAdminDepthMax = 4096;

struct AdminHeader {
    uint16_t command_id;
    uint8_t opcode;
    uint8_t flags;
};
static_assert(sizeof(AdminHeader) == 4);

struct AdminLongHeader {
    AdminHeader common;
    uint16_t checksum;  // over the whole entry, with this field 0
    uint8_t payload_version;
    uint8_t reserved[5];
};
static_assert(sizeof(AdminLongHeader) == 12 && offsetof(AdminLongHeader, checksum) == 4);

struct AdminCompletion {
    uint16_t command_id;
    uint8_t status;
    uint8_t flags;  // bit 0: phase
    uint16_t checksum;
    uint16_t reserved;
    uint8_t body[56];
};
static_assert(sizeof(AdminCompletion) == kAdminEntryBytes && offsetof(AdminCompletion, flags) == 3);
static_assert(offsetof(AdminCompletion, checksum) == 4 && offsetof(AdminCompletion, body) == 8);

// A command as its handler sees it: the same for both lengths of entries.
struct AdminCommand {
    uint16_t id = 0;
    uint8_t opcode = 0;
    uint8_t flags = 0;
    uint8_t payload[60] = {};

    template <class Payload>
    Payload as() const {
        static_assert(sizeof(Payload) <= sizeof payload);
        Payload fields;
        std::memcpy(&fields, payload, sizeof fields);
        return fields;
    }
};

struct AdminReply {
    uint8_t body[56] = {};

    template <class Payload>
    void set(const Payload& fields) {
        static_assert(sizeof(Payload) <= sizeof body);
        std::memcpy(body, &fields, sizeof fields);
    }
};

// CRC-16 of polynomial 0x8005, bits reflected, all ones at the start and inverted at the end.
uint16_t admin_checksum(const void* bytes, size_t length);

#pragma pack(push, 1)

struct GuestBuffer {
    uint32_t bytes;
    uint32_t addr_lo;
    uint32_t addr_hi;
    uint64_t addr() const { return addr_lo | (static_cast<uint64_t>(addr_hi) << 32); }
};
static_assert(sizeof(GuestBuffer) == 12);

// Asynchronous events.
struct AenqEntry {
    uint16_t group;
    uint16_t syndrome;
    uint8_t flags;  // bit 0: phase
    uint8_t reserved[3];
    uint32_t time_lo, time_hi;
    uint32_t data[12];
};
static_assert(sizeof(AenqEntry) == 64 && offsetof(AenqEntry, flags) == 4 && offsetof(AenqEntry, data) == 16);
enum AenqGroup : uint32_t { kAenqFatalError = 1, kAenqWarning = 2, kAenqNotification = 3, kAenqKeepAlive = 4 };
inline constexpr uint32_t kAenqGroups =
    1u << kAenqFatalError | 1u << kAenqWarning | 1u << kAenqNotification | 1u << kAenqKeepAlive;

// An entry of an event queue.
struct EqEntry {
    uint32_t common;  // bit 0: phase; [8:1]: type, 0 = completion
    uint32_t reserved;
    uint16_t cq;
    uint16_t reserved1;
    uint32_t reserved2;
};
static_assert(sizeof(EqEntry) == 16 && offsetof(EqEntry, cq) == 8);
inline constexpr uint32_t kEventOfCompletion = 1u << 0;  // bit of what an event queue can be asked for

#pragma pack(pop)

}  // namespace nvshmem_efa::soft::pci
