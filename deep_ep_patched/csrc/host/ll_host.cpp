// SPDX-License-Identifier: Apache-2.0
// The low-latency calls of the C API: the protocol's steps in order, with CPU threads in place of warps.
#include "api.h"
#include "ep_ll_combine.cuh"
#include "ep_ll_dispatch.cuh"
#include "gpu_low_latency.h"
#include "ll_checks.h"
#include "ll_state.h"

namespace nvshmem_efa::ep {

namespace {

constexpr OneLane kLane;
constexpr OneTeam kTeam;

Status state_of(ep_group* group, LlState** state) {
    EFA_TRY(check_group(group));
    if (group->group->gpu() && group->group->low_latency()) return Status::error(Code::kInternal, nullptr, "the GPU has a way of its own");
    *state = static_cast<LlState*>(group->group->low_latency().get());
    if (!*state) return Status::error(Code::kInvalidArgument, "open it with low_latency_mode=True", "this group has no low-latency mode");
    return group->group->check_usable();
}

// Null with the CPU executor.
GpuLowLatency* on_gpu(const ep_group* group) {
    const bool is_gpus = group && group->group && group->group->gpu();
    return is_gpus ? static_cast<GpuLowLatency*>(group->group->low_latency().get()) : nullptr;
}

template <class Args>
LlShape shape_of(const Args& args, int n_ranks) {
    return {static_cast<uint32_t>(args.max_tokens), static_cast<uint32_t>(args.hidden), static_cast<uint32_t>(args.n_experts),
            static_cast<uint32_t>(n_ranks)};
}

// body(rank) for each rank, masked ones too; false ends it.
template <class Body>
bool for_ranks(const LlView& view, const Body& body) {
    for (uint32_t step = 0; step < view.shape.n_ranks; ++step)
        if (!body((view.rank + step) % view.shape.n_ranks)) return false;  // from the own on: no rank is everybody's first
    return true;
}

Status await_credits(LlState& state, LlPhase phase, uint64_t epoch) {
    const LlView& view = state.view();
    const bool is_good = for_ranks(view, [&](uint32_t rank) {
        return is_masked(view, rank) || ll_wait_for_credit(view, kLane, phase, epoch, rank) != LlEnd::kFailed;
    });
    return is_good && ll_settle(view, phase) ? Status() : state.fault();
}

void raise_flags(const LlView& view, LlPhase phase, uint64_t epoch) {
    for_ranks(view, [&](uint32_t rank) {
        if (!by_network(view, rank) && !is_masked(view, rank)) ll_raise_flag(view, kLane, phase, epoch, rank);
        return true;
    });
}

Status give_credits(LlState& state, LlPhase phase, uint64_t epoch) {
    const LlView& view = state.view();
    for_ranks(view, [&](uint32_t rank) { return is_masked(view, rank) || ll_give_credit(view, kLane, phase, epoch, rank); });
    return state.fault();
}

// body(i) for i < n, by all workers of the group. Each takes its turn at the rails and queues.
template <class Body>
void split(Group& group, int64_t n, const Body& body) {
    group.workers().split(n, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) {
            device::cpu_poster = static_cast<uint32_t>(i);
            body(static_cast<uint32_t>(i));
        }
    });
}

Status dispatch_send(Group& group, LlState& state, const ep_ll_dispatch_args& args) {
    uint64_t epoch = 0;
    EFA_TRY(state.begin_send(LlPhase::kDispatch, &epoch));
    EFA_TRY(await_credits(state, LlPhase::kDispatch, epoch));
    const LlView& view = state.view();
    for (uint32_t part = 0; part < mark_parts(args); ++part) dispatch_mark(view, kLane, args, epoch, part);
    for_ranks(view, [&](uint32_t rank) { return dispatch_send_record(view, kTeam, args, epoch, rank); });
    EFA_TRY(state.fault());
    split(group, args.n_tokens, [&](uint32_t token) { dispatch_send_token(view, kTeam, args, epoch, token); });
    dispatch_clear_marks(view, kLane, epoch);
    raise_flags(view, LlPhase::kDispatch, epoch);
    return state.fault();
}

