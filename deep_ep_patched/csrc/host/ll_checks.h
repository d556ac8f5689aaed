// SPDX-License-Identifier: Apache-2.0
// What the low-latency calls take: every argument that cannot work is refused by name, before anything is sent.
#pragma once

#include "ep_api.h"
#include "ep_ll_layout.h"
#include "nvshmem_efa/device_state.h"
#include "status.h"

namespace nvshmem_efa::ep {

struct LlSizes {
    int32_t max_tokens, hidden, n_experts, n_ranks;
};

Status check_sizes(const LlSizes& sizes);
// Where immediates tell what has arrived: whether all that can come before this rank looks fits into what tells it.
Status check_unread(const LlShape& shape, const DeviceState& state);
// `has_values`: arrays are looked into, too: that experts exist, and that the handle's rows are in range. False on a GPU.
Status check_dispatch(const ep_ll_dispatch_args& args, int n_ranks, bool has_values = true);
Status check_combine(const ep_ll_combine_args& args, int n_ranks, bool has_values = true);

}  // namespace nvshmem_efa::ep
