# SPDX-License-Identifier: Apache-2.0
"""One rank of `nvshmem-efa bench ep`, as a process: `python -m nvshmem_efa.bench_ep_rank RANK STORE RECORD_FD PLAN`.

It needs torch, so nothing else imports it. Parts are modules with measure(job), which adds rows.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nvshmem_efa.bench_ep import PART_MODULES, EpPlan
from nvshmem_efa.bench_result import summarize

AHEAD_CYCLES = 400_000  # of a GPU that waits while the host puts a round's work behind it


class Alone:
    """A group of one rank, with what a Buffer uses of mpi4py."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def allgather(self, sendobj: bytes) -> list[bytes]:
        return [sendobj]


class Marks:
    """Moments of a round: events in the GPU's stream, or the clock's time on a CPU."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._at: list[Any] = []

    def mark(self) -> None:
        if not self._on_gpu:
            self._at.append(time.perf_counter_ns())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._at.append(event)

    def between_us(self) -> list[float]:
        """From each mark to the next."""
        pairs = list(zip(self._at, self._at[1:], strict=False))
        if self._on_gpu:
            return [float(begin.elapsed_time(end)) * 1e3 for begin, end in pairs]
        return [(end - begin) / 1e3 for begin, end in pairs]


@dataclass
class RankJob:
    """What a part gets, and what it fills in."""

    rank: int
    plan: EpPlan
    device: torch.device
    group: Any
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    describe: dict[str, str] = field(default_factory=dict)  # way -> what carries the data
    checked: dict[str, Any] = field(default_factory=lambda: {"values": 0, "mismatches": 0, "first_mismatch": None})

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.current_stream().synchronize()

    def same(self, found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
        """Bit by bit, on the device; what differs is counted and the first is named."""
        a, b = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (found, expected))
        wrong = int((a != b).sum()) if a.shape == b.shape else a.numel() + b.numel()
        self.checked["values"] += found.numel()
        if wrong:
            self.checked["mismatches"] += wrong
            self.checked["first_mismatch"] = self.checked["first_mismatch"] or f"{what}: {wrong} bytes differ"

    def rounds(
        self, fn: Callable[[Callable[[], None]], object], names: Sequence[str], n: int
    ) -> dict[str, list[float]]:
        """Microseconds of each named stretch between the marks that fn(mark) sets, and "host": of fn itself.

        On a GPU the stream is busy while fn runs, so that the stretches have no gaps, and the host waits for nothing.
        """
        samples: dict[str, list[float]] = {name: [] for name in (*names, "host")}
        for number in range(n + max(2, n // 10)):
            marks = Marks(self.on_gpu)
            if self.on_gpu:
                torch.cuda._sleep(AHEAD_CYCLES)
            begin = time.perf_counter_ns()
            fn(marks.mark)
            host = (time.perf_counter_ns() - begin) / 1e3
            self.synchronize()
            if number < max(2, n // 10):
                continue
            for name, value in zip(names, marks.between_us(), strict=True):
                samples[name].append(value)
            samples["host"].append(host)
        return samples

    def row(self, way: str, what: str, unit: str, values: Sequence[float], **more: object) -> None:
        """One line of the table; of values in the unit."""
        self.rows.append({"part": more.pop("part", ""), "way": way, "what": what, "unit": unit,
                          "summary": summarize(values).__dict__, **more})  # fmt: skip


def gigabytes_a_second(n_bytes: float, values_us: Sequence[float]) -> float:
    """Of the median."""
    return float(f"{n_bytes / statistics.median(values_us) / 1e3:.4g}")


def run(rank: int, store: str, plan: EpPlan) -> dict[str, Any]:
    """All parts of the plan."""
    on_gpu = not plan.cpu
    device = torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
        device = torch.device("cuda", torch.cuda.current_device())
    group = None
    if plan.ranks > 1:
        init = f"file://{store}"
        dist.init_process_group(
            "gloo", init_method=init, rank=rank, world_size=plan.ranks, timeout=timedelta(seconds=60)
        )
        group = dist.group.WORLD
    job = RankJob(rank, plan, device, group)
    for part in plan.parts:
        importlib.import_module(PART_MODULES[part]).measure(job)
    record = {
        "pe": rank,
        "rows": job.rows,
        "notes": job.notes,
        "describe": job.describe,
        "checked": job.checked,
        "torch": torch.__version__,
        "machine": {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if on_gpu else {},
        "result": "failed" if job.checked["mismatches"] else "ok",
    }
    if group is not None:
        dist.destroy_process_group()
    return record


def main(arguments: list[str]) -> int:
    """Exit code 0: right; 1: wrong values, or it could not go on."""
    rank, store, record_fd = int(arguments[0]), arguments[1], int(arguments[2])
    plan = EpPlan(**json.loads(arguments[3]))
    torch.set_num_threads(1)
    record: dict[str, Any]
    try:
        record = run(rank, store, plan)
    except Exception as error:  # whatever it is, the record has to say it
        traceback.print_exc()
        record = {"pe": rank, "result": "error",
                  "error": {"code": type(error).__name__, "message": str(error), "hint": None}}  # fmt: skip
    with os.fdopen(record_fd, "w") as out:
        json.dump(record, out)
    sys.stderr.flush()
    # Not by the interpreter's way out: a kernel that never ends would hold it.
    os._exit(0 if record["result"] == "ok" else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
