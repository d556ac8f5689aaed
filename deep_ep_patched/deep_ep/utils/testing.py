# SPDX-License-Identifier: Apache-2.0
"""Times of a function: by events on a GPU, by the clock on the CPU."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist

NAME_COLUMNS = 97  # of a kernel's name that count
FLUSH_BYTES = 256 << 20  # more than any L2
Time: TypeAlias = float | list[float]  # seconds; one for each kernel of a period


def bench(
    fn: Callable[[], object],
    num_warmups: int = 50,
    num_tests: int = 50,
    post_fn: Callable[[], object] | None = None,
) -> tuple[float, float, float]:
    """(average, least, greatest) seconds of fn(), the first of `num_tests` left out; `post_fn` is not timed."""
    if num_tests < 2:
        raise ValueError(f"num_tests is {num_tests}, must be at least 2: the first run does not count")
    timed = _timed_on_gpu if torch.cuda.is_available() else _timed_on_cpu
    for _ in range(num_warmups):
        fn()
    times = timed(fn, num_tests, post_fn)[1:]
    return sum(times) / len(times), min(times), max(times)


def _timed_on_cpu(fn: Callable[[], object], n_tests: int, post_fn: Callable[[], object] | None) -> list[float]:
    times = []
    for _ in range(n_tests):
        begin = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begin)
        if post_fn is not None:
            post_fn()
    return times


def _timed_on_gpu(fn: Callable[[], object], n_tests: int, post_fn: Callable[[], object] | None) -> list[float]:
    torch.cuda.synchronize()
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n_tests)]
    for begin, end in events:
        begin.record()
        fn()
        end.record()
        if post_fn is not None:
            post_fn()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def bench_kineto(
    fn: Callable[[], object],
    kernel_names: str | tuple[str, ...],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    barrier_comm_profiling: bool = False,
    num_kernels_per_period: int = 1,
) -> Time | list[Time]:
    """Average seconds of the kernels whose name contains each of `kernel_names`, by torch's profiler. Needs a GPU.

    One name gives one value, a tuple a list. With `num_kernels_per_period` = p each value is a list of p: a name's
    launches by time, every p-th together. RuntimeError when a name fits several kernels; 0 when it fits none.
    `suppress_kineto_output` is taken for compatibility: nothing is printed.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("bench_kineto times kernels and needs a GPU; hint: bench() times calls, also on the CPU")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_tests):
            if barrier_comm_profiling:  # ranks start together
                dist.barrier()
            fn()
        torch.cuda.synchronize()
    if trace_path is not None:
        profiler.export_chrome_trace(trace_path)
    names = (kernel_names,) if isinstance(kernel_names, str) else tuple(kernel_names)
    launches = _launches(profiler)
    found = [_average(launches, name, num_kernels_per_period) for name in names]
    return found[0] if isinstance(kernel_names, str) else found


def _launches(profiler: torch.profiler.profile) -> list[tuple[str, float, float]]:
    """(name, start, seconds) of each kernel, by start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    return sorted(
        ((str(event["name"]), float(event["ts"]), float(event["dur"]) / 1e6) for event in kernels),
        key=lambda launch: launch[1],
    )


def _average(launches: list[tuple[str, float, float]], name: str, period: int) -> Time:
    of_name = [(full, seconds) for full, _, seconds in launches if name in full[:NAME_COLUMNS]]
    symbols = sorted({full for full, _ in of_name})
    if len(symbols) > 1:
        raise RuntimeError(f"{name!r} fits several kernels: {', '.join(symbols)}")
    if len(of_name) % period:
        raise RuntimeError(f"{len(of_name)} launches of {name!r}, must be a multiple of {period}")
    times = [seconds for _, seconds in of_name]
    averages = [sum(times[part::period]) / max(1, len(times[part::period])) for part in range(period)]
    return averages[0] if period == 1 else averages
