/* SPDX-License-Identifier: Apache-2.0
 * C API of libnvshmem_efa_ep.so: the expert-parallel exchange on host memory. The Python package deep_ep calls it by ctypes
 * with raw pointers; nothing in it knows of torch. The argument structs are those of the kernels too.
 *
 * Every function returns 0 or an error code; ep_last_error() of the same thread then has the text. Each struct starts with
 * its size, which is checked. A group's calls are collective where said: all ranks make the same ones in the same order, one
 * thread a rank. Sizes: T tokens of this rank, H values a token, K choices a token, E experts of all ranks, R ranks,
 * El = E / R experts of this rank, M tokens at most in low-latency mode, n tokens received. */
#ifndef NVSHMEM_EFA_EP_API_H
#define NVSHMEM_EFA_EP_API_H

#if defined(__CUDACC_RTC__) /* has no such header */
#include "nvshmem_efa/rtc_types.h"
using int64_t = long long;
#else
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__CUDACC_RTC__)
#define EP_API __device__ /* kernels take the structs alone; NVRTC has no host functions */
#else
#define EP_API __attribute__((visibility("default")))
#endif

typedef struct ep_group ep_group; /* one rank's side of a Buffer */

/* Collective among all ranks, as a process group offers it; nonzero: failed. */
typedef int (*ep_allgather)(void* context, const void* send, void* recv, int64_t bytes_per_rank);

enum ep_arrivals { EP_ARRIVALS_AUTO = 0, EP_ARRIVALS_COUNTERS = 1, EP_ARRIVALS_IMMEDIATES = 2, EP_ARRIVALS_LINES = 3 };

/* GPU: buffers are in the memory of the GPU that is current in ep_open(), pointers are the GPU's where nothing else is said, and
 * kernels do the work: calls return when those are in the stream, and what fails in one is an error of a later call. Ranks
 * are processes, or threads of one process on one GPU, each with streams of its own. */
enum ep_executor { EP_EXECUTOR_CPU = 0, EP_EXECUTOR_GPU = 1 };

typedef struct ep_options {
    uint32_t bytes; /* sizeof(ep_options) */
    int32_t rank, n_ranks;
    int32_t nvlink_ranks;    /* ranks [k * nvlink_ranks, +nvlink_ranks) reach each other's memory; divides n_ranks */
    int32_t low_latency;     /* 1: the network is brought up, even when nobody needs it */
    int32_t nvlink_for_ll;   /* 0: in low-latency mode all bytes between ranks go through the network; -1: a rank's own, too */
    int32_t arrivals;        /* enum ep_arrivals: how a rank learns what has arrived through the network */
    int32_t workers;         /* threads of this rank that do the copying, 1..16; 1: the caller alone */
    int64_t nvl_bytes;       /* first slab of the shared arena; it grows by demand */
    int64_t rdma_bytes;      /* symmetric buffer of the low-latency mode */
    int64_t timeout_ms;      /* of every wait; the error names the rank that was waited for */
    int32_t enable_shrink;   /* 1: a rank that is late is masked instead */
    int32_t executor;        /* enum ep_executor */
} ep_options;

EP_API const char* ep_last_error(int* code); /* "" and 0 when there was none; the text is the thread's until its next call */
/* Collective. Settings of the network are the NVSHMEM_EFA_* ones of the environment. */
EP_API int ep_open(const ep_options* options, ep_allgather allgather, void* context, ep_group** group);
EP_API int ep_close(ep_group* group);   /* collective; the group is gone whatever it returns */
EP_API void ep_abandon(ep_group* group); /* not collective: gives all back without waiting for anybody */
EP_API int ep_barrier(ep_group* group);  /* collective; through shared memory or network, honours masks */
/* For the GPU executor. A cubin of csrc/kernels, copied; each kernel before the first call that needs it. */
EP_API int ep_load_kernels(ep_group* group, const void* image, int64_t bytes);
EP_API int ep_use_stream(ep_group* group, void* stream); /* CUstream of the calls from now on */
EP_API int ep_wait(ep_group* group); /* what is in that stream has ended, and its failure is told */
EP_API int ep_buffer(ep_group* group, int32_t is_rdma, void** base, int64_t* bytes);
EP_API const char* ep_describe(ep_group* group);   /* "4 ranks, 2 of NVLink each; 2 rails (soft0, soft1), arrivals by counters" */
EP_API const char* ep_stats_json(ep_group* group); /* work requests, bytes, doorbells, waits in ns, since ep_open() */

