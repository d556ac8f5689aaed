// SPDX-License-Identifier: Apache-2.0
// The verbs provider below the seam, with the places where it touches the machine as parameters: tests give it fake
// libraries and a made-up sysfs. Everyone else calls open_verbs_nics() in fabric.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "fabric/dmabuf.h"
#include "fabric/fabric.h"

namespace nvshmem_efa::verbs {

inline constexpr uint64_t kMemlockUnlimited = ~0ull;

struct Machine {
    std::string libibverbs = "libibverbs.so.1";
    std::string libefa = "libefa.so.1";
    std::string sysfs = "/sys";
    std::string dev = "/dev";
    DmabufExporter export_dmabuf = export_cuda_dmabuf;
    uint64_t memlock_bytes = 0;  // what this process may pin; 0 means: ask the system

    uint64_t memlock() const;  // kMemlockUnlimited also with CAP_IPC_LOCK
};

// open_verbs_nics() on this machine. `options.gpu_pci_id` empty means no GPU.
Status open_nics(const Machine& machine, const OpenOptions& options, std::vector<std::unique_ptr<Nic>>* nics);

}  // namespace nvshmem_efa::verbs
