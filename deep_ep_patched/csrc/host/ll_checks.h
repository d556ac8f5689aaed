// SPDX-License-Identifier: Apache-2.0
// What the low-latency calls take: every argument that cannot work is refused by name, before anything is sent.
#pragma once

#include "ep_api.h"
#include "status.h"

namespace nvshmem_efa::ep {

struct LlSizes {
    int32_t max_tokens, hidden, n_experts, n_ranks;
};

Status check_sizes(const LlSizes& sizes);
Status check_dispatch(const ep_ll_dispatch_args& args, int n_ranks);
Status check_combine(const ep_ll_combine_args& args, int n_ranks);  // also that the handle's rows are in range

}  // namespace nvshmem_efa::ep
