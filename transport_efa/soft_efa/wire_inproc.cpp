// SPDX-License-Identifier: Apache-2.0
#include "wire_inproc.h"

#include <algorithm>

namespace nvshmem_efa::soft {

Device* InprocWire::find(const Gid& gid) const {
    for (Device* device : devices_) {
        if (device->gid() == gid) return device;
    }
    return nullptr;
}

Status InprocWire::connect(const PeerAddress& peer) {
    if (find(peer.gid)) return Status();
    return Status::error(Code::kPeer, "only devices of the same world can be reached", "no such software device");
}

bool InprocWire::send(const PacketHeader& header, const void* payload) {
    Device* device = find(header.dst_gid);
    if (!device || is_gone(header.dst_gid)) return true;
    if (prng_.one_in_million(refusals_ppm_) || device->room() == 0) return false;
    device->receive(header, payload, *now_ns_);
    return true;
}

bool InprocWire::is_gone(const Gid& peer) const { return std::find(gone_.begin(), gone_.end(), peer) != gone_.end(); }

}  // namespace nvshmem_efa::soft
