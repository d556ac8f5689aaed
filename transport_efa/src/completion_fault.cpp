// SPDX-License-Identifier: Apache-2.0
#include "completion_fault.h"

namespace nvshmem_efa {

const char* status_hint(CqeStatus status) {
    switch (status) {
        case CqeStatus::kUnrespRemote:
        case CqeStatus::kUnreachRemote:
        case CqeStatus::kRemoteAbort: return "that PE or its network is gone; look at its log and restart the job";
        case CqeStatus::kBadDestQpn: return "that PE has ended, or left the job; look at its log and restart the job";
        case CqeStatus::kUnknownPeer:
            return "that PE has ended, or has no address handle for us; see docs/troubleshooting.md#device";
        case CqeStatus::kRemoteBadAddress: return "the target address or its rkey is not valid any more; was the heap freed there?";
        case CqeStatus::kRnr: return "the peer's agent does not keep up; is that process stopped?";
        default: return "see docs/troubleshooting.md#device";
    }
}

bool is_peer_fault(CqeStatus status) {
    switch (status) {
        case CqeStatus::kUnrespRemote:
        case CqeStatus::kUnreachRemote:
        case CqeStatus::kRemoteAbort:
        case CqeStatus::kRnr:
        case CqeStatus::kBadDestQpn:
        case CqeStatus::kUnknownPeer: return true;
        default: return false;
    }
}

}  // namespace nvshmem_efa
