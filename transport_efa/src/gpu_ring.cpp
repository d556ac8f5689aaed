// SPDX-License-Identifier: Apache-2.0
#include "gpu_ring.h"

#include "knobs.h"

namespace nvshmem_efa {

Status make_gpu_ring(const Knobs& knobs, Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    const bool is_pinned = knobs.mode == "relay" || knobs.mode == "direct";
    const bool is_chosen = knobs.gpu_ring != "auto";
    if (is_pinned && is_chosen && knobs.gpu_ring != knobs.mode) {
        return Status::error(Code::kConfig, "set one of them", "NVSHMEM_EFA_MODE=%s and NVSHMEM_EFA_GPU_RING=%s contradict",
                             knobs.mode.c_str(), knobs.gpu_ring.c_str());
    }
    const std::string why = is_pinned ? "NVSHMEM_EFA_MODE=" + knobs.mode : "NVSHMEM_EFA_GPU_RING=" + knobs.gpu_ring;
    const std::string kind = is_pinned ? knobs.mode : knobs.gpu_ring;
    if (kind == "direct") return make_direct_ring(nic, attr, ring).with_context(why);
    if (kind == "relay") return make_relay_ring(nic, attr, ring).with_context(why);
    // Direct is taken by name alone: no GPU has written to an EFA device's memory through this code yet.
    const bool is_soft = knobs.mode == "soft" && nic.info().caps.completion_counters;
    return is_soft ? make_soft_ring(nic, attr, ring) : make_relay_ring(nic, attr, ring);
}

}  // namespace nvshmem_efa
