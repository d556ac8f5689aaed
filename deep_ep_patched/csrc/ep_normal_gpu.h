// SPDX-License-Identifier: Apache-2.0
// Normal mode on GPUs: what the host and its kernels agree on. Hosts tell each other places and counts (Control); kernels
// move rows, and tell each other by flags in GPU memory when a place may be written and when its rows are there.
#pragma once

#include "ep_normal_combine.cuh"
#include "ep_normal_dispatch.cuh"
#include "ep_normal_layout.cuh"

namespace nvshmem_efa::ep {

inline constexpr uint32_t kNormalThreads = 512;  // of a block of each kernel
inline constexpr uint32_t kNormalWarps = kNormalThreads / 32;
inline constexpr uint32_t kReturnWarps = kNormalWarps / 2;  // of a combine's block: these return rows, the others add up
inline constexpr int32_t kReturnRowsMin = 4;     // rows of a piece, which one warp returns and one flag tells of
inline constexpr int32_t kReturnPieces = 4096;   // at most, of rows from one rank to another

// Rows of a piece: the same on all ranks, as they have the same matrix.
NVSHMEM_EFA_HD inline int32_t return_rows_of_piece(const PrefixMatrix& matrix) {
    int32_t most = 0;
    for (int from = 0; from < matrix.n_ranks; ++from)
        for (int to = 0; to < matrix.n_ranks; ++to) most = matrix.count(from, to) > most ? matrix.count(from, to) : most;
    const int32_t rows = (most + kReturnPieces - 1) / kReturnPieces;
    return rows > kReturnRowsMin ? rows : kReturnRowsMin;
}

// In each rank's GPU memory, zeroed when a group is opened, mapped by all ranks of the domain. Words hold the epoch of an
// exchange (Control), which only grows; rank s alone writes the words [s].
struct NormalFlags {
    uint64_t ready[kNormalRanksMax];  // what s told of in that exchange may be written: its stream has come to the kernel
    uint64_t done[kNormalRanksMax];   // the rows of s are all here
    uint64_t pieces[kNormalRanksMax][kReturnPieces];  // this piece of the rows that s returns is here
};

// Why a kernel gave up, or what it found. The host makes an error of it.
enum class NormalStop : uint32_t {
    kNone = 0,
    kReady,     // waited for a rank to come to this call
    kRows,      // waited for the rows of a rank
    kReturned,  // waited for a returned piece
    kPlace,     // send_head leads outside the rows of a rank
    kChoice,    // a choice is no expert
};
// Pinned host memory. `is_set` is stored last, with release at system scope; the host loads it with acquire.
struct NormalReport {
    uint32_t is_set;
    NormalStop stop;
    int32_t rank;
    int32_t token;
    int64_t wanted, seen;
};
// Pinned host memory: what normal_notify() found. `turn` is stored last, with release at system scope.
struct NormalCounts {
    uint64_t turn;
    int32_t counted[kNormalRanksMax];          // by is_token_in_rank
    int32_t tokens_per_rank[kNormalRanksMax];  // as the caller gave them
    int32_t tokens_per_expert[kNormalRanksMax * kLocalExpertsMax];
};
// GPU memory, zeroed when a group is opened. Kernels of a group run one after the other.
struct NormalWords {
    uint32_t come;     // blocks of the kernel that are through; 0 between kernels
    uint32_t is_told;  // 1: a stop is in the report
};

struct NormalCommon {
    NormalReport* report;  // as the GPU sees it; first, where tests look for it
    NormalWords* words;
    NormalFlags* flags[kNormalRanksMax];  // of each rank, as mapped here
    uint64_t epoch;                       // of the exchange that this kernel belongs to
    uint64_t timeout_ns;
    int32_t rank, n_ranks;
};

struct NormalLayoutLaunch {
    NormalCommon common;
    LayoutView view;  // the counts are zero at first
};
struct NormalNotifyLaunch {
    NormalCommon common;
    NormalCounts* counts;
    uint64_t turn;
    int32_t n_tokens, n_channels, n_experts, reserved;
    const uint8_t* is_token_in_rank;
    const int32_t* tokens_per_rank;
    const int32_t* tokens_per_expert;
    int32_t* send_head;
    int32_t* channel_prefix_matrix;
};
struct NormalDispatchLaunch {
    NormalCommon common;
    DispatchView view;
    int32_t n_to[kNormalRanksMax];  // rows that go to each rank
    int32_t matrix[kNormalRanksMax * kNormalRanksMax];
    int32_t* matrix_out;            // or null
    int64_t* own_topk_idx;          // of the own block, where rows beyond n_recv have no expert; or null
    int32_t n_tokens, n_recv, n_rows, reserved;
};
struct NormalCombineLaunch {
    NormalCommon common;
    ReturnView returns[kNormalRanksMax];  // to each rank but the own
    ReduceView reduce;
    int32_t n_to[kNormalRanksMax];  // rows that went to each rank
    int32_t n_tokens, rows_of_piece;
};

// The kernels' names as the module has them. tests/python/test_deep_ep_kernels.py looks for them in what NVRTC makes.
inline constexpr const char* kNormalLayoutSymbol = "_ZN11nvshmem_efa2ep13normal_layoutENS0_18NormalLayoutLaunchE";
inline constexpr const char* kNormalNotifySymbol = "_ZN11nvshmem_efa2ep13normal_notifyENS0_18NormalNotifyLaunchE";
inline constexpr const char* kNormalDispatchSymbol = "_ZN11nvshmem_efa2ep15normal_dispatchENS0_20NormalDispatchLaunchE";
inline constexpr const char* kNormalCombineSymbol = "_ZN11nvshmem_efa2ep14normal_combineENS0_19NormalCombineLaunchE";

// NVRTC and the C++ compiler lay structs out alike: each checks these.
static_assert(sizeof(NormalReport) == 32 && sizeof(NormalCommon) == 104 && sizeof(DispatchPeer) == 56);
static_assert(sizeof(NormalDispatchLaunch) % 8 == 0 && sizeof(NormalDispatchLaunch) < 4000 && sizeof(NormalCombineLaunch) < 4000);

}  // namespace nvshmem_efa::ep
