# SPDX-License-Identifier: Apache-2.0
"""The low-latency part of `nvshmem-efa bench ep`: calls and halves by stores, and what they ask of a network."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from typing import Any

import torch

import deep_ep
from deep_ep.utils import per_token_cast_back, per_token_cast_to_fp8
from nvshmem_efa.bench_ep_rank import Alone, RankJob, gigabytes_a_second

PART = "low_latency"
FORMATS = {"FP8": True, "BF16": False}  # use_fp8
SETTLE_S = 0.05  # after which a device has told of all that was posted
IN_A_GRAPH = 10  # operations that one graph holds


class Batch:
    """One rank's input, drawn from the seed: every rank can draw every other's."""

    def __init__(self, job: RankJob, rank: int) -> None:
        plan = job.plan
        generator = torch.Generator().manual_seed(plan.seed * 4096 + rank)
        x = torch.randn((plan.tokens, plan.hidden), generator=generator).to(torch.bfloat16)
        idx = torch.rand((plan.tokens, plan.experts), generator=generator).argsort(dim=1)[:, : plan.topk].contiguous()
        weights = torch.rand((plan.tokens, plan.topk), generator=generator)
        self.x, self.idx, self.weights = x.to(job.device), idx.to(job.device), weights.to(job.device)
        # Cast on the CPU: torch divides on a GPU by multiplying with an inverse, which rounds twice.
        self._fp8 = tuple(part.to(job.device) for part in per_token_cast_to_fp8(x))

    def empty(self) -> Batch:
        """The same with no tokens."""
        none = copy.copy(self)
        none.x, none.idx, none.weights = self.x[:0], self.idx[:0], self.weights[:0]
        return none

    def sent(self, use_fp8: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Its tokens as they travel."""
        return (self._fp8[0], self._fp8[1]) if use_fp8 else (self.x, None)


class Exchange:
    """A Buffer of one way, and its calls on the rank's batch."""

    def __init__(self, job: RankJob, way: str) -> None:
        plan = job.plan
        self.job, self.way, self.batch = job, way, Batch(job, job.rank)
        by_stores = way == "stores"
        os.environ["DEEP_EP_SELF_BY_NETWORK"] = str(int(not by_stores and plan.ranks == 1))
        size = deep_ep.Buffer.get_low_latency_rdma_size_hint(plan.tokens, plan.hidden, plan.ranks, plan.experts)
        self.buffer = deep_ep.Buffer(
            job.group, 0, size, low_latency_mode=True, explicitly_destroy=True,
            comm=Alone() if job.group is None else None, allow_nvlink_for_low_latency_mode=by_stores,
        )  # fmt: skip
        job.describe[way] = self._runtime.describe()

    @property
    def _runtime(self) -> Any:  # noqa: ANN401
        return self.buffer.runtime

    def dispatch(self, use_fp8: bool, **more: Any) -> Any:  # noqa: ANN401
        plan = self.job.plan
        return self.buffer.low_latency_dispatch(
            self.batch.x, self.batch.idx, plan.tokens, plan.experts, use_fp8=use_fp8, **more
        )

    def combine(self, y: torch.Tensor, handle: Any, **more: Any) -> Any:  # noqa: ANN401
        return self.buffer.low_latency_combine(y, self.batch.idx, self.batch.weights, handle, **more)

    def requests(self) -> int:
        """Those of who posts for itself. Only what is complete is counted, so this waits for the count to stop."""
        self.job.synchronize()
        seen, last = 0, -1
        while seen != last:
            last = seen
            time.sleep(SETTLE_S)
            seen = int(json.loads(self._runtime.stats_json())["gpu_work_requests"])
        return seen

    # ---- correctness ----

    def check(self, use_fp8: bool) -> tuple[torch.Tensor, Any]:
        """A dispatch and a combine whose every row and sum are looked at; the rows in bf16, and the handle."""
        job, plan = self.job, self.job.plan
        name = f"{self.way}, {'FP8' if use_fp8 else 'BF16'}"
        data, count, handle, _, _ = self.dispatch(use_fp8)
        job.synchronize()
        x, scales = data if use_fp8 else (data, None)
        local = plan.experts // plan.ranks
        batches = [Batch(job, rank) for rank in range(plan.ranks)]
        sent = [batch.sent(use_fp8) for batch in batches]
        rows = torch.zeros((local, plan.ranks * plan.tokens, plan.hidden), dtype=torch.bfloat16, device=job.device)
        for expert in range(local):
            tokens = [(batch.idx == job.rank * local + expert).any(dim=1).nonzero().flatten() for batch in batches]
            n = sum(len(part) for part in tokens)
            if int(count[expert]) != n:
                job.same(count[expert : expert + 1], count.new_tensor([n]), f"{name}: count of expert {expert}")
                continue
            job.same(handle[0][expert, :n], torch.cat(tokens).to(torch.int32), f"{name}: sources of expert {expert}")
            expected = torch.cat([values[part] for (values, _), part in zip(sent, tokens, strict=True)])
            job.same(x[expert, :n], expected, f"{name}: rows of expert {expert}")
            if scales is None:
                rows[expert, :n] = x[expert, :n]
                continue
            factors = torch.cat([of[part] for (_, of), part in zip(sent, tokens, strict=True) if of is not None])
            job.same(scales[expert, :n], factors, f"{name}: scales of expert {expert}")
            rows[expert, :n] = per_token_cast_back(x[expert, :n], scales[expert, :n].contiguous())
        out, _, _ = self.combine(rows, handle)
        job.synchronize()
        values, of = sent[job.rank]
        token = per_token_cast_back(values, of) if of is not None else values
        total = torch.zeros(token.shape, dtype=torch.float32, device=job.device)
        for choice in range(plan.topk):
            total = total + self.batch.weights[:, choice : choice + 1] * token.float()
        job.same(out, total.to(torch.bfloat16), f"{name}: sums")
        return rows, handle


