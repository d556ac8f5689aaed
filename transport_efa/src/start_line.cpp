// SPDX-License-Identifier: Apache-2.0
#include "start_line.h"

namespace nvshmem_efa {

std::string start_line(const StartFacts& facts) {
    return "nvshmem-efa " NVSHMEM_EFA_VERSION ": mode " + facts.mode + ", " + facts.transport + ", " +
           std::to_string(facts.n_pes) + (facts.n_pes == 1 ? " PE" : " PEs") + ", plugin ABI " + std::to_string(facts.abi) +
           ", NVSHMEM " + facts.nvshmem_version;
}

}  // namespace nvshmem_efa
