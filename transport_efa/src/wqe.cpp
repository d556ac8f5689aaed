// SPDX-License-Identifier: Apache-2.0
#include "nvshmem_efa/wqe.h"

namespace nvshmem_efa {

const char* cqe_status_text(CqeStatus status) {
    switch (status) {
        case CqeStatus::kOk: return "OK";
        case CqeStatus::kFlushed: return "FLUSHED (the queue pair was reset or destroyed)";
        case CqeStatus::kQpInternal: return "QP_INTERNAL (the device found the queue pair in error)";
        case CqeStatus::kUnsupportedOp: return "UNSUPPORTED_OP (this device or queue pair does not offer the operation)";
        case CqeStatus::kInvalidAh: return "INVALID_AH (no such address handle on the local device)";
        case CqeStatus::kInvalidLkey: return "INVALID_LKEY (the local buffer is not registered on this device)";
        case CqeStatus::kBadLength: return "BAD_LENGTH (the local length is out of range)";
        case CqeStatus::kRemoteBadAddress: return "REMOTE_BAD_ADDRESS (rkey or address range refused by the peer)";
        case CqeStatus::kRemoteAbort: return "REMOTE_ABORT (the peer's queue pair aborted)";
        case CqeStatus::kBadDestQpn: return "BAD_DEST_QPN (no such queue pair at the peer, or a wrong qkey)";
        case CqeStatus::kRnr: return "RNR (the peer had no receive buffer posted)";
        case CqeStatus::kRemoteBadLength: return "REMOTE_BAD_LENGTH (the peer's receive buffer is too small)";
        case CqeStatus::kBadStatus: return "BAD_STATUS (the peer answered with an unknown status)";
        case CqeStatus::kUnrespRemote: return "UNRESP_REMOTE (the peer does not answer)";
        case CqeStatus::kUnknownPeer: return "UNKNOWN_PEER (the peer holds no address handle for this device)";
        case CqeStatus::kUnreachRemote: return "UNREACH_REMOTE (no path to the peer)";
        case CqeStatus::kFeatureMismatch: return "FEATURE_MISMATCH (the two devices differ in a needed feature)";
    }
    return "unknown status";
}

}  // namespace nvshmem_efa
