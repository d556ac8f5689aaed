// SPDX-License-Identifier: Apache-2.0
// The bytes of EFA descriptors: send, receive and completion entries.
// Pure layout and encoding, for host and device. All fields are little-endian, as every supported CPU and GPU is.
// Source of every offset and bit: efa_io_defs.h of rdma-core (field table in docs/efa-descriptors.md).
#pragma once

#include "nvshmem_efa/rtc_types.h"

#if defined(__CUDACC__)
#define NVSHMEM_EFA_HD __host__ __device__
#else
#define NVSHMEM_EFA_HD
#endif

namespace nvshmem_efa {

inline constexpr uint32_t kSlotBytesSmall = 64;    // fits SEND inline <= 32 B, one-SGE RDMA
inline constexpr uint32_t kSlotBytesLarge = 128;   // fits SEND and RDMA WRITE inline <= 80 B
inline constexpr uint32_t kInlineSendSmallMax = 32;
inline constexpr uint32_t kInlineLargeMax = 80;
inline constexpr uint32_t kSendSgesMax = 2;
inline constexpr uint32_t kLkeyMask = 0x00ffffffu;  // SGE bits [31:24] must be zero
inline constexpr uint16_t kAhUnknown = 0xffff;      // receive CQE: the device knows no AH for the sender

enum class SendOpcode : uint8_t { kSend = 0, kRdmaRead = 1, kRdmaWrite = 2 };

// ctrl1 of a send descriptor.
inline constexpr uint8_t kCtrl1OpcodeMask = 0x0f;
inline constexpr uint8_t kCtrl1HasImm = 1u << 4;
inline constexpr uint8_t kCtrl1Inline = 1u << 5;
inline constexpr uint8_t kCtrl1MetaExt = 1u << 6;  // must be zero
inline constexpr uint8_t kCtrl1MetaDesc = 1u << 7;  // must be one
// ctrl2 of a send descriptor.
inline constexpr uint8_t kCtrl2Phase = 1u << 0;
inline constexpr uint8_t kCtrl2First = 1u << 2;
inline constexpr uint8_t kCtrl2Last = 1u << 3;
inline constexpr uint8_t kCtrl2CompReq = 1u << 4;
inline constexpr uint8_t kCtrl2Reserved = 0xe2;
// ctrl3 of a send descriptor.
inline constexpr uint8_t kCtrl3HintMask = 0x03;
inline constexpr uint8_t kCtrl3HintBurstPps = 1u << 0;

struct TxMeta {
    uint16_t req_id;
    uint8_t ctrl1;
    uint8_t ctrl2;
    uint16_t dest_qp_num;
    uint16_t length;  // inline bytes if kCtrl1Inline, else the number of SGEs
    uint32_t immediate;
    uint16_t ah;
    uint8_t ctrl3;
    uint8_t reserved0;
    uint32_t qkey;
    uint8_t reserved1[6];
    uint16_t req_id_ex[3];  // request-id bits 16..63, on queues with 64-bit ids
};
static_assert(sizeof(TxMeta) == 32, "the meta descriptor is 32 bytes");
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, ctrl1) == 0x02 && offsetof(TxMeta, ctrl2) == 0x03);
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, dest_qp_num) == 0x04 && offsetof(TxMeta, length) == 0x06);
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, immediate) == 0x08 && offsetof(TxMeta, ah) == 0x0c);
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, ctrl3) == 0x0e && offsetof(TxMeta, qkey) == 0x10);
NVSHMEM_EFA_LAYOUT(offsetof(TxMeta, req_id_ex) == 0x1a);

struct Sge {
    uint32_t length;
    uint32_t lkey;  // [23:0]; the rest zero
    uint32_t addr_lo;
    uint32_t addr_hi;
};
NVSHMEM_EFA_LAYOUT(sizeof(Sge) == 16 && offsetof(Sge, lkey) == 4 && offsetof(Sge, addr_lo) == 8 && offsetof(Sge, addr_hi) == 12);

struct RemoteAddr {
    uint32_t length;
    uint32_t rkey;
    uint32_t addr_lo;
    uint32_t addr_hi;
};
NVSHMEM_EFA_LAYOUT(sizeof(RemoteAddr) == 16 && offsetof(RemoteAddr, rkey) == 4 && offsetof(RemoteAddr, addr_lo) == 8);

// One send descriptor. A 64-byte slot holds its first half.
struct alignas(16) SendWqe {
    TxMeta meta;
    union {
        Sge send_sges[kSendSgesMax];
        uint8_t send_inline[kInlineLargeMax];
        struct {
            RemoteAddr remote;
            union {
                Sge local;
                uint8_t write_inline[kInlineLargeMax];
            };
        } rdma;
        uint64_t data_words[12];
    };
};
static_assert(sizeof(SendWqe) == kSlotBytesLarge);
NVSHMEM_EFA_LAYOUT(offsetof(SendWqe, send_sges) == 0x20 && offsetof(SendWqe, send_inline) == 0x20);
NVSHMEM_EFA_LAYOUT(offsetof(SendWqe, rdma.remote) == 0x20 && offsetof(SendWqe, rdma.local) == 0x30);
NVSHMEM_EFA_LAYOUT(offsetof(SendWqe, rdma.write_inline) == 0x30);

