# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""What run_deep_ep.py runs beside its basic cases: CUDA graphs, many exchanges in a row, and ranks that stop."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

REPLAYS = 12
LATE_S = 3.0  # the deadline where a rank stops
# How arrivals are told, and the soft device that can tell them so: lines want one that places a payload once.
ARRIVALS = {
    "counters": {"NVSHMEM_EFA_SOFT_PROFILE": "efa3", "NVSHMEM_EFA_SOFT_DUPLICATE_PPM": "200000"},
    "immediates": {"NVSHMEM_EFA_SOFT_PROFILE": "efa3", "NVSHMEM_EFA_SOFT_DUPLICATE_PPM": "200000"},
    "lines": {"NVSHMEM_EFA_SOFT_PROFILE": "efa4", "NVSHMEM_EFA_SOFT_DUPLICATE_PPM": "0"},
}


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Settings are read when a Buffer is made."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Run:
    """One rank of the program: how it makes Buffers and worlds."""

    def __init__(self, rank: int, options: Any, group: Any, device: str, alone: Any) -> None:
        import low_latency_rig as rig

        self.rank, self.options, self.group, self.device, self.rig = rank, options, group, device, rig
        self._alone = alone
        self._seed = options.seed * 1000

    def buffer(self, by_stores: bool, **more: Any) -> Any:
        import deep_ep

        options = self.options
        size = deep_ep.Buffer.get_low_latency_rdma_size_hint(
            self.rig.TOKENS, options.hidden, options.ranks, options.experts
        )
        by_network_alone = "1" if options.ranks == 1 and not by_stores else "0"
        with environment({"DEEP_EP_SELF_BY_NETWORK": by_network_alone}):
            return deep_ep.Buffer(
                self.group, 0, size, low_latency_mode=True, explicitly_destroy=True,
                comm=self._alone if self.group is None else None, allow_nvlink_for_low_latency_mode=by_stores, **more,
            )  # fmt: skip

    def world(self) -> Any:
        """The next, the same on all ranks."""
        self._seed += 1
        options = self.options
        return self.rig.make_world(
            options.ranks, [self.rig.TOKENS], seed=self._seed, route="random",
            hidden=options.hidden, n_topk=min(3, options.experts), n_experts=options.experts,
        )  # fmt: skip

    def inputs(self, world: Any) -> tuple[torch.Tensor, ...]:
        batch = world.batches[self.rank]
        return tuple(part.to(self.device) for part in (batch.x, batch.topk_idx, batch.topk_weights))

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.current_stream().synchronize()

    def case(self, name: str, body: Callable[[], None]) -> int:
        """Runs it, and says how it went: 0 good, 1 wrong. A failed exchange ends the program."""
        started = time.monotonic()
        verdict = "good"
        try:
            body()
        except AssertionError as error:
            verdict = f"WRONG: {error}"
        print(f"rank {self.rank}  {name:52}  {(time.monotonic() - started) * 1000:8.1f} ms  {verdict}", flush=True)
        return int(verdict != "good")


def on_cpu(thing: Any) -> Any:
    """A copy of tensors and tuples of them; strides stay."""
    if isinstance(thing, torch.Tensor):
        return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="cpu").copy_(thing)
    return tuple(on_cpu(part) for part in thing) if isinstance(thing, tuple) else thing


# ---- CUDA graphs ----


