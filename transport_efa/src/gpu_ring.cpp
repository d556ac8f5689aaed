// SPDX-License-Identifier: Apache-2.0
#include "gpu_ring.h"

#include "knobs.h"

namespace nvshmem_efa {

Status make_gpu_ring(const Knobs& knobs, Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    if (knobs.mode == "soft") return make_soft_ring(nic, attr, ring);
    return Status::error(Code::kConfig, "set NVSHMEM_EFA_MODE=soft, or NVSHMEM_EFA_GPU_QUEUES=0",
                         "NVSHMEM_EFA_GPU_QUEUES asks for queues that the GPU posts to, and mode %s has none",
                         knobs.mode.c_str());
}

}  // namespace nvshmem_efa
