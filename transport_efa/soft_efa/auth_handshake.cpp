// SPDX-License-Identifier: Apache-2.0
#include "soft_efa/auth_handshake.h"

#include <cstring>

namespace nvshmem_efa::soft {
namespace {

constexpr const char* kSecretHint =
    "processes of one job must use the secret which PE 0 handed out; is another job using this address?";
constexpr const char* kVersionHint = "install the same nvshmem-efa version on every PE";

}  // namespace

Status parse_control_message(const void* bytes, size_t count, ControlMessage* message) {
    uint32_t magic = 0;
    uint16_t version = 0;
    if (count >= 6) {
        std::memcpy(&magic, bytes, 4);
        std::memcpy(&version, static_cast<const uint8_t*>(bytes) + 4, 2);
    }
    if (magic != kControlMagic) {
        return Status::error(Code::kProtocol, "something that is not a PE of this job connected here",
                             "%zu bytes that are not a message of the software device's wire", count);
    }
    if (version != kWireVersion) {
        return Status::error(Code::kMismatch, kVersionHint, "the peer speaks wire version %u, this process %u", version,
                             kWireVersion);
    }
    if (count != sizeof *message) {
        return Status::error(Code::kProtocol, "the peer may be broken; look at its log",
                             "a control message of %zu bytes instead of %zu", count, sizeof *message);
    }
    std::memcpy(static_cast<void*>(message), bytes, sizeof *message);
    const auto type = static_cast<uint8_t>(message->type);
    if (type < static_cast<uint8_t>(ControlType::kHello) || type > static_cast<uint8_t>(ControlType::kFdReply)) {
        return Status::error(Code::kProtocol, "the peer may be broken; look at its log", "unknown control message type %u",
                             type);
    }
    return Status();
}

Status Handshake::begin(ControlMessage* hello) {
    EFA_TRY(random_bytes(dialler_nonce_, sizeof dialler_nonce_));
    *hello = ControlMessage{};
    hello->type = ControlType::kHello;
    hello->from_process = self_;
    hello->to_process = peer_;
    std::memcpy(hello->nonce, dialler_nonce_, sizeof dialler_nonce_);
    expected_ = ControlType::kChallenge;
    return Status();
}

Digest Handshake::proof_of(bool dialler) const {
    const char role[16] = {'e', 'f', 'a', '-', 'w', 'i', 'r', 'e', ' ', dialler ? 'd' : 'a'};
    const uint64_t dialler_id = is_dialler_ ? self_ : peer_;
    const uint64_t acceptor_id = is_dialler_ ? peer_ : self_;
    HmacSha256 hmac(secret_.bytes, sizeof secret_.bytes);
    hmac.update(role, sizeof role);
    hmac.update(&kWireVersion, sizeof kWireVersion);
    hmac.update(&dialler_id, sizeof dialler_id);
    hmac.update(&acceptor_id, sizeof acceptor_id);
    hmac.update(dialler_nonce_, sizeof dialler_nonce_);
    hmac.update(acceptor_nonce_, sizeof acceptor_nonce_);
    return hmac.finish();
}

ControlMessage Handshake::accept() const {
    ControlMessage message;
    message.type = ControlType::kAccept;
    message.from_process = self_;
    message.to_process = peer_;
    const Digest proof = proof_of(false);
    std::memcpy(message.proof, proof.data(), proof.size());
    return message;
}

ControlMessage Handshake::refuse(RefuseReason reason) const {
    ControlMessage message;
    message.type = ControlType::kRefuse;
    message.reason = reason;
    message.from_process = self_;
    message.to_process = peer_;
    return message;
}

Status Handshake::on_hello(const ControlMessage& message, ControlMessage* reply) {
    if (message.to_process != self_ || message.from_process == 0 || message.from_process == self_) {
        *reply = refuse(RefuseReason::kNotMe);
        return Status::error(Code::kProtocol, "an address of an earlier job may still be in use",
                             "a connection meant for process %016llx", static_cast<unsigned long long>(message.to_process));
    }
    peer_ = message.from_process;
    std::memcpy(dialler_nonce_, message.nonce, sizeof dialler_nonce_);
    EFA_TRY(random_bytes(acceptor_nonce_, sizeof acceptor_nonce_));
    *reply = ControlMessage{};
    reply->type = ControlType::kChallenge;
    reply->from_process = self_;
    reply->to_process = peer_;
    std::memcpy(reply->nonce, acceptor_nonce_, sizeof acceptor_nonce_);
    expected_ = ControlType::kProof;
    return Status();
}

Status Handshake::on_proof(const ControlMessage& message, bool from_dialler) {
    const Digest wanted = proof_of(from_dialler);
    if (!equal_constant_time(wanted.data(), message.proof, wanted.size())) {
        return Status::error(Code::kAuth, kSecretHint, "process %016llx does not know this job's secret",
                             static_cast<unsigned long long>(peer_));
    }
    proven_ = true;
    return Status();
}

Status Handshake::on_message(const ControlMessage& message, ControlMessage* reply, bool* has_reply) {
    *has_reply = false;
    if (is_dialler_ && message.type == ControlType::kRefuse) return refusal_error(message);
    if (proven_ || message.type != expected_) {
        return Status::error(Code::kProtocol, "the peer may be broken; look at its log",
                             "control message type %u where %u was due", static_cast<unsigned>(message.type),
                             static_cast<unsigned>(expected_));
    }
    if (message.type == ControlType::kHello) {
        *has_reply = true;
        return on_hello(message, reply);
    }
    if (message.from_process != peer_ || message.to_process != self_) {
        return Status::error(Code::kProtocol, "the peer may be broken; look at its log",
                             "a control message between other processes");
    }
    if (message.type == ControlType::kChallenge) {
        std::memcpy(acceptor_nonce_, message.nonce, sizeof acceptor_nonce_);
        *reply = ControlMessage{};
        reply->type = ControlType::kProof;
        reply->from_process = self_;
        reply->to_process = peer_;
        const Digest proof = proof_of(true);
        std::memcpy(reply->proof, proof.data(), proof.size());
        *has_reply = true;
        expected_ = ControlType::kAccept;
        return Status();
    }
    const bool from_dialler = message.type == ControlType::kProof;
    Status status = on_proof(message, from_dialler);
    if (!status.ok() && from_dialler) {
        *reply = refuse(RefuseReason::kSecret);
        *has_reply = true;
    }
    return status;
}

Status refusal_error(const ControlMessage& refusal) {
    switch (refusal.reason) {
        case RefuseReason::kSecret:
            return Status::error(Code::kAuth, kSecretHint, "refused: this process does not know the peer's job secret");
        case RefuseReason::kVersion:
            return Status::error(Code::kMismatch, kVersionHint, "refused: the peer speaks another wire version than %u",
                                 kWireVersion);
        case RefuseReason::kNoMemory:
            return Status::error(Code::kResource, "lower NVSHMEM_EFA_SOFT_RING_BYTES, or give the peer more memory",
                                 "refused: the peer has no memory for a shared-memory ring");
        case RefuseReason::kNotMe:
            return Status::error(Code::kPeer, "the peer may have ended and its address be in use by another process",
                                 "refused: another process answers at the peer's address");
        case RefuseReason::kCutOff:
            return Status::error(Code::kPeer, "look at the peer's log, which says why",
                                 "refused: the peer has ended an earlier connection of this process");
        default:
            return Status::error(Code::kProtocol, "the peer may be broken; look at its log", "refused for reason %u",
                                 static_cast<unsigned>(refusal.reason));
    }
}

}  // namespace nvshmem_efa::soft