Status dispatch_receive(Group& group, LlState& state, const ep_ll_dispatch_args& args) {
    uint64_t epoch = 0;
    EFA_TRY(state.begin_receive(LlPhase::kDispatch, &epoch));
    const LlView& view = state.view();
    ep_ll_dispatch_args mine = args;
    mine.wait_stats = state.begin_waits();
    for_ranks(view, [&](uint32_t rank) { return dispatch_wait(view, kTeam, mine, epoch, rank); });
    state.end_waits(args.wait_stats);
    EFA_TRY(state.fault());
    const uint32_t local = view.local;
    for (uint32_t expert = 0; expert < local; ++expert) dispatch_begin_rows(view, kLane, args, expert);
    split(group, int64_t{view.shape.max_tokens} * view.shape.n_ranks, [&](uint32_t i) {
        const uint32_t source = i / view.shape.max_tokens, ordinal = i % view.shape.max_tokens;
        if (ordinal >= view.counts[source * (1 + local)]) return;
        dispatch_unpack(view, kLane, args, epoch, {token_in(view, epoch, source, ordinal), 0, 0, 0, 0, 1}, source);
    });
    EFA_TRY(state.fault());
    return give_credits(state, LlPhase::kDispatch, epoch);
}

Status combine_send_all(Group& group, LlState& state, const ep_ll_combine_args& args) {
    uint64_t epoch = 0;
    EFA_TRY(state.begin_send(LlPhase::kCombine, &epoch));
    EFA_TRY(await_credits(state, LlPhase::kCombine, epoch));
    const LlView& view = state.view();
    const uint32_t local = view.local;
    split(group, int64_t{local} * view.shape.n_ranks, [&](uint32_t i) { combine_send(view, kLane, args, epoch, i % local, i / local); });
    raise_flags(view, LlPhase::kCombine, epoch);
    return state.fault();
}

Status combine_receive(Group& group, LlState& state, const ep_ll_combine_args& args) {
    uint64_t epoch = 0;
    EFA_TRY(state.begin_receive(LlPhase::kCombine, &epoch));
    const LlView& view = state.view();
    ep_ll_combine_args mine = args;
    mine.wait_stats = state.begin_waits();
    for_ranks(view, [&](uint32_t rank) { return combine_wait(view, kLane, mine, epoch, rank); });
    state.end_waits(args.wait_stats);
    EFA_TRY(state.fault());
    split(group, args.n_tokens, [&](uint32_t token) { combine_reduce(view, kLane, args, epoch, token); });
    if (!ll_settle(view, LlPhase::kCombine)) return state.fault();  // the credits say so, too
    return give_credits(state, LlPhase::kCombine, epoch);
}

}  // namespace

}  // namespace nvshmem_efa::ep

using namespace nvshmem_efa;
using namespace nvshmem_efa::ep;

int64_t ep_ll_bytes(int32_t max_tokens, int32_t hidden, int32_t n_ranks, int32_t n_experts) {
    if (report(check_sizes({max_tokens, hidden, n_experts, n_ranks}).with_context("ep_ll_bytes")) != 0) return -1;
    const LlShape shape{static_cast<uint32_t>(max_tokens), static_cast<uint32_t>(hidden), static_cast<uint32_t>(n_experts),
                        static_cast<uint32_t>(n_ranks)};
    return static_cast<int64_t>(ll_layout(shape).bytes);
}

int ep_ll_dispatch(ep_group* group, ep_ll_dispatch_args* args) {
    return guarded("ep_ll_dispatch", [&] {
        if (GpuLowLatency* gpu = on_gpu(group)) {
            EFA_TRY(check_args(args, "ep_ll_dispatch_args"));
            EFA_TRY(check_dispatch(*args, group->group->n_ranks(), false));
            return gpu->dispatch(*args);
        }
        LlState* state = nullptr;
        EFA_TRY(state_of(group, &state));
        EFA_TRY(check_args(args, "ep_ll_dispatch_args"));
        EFA_TRY(check_dispatch(*args, group->group->n_ranks()));
        EFA_TRY(state->use_shape(shape_of(*args, group->group->n_ranks()), false));
        if (args->phases & EP_SEND) EFA_TRY(dispatch_send(*group->group, *state, *args));
        if (args->phases & EP_RECV) EFA_TRY(dispatch_receive(*group->group, *state, *args));
        return Status();
    });
}

int ep_ll_combine(ep_group* group, ep_ll_combine_args* args) {
    return guarded("ep_ll_combine", [&] {
        if (GpuLowLatency* gpu = on_gpu(group)) {
            EFA_TRY(check_args(args, "ep_ll_combine_args"));
            EFA_TRY(check_combine(*args, group->group->n_ranks(), false));
            return gpu->combine(*args);
        }
        LlState* state = nullptr;
        EFA_TRY(state_of(group, &state));
        EFA_TRY(check_args(args, "ep_ll_combine_args"));
        EFA_TRY(check_combine(*args, group->group->n_ranks()));
        EFA_TRY(state->use_shape(shape_of(*args, group->group->n_ranks()), state->view().state || args->zero_copy));
        if (args->phases & EP_SEND) EFA_TRY(combine_send_all(*group->group, *state, *args));
        if (args->phases & EP_RECV) EFA_TRY(combine_receive(*group->group, *state, *args));
        return Status();
    });
}