def measure(job: RankJob) -> None:
    """All rows of this part."""
    _by_stores(job)
    _by_network(job)


def _row(job: RankJob, way: str, what: str, unit: str, values: list[float], n_bytes: float = 0, **more: object) -> None:
    if n_bytes:
        more["gb_per_s"] = gigabytes_a_second(n_bytes, values)
        more["bytes"] = int(n_bytes)
    job.row(way, what, unit, values, part=PART, **more)


def _by_stores(job: RankJob) -> None:
    """Times: all ranks of the domain reach each other by stores, a single one itself."""
    plan = job.plan
    n = 10 if plan.quick else 200 if job.on_gpu else 20
    exchange = Exchange(job, "stores")
    rows_sent = plan.tokens * plan.topk
    for name, use_fp8 in FORMATS.items():
        rows, handle = exchange.check(use_fp8)
        row_bytes = plan.hidden + plan.hidden // 128 * 4 if use_fp8 else 2 * plan.hidden
        _time_dispatch(exchange, name, use_fp8, n, rows_sent * row_bytes)
    _time_combine(exchange, rows, handle, n, rows_sent * 2 * plan.hidden)
    if job.on_gpu:
        _time_graphs(exchange, rows, handle, n)
    exchange.check(True)
    _time_nothing(exchange, n)
    exchange.buffer.destroy()
    for name, row_bytes in (("FP8", plan.hidden + plan.hidden // 128 * 4), ("BF16", 2 * plan.hidden)):
        source = torch.ones(rows_sent * row_bytes, dtype=torch.uint8, device=job.device)
        target = torch.empty_like(source)

        def copy_all(mark: Callable[[], None], source: torch.Tensor = source, target: torch.Tensor = target) -> None:
            mark()
            target.copy_(source)
            mark()

        values = job.rounds(copy_all, ("copy",), n)["copy"]
        _row(job, "ceiling", f"copy of the same bytes, {name}", "us", values, source.numel())


def _time_dispatch(exchange: Exchange, name: str, use_fp8: bool, n: int, n_bytes: int) -> None:
    job = exchange.job

    def whole(mark: Callable[[], None]) -> None:
        mark()
        exchange.dispatch(use_fp8)
        mark()

    def halves(mark: Callable[[], None]) -> None:
        mark()
        hook = exchange.dispatch(use_fp8, return_recv_hook=True)[4]
        mark()
        hook()
        mark()

    samples = job.rounds(whole, ("whole",), n)
    _row(job, "stores", f"dispatch {name}", "us", samples["whole"], n_bytes)
    _row(job, "stores", f"dispatch {name}: host's time of the call", "us", samples["host"])
    samples = job.rounds(halves, ("send", "receive"), n)
    for half in ("send", "receive"):
        _row(job, "stores", f"dispatch {name}: {half} half", "us", samples[half])


def _time_combine(exchange: Exchange, rows: torch.Tensor, handle: Any, n: int, n_bytes: int) -> None:  # noqa: ANN401
    # The rows lie as the last dispatch that was checked left them; later dispatches of the same batch leave the same.
    job = exchange.job

    def whole(mark: Callable[[], None]) -> None:
        mark()
        exchange.combine(rows, handle)
        mark()

    def halves(mark: Callable[[], None]) -> None:
        mark()
        hook = exchange.combine(rows, handle, return_recv_hook=True)[2]
        mark()
        hook()
        mark()

    samples = job.rounds(whole, ("whole",), n)
    _row(job, "stores", "combine BF16", "us", samples["whole"], n_bytes)
    _row(job, "stores", "combine BF16: host's time of the call", "us", samples["host"])
    samples = job.rounds(halves, ("send", "receive"), n)
    for half in ("send", "receive"):
        _row(job, "stores", f"combine BF16: {half} half", "us", samples[half])


def _time_nothing(exchange: Exchange, n: int) -> None:
    """Calls with no tokens: launch, credits, gates and flags are left."""
    job, plan = exchange.job, exchange.job.plan
    batch, exchange.batch = exchange.batch, exchange.batch.empty()
    rows = torch.zeros(
        (plan.experts // plan.ranks, plan.ranks * plan.tokens, plan.hidden), dtype=torch.bfloat16, device=job.device
    )
    handle = exchange.dispatch(True)[2]
    calls: dict[str, Callable[[], object]] = {
        "dispatch FP8": lambda: exchange.dispatch(True),
        "combine BF16": lambda: exchange.combine(rows, handle),
    }
    for name, call in calls.items():

        def whole(mark: Callable[[], None], call: Callable[[], object] = call) -> None:
            mark()
            call()
            mark()

        _row(job, "stores", f"{name} of no tokens", "us", job.rounds(whole, ("whole",), n)["whole"])
    exchange.batch = batch


def _time_graphs(exchange: Exchange, rows: torch.Tensor, handle: Any, n: int) -> None:  # noqa: ANN401
    """The same kernels back to back: what is left when the host and the events cost nothing."""
    job = exchange.job
    calls: dict[str, Callable[[], object]] = {
        "dispatch FP8": lambda: exchange.dispatch(True),
        "dispatch BF16": lambda: exchange.dispatch(False),
        "combine BF16": lambda: exchange.combine(rows, handle),
    }
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(IN_A_GRAPH):
                call()

        def replay(mark: Callable[[], None], graph: torch.cuda.CUDAGraph = graph) -> None:
            mark()
            graph.replay()
            mark()

        values = job.rounds(replay, ("all",), max(5, n // 4))["all"]
        _row(job, "stores", f"{name}, {IN_A_GRAPH} in a graph: each", "us", [value / IN_A_GRAPH for value in values])


def _by_network(job: RankJob) -> None:
    """Counts: what a token costs a network that carries everything. Over software devices there is no speed to tell."""
    n = 2 if job.plan.quick else 5
    exchange = Exchange(job, "network")
    plan, idx = job.plan, exchange.batch.idx
    owners = idx // (plan.experts // plan.ranks)
    far = [rank for rank in range(plan.ranks) if rank != job.rank or plan.ranks == 1]
    tokens = sum(int((owners == rank).any(dim=1).sum()) for rank in far)
    choices = sum(int((owners == rank).sum()) for rank in far)
    words = len(far) * 8 * (2 + plan.experts // plan.ranks)  # a record and a credit for each rank
    for name, use_fp8 in FORMATS.items():
        rows, handle = exchange.check(use_fp8)
        message = 64 + (plan.hidden + plan.hidden // 128 * 4 if use_fp8 else 2 * plan.hidden)
        call = lambda use_fp8=use_fp8: exchange.dispatch(use_fp8)  # noqa: E731
        _count(exchange, f"dispatch {name}", n, call, tokens * message + words)
    _count(
        exchange, "combine BF16", n, lambda: exchange.combine(rows, handle), choices * 2 * plan.hidden + 8 * len(far)
    )
    if job.on_gpu:
        _outside_waiting(exchange, rows, handle, n)
    exchange.buffer.destroy()


def _count(exchange: Exchange, what: str, n: int, call: Callable[[], object], n_bytes: int) -> None:
    """Requests as the queues have counted them. Nobody counts bytes and doorbells of those who post for themselves."""
    job, tokens = exchange.job, max(1, exchange.job.plan.tokens)
    before = exchange.requests()
    for _ in range(n):
        call()
    requests = (exchange.requests() - before) / n / tokens
    _row(job, "network", f"{what}: work requests a token", "", [requests])
    _row(job, "network", f"{what}: bytes a token, by the layout of messages", "", [n_bytes / tokens])
    _row(job, "network", f"{what}: doorbells a token, at most (each request rings, or one behind it)", "", [requests])


def _outside_waiting(exchange: Exchange, rows: torch.Tensor, handle: Any, n: int) -> None:  # noqa: ANN401
    """Time in kernels less the longest wait for a source, by the profiler: calls wait for a software device."""
    job = exchange.job
    waits = torch.zeros(job.plan.ranks, dtype=torch.int64, device=job.device)
    calls: dict[str, Callable[[], Any]] = {
        "dispatch": lambda: exchange.dispatch(True, return_recv_hook=True, dispatch_wait_recv_cost_stats=waits)[4],
        "combine": lambda: exchange.combine(rows, handle, return_recv_hook=True, combine_wait_recv_cost_stats=waits)[2],
    }
    for name, call in calls.items():
        waited = []
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(n):
                    waits.zero_()
                    call()()
                    job.synchronize()
                    waited.append(float(waits.max()) / 1e3)
            spans = [event for event in profile.events() if f"ep::{name}(" in event.name]
        except RuntimeError as error:
            job.notes.append(f"{name} over the network: no profiler here ({error})")
            continue
        spans.sort(key=lambda event: event.time_range.start)
        took = [float(event.time_range.elapsed_us()) for event in spans]
        if len(took) != 2 * n:
            job.notes.append(f"{name} over the network: the profiler saw {len(took)} kernels of {2 * n}")
            continue
        _row(job, "network", f"{name}: send half's kernel (its waits for credits are in it)", "us", took[0::2])
        outside = [max(0.0, all_of_it - wait) for all_of_it, wait in zip(took[1::2], waited, strict=True)]
        _row(job, "network", f"{name}: receive half's kernel outside waiting for tokens or rows", "us", outside)
