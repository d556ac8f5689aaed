// SPDX-License-Identifier: Apache-2.0
// Completion queues and SRD queue pairs as libefa makes them, and the addresses of their rings.
#pragma once

#include "fabric/dmabuf.h"
#include "fabric/fabric.h"
#include "fabric/verbs_device.h"

namespace nvshmem_efa::verbs {

struct MadeCq {
    IbvCq* cq = nullptr;
    EfaCqAttr attr = {};
};

struct MadeQp {
    IbvQp* qp = nullptr;
    EfaWqAttr sq = {};
    EfaWqAttr rq = {};
};

// `external` is null, or the dma-buf that holds attr.memory. On failure nothing is left.
Status make_cq(const OpenDevice& device, const CqAttr& attr, const Dmabuf* external, MadeCq* made);
// In state RESET. On failure nothing is left.
Status make_qp(const OpenDevice& device, const QpAttr& attr, IbvCq* send_cq, IbvCq* recv_cq, MadeQp* made);

Status reset_qp(const OpenDevice& device, IbvQp* qp);
Status ready_qp(const OpenDevice& device, IbvQp* qp, uint32_t qkey);  // RESET to RTS

uint32_t round_up_to_power_of_two(uint32_t value);    // 0 stays 0
uint32_t round_down_to_power_of_two(uint32_t value);  // 0 stays 0

}  // namespace nvshmem_efa::verbs