// lkey_ctrl of a receive descriptor.
inline constexpr uint32_t kRecvFirst = 1u << 30;
inline constexpr uint32_t kRecvLast = 1u << 31;

struct RecvWqe {
    uint32_t addr_lo;
    uint32_t addr_hi;
    uint16_t req_id;
    uint16_t length;
    uint32_t lkey_ctrl;
};
NVSHMEM_EFA_LAYOUT(sizeof(RecvWqe) == 16 && offsetof(RecvWqe, req_id) == 8 && offsetof(RecvWqe, length) == 10);
NVSHMEM_EFA_LAYOUT(offsetof(RecvWqe, lkey_ctrl) == 12);

// flags of a completion.
inline constexpr uint8_t kCqePhase = 1u << 0;
inline constexpr uint8_t kCqeQueueShift = 1, kCqeQueueMask = 0x3;
inline constexpr uint8_t kCqeHasImm = 1u << 3;
inline constexpr uint8_t kCqeOpShift = 4, kCqeOpMask = 0x7;
inline constexpr uint8_t kCqeUnsolicited = 1u << 7;

enum class CqeQueue : uint8_t { kSend = 1, kRecv = 2 };

// Completion status, as the device reports it.
enum class CqeStatus : uint8_t {
    kOk = 0,
    kFlushed = 1,
    kQpInternal = 2,
    kUnsupportedOp = 3,
    kInvalidAh = 4,
    kInvalidLkey = 5,
    kBadLength = 6,
    kRemoteBadAddress = 7,
    kRemoteAbort = 8,
    kBadDestQpn = 9,
    kRnr = 10,
    kRemoteBadLength = 11,
    kBadStatus = 12,
    kUnrespRemote = 13,
    kUnknownPeer = 14,
    kUnreachRemote = 15,
    kFeatureMismatch = 18,
};

struct TxCqe {
    uint16_t req_id;
    uint8_t status;
    uint8_t flags;
    uint16_t qp_num;  // the local queue pair
    uint16_t req_id_ex[3];
    uint32_t reserved;
};
inline constexpr size_t kCqeFlagsAt = 3;  // in entries of both kinds
NVSHMEM_EFA_LAYOUT(sizeof(TxCqe) == 16 && offsetof(TxCqe, status) == 2 && offsetof(TxCqe, flags) == kCqeFlagsAt);
NVSHMEM_EFA_LAYOUT(offsetof(TxCqe, qp_num) == 4 && offsetof(TxCqe, req_id_ex) == 6 && offsetof(TxCqe, reserved) == 12);

struct RxCqe {
    uint16_t req_id;
    uint8_t status;
    uint8_t flags;
    uint16_t qp_num;
    uint16_t length;
    uint16_t ah;
    uint16_t src_qp_num;
    uint32_t immediate;
};
NVSHMEM_EFA_LAYOUT(sizeof(RxCqe) == 16 && offsetof(RxCqe, length) == 6 && offsetof(RxCqe, ah) == 8);
NVSHMEM_EFA_LAYOUT(offsetof(RxCqe, src_qp_num) == 10 && offsetof(RxCqe, immediate) == 12);

struct RxCqeEx {
    RxCqe base;
    union {
        uint16_t length_hi;   // RDMA write longer than 64 KiB: length bits 16..31
        uint8_t src_gid[16];  // when ah is kAhUnknown and the CQ was created with SGID
    };
};
NVSHMEM_EFA_LAYOUT(sizeof(RxCqeEx) == 32 && offsetof(RxCqeEx, src_gid) == 16);

// Where a descriptor goes: the destination of an SRD message.
struct WqeTarget {
    uint16_t ah;
    uint16_t qp_num;
    uint32_t qkey;
};

// Starts a descriptor: everything but the data section and the immediate. `phase` is send_ring_phase() of its slot.
// `id_is_64_bit` must match the queue's capability; without it the upper 48 bits of `req_id` are dropped.
NVSHMEM_EFA_HD inline void wqe_begin(SendWqe& wqe, SendOpcode opcode, const WqeTarget& target, uint64_t req_id,
                                     bool id_is_64_bit, uint32_t phase) {
    wqe.meta = TxMeta{};
    for (uint64_t& word : wqe.data_words) word = 0;
    wqe.meta.req_id = static_cast<uint16_t>(req_id);
    wqe.meta.ctrl1 = static_cast<uint8_t>(static_cast<uint8_t>(opcode) | kCtrl1MetaDesc);
    wqe.meta.ctrl2 = static_cast<uint8_t>((phase & 1u) | kCtrl2First | kCtrl2Last | kCtrl2CompReq);
    wqe.meta.dest_qp_num = target.qp_num;
    wqe.meta.ah = target.ah;
    wqe.meta.qkey = target.qkey;
    if (id_is_64_bit) {
        wqe.meta.req_id_ex[0] = static_cast<uint16_t>(req_id >> 16);
        wqe.meta.req_id_ex[1] = static_cast<uint16_t>(req_id >> 32);
        wqe.meta.req_id_ex[2] = static_cast<uint16_t>(req_id >> 48);
    }
}