int ep_ll_combine_buffer(ep_group* group, int32_t max_tokens, int32_t hidden, int32_t n_experts, void** base, int64_t* stride_expert,
                         int64_t* stride_row) {
    return guarded("ep_ll_combine_buffer", [&] {
        EFA_TRY(check_group(group));
        if (!base || !stride_expert || !stride_row)
            return Status::error(Code::kInvalidArgument, nullptr, "nowhere to put the address or the strides");
        const LlSizes sizes{max_tokens, hidden, n_experts, group->group->n_ranks()};
        EFA_TRY(check_sizes(sizes));
        const LlShape shape{static_cast<uint32_t>(max_tokens), static_cast<uint32_t>(hidden), static_cast<uint32_t>(n_experts),
                            static_cast<uint32_t>(sizes.n_ranks)};
        if (GpuLowLatency* gpu = on_gpu(group)) return gpu->combine_buffer(shape, base, stride_expert, stride_row);
        LlState* state = nullptr;
        EFA_TRY(state_of(group, &state));
        EFA_TRY(state->use_shape(shape, true));
        // The caller is about to write rows over those of two combines ago: no request may read from there any more.
        const LlView& view = state->view();
        if (!ll_settle(view, LlPhase::kCombine)) return state->fault();
        *base = row_out(view, state->next_send(LlPhase::kCombine), 0, 0);
        *stride_row = static_cast<int64_t>(view.at.row_bytes / 2);
        *stride_expert = *stride_row * static_cast<int64_t>(view.shape.rows_max());
        return Status();
    });
}

int ep_ll_clean(ep_group* group, int32_t max_tokens, int32_t hidden, int32_t n_experts) {
    return guarded("ep_ll_clean", [&] {
        EFA_TRY(check_group(group));
        const LlSizes sizes{max_tokens, hidden, n_experts, group->group->n_ranks()};
        EFA_TRY(check_sizes(sizes));
        const LlShape shape{static_cast<uint32_t>(max_tokens), static_cast<uint32_t>(hidden), static_cast<uint32_t>(n_experts),
                            static_cast<uint32_t>(sizes.n_ranks)};
        if (GpuLowLatency* gpu = on_gpu(group)) return gpu->clean(shape);
        LlState* state = nullptr;
        EFA_TRY(state_of(group, &state));
        return state->clean(shape);
    });
}

int ep_ll_mask(ep_group* group, int32_t rank, int32_t is_masked) {
    return guarded("ep_ll_mask", [&] {
        EFA_TRY(check_group(group));
        Group& of = *group->group;
        if (rank < 0 || rank >= of.n_ranks() || rank == of.rank())
            return Status::error(Code::kInvalidArgument, nullptr, "rank %d cannot be masked by rank %d of %d", rank, of.rank(),
                                 of.n_ranks());
        if (!of.options().enable_shrink)
            return Status::error(Code::kInvalidArgument, "open the group with enable_shrink=True", "this group masks nobody");
        if (GpuLowLatency* gpu = on_gpu(group)) return gpu->set_masked(rank, is_masked != 0);
        of.set_masked(rank, is_masked != 0);
        return Status();
    });
}

int ep_ll_masked(ep_group* group, int32_t* masks) {
    return guarded("ep_ll_masked", [&] {
        EFA_TRY(check_group(group));
        if (!masks) return Status::error(Code::kInvalidArgument, nullptr, "nowhere to put the masks");
        if (GpuLowLatency* gpu = on_gpu(group)) EFA_TRY(gpu->before_barrier());
        for (int rank = 0; rank < group->group->n_ranks(); ++rank) masks[rank] = group->group->is_masked(rank) ? 1 : 0;
        return Status();
    });
}

int ep_ll_unmask_all(ep_group* group) {
    return guarded("ep_ll_unmask_all", [&] {
        EFA_TRY(check_group(group));
        GpuLowLatency* const gpu = on_gpu(group);
        for (int rank = 0; rank < group->group->n_ranks(); ++rank) {
            if (gpu) EFA_TRY(gpu->set_masked(rank, false));
            else group->group->set_masked(rank, false);
        }
        return Status();
    });
}