def graph_replays(run: Run, by_stores: bool) -> None:
    """A graph with two dispatches (one by halves), experts and a combine: replayed with other inputs each time."""
    rig, options = run.rig, run.options
    buffer = run.buffer(by_stores)
    world = run.world()
    x, topk_idx, weights = run.inputs(world)
    local = options.experts // options.ranks
    factors = torch.tensor([1 + (run.rank * local + expert) / 4 for expert in range(local)], device=run.device)

    def exchange() -> tuple[Any, Any, torch.Tensor]:
        fp8 = buffer.low_latency_dispatch(x, topk_idx, rig.TOKENS, options.experts, return_recv_hook=True)
        fp8[4]()
        plain = buffer.low_latency_dispatch(x, topk_idx, rig.TOKENS, options.experts, use_fp8=False)
        y = (plain[0].float() * factors.view(-1, 1, 1)).to(torch.bfloat16)
        out, _, hook = buffer.low_latency_combine(y, topk_idx, weights, plain[2], return_recv_hook=True)
        hook()
        return fp8, plain, out

    exchange()  # tables are made by the first call, and memory by torch
    run.synchronize()
    if run.device == "cpu":
        buffer.destroy()
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fp8, plain, out = exchange()
    for replay in range(REPLAYS):
        world = run.world()
        for to, value in zip((x, topk_idx, weights), run.inputs(world), strict=True):
            to.copy_(value)
        graph.replay()
        run.synchronize()  # before a copy that would hold the driver: the graph's kernels may wait for soft devices
        rig.check_received(run.rank, world, on_cpu((*fp8[:3], None, None)), "fp8")
        rig.check_received(run.rank, world, on_cpu((*plain[:3], None, None)), "bf16")
        rig.same(on_cpu(out), rig.combined(world, run.rank, "bf16"), f"combine of replay {replay}")
    buffer.runtime.call("ep_wait")
    del graph
    buffer.destroy()


# ---- many in a row ----


def storm(run: Run, by_stores: bool, rounds: int) -> None:
    """Two dispatches, then two combines under way at a time, ranks late by chance, all of it checked."""
    rig, options = run.rig, run.options
    buffer = run.buffer(by_stores)
    chance = random.Random(run.options.seed * 7 + run.rank)

    def be_late() -> None:
        if chance.random() < 0.3:
            time.sleep(chance.random() * 0.004)
        if run.device != "cpu" and chance.random() < 0.3:
            torch.cuda._sleep(int(chance.random() * 2e6))

    names = list(rig.FORMATS)
    for number in range(rounds):
        worlds = [run.world(), run.world()]
        inputs = [run.inputs(world) for world in worlds]
        kinds = [names[number % len(names)], names[(number + 1) % len(names)]]
        sent = []
        for (x, topk_idx, _), kind in zip(inputs, kinds, strict=True):
            be_late()
            sent.append(buffer.low_latency_dispatch(
                x, topk_idx, rig.TOKENS, options.experts, return_recv_hook=True, **rig.FORMATS[kind]
            ))  # fmt: skip
        outs, hooks = [], []
        for result in sent:
            be_late()
            result[4]()
        for world, (_, topk_idx, weights), kind, result in zip(worlds, inputs, kinds, sent, strict=True):
            seen = on_cpu((*result[:3], None, None))
            rig.check_received(run.rank, world, seen, kind)
            y = rig.expert_of(run.rank, world, seen[0]).to(run.device)
            be_late()
            out, _, hook = buffer.low_latency_combine(y, topk_idx, weights, result[2], return_recv_hook=True)
            outs.append(out)
            hooks.append(hook)
        for world, kind, out, hook in zip(worlds, kinds, outs, hooks, strict=True):
            be_late()
            hook()
            rig.same(on_cpu(out), rig.combined(world, run.rank, kind), f"combine of round {number}, {kind}")
    buffer.destroy()


# ---- ranks that stop ----


def one_exchange(run: Run, buffer: Any, world: Any) -> tuple[Any, torch.Tensor]:
    x, topk_idx, weights = run.inputs(world)
    result = buffer.low_latency_dispatch(x, topk_idx, run.rig.TOKENS, run.options.experts, use_fp8=False)
    run.synchronize()
    y = run.rig.expert_of(run.rank, world, on_cpu(result[0])).to(run.device)
    out, _, _ = buffer.low_latency_combine(y, topk_idx, weights, result[2])
    run.synchronize()
    return result, on_cpu(out)


