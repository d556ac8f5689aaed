// SPDX-License-Identifier: Apache-2.0
// May a GPU map a NIC's memory here? Only trying tells; this says what to do when it was refused.
#pragma once

#include <string>

namespace nvshmem_efa {

// What stands in the way of cuMemHostRegister(IOMEMORY), by what the NVIDIA driver says of itself below `proc`.
std::string peer_mapping_hint(const std::string& proc = "/proc");

}  // namespace nvshmem_efa
