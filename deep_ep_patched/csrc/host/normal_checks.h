// SPDX-License-Identifier: Apache-2.0
// What the normal mode's calls take: arguments that cannot work are refused by name, before anything is sent, so that
// nothing of a caller's (a handle of another exchange, say) can lead a write outside a peer's block.
#pragma once

#include <vector>

#include "ep_api.h"
#include "group.h"

namespace nvshmem_efa::ep {

Status check_layout_sizes(const ep_layout_args& args);  // of arrays that lie on a GPU
Status check_layout(const ep_layout_args& args);
Status check_normal_group(Group& group);  // one NVLink domain of 2 to 8 ranks
Status check_notify(const ep_notify_args& args, const Group& group);
Status check_dispatch_sizes(const ep_dispatch_args& args);
Status check_dispatch(const ep_dispatch_args& args, const Group& group);
Status check_combine(const ep_combine_args& args, const Group& group);

// Counts of no rank are negative, and this rank's are those of `is_token_in_rank` and, where given, `send_head`.
struct SentTokens {
    const int32_t* rank_prefix_matrix;
    const uint8_t* is_token_in_rank;
    const int32_t* send_head;
    int32_t n_tokens, n_recv;
};
Status check_matrix(const SentTokens& sent, const Group& group);

// kMismatch, naming both, unless a rank gave the same value as this one.
Status check_same(const char* what, int64_t own, int own_rank, int64_t theirs, int rank);

}  // namespace nvshmem_efa::ep
