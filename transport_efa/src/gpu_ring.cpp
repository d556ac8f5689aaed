// SPDX-License-Identifier: Apache-2.0
#include "gpu_ring.h"

#include "knobs.h"
#include "log.h"

namespace nvshmem_efa {
namespace {

// The device's own ring if every step towards it holds, else a relay, which is slower: the log says which step failed.
Status probe_direct_ring(Nic& nic, const GpuRingAttr& attr, std::unique_ptr<GpuRing>* ring) {
    Status status = make_direct_ring(nic, attr, ring);
    if (status.ok() && !(*ring)->view().completions_at_gpu) {
        status = Status::error(Code::kUnsupported, "they need p5en or newer, efa.ko 3.3 and rdma-core v65",
                               "%s has no completion counters, without which the host could not wait for what the GPU posts",
                               nic.info().name.c_str());
        ring->reset();
    }
    if (status.ok()) return status;
    EFA_LOG(kWarn, "gpu", "what the GPU posts on %s goes through a CPU thread (relay), as it cannot reach the device: %s",
            nic.info().name.c_str(), status.message());
    return make_relay_ring(nic, attr, ring);
}

}  // namespace

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
    if (knobs.mode == "soft") {
        return nic.info().caps.completion_counters ? make_soft_ring(nic, attr, ring) : make_relay_ring(nic, attr, ring);
    }
    // CPU threads gain nothing from the device's own ring that a relay, which works everywhere, would not give them.
    return attr.posters == MemoryKind::kCuda ? probe_direct_ring(nic, attr, ring) : make_relay_ring(nic, attr, ring);
}

}  // namespace nvshmem_efa
