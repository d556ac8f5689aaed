// SPDX-License-Identifier: Apache-2.0
// What two processes say to each other before, and beside, the packets: one message format for both wires, and the
// challenge-response by which each proves that it knows the job's secret. Pure: no sockets here.
//
//   dialler                     acceptor
//   HELLO(nonce_d)        ->
//                         <-    CHALLENGE(nonce_a)
//   PROOF(hmac_d)         ->    checks it
//   checks it             <-    ACCEPT(hmac_a), or REFUSE(reason)
//
// hmac_x = HMAC-SHA256(secret, role of x, version, both process ids, both nonces). The connection is authenticated, not
// encrypted: TCP payload can be read on the network.
#pragma once

#include "fabric/fabric.h"
#include "soft_efa/auth.h"

namespace nvshmem_efa::soft {

inline constexpr uint32_t kControlMagic = 0x57414645;  // "EFAW"
inline constexpr uint16_t kWireVersion = 1;

enum class ControlType : uint8_t {
    kHello = 1,
    kChallenge = 2,
    kProof = 3,
    kAccept = 4,   // shm: carries the acceptor's ring
    kRing = 5,     // shm only: carries the dialler's ring
    kRefuse = 6,   // `reason` says why
    kFdRequest = 7,
    kFdReply = 8,  // carries the descriptor, or reason kFd
};

enum class RefuseReason : uint8_t {
    kNone = 0,
    kSecret = 1,
    kVersion = 2,
    kDuplicate = 3,  // the two processes connect in the other direction already
    kNoMemory = 4,
    kNotMe = 5,  // the connection reached another process than it was meant for
    kFd = 6,
    kCutOff = 7,  // an earlier connection of this process ended, or sent what is not valid
};

// The size, magic and version stay where they are in every version, so that a mismatch can be named.
struct ControlMessage {
    uint32_t magic = kControlMagic;
    uint16_t version = kWireVersion;
    ControlType type = ControlType::kHello;
    RefuseReason reason = RefuseReason::kNone;
    uint64_t from_process = 0;
    uint64_t to_process = 0;
    uint64_t sequence = 0;   // of a descriptor request and its reply
    uint64_t export_id = 0;  // kFdRequest
    uint32_t index = 0;      // kFdRequest
    uint32_t reserved0 = 0;
    uint64_t reserved1[2] = {};
    uint8_t nonce[32] = {};
    uint8_t proof[32] = {};
};
static_assert(sizeof(ControlMessage) == 128);

// Takes `count` bytes from a peer for a message. kProtocol: not ours; kMismatch: another version of this library.
Status parse_control_message(const void* bytes, size_t count, ControlMessage* message);

// One side of the challenge-response.
class Handshake {
   public:
    // `peer` is 0 for an acceptor, which learns it from HELLO.
    Handshake(bool is_dialler, const JobSecret& secret, uint64_t self, uint64_t peer)
        : is_dialler_(is_dialler), secret_(secret), self_(self), peer_(peer) {}

    Status begin(ControlMessage* hello);  // dialler
    // Takes the peer's message and, if `*has_reply`, makes the answer. After a failure the connection is to be closed;
    // the answer, if any, is then a REFUSE worth sending. Acceptor: once proven(), send accept() or a REFUSE.
    Status on_message(const ControlMessage& message, ControlMessage* reply, bool* has_reply);
    ControlMessage accept() const;
    ControlMessage refuse(RefuseReason reason) const;
    bool proven() const { return proven_; }  // the peer knows the secret
    uint64_t peer() const { return peer_; }

   private:
    Digest proof_of(bool dialler) const;
    Status on_hello(const ControlMessage& message, ControlMessage* reply);
    Status on_proof(const ControlMessage& message, bool from_dialler);

    bool is_dialler_;
    JobSecret secret_;
    uint64_t self_;
    uint64_t peer_;
    ControlType expected_ = ControlType::kHello;
    uint8_t dialler_nonce_[32] = {};
    uint8_t acceptor_nonce_[32] = {};
    bool proven_ = false;
};

// The error that a REFUSE means to the dialler. kDuplicate is not an error and must not be asked here.
Status refusal_error(const ControlMessage& refusal);

}  // namespace nvshmem_efa::soft
