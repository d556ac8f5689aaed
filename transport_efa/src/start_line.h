// SPDX-License-Identifier: Apache-2.0
// The one line that a good run prints at INFO: what was chosen, by PE 0, at connect.
#pragma once

#include <string>

namespace nvshmem_efa {

struct StartFacts {
    std::string mode;       // "soft", "fallback to ibrc"
    std::string transport;  // Transport::describe(), or the path of the stock plugin
    int n_pes = 0;
    int abi = 0;
    std::string nvshmem_version;
};

// "nvshmem-efa 0.1.0: mode soft, 2 rails (soft0, soft1), 4 PEs, plugin ABI 3, NVSHMEM 3.4.5"
std::string start_line(const StartFacts& facts);

}  // namespace nvshmem_efa
