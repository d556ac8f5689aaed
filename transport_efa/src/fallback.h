// SPDX-License-Identifier: Apache-2.0
// NVSHMEM's own transports, for machines with no EFA device: loads a stock plugin from beside the host library and lets
// it fill the host's struct, so that from then on the host talks to it directly.
#pragma once

#include <string>
#include <vector>

#include "status.h"

namespace nvshmem_efa {

struct FallbackRequest {
    std::vector<std::string> names;  // in order: "ibrc", "ucx", "libfabric"
    std::string lib_dir;             // holds nvshmem_transport_<name>.so.<N>
    void* cuda_table = nullptr;      // handed through
    int api_version = 0;
    std::string sysfs = "/sys";
    std::string dev = "/dev";
};

struct FallbackChoice {
    std::string name;
    std::string path;
    void* transport = nullptr;  // the stock plugin's struct
};

// "ibrc, ucx" -> {"ibrc", "ucx"}. kConfig for a name that is not ibrc, ucx, ibdevx or libfabric, and for none at all.
Status parse_fallback_names(const std::string& list, std::vector<std::string>* names);

// Takes the first plugin whose init succeeds. Plugins that are known to crash or to fail late on this machine are not
// called. kMissing lists every name that was tried and why it could not be had.
// A plugin that was loaded stays loaded: it may have started threads.
Status load_fallback(const FallbackRequest& request, FallbackChoice* choice);

}  // namespace nvshmem_efa
