// SPDX-License-Identifier: Apache-2.0
// Where NVSHMEM is: the host library in this process, the folder with its plugins, its version.
#pragma once

#include <string>

#include "status.h"

namespace nvshmem_efa {

// Path of the libnvshmem_host.so.* mapped into this process; "" when there is none.
std::string loaded_host_library();

// The folder that holds NVSHMEM's own plugins. In this order: <home>/lib or <home> when `home` is not empty; beside the
// loaded host library; $NVSHMEM_HOME/lib; the nvidia-nvshmem package in the site-packages folder that we lie in.
// kMissing lists what was looked at. The folder need not hold every plugin.
Status find_nvshmem_lib_dir(const std::string& home, std::string* lib_dir);

// "3.4.5", asked of the loaded host library; "unknown" when it is not loaded or does not say.
std::string nvshmem_version();

}  // namespace nvshmem_efa
