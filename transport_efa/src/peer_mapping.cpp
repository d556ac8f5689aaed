// SPDX-License-Identifier: Apache-2.0
#include "peer_mapping.h"

#include <fstream>
#include <iterator>

namespace nvshmem_efa {
namespace {

std::string read_file(const std::string& path) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace

std::string peer_mapping_hint(const std::string& proc) {
    const std::string params = read_file(proc + "/driver/nvidia/params");
    const std::string version = read_file(proc + "/driver/nvidia/version");
    std::string hint;
    if (!has(params, "PeerMappingOverride=1")) {
        hint = "load the NVIDIA driver with \"options nvidia NVreg_RegistryDwords=\\\"PeerMappingOverride=1;\\\"\" in "
               "/etc/modprobe.d and restart (";
        hint += params.empty() ? "/proc/driver/nvidia/params cannot be read here" : "it is not set now";
        hint += "); ";
    }
    if (!version.empty() && !has(version, "Open Kernel Module"))
        hint += "use the open kernel modules of the NVIDIA driver (these are the proprietary ones); ";
    if (hint.empty()) hint = "PeerMappingOverride=1 is set: look for the reason in the kernel log (dmesg | grep -i nvrm); ";
    return hint + "NVSHMEM_EFA_MODE=relay needs none of this";
}

}  // namespace nvshmem_efa
