// SPDX-License-Identifier: Apache-2.0
// Admin commands that make, change and end objects: their payloads and the bodies of their completions.
// Source of layouts: efa_admin_cmds_defs.h of the Linux driver. Fields called reserved must be zero.
#pragma once

#include "soft_efa/pci/efa_admin.h"

namespace nvshmem_efa::soft::pci {

#pragma pack(push, 1)

// ---- queue pairs ----

inline constexpr uint8_t kQpTypeUd = 1, kQpTypeSrd = 2;
inline constexpr uint8_t kQpFlagSqVirtual = 1u << 0, kQpFlagRqVirtual = 1u << 1;  // rings addressed through a region
inline constexpr uint8_t kQpFlagUnsolicited = 1u << 2, kQpFlagReqId64 = 1u << 3, kQpFlagsReserved = 0xf0;

struct CreateQpCommand {
    uint16_t pd;
    uint8_t type;
    uint8_t flags;
    uint64_t sq_addr;  // not used: the send queue lies in the device's BAR
    uint64_t rq_addr;
    uint32_t send_cq;
    uint32_t recv_cq;
    uint32_t sq_lkey, rq_lkey;  // of virtual rings
    uint32_t sq_bytes;          // of the ring: slots (a power of two) times their size
    uint32_t sq_depth;          // requests that the program asked for
    uint32_t rq_bytes;
    uint32_t rq_depth;
    uint16_t uar;
    uint8_t service_level;
    uint8_t reserved;
    uint32_t reserved2;
};
static_assert(sizeof(CreateQpCommand) == 60 && offsetof(CreateQpCommand, rq_addr) == 12);
static_assert(offsetof(CreateQpCommand, sq_bytes) == 36 && offsetof(CreateQpCommand, uar) == 52);

struct CreateQpReply {
    uint32_t handle;  // for later commands
    uint16_t qp_num;
    uint16_t reserved;
    uint16_t send_sub_cq, recv_sub_cq;
    uint32_t sq_doorbell;  // offsets in the doorbell BAR
    uint32_t rq_doorbell;
    uint32_t sq_offset;  // in the send-queue BAR
};
static_assert(sizeof(CreateQpReply) == 24 && offsetof(CreateQpReply, sq_doorbell) == 12);

enum class AdminQpState : uint32_t { kReset = 0, kInit = 1, kRtr = 2, kRts = 3, kSqd = 4, kSqe = 5, kError = 6 };
inline constexpr uint32_t kQpStates = 7;

// modify_mask
inline constexpr uint32_t kModifyState = 1u << 0, kModifyCurrentState = 1u << 1, kModifyQkey = 1u << 2,
                          kModifySqPsn = 1u << 3, kModifyDrainNotify = 1u << 4, kModifyRnrRetry = 1u << 5,
                          kModifyAll = (1u << 6) - 1;

struct ModifyQpCommand {
    uint32_t mask;
    uint32_t handle;
    uint32_t state;
    uint32_t current_state;
    uint32_t qkey;
    uint32_t sq_psn;
    uint8_t drain_notify;
    uint8_t rnr_retry;
    uint16_t reserved;
};
static_assert(sizeof(ModifyQpCommand) == 28 && offsetof(ModifyQpCommand, rnr_retry) == 25);

struct QueryQpReply {
    uint32_t state;
    uint32_t qkey;
    uint32_t sq_psn;
    uint8_t is_draining;
    uint8_t rnr_retry;
    uint16_t reserved;
};
static_assert(sizeof(QueryQpReply) == 16);

struct QpHandleCommand {  // query, destroy
    uint32_t handle;
};

// ---- completion queues and event queues ----

inline constexpr uint8_t kCqHasInterrupts = 1u << 5, kCqIsVirtual = 1u << 6, kCqCaps1Reserved = 0x9f;
inline constexpr uint8_t kCqEntryWordsMask = 0x1f, kCqSetSourceAddress = 1u << 5, kCqReqId64 = 1u << 6,
                         kCqCaps2Reserved = 0x80;

struct CreateCqCommand {
    uint8_t caps1;
    uint8_t caps2;
    uint16_t sub_cq_depth;
    uint16_t eq;
    uint16_t reserved;
    uint32_t addr_lo, addr_hi;
    uint32_t lkey;
    uint16_t n_sub_cqs;
    uint16_t uar;
    uint64_t addr() const { return addr_lo | (static_cast<uint64_t>(addr_hi) << 32); }
};
static_assert(sizeof(CreateCqCommand) == 24 && offsetof(CreateCqCommand, addr_lo) == 8);

inline constexpr uint32_t kCqDoorbellIsValid = 1u << 0;

struct CreateCqReply {
    uint16_t cq;
    uint16_t sub_cq_depth;
    uint32_t doorbell;  // offset in the doorbell BAR
    uint32_t flags;
};
static_assert(sizeof(CreateCqReply) == 12);

struct DestroyCqCommand {
    uint16_t cq;
    uint16_t reserved;
};

struct CreateEqCommand {
    uint16_t depth;
    uint8_t vector;
    uint8_t caps;  // [4:0]: 32-bit words of an entry
    uint32_t addr_lo, addr_hi;
    uint32_t events;
    uint32_t reserved;
    uint64_t addr() const { return addr_lo | (static_cast<uint64_t>(addr_hi) << 32); }
};
static_assert(sizeof(CreateEqCommand) == 20 && offsetof(CreateEqCommand, events) == 12);

// ---- memory regions ----

inline constexpr uint8_t kMrPageShiftMask = 0x3f, kMrFlagReserved = 1u << 6, kMrIsPhysical = 1u << 7;
inline constexpr uint8_t kMrLocalWrite = 1u << 0, kMrRemoteWrite = 1u << 1, kMrRemoteRead = 1u << 2,
                         kMrPermissionsReserved = 0xf8;
inline constexpr uint32_t kMrInlinePages = 4;

struct RegMrCommand {
    uint16_t pd;
    uint16_t reserved;
    union {
        uint64_t inline_pages[kMrInlinePages];
        GuestBuffer list;
    };
    uint64_t bytes;
    uint8_t flags;
    uint8_t permissions;
    uint16_t reserved2;
    uint32_t n_pages;  // the driver leaves it 0: the count follows from addr, bytes and the page size
    uint64_t addr;     // that programs use for the first byte
};
static_assert(sizeof(RegMrCommand) == 60 && offsetof(RegMrCommand, bytes) == 36 && offsetof(RegMrCommand, addr) == 52);

struct RegMrReply {
    uint32_t lkey;
    uint32_t rkey;
    uint8_t interconnects_valid;  // one bit each for the three below
    uint8_t recv_interconnect, read_interconnect, write_recv_interconnect;
};
static_assert(sizeof(RegMrReply) == 12);

struct DeregMrCommand {
    uint32_t lkey;
};

// ---- address handles, protection domains, UARs ----

struct CreateAhCommand {
    uint8_t gid[16];
    uint16_t pd;
    uint16_t reserved;
};
static_assert(sizeof(CreateAhCommand) == 20);

struct DestroyAhCommand {
    uint16_t ah;
    uint16_t pd;
};

struct IdBody {  // the number of an address handle, domain, UAR or event queue, both ways
    uint16_t id;
    uint16_t reserved;
};
static_assert(sizeof(IdBody) == 4);

// ---- event counters: one word of the guest's memory each; a completion counter of verbs is a pair of them ----

struct CreateEventCounterCommand {
    uint16_t uar;
    uint16_t reserved;
    uint64_t addr;
};
static_assert(sizeof(CreateEventCounterCommand) == 12);

struct CreateEventCounterReply {
    uint32_t handle;
    uint32_t reserved;
};

struct DestroyEventCounterCommand {
    uint32_t handle;
};

inline constexpr uint8_t kAttachToQpEvents = 0;
inline constexpr uint32_t kQpEvents = 10;  // send, recv, read, write: good and failed; remote read; remote write
inline constexpr uint32_t kQpEventsMask = (1u << kQpEvents) - 1;

struct AttachEventCounterCommand {  // and detach
    uint32_t handle;
    uint8_t type;
    uint8_t reserved[3];
    uint32_t qp;
    uint32_t events;
};
static_assert(sizeof(AttachEventCounterCommand) == 16);

inline constexpr uint8_t kCounterSet = 0, kCounterAdd = 1;

struct ModifyEventCounterCommand {
    uint32_t handle;
    uint8_t operation;
    uint8_t reserved[7];
    uint64_t value;
};
static_assert(sizeof(ModifyEventCounterCommand) == 20 && offsetof(ModifyEventCounterCommand, value) == 12);

#pragma pack(pop)

}  // namespace nvshmem_efa::soft::pci