def a_rank_that_stops_is_masked(run: Run, by_stores: bool) -> None:
    """The last rank makes one exchange less. The others go on without it, and their sums leave its experts out."""
    import torch.distributed as dist

    rig, options = run.rig, run.options
    last = options.ranks - 1
    with environment({"DEEP_EP_TIMEOUT_S": str(LATE_S)}):
        buffer = run.buffer(by_stores, enable_shrink=True)
    world = run.world()
    _, out = one_exchange(run, buffer, world)
    rig.same(out, rig.combined(world, run.rank, "bf16"), "combine with all ranks")
    world = run.world()
    if run.rank != last:
        started = time.monotonic()
        result, out = one_exchange(run, buffer, world)
        took = time.monotonic() - started
        masks = torch.zeros(options.ranks, dtype=torch.int32, device=run.device)
        buffer.low_latency_query_mask_buffer(masks)
        assert masks.tolist() == [0] * last + [1], f"masked: {masks.tolist()}"
        assert took < 3 * LATE_S, f"took {took:.1f} s with a deadline of {LATE_S} s"
        ranges = on_cpu(result[2][1])
        assert not (ranges[:, last] & 0xFFFFFFFF).any(), "rows of the rank that stopped"
        without = [batch.topk_idx.clone() for batch in world.batches]
        for idx, batch in zip(without, world.batches, strict=True):
            idx[idx // world.n_local == last] = -1
            batch.topk_idx = idx
        rig.same(out, rig.combined(world, run.rank, "bf16"), "combine without the rank that stopped")
    dist.barrier(group=run.group)
    buffer.runtime.abandon()
    dist.barrier(group=run.group)


def a_rank_that_stops_is_named(run: Run, by_stores: bool) -> None:
    """Without enable_shrink: an error within the deadline that says who."""
    import torch.distributed as dist

    import deep_ep

    last = run.options.ranks - 1
    with environment({"DEEP_EP_TIMEOUT_S": str(LATE_S)}):
        buffer = run.buffer(by_stores)
    one_exchange(run, buffer, run.world())
    if run.rank != last:
        said, started = "", time.monotonic()
        x, topk_idx, _ = run.inputs(run.world())
        try:
            buffer.low_latency_dispatch(x, topk_idx, run.rig.TOKENS, run.options.experts)
            buffer.runtime.call("ep_wait")
        except deep_ep.ExchangeError as error:
            said = str(error)
        took = time.monotonic() - started
        wanted = f"rank {run.rank} waited {int(LATE_S * 1000)} ms for the counts of rank {last}"
        assert wanted in said, f"{said!r} does not say {wanted!r}"
        assert took < 3 * LATE_S, f"took {took:.1f} s"
        print(f"rank {run.rank}  {said}", flush=True)
    dist.barrier(group=run.group)
    buffer.runtime.abandon()
    dist.barrier(group=run.group)


def run_suite(run: Run, suite: str) -> int:
    """All cases of one of SUITES; the number of those that failed."""
    ways = [("by stores", True), ("by the network", False)]
    failed = 0
    if suite == "graph":
        for text, by_stores in ways:
            failed += run.case(f"graph of {REPLAYS} replays, {text}", lambda of=by_stores: graph_replays(run, of))
    elif suite == "storm":
        rounds = run.options.rounds
        failed += run.case(f"{rounds} rounds of two, by stores", lambda: storm(run, True, rounds))
        for name, settings in ARRIVALS.items():
            with environment({**settings, "DEEP_EP_ARRIVALS": name, "NVSHMEM_EFA_SOFT_REORDER_NS": "30000"}):
                failed += run.case(f"{rounds} rounds of two, {name}", lambda: storm(run, False, rounds))
    elif suite == "stop" and run.options.ranks > 1:
        for text, by_stores in ways:
            failed += run.case(
                f"a rank stops, {text}: masked", lambda of=by_stores: a_rank_that_stops_is_masked(run, of)
            )
            failed += run.case(f"a rank stops, {text}: named", lambda of=by_stores: a_rank_that_stops_is_named(run, of))
    return failed


SUITES = ("basic", "graph", "storm", "stop")
