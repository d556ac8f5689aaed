# SPDX-License-Identifier: Apache-2.0
"""Cases at the limits of low-latency mode: ways of arrival, absent ranks, wrong arguments, the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import oracle
import torch
from low_latency_rig import (
    EXPERTS,
    HIDDEN,
    SHAPES,
    TOKENS,
    buffer_of,
    check_received,
    combine,
    combined,
    dispatch,
    expert_of,
    make,
    world_of,
)
from oracle import same
from rank_processes import Job
from settings_scope import environment, raises

import deep_ep


def case_each_way_of_arrival(job: Job) -> None:
    for arrivals in ("counters", "immediates", "lines"):
        # Lines need a device that places 128 bytes whole and once, which efa4 is.
        with environment(DEEP_EP_ARRIVALS=arrivals, NVSHMEM_EFA_SOFT_PROFILE="efa4" if arrivals == "lines" else "efa3"):
            buffer = make(job, "all by the network")
        assert buffer.runtime is not None
        for seed in range(3):
            world = world_of(job, 200 + seed)
            result = dispatch(buffer, world)
            check_received(job.rank, world, result, "fp8")
            same(combine(buffer, world, result), combined(world, job.rank, "fp8"), arrivals)
        assert arrivals in buffer.runtime.describe()
        assert buffer.runtime.stats_json().startswith("{")
        buffer.destroy()


def case_masked_ranks_are_left_out(job: Job) -> None:
    buffer = make(job, "one domain", enable_shrink=True)
    status = torch.full((job.size,), 7, dtype=torch.int32)
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0] * job.size
    if job.rank != 3:
        buffer.low_latency_update_mask_buffer(3, True)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 0, 0, 1]
        world = world_of(job, 210, [TOKENS])
        _, _, (_, ranges, *_), _, _ = dispatch(buffer, world, use_fp8=False)
        assert bool((ranges[:, 3] & 0xFFFFFFFF == 0).all())
        assert bool((ranges[:, :3] & 0xFFFFFFFF).sum() > 0)
        buffer.low_latency_update_mask_buffer(3)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0] * job.size
        buffer.low_latency_update_mask_buffer(3, mask=True)
        buffer.low_latency_clean_mask_buffer()
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0] * job.size
    buffer.destroy()
    plain = buffer_of(job, "one domain")
    with raises(RuntimeError, "low_latency_query_mask_buffer", "enable_shrink"):
        plain.low_latency_query_mask_buffer(status)


def case_a_rank_that_does_not_come_is_named(job: Job) -> None:
    with environment(DEEP_EP_TIMEOUT_S="0.5"):
        buffers = [make(job, shape) for shape in ("one domain", "all by the network")]
    world = world_of(job, 220, [TOKENS])
    for buffer in buffers:
        if job.rank != 2:
            begin = time.perf_counter()
            with raises(deep_ep.ExchangeError, "2", "hint:"):
                dispatch(buffer, world)
            assert time.perf_counter() - begin < 10
        buffer.runtime.abandon()  # type: ignore[union-attr]
        buffer._end.detach()


def case_normal_and_low_latency_calls_of_one_buffer(job: Job) -> None:
    buffer = buffer_of(job, "one domain")
    world = world_of(job, 230, [TOKENS, 2])
    batch = world.batches[job.rank]
    layout = buffer.get_dispatch_layout(batch.topk_idx, EXPERTS)
    for _ in range(2):
        data, _, weights, _, handle, _ = buffer.dispatch(
            batch.x, None, *layout[:2], layout[3], layout[2], batch.topk_idx, batch.topk_weights
        )
        out, _, _ = buffer.combine(oracle.processed(data, job.rank), handle, weights)
        same(out, oracle.combined(world, job.rank), "combined_x")
        buffer.clean_low_latency_buffer(TOKENS, HIDDEN, EXPERTS)
        result = dispatch(buffer, world)
        check_received(job.rank, world, result, "fp8")
        same(combine(buffer, world, result), combined(world, job.rank, "fp8"), "after a normal call")


def case_normal_mode_of_several_domains_is_refused_by_name(job: Job) -> None:
    buffer = buffer_of(job, "two domains of two")
    world = world_of(job, 240)
    batch = world.batches[job.rank]
    per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(batch.topk_idx, EXPERTS)
    same(per_node, in_rank.view(-1, 2, 2).any(dim=2).sum(dim=0).to(torch.int32), "tokens for each node")
    with raises(NotImplementedError, "dispatch", "internode", "DEEP_EP_NVLINK_RANKS"):
        buffer.dispatch(batch.x, None, per_rank, per_node, in_rank, per_expert)
    with raises(NotImplementedError, "internode_combine"):
        buffer.internode_combine(batch.x, None)


def case_the_raw_buffer_can_be_looked_at(job: Job) -> None:
    buffer = buffer_of(job, "one domain")
    whole = buffer.get_local_buffer_tensor(torch.int8, use_rdma_buffer=True)
    assert whole.numel() >= buffer.num_rdma_bytes
    part = buffer.get_local_buffer_tensor(torch.bfloat16, (4, 64), offset=256, use_rdma_buffer=True)
    assert part.shape == (4, 64)
    assert part.data_ptr() == whole.data_ptr() + 256
    for arguments, kind, words in (
        ((torch.int32, (1 << 40,)), ValueError, "size"), ((torch.int32, None, 2), ValueError, "offset is 2"),
        ((torch.int8, None, -1), ValueError, "offset is -1"), (("int8",), TypeError, "dtype is a str"),
    ):  # fmt: skip
        with raises(kind, words):
            buffer.get_local_buffer_tensor(*arguments, use_rdma_buffer=True)


def case_each_wrong_argument_is_named(job: Job) -> None:
    buffer = buffer_of(job, "one domain")
    world = world_of(job, 250, [TOKENS])
    batch = world.batches[job.rank]
    x, idx, weights = batch.x, batch.topk_idx, batch.topk_weights
    result = dispatch(buffer, world, use_fp8=False)
    handle = result[2]
    y = expert_of(job.rank, world, result[0])
    send, give = buffer.low_latency_dispatch, buffer.low_latency_combine
    two = torch.zeros(2, dtype=torch.int32)
    wrong: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
        (lambda: send(x.float(), idx, 8, 8), TypeError, ("x is torch.float32", "torch.bfloat16")),
        (lambda: send([x], idx, 8, 8), TypeError, ("x is a list",)),  # type: ignore[arg-type]
        (lambda: send(x[:, ::2], idx, 8, 8), ValueError, ("x has strides", "contiguous")),
        (lambda: send(x[:, :1024].contiguous(), idx, 8, 8), ValueError, ("hidden (H) is 1024", "2048")),
        (lambda: send(x, idx.int(), 8, 8), TypeError, ("topk_idx is torch.int32", "torch.int64")),
        (lambda: send(x, idx[:3], 8, 8), ValueError, ("topk_idx has shape [3, 3]", "[8, K]")),
        (lambda: send(x, idx.repeat(1, 4), 8, 8), ValueError, ("K of topk_idx is 12", "at most 11")),
        (lambda: send(x, idx, 4, 8), ValueError, ("T, the rows of x is 8", "at most 4")),
        (lambda: send(x, idx, 8, 7), ValueError, ("num_experts is 7", "number of ranks (4)")),
        (lambda: send(x, idx, 4096, 8), ValueError, ("num_rdma_bytes", "hint: Buffer.get_low_latency_rdma_size_hint")),
        (lambda: send(x, idx, 8, 8, two.long()), TypeError, ("cumulative_local_expert_recv_stats is torch.int64",)),
        (lambda: send(x, idx, 8, 8, None, two.long()), ValueError, ("dispatch_wait_recv_cost_stats", "[2]", "[4]")),
        (lambda: send(x, idx, 8, 8, use_ue8m0=True), ValueError, ("use_ue8m0", "round_scale")),
        (lambda: send(x, idx, 8, 8, use_fp8=1), TypeError, ("use_fp8 is a int",)),  # type: ignore[arg-type]
        (lambda: send(x, idx, 8, 8, async_finish=True, return_recv_hook=True), ValueError,
         ("async_finish", "return_recv_hook")),
        (lambda: send(x, idx * 0 + 8, 8, 8), deep_ep.ExchangeError, ("topk_idx[0][0] is 8", "8 experts")),
        (lambda: give(y.float(), idx, weights, handle), TypeError, ("x is torch.float32",)),
        (lambda: give(y[:, :4], idx, weights, handle), ValueError, ("x has shape [2, 4, 2048]", "[2, 32, 2048]")),
        (lambda: give(y, idx, weights.double(), handle), TypeError, ("topk_weights is torch.float64",)),
        (lambda: give(y, idx, weights[:2], handle), ValueError, ("topk_weights has shape [2, 3]",)),
        (lambda: give(y, idx, weights, handle[:4]), TypeError, ("handle is a tuple of 4", "low_latency_dispatch")),
        (lambda: give(y, idx, weights, (handle[0].clone(), *handle[1:])), ValueError, ("handle[0] is a copy",)),
        (lambda: give(y, idx, weights, handle, True, True), ValueError, ("use_logfmt", "zero_copy")),
        (lambda: give(y, idx, weights, handle, out=x.float()), TypeError, ("out is torch.float32",)),
        (lambda: give(y, idx, weights, handle, out=x[:2]), ValueError, ("out has shape [2, 2048]",)),
        (lambda: give(y, idx, weights, handle, combine_wait_recv_cost_stats=two), TypeError,
         ("combine_wait_recv_cost_stats",)),
        (lambda: buffer.clean_low_latency_buffer(0, HIDDEN, 8), ValueError, ("num_max_dispatch_tokens_per_rank is 0",)),
        (lambda: buffer.low_latency_update_mask_buffer(4), RuntimeError, ("enable_shrink",)),
    ]  # fmt: skip
    for call, kind, words in wrong:
        with raises(kind, *words):
            call()
    same(combine(buffer, world, result), combined(world, job.rank, "bf16"), "after all the errors")


def case_end_with_a_view_still_alive(job: Job) -> None:
    buffer = make(job, "two domains of two")
    world = world_of(job, 260)
    result = dispatch(buffer, world, use_fp8=False)
    view = buffer.get_next_low_latency_combine_buffer(result[2])
    view[:] = 3
    buffer.destroy()
    assert bool((view == 3).all())
    with raises(RuntimeError, "destroyed"):
        dispatch(buffer, world)
    buffer.destroy()
    for shape in SHAPES:
        kept = job.kept.pop(shape, None)
        if kept is not None:
            kept.destroy()
