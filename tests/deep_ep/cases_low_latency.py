# SPDX-License-Identifier: Apache-2.0
"""Cases of low-latency mode; each runs on all ranks. Expected values are met bit by bit."""

from __future__ import annotations

import itertools
import random
import time

import torch
from low_latency_rig import (
    FORMATS,
    SHAPES,
    TOKENS,
    buffer_of,
    check_received,
    combine,
    combined,
    dispatch,
    expert_of,
    make,
    rows_of,
    world_of,
)
from oracle import make_world, same
from rank_processes import Job
from settings_scope import raises

from deep_ep.utils import calc_diff, per_token_cast_back


def case_every_format_by_hooks_copies_and_repeats(job: Job) -> None:
    for seed, shape in enumerate(SHAPES):
        buffer = buffer_of(job, shape)
        for name, has_hook, is_zero_copy, times in itertools.product(FORMATS, (False, True), (False, True), (1, 2)):
            if times == 2 and shape != "two domains of two":
                continue
            world = world_of(job, seed * 10 + times)
            for _ in range(times):
                result = dispatch(buffer, world, return_recv_hook=has_hook, **FORMATS[name])
                if has_hook:
                    result[-1]()
            what = f"{shape}, {name}, hook {has_hook}, zero copy {is_zero_copy}"
            assert result[3].event is None
            check_received(job.rank, world, result, name)
            out = torch.empty_like(world.batches[job.rank].x)
            got = combine(buffer, world, result, is_zero_copy, out=out, return_recv_hook=has_hook)
            assert got is out
            same(got, combined(world, job.rank, name), what)


def case_asynchronous_calls_return_events(job: Job) -> None:
    buffer = buffer_of(job, "two domains of two")
    world = world_of(job, 30)
    result = dispatch(buffer, world, use_fp8=False, async_finish=True)
    result[3].current_stream_wait()
    check_received(job.rank, world, result)
    same(combine(buffer, world, result, async_finish=True), combined(world, job.rank, "bf16"), "combined_x")
    same(combine(buffer, world, result, use_logfmt=True), combined(world, job.rank, "bf16"), "by use_logfmt")


def case_two_calls_are_under_way_at_once(job: Job) -> None:
    for shape in SHAPES:
        buffer = buffer_of(job, shape)
        worlds = [world_of(job, 40), world_of(job, 41)]
        results = [dispatch(buffer, world, use_fp8=False, return_recv_hook=True) for world in worlds]
        for result in results:
            result[-1]()
        pending = []
        for world, result in zip(worlds, results, strict=True):
            check_received(job.rank, world, result)
            batch = world.batches[job.rank]
            y = expert_of(job.rank, world, result[0])
            pending.append(
                buffer.low_latency_combine(y, batch.topk_idx, batch.topk_weights, result[2], return_recv_hook=True)
            )
        for world, (out, _, hook) in zip(worlds, pending, strict=True):
            hook()
            same(out, combined(world, job.rank, "bf16"), shape)


def case_a_hook_is_called_once(job: Job) -> None:
    buffer = buffer_of(job, "one domain")
    world = world_of(job, 50)
    result = dispatch(buffer, world, use_fp8=False, return_recv_hook=True)
    result[-1]()
    with raises(RuntimeError, "hook", "low_latency_dispatch", "before"):
        result[-1]()
    same(combine(buffer, world, result), combined(world, job.rank, "bf16"), "combined_x")


def case_rows_that_are_constant_tell_their_source_and_token(job: Job) -> None:
    buffer = buffer_of(job, "two domains of two")
    world = world_of(job, 60, [TOKENS])
    for rank, batch in enumerate(world.batches):
        batch.x[:] = rank - 128
        batch.x[:, -128:] = torch.arange(TOKENS).view(-1, 1).to(torch.bfloat16)
    for name, options in FORMATS.items():
        data, count, (source_info, ranges, *_), _, _ = dispatch(buffer, world, **options)
        x = torch.stack([per_token_cast_back(*p) for p in zip(*data, strict=True)]) if isinstance(data, tuple) else data
        for expert in range(world.n_local):
            n = int(count[expert])
            rows = x[expert, :n]
            assert bool((rows[:, :1] == rows[:, :-128]).all()), name
            is_exact = "round_scale" not in options  # a power of two does not scale the largest value to 448
            assert calc_diff(rows[:, -1], source_info[expert, :n].view(-1)) < (1e-9 if is_exact else 0.007)
            for source in range(job.size):
                begin, size = int(ranges[expert, source]) >> 32, int(ranges[expert, source]) & 0xFFFFFFFF
                values = rows[begin : begin + size, 0].float()
                assert bool(((values - (source - 128)).abs() <= (0 if is_exact else 4)).all()), name


def case_shapes_at_edges(job: Job) -> None:
    for seed, (tokens, route, n_topk) in enumerate((
        ([0], "random", 3), ([TOKENS], "one", 2), ([TOKENS], "none", 3), ([TOKENS, 0, 0, 0], "last", 2),
        ([TOKENS], "random", 8), ([1, TOKENS], "random", 1),
    )):  # fmt: skip
        for shape in ("one domain", "two domains of two"):
            buffer = buffer_of(job, shape)
            world = world_of(job, 70 + seed, tokens, route, n_topk=n_topk)
            result = dispatch(buffer, world)
            check_received(job.rank, world, result, "fp8")
            same(combine(buffer, world, result), combined(world, job.rank, "fp8"), f"{shape}, {route}, top {n_topk}")


def case_other_sizes(job: Job) -> None:
    for hidden, experts, n_topk in ((7168, 4, 2), (2560, 44, 11)):
        buffer = make(job, "two domains of two", hidden, experts)
        world = make_world(job.size, [TOKENS, 3], hidden, n_topk, experts, 80)
        result = dispatch(buffer, world)
        check_received(job.rank, world, result, "fp8")
        same(combine(buffer, world, result), combined(world, job.rank, "fp8"), f"H={hidden}")
        buffer.destroy()


def case_statistics_are_added_to(job: Job) -> None:
    buffer = buffer_of(job, "two domains of two")
    world = world_of(job, 90)
    totals = torch.zeros(world.n_local, dtype=torch.int32)
    waits = torch.zeros(job.size, dtype=torch.int64)
    for times in (1, 2, 3):
        result = dispatch(buffer, world, cumulative_local_expert_recv_stats=totals, dispatch_wait_recv_cost_stats=waits)
        same(totals, result[1] * times, "cumulative counts")
        counts = torch.tensor(
            [
                sum(len(rows_of(world, job.rank * world.n_local + e, s)) for s in range(job.size))
                for e in range(world.n_local)
            ]
        )
        same(result[1], counts.to(torch.int32), "recv_count")
        before = waits.clone()
        combine(buffer, world, result, combine_wait_recv_cost_stats=waits)
        assert bool((waits >= before).all())
    assert int(waits.sum()) > 0


def case_fifty_calls_back_to_back_with_random_delays(job: Job) -> None:
    delays = random.Random(job.rank)
    buffer = buffer_of(job, "two domains of two")
    for seed in range(50):
        world = world_of(job, 100 + seed, [3, 1, 0, 4], n_topk=2)
        if delays.random() < 0.2:
            time.sleep(delays.random() * 0.003)
        result = dispatch(buffer, world, use_fp8=False, return_recv_hook=seed % 2 == 1)
        if result[-1]:
            result[-1]()
        same(combine(buffer, world, result), combined(world, job.rank, "bf16"), f"call {seed}")