/* Blocks of the shared arena: results that peers write straight into. Any thread. NULL: out of memory. The new slab of a
 * growing arena is made known to peers by the next collective call. 128-byte aligned. */
EP_API void* ep_place(ep_group* group, int64_t bytes);
EP_API void ep_unplace(ep_group* group, void* block);

/* ---- normal mode, one NVLink domain (nvlink_ranks == n_ranks, 2..8) ---- */

/* No group: pure. topk_idx int64 [T,K], -1: none. Outputs int32 [R], int32 [E], bool [T,R]. */
typedef struct ep_layout_args {
    uint32_t bytes;
    int32_t n_tokens, n_topk, n_experts, n_ranks;
    const int64_t* topk_idx;
    int32_t* tokens_per_rank;
    int32_t* tokens_per_expert;
    uint8_t* is_token_in_rank;
} ep_layout_args;
EP_API int ep_layout(const ep_layout_args* args);
/* The same by a kernel: arrays are the GPU's, and the counts of ranks and experts are zero at first. Not collective. */
EP_API int ep_gpu_layout(ep_group* group, const ep_layout_args* args);

/* Collective. Who gets how much: from the layout, or (tokens_per_rank NULL) from a cached rank_prefix_matrix, which then is
 * only spread again. */
typedef struct ep_notify_args {
    uint32_t bytes;
    int32_t n_tokens, n_experts, n_channels, expert_alignment;
    const int32_t* tokens_per_rank;    /* [R] */
    const int32_t* tokens_per_expert;  /* [E] */
    const uint8_t* is_token_in_rank;   /* [T,R] */
    int32_t* rank_prefix_matrix;       /* out [R,R]: [i][j] tokens sent to j by ranks 0..i; the CPU's memory on a GPU, too */
    int32_t* channel_prefix_matrix;    /* out [R,C]: my tokens for rank r in channels 0..c; channel c is a range of ceil(T/C) tokens */
    int32_t* send_head;                /* out [T,R]: ordinal of token t among those for r, or -1 */
    int32_t* recv_tokens_per_expert;   /* out [El], each rounded up to expert_alignment; the CPU's memory on a GPU, too */
    int32_t n_recv;                    /* out: n */
} ep_notify_args;
EP_API int ep_notify(ep_group* group, ep_notify_args* args); /* on a GPU it waits for the stream, unless cached */

/* Collective, after ep_notify() of the same exchange or with its results kept (cached). Rows of one source rank are
 * contiguous and ascending by token index; blocks are ordered by source rank. All recv_ pointers lie in one block from
 * ep_place() of ep_dispatch_place_bytes(), at the offsets that ep_dispatch_place() fills in. */
typedef struct ep_dispatch_args {
    uint32_t bytes;
    int32_t n_tokens, n_recv, row_bytes;     /* row_bytes: H * element size, a multiple of 16 */
    int32_t n_scales, scale_bytes;           /* 0: none; values a token, bytes a value (4) */
    int64_t scale_stride_token, scale_stride_value; /* in values */
    int32_t n_topk;                          /* 0: no topk */
    int32_t n_experts, n_channels, n_worst;  /* n_worst: rows of recv_; recv_topk_idx beyond n_recv becomes -1; 0: n_recv rows */
    int32_t n_ranks;
    const void* x;
    const void* scales;
    const int64_t* topk_idx;
    const float* topk_weights;
    const uint8_t* is_token_in_rank;
    const int32_t* send_head;
    const int32_t* rank_prefix_matrix;       /* on a GPU, too, the CPU's memory */
    const int32_t* channel_prefix_matrix;
    void* recv_block;                        /* from ep_place(), of at least what ep_dispatch_place() says */
    void* recv_x;                            /* these are set by ep_dispatch_place(): [n,row_bytes] */
    void* recv_scales;                       /* [n,n_scales], contiguous */
    int64_t* recv_topk_idx;                  /* [n,K]: local expert or -1 */
    float* recv_topk_weights;                /* [n,K]: 0 where the expert is not here */
    int32_t* recv_src_idx;                   /* [n]: token index at the source */
    int32_t* recv_channel_prefix_matrix;     /* [R,C]: start of channel c inside source block i */
    int32_t* rank_prefix_matrix_out;         /* GPU executor: a copy of the matrix goes there, [R,R] in GPU memory; or NULL */
} ep_dispatch_args;
EP_API int64_t ep_dispatch_place(ep_dispatch_args* args); /* bytes of the block; sets recv_* relative to recv_block (may be NULL) */
EP_API int ep_dispatch(ep_group* group, ep_dispatch_args* args);