NVSHMEM_EFA_HD inline void wqe_set_immediate(SendWqe& wqe, uint32_t immediate) {
    wqe.meta.ctrl1 |= kCtrl1HasImm;
    wqe.meta.immediate = immediate;
}

NVSHMEM_EFA_HD inline void wqe_set_hint(SendWqe& wqe, uint8_t hint) { wqe.meta.ctrl3 = hint & kCtrl3HintMask; }

NVSHMEM_EFA_HD inline void sge_set(Sge& sge, uint64_t addr, uint32_t length, uint32_t lkey) {
    sge.length = length;
    sge.lkey = lkey & kLkeyMask;
    sge.addr_lo = static_cast<uint32_t>(addr);
    sge.addr_hi = static_cast<uint32_t>(addr >> 32);
}

// SEND of registered memory; call once or twice (the device takes two SGEs).
NVSHMEM_EFA_HD inline void wqe_add_send_sge(SendWqe& wqe, uint64_t addr, uint32_t length, uint32_t lkey) {
    sge_set(wqe.send_sges[wqe.meta.length], addr, length, lkey);
    ++wqe.meta.length;
}

// SEND of bytes carried in the descriptor: at most 32 in a 64-byte slot, 80 in a 128-byte one.
NVSHMEM_EFA_HD inline void wqe_set_send_inline(SendWqe& wqe, const void* bytes, uint32_t length) {
    wqe.meta.ctrl1 |= kCtrl1Inline;
    wqe.meta.length = static_cast<uint16_t>(length);
    memcpy(wqe.send_inline, bytes, length);
}

NVSHMEM_EFA_HD inline void wqe_set_remote(SendWqe& wqe, uint64_t addr, uint32_t length, uint32_t rkey) {
    wqe.rdma.remote.length = length;
    wqe.rdma.remote.rkey = rkey;
    wqe.rdma.remote.addr_lo = static_cast<uint32_t>(addr);
    wqe.rdma.remote.addr_hi = static_cast<uint32_t>(addr >> 32);
}

// RDMA READ or WRITE: exactly one local SGE.
NVSHMEM_EFA_HD inline void wqe_set_local(SendWqe& wqe, uint64_t addr, uint32_t length, uint32_t lkey) {
    wqe.meta.length = 1;
    sge_set(wqe.rdma.local, addr, length, lkey);
}

// RDMA WRITE of bytes carried in the descriptor: 128-byte slots only, at most 80.
NVSHMEM_EFA_HD inline void wqe_set_write_inline(SendWqe& wqe, const void* bytes, uint32_t length) {
    wqe.meta.ctrl1 |= kCtrl1Inline;
    wqe.meta.length = static_cast<uint16_t>(length);
    memcpy(wqe.rdma.write_inline, bytes, length);
}

NVSHMEM_EFA_HD inline void recv_wqe_set(RecvWqe& wqe, uint64_t addr, uint16_t length, uint32_t lkey, uint16_t req_id) {
    wqe.addr_lo = static_cast<uint32_t>(addr);
    wqe.addr_hi = static_cast<uint32_t>(addr >> 32);
    wqe.req_id = req_id;
    wqe.length = length;
    wqe.lkey_ctrl = (lkey & kLkeyMask) | kRecvFirst | kRecvLast;
}

NVSHMEM_EFA_HD inline CqeQueue cqe_queue(uint8_t flags) {
    return static_cast<CqeQueue>((flags >> kCqeQueueShift) & kCqeQueueMask);
}
NVSHMEM_EFA_HD inline uint8_t cqe_opcode(uint8_t flags) { return (flags >> kCqeOpShift) & kCqeOpMask; }

NVSHMEM_EFA_HD inline uint64_t cqe_req_id(const TxCqe& cqe, bool id_is_64_bit) {
    uint64_t id = cqe.req_id;
    if (id_is_64_bit) {
        id |= static_cast<uint64_t>(cqe.req_id_ex[0]) << 16;
        id |= static_cast<uint64_t>(cqe.req_id_ex[1]) << 32;
        id |= static_cast<uint64_t>(cqe.req_id_ex[2]) << 48;
    }
    return id;
}

// Bytes of a received message; needs the 32-byte entry for more than 65535.
NVSHMEM_EFA_HD inline uint32_t cqe_recv_length(const RxCqeEx& cqe, bool entry_is_32_bytes) {
    const bool is_write = cqe_opcode(cqe.base.flags) == static_cast<uint8_t>(SendOpcode::kRdmaWrite);
    const uint32_t hi = entry_is_32_bytes && is_write ? cqe.length_hi : 0;
    return (hi << 16) | cqe.base.length;
}

#if !defined(__CUDACC_RTC__)
// What a status means, for messages and docs.
const char* cqe_status_text(CqeStatus status);
#endif

}  // namespace nvshmem_efa
