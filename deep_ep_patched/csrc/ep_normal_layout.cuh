// SPDX-License-Identifier: Apache-2.0
// From the choices of tokens to counts, and from counts to places in a row. Counters belong to the calling group.
#pragma once

#include "ep_normal.h"

namespace nvshmem_efa::ep {

struct LayoutView {
    int32_t n_tokens, n_topk, n_experts, n_ranks;
    const int64_t* topk_idx;
    int32_t* tokens_per_rank;
    int32_t* tokens_per_expert;
    uint8_t* is_token_in_rank;
};

// Adds a token to all counts: once to each rank that has one of its experts, and to each of these.
NVSHMEM_EFA_HD inline void layout_token(const LayoutView& view, int64_t token) {
    uint8_t* const is_in = view.is_token_in_rank + token * view.n_ranks;
    const int32_t n_local = view.n_experts / view.n_ranks;
    for (int r = 0; r < view.n_ranks; ++r) is_in[r] = 0;
    for (int k = 0; k < view.n_topk; ++k) {
        const int64_t expert = view.topk_idx[token * view.n_topk + k];
        if (expert < 0) continue;
        ++view.tokens_per_expert[expert];
        const int64_t rank = expert / n_local;
        if (is_in[rank]) continue;
        is_in[rank] = 1;
        ++view.tokens_per_rank[rank];
    }
}

// For one rank: the ordinals of the tokens that go there, and how many go there by the end of each channel.
// `send_head` and `is_token_in_rank` are columns: element t lies at [t * n_ranks].
NVSHMEM_EFA_HD inline int32_t number_tokens(const uint8_t* is_token_in_rank, int32_t n_tokens, int32_t n_ranks, int32_t n_channels,
                                            int32_t* send_head, int32_t* channel_prefix) {
    const int32_t per_channel = channel_tokens(n_tokens, n_channels);
    int32_t n = 0, token = 0;
    for (int32_t channel = 0; channel < n_channels; ++channel) {
        for (int32_t i = 0; i < per_channel && token < n_tokens; ++i, ++token) {
            const int64_t at = static_cast<int64_t>(token) * n_ranks;
            send_head[at] = is_token_in_rank[at] ? n++ : -1;
        }
        channel_prefix[channel] = n;
    }
    return n;
}

}  // namespace nvshmem_efa::ep
