// SPDX-License-Identifier: Apache-2.0
// Which EFA devices this machine has, what keeps them from being used, and which of them a PE takes. From sysfs and
// /dev alone, before any library is asked.
#pragma once

#include <string>
#include <vector>

#include "fabric/verbs.h"
#include "fabric/verbs_missing.h"
#include "topology.h"

namespace nvshmem_efa::verbs {

struct EfaDevice {
    PlacedNic place;
    std::string device_node;  // "/dev/infiniband/uverbs0"; empty when the kernel has made none
    bool is_usable = false;   // its node is there and may be opened
};

struct DeviceSurvey {
    std::vector<EfaDevice> efa;       // bound to the driver efa, by name
    std::vector<std::string> others;  // "mlx5_0 (mlx5_core)": skipped
};

DeviceSurvey survey_devices(const Machine& machine);

// Adds what the machine lacks: device, kernel module, device nodes, permissions, lockable memory.
void check_machine(const Machine& machine, const DeviceSurvey& survey, MissingList* missing);

// The devices to open, in rail order. kConfig when the filter names what is not there, or more rails are asked for than
// there are devices.
Status choose_devices(const Machine& machine, const DeviceSurvey& survey, const OpenOptions& options,
                      std::vector<EfaDevice>* chosen);

}  // namespace nvshmem_efa::verbs
