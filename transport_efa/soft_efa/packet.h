// SPDX-License-Identifier: Apache-2.0
// What travels between software devices. One header for every kind of message; the payload follows it, or the header
// refers to memory of the sender that the receiver has mapped.
#pragma once

#include <cstdint>

#include "fabric/fabric.h"

namespace nvshmem_efa::soft {

enum class PacketType : uint8_t {
    kSend = 1,          // one packet, at most the MTU
    kWrite = 2,         // one segment of an RDMA WRITE
    kReadRequest = 3,   // asks for bytes
    kReadResponse = 4,  // one segment of the answer
    kAck = 5,           // ends a SEND, WRITE or READ with a status
    kNeedPayload = 6,   // the reference of this segment cannot be resolved here: send its bytes
};

inline constexpr uint8_t kPacketHasImm = 1u << 0;
inline constexpr uint8_t kPacketByReference = 1u << 1;  // no payload: bytes lie at (ref_process, ref_export, ref_offset)

inline constexpr uint8_t kPacketUnsolicited = 1u << 2;  // the sender's queue pair was created for unsolicited receive

inline constexpr uint32_t kPacketMagic = 0x50414645;  // "EFAP"
inline constexpr uint32_t kPacketPayloadMax = 1u << 20;

struct PacketHeader {
    uint32_t magic = kPacketMagic;
    PacketType type = PacketType::kAck;
    uint8_t flags = 0;
    uint8_t status = 0;   // CqeStatus in acks; the refused packet's PacketType in kNeedPayload
    uint8_t attempt = 0;  // of the message, from 0; counts receiver-not-ready retries
    Gid src_gid;
    Gid dst_gid;
    uint16_t src_qp_num = 0;
    uint16_t dst_qp_num = 0;
    uint32_t qkey = 0;
    uint64_t message = 0;  // the initiator's number; unique per source device
    uint64_t message_bytes = 0;
    uint64_t segment_offset = 0;  // of this segment in the message
    uint32_t segment_bytes = 0;
    uint32_t n_segments = 0;
    uint32_t immediate = 0;
    uint32_t rkey = 0;
    uint64_t remote_addr = 0;  // of the message's first byte, at the target
    uint64_t ref_process = 0;  // kPacketByReference
    uint64_t ref_export = 0;
    uint64_t ref_offset = 0;
    uint32_t payload_bytes = 0;  // that follow this header on the wire
    uint32_t reserved2 = 0;
};
static_assert(sizeof(PacketHeader) == 128);

}  // namespace nvshmem_efa::soft
