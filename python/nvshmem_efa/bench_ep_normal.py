# SPDX-License-Identifier: Apache-2.0
"""The normal-mode part of `nvshmem-efa bench ep`: dispatch and combine of whole batches in one NVLink domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import deep_ep
from nvshmem_efa.bench_ep_rank import RankJob, gigabytes_a_second

PART = "normal"
SMS = (24, 8)  # of a call
RANKS = range(2, 9)
SCALE_BLOCK = 128
BUFFER_BYTES = 2 << 30
CPU_TOKENS = 256  # at most, where threads copy


class Batch:
    """One rank's input, drawn from the seed on the CPU: every rank can draw every other's."""

    def __init__(self, job: RankJob, rank: int, tokens: int) -> None:
        plan = job.plan
        generator = torch.Generator().manual_seed(plan.seed * 8192 + rank)
        self.x = torch.randn((tokens, plan.hidden), generator=generator).to(torch.bfloat16)
        scores = torch.rand((tokens, plan.batch_experts), generator=generator)
        self.idx = scores.topk(min(plan.topk, plan.batch_experts), dim=1)[1]
        self.weights = torch.rand(self.idx.shape, generator=generator)
        self.fp8 = self.x.to(torch.float8_e4m3fn)
        self.scales = torch.rand((tokens, -(-plan.hidden // SCALE_BLOCK)), generator=generator)

    def goes_to(self, rank: int, experts_each: int) -> torch.Tensor:
        """bool [T]."""
        return (self.idx // experts_each == rank).any(dim=1)


@dataclass
class Case:
    """What is sent, on the device, and what must come of it."""

    job: RankJob
    buffer: deep_ep.Buffer
    tokens: int
    batches: list[Batch]

    @property
    def n_recv(self) -> int:
        experts_each = self.job.plan.batch_experts // self.job.plan.ranks
        return sum(int(batch.goes_to(self.job.rank, experts_each).sum()) for batch in self.batches)

    def data(self, kind: str) -> Any:  # noqa: ANN401
        """x of a dispatch."""
        own = self.batches[self.job.rank]
        if kind == "BF16":
            return own.x.to(self.job.device)
        return own.fp8.to(self.job.device), own.scales.to(self.job.device)

    def expected(self, kind: str) -> tuple[torch.Tensor, ...]:
        """What this rank receives."""
        experts_each = self.job.plan.batch_experts // self.job.plan.ranks
        chosen = [batch.goes_to(self.job.rank, experts_each) for batch in self.batches]

        def gathered(name: str) -> torch.Tensor:
            parts = [getattr(batch, name)[rows] for batch, rows in zip(self.batches, chosen, strict=True)]
            return torch.cat(parts).to(self.job.device)

        return (gathered("x"),) if kind == "BF16" else (gathered("fp8"), gathered("scales"))

    def bytes_of(self, kind: str) -> int:
        """As DeepEP's tests count: rows that a rank receives, its own among them."""
        hidden = self.job.plan.hidden
        return self.n_recv * (2 * hidden if kind == "BF16" else hidden + 4 * -(-hidden // SCALE_BLOCK))


def measure(job: RankJob) -> None:
    """All rows of this part, and a note where it cannot be had."""
    plan = job.plan
    if plan.ranks not in RANKS or plan.batch_experts % plan.ranks:
        job.notes.append(f"normal mode: needs 2 to 8 ranks that share {plan.batch_experts} experts, not {plan.ranks}")
        return
    tokens = plan.batch_tokens if job.on_gpu else min(plan.batch_tokens, CPU_TOKENS)
    buffer = deep_ep.Buffer(job.group, BUFFER_BYTES if job.on_gpu else 1 << 26, explicitly_destroy=True)
    job.describe[PART] = buffer.runtime.describe() if buffer.runtime else ""
    case = Case(job, buffer, tokens, [Batch(job, rank, tokens) for rank in range(plan.ranks)])
    for sms in SMS:
        if not _fits(job, sms):
            job.notes.append(f"normal mode, {sms} SMs: ranks that share a GPU do not all fit on it at once")
            continue
        _measure(case, sms)
    _ceiling(case)
    buffer.destroy()


def _fits(job: RankJob, sms: int) -> bool:
    """Kernels of all ranks wait for each other: those on one GPU must run at the same time."""
    if not job.on_gpu:
        return True
    a_gpu = -(-job.plan.ranks // torch.cuda.device_count())
    return a_gpu * sms <= torch.cuda.get_device_properties(job.device).multi_processor_count


def _measure(case: Case, sms: int) -> None:
    job, buffer = case.job, case.buffer
    n = 5 if job.plan.quick else 40 if job.on_gpu else 10
    config = deep_ep.Config(sms, 8, 256)
    own = case.batches[job.rank]
    idx, weights = own.idx.to(job.device), own.weights.to(job.device)
    names = ("num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank")
    layout = dict(zip(names, buffer.get_dispatch_layout(idx, job.plan.batch_experts), strict=False))
    in_rank = layout["is_token_in_rank"]

    def full(x: Any) -> Any:  # noqa: ANN401
        return buffer.dispatch(x, topk_idx=idx, topk_weights=weights, config=config, **layout)

    for kind in ("BF16", "FP8"):
        x = case.data(kind)
        rows, _, row_weights, _, handle, _ = full(x)
        _check(case, kind, rows, sms)
        # By a handle, as DeepEP's own figures are taken: counts are known, so that the host waits for no GPU.
        samples = _time(job, lambda x=x, handle=handle: buffer.dispatch(x, handle=handle, config=config), n)  # type: ignore[misc]
        _row(job, f"{sms} SMs", f"dispatch {kind}", samples["whole"], case.bytes_of(kind))
        _row(job, f"{sms} SMs", f"dispatch {kind}: host's time of the call", samples["host"])
        samples = _time(job, lambda x=x: full(x), n)  # type: ignore[misc]
        _row(job, f"{sms} SMs", f"dispatch {kind} with its counts", samples["whole"], case.bytes_of(kind))
        _check(case, kind, buffer.dispatch(x, handle=handle, config=config)[0], sms)
        if kind != "BF16":
            continue

        def combine(rows: Any = rows, handle: Any = handle, of: Any = row_weights) -> Any:  # noqa: ANN401
            return buffer.combine(rows, handle, topk_weights=of, config=config)

        samples = _time(job, combine, n)
        _row(job, f"{sms} SMs", "combine BF16", samples["whole"], case.bytes_of(kind))
        _row(job, f"{sms} SMs", "combine BF16: host's time of the call", samples["host"])
        out, out_weights, _ = combine()
        # Each rank hands back what it got: sums of equal values, exact in float32.
        times = in_rank.sum(dim=1, keepdim=True)
        job.same(out, (x.float() * times).to(torch.bfloat16), f"combine, {sms} SMs")
        job.same(out_weights, weights, f"weights of combine, {sms} SMs")


def _check(case: Case, kind: str, rows: Any, sms: int) -> None:  # noqa: ANN401
    found = rows if isinstance(rows, tuple) else (rows,)
    for part, (one, expected) in enumerate(zip(found, case.expected(kind), strict=True)):
        case.job.same(one, expected, f"dispatch {kind}, {sms} SMs, part {part}")


def _time(job: RankJob, call: Callable[[], object], n: int) -> dict[str, list[float]]:
    def whole(mark: Callable[[], None]) -> None:
        mark()
        call()
        mark()

    job.synchronize()
    dist.barrier(job.group)
    return job.rounds(whole, ("whole",), n)


def _ceiling(case: Case) -> None:
    """The same rows gathered inside one GPU's memory by all its processors: what memory allows, not NVLink."""
    job = case.job
    rows = torch.arange(case.n_recv, device=job.device) % case.tokens
    n = 5 if job.plan.quick else 20
    for kind in ("BF16", "FP8"):
        x = case.data(kind)
        words = (x[0] if isinstance(x, tuple) else x).view(torch.int64)
        values = _time(job, lambda of=words: torch.index_select(of, 0, rows), n)["whole"]  # type: ignore[misc]
        _row(job, "ceiling", f"as many rows within one memory, {kind}", values, case.bytes_of(kind))


def _row(job: RankJob, way: str, what: str, values: list[float], n_bytes: int = 0) -> None:
    more: dict[str, Any] = {}
    if n_bytes:
        more = {"gb_per_s": gigabytes_a_second(n_bytes, values), "bytes": n_bytes}
    job.row(f"normal, {way}", what, "us", values, part=PART, **more)