/* Collective. x bf16 [n,H] back to its sources: combined[t] = fp32 sum over the ranks that got token t, in rank order, then
 * + bias_0 + bias_1, rounded once. Weights are summed the same way, a choice at a time. */
typedef struct ep_combine_args {
    uint32_t bytes;
    int32_t n_tokens, n_recv, hidden, n_topk; /* n_topk 0: no weights */
    int32_t n_sms;                            /* GPU executor: blocks of the kernel, 1 or more */
    const void* x;
    const float* topk_weights;                /* [n,K] */
    const void* bias_0;                       /* bf16 [T,H] or NULL */
    const void* bias_1;
    const uint8_t* is_token_in_rank;
    const int32_t* send_head;
    const int32_t* rank_prefix_matrix;       /* on a GPU, too, the CPU's memory */
    void* combined_x;                         /* bf16 [T,H] */
    float* combined_weights;                  /* [T,K] */
} ep_combine_args;
EP_API int ep_combine(ep_group* group, ep_combine_args* args);

/* ---- low latency, any group ---- */

enum ep_phase { EP_SEND = 1, EP_RECV = 2 };
enum ep_ll_format { EP_LL_BF16 = 0, EP_LL_FP8 = 1, EP_LL_FP8_ROUND = 2, EP_LL_FP8_UE8M0 = 3 };

/* Bytes that the symmetric buffer needs at least. Pure. */
EP_API int64_t ep_ll_bytes(int32_t max_tokens, int32_t hidden, int32_t n_ranks, int32_t n_experts);

/* Collective by phase: EP_SEND posts, EP_RECV waits and unpacks; both together: one blocking call. At most two dispatches
 * and two combines may be between send and receive; receives come in the order of the sends. */
typedef struct ep_ll_dispatch_args {
    uint32_t bytes;
    int32_t phases, format;
    int32_t n_tokens, hidden, n_topk, max_tokens, n_experts;
    const void* x;               /* bf16 [T,H] */
    const int64_t* topk_idx;     /* [T,K], -1: none */
    void* recv_x;                /* [El, R*M, H], bf16 or fp8 e4m3 */
    void* recv_scales;           /* fp8: float [El, H/128, R*M]; UE8M0: int32 [El, H/512, R*M] */
    int32_t* recv_src_info;      /* [2, El, R*M]: token index at the source; which of its choices this row is */
    int64_t* recv_layout_range;  /* [El, R]: begin << 32 | count */
    int32_t* recv_count;         /* [El] */
    int32_t* cumulative_stats;   /* [El] += count, or NULL */
    int64_t* wait_stats;         /* [R] += ns (CPU) or clocks (GPU) waited for each source, or NULL */
} ep_ll_dispatch_args;
EP_API int ep_ll_dispatch(ep_group* group, ep_ll_dispatch_args* args);

typedef struct ep_ll_combine_args {
    uint32_t bytes;
    int32_t phases;
    int32_t n_tokens, hidden, n_topk, max_tokens, n_experts;
    int32_t zero_copy;                 /* 1: rows lie in the block of ep_ll_combine_buffer() */
    const void* x;                     /* bf16 [El, R*M, H], contiguous */
    const int64_t* topk_idx;           /* [T,K] as given to the dispatch */
    const float* topk_weights;         /* [T,K] */
    const int32_t* recv_src_info;      /* both planes, of the dispatch */
    const int64_t* recv_layout_range;
    void* combined_x;                  /* bf16 [T,H]: sum over k, in order, of weight * row in fp32, rounded once; -1 skipped */
    int64_t* wait_stats;
} ep_ll_combine_args;
EP_API int ep_ll_combine(ep_group* group, ep_ll_combine_args* args);

/* Where zero-copy rows of the next combine go: bf16 [El, R*M, H]; strides in elements. */
EP_API int ep_ll_combine_buffer(ep_group* group, int32_t max_tokens, int32_t hidden, int32_t n_experts, void** base,
                                int64_t* stride_expert, int64_t* stride_row);
EP_API int ep_ll_clean(ep_group* group, int32_t max_tokens, int32_t hidden, int32_t n_experts); /* collective */
EP_API int ep_ll_mask(ep_group* group, int32_t rank, int32_t is_masked);
EP_API int ep_ll_masked(ep_group* group, int32_t* masks); /* int32 [R] */
EP_API int ep_ll_unmask_all(ep_group* group);

#ifdef __cplusplus
}
#endif

#endif
