// SPDX-License-Identifier: Apache-2.0
// What an error completion means for a program: whose fault it is, and what to do.
#pragma once

#include "fabric/fabric.h"

namespace nvshmem_efa {

const char* status_hint(CqeStatus status);
// The peer is at fault, not we: kPeer. A process that dies beside a living device is not silent: the kernel destroys its
// address handles and queue pairs, and its device answers for them.
bool is_peer_fault(CqeStatus status);

}  // namespace nvshmem_efa
