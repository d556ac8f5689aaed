#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""deep_ep on GPUs: low-latency dispatch and combine, in all formats and ways, against the oracle of tests/deep_ep.

One rank sends to itself through the network; more ranks are a process and a GPU each, or share the GPUs there are (then
their times mean nothing). One line a case; exit code 0 when all are good. Ends within its deadline, whatever happens.
`--device cpu` tries this program where there is no GPU. `--suites` chooses: basic cases, or those of deep_ep_suites.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent / "deep_ep"))
import deep_ep_suites


class Alone:
    """A group of one rank, with the three methods of mpi4py that a Buffer uses."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1

    def allgather(self, sendobj: bytes) -> list[bytes]:
        return [sendobj]


def moved(thing: Any, device: str) -> Any:
    """Tensors of a result on another device; strides of transposed ones stay."""
    if isinstance(thing, torch.Tensor):
        to = torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=device)
        return to.copy_(thing)
    if isinstance(thing, tuple):
        return tuple(moved(part, device) for part in thing)
    return thing


def one_case(buffer: Any, rig: Any, world: Any, name: str, way: str, device: str) -> None:
    """Dispatch and combine of one world. AssertionError says what differs."""
    from oracle import same

    rank = buffer.rank
    batch = world.batches[rank]
    x, topk_idx, weights = (moved(part, device) for part in (batch.x, batch.topk_idx, batch.topk_weights))
    options: dict[str, Any] = {"return_recv_hook": True} if way == "hook" else {"async_finish": way == "event"}
    result = buffer.low_latency_dispatch(x, topk_idx, rig.TOKENS, world.n_experts, **rig.FORMATS[name], **options)
    finish(result[3], result[4])
    data, count, handle, *rest = result
    seen = (moved(data, "cpu"), moved(count, "cpu"), moved(handle, "cpu"), *rest)
    rig.check_received(rank, world, seen, name)
    y = moved(rig.expert_of(rank, world, seen[0]), device)
    is_zero_copy = way == "zero copy"
    if is_zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = y
        y = torch.full_like(y, float("nan"))
    out, event, hook = buffer.low_latency_combine(y, topk_idx, weights, handle, zero_copy=is_zero_copy, **options)
    finish(event, hook)
    same(moved(out, "cpu"), rig.combined(world, rank, name), f"combine, {name}, {way}")


def finish(event: Any, hook: Any) -> None:
    if hook is not None:
        hook()
    if event.event is not None:
        event.current_stream_wait()


def run(rank: int, options: argparse.Namespace, group: Any) -> int:
    """All suites of one rank; the number of cases that failed. A failed exchange ends the run."""
    import low_latency_rig as rig

    device = "cpu" if options.device == "cpu" else f"cuda:{rank % torch.cuda.device_count()}"
    rig.TOKENS = options.tokens
    suites = options.suites.split(",")
    failed = basic(rank, options, group, device) if "basic" in suites else 0
    more = deep_ep_suites.Run(rank, options, group, device, Alone())
    return failed + sum(deep_ep_suites.run_suite(more, suite) for suite in suites)


def basic(rank: int, options: argparse.Namespace, group: Any, device: str) -> int:
    """Every format in every way, through one Buffer."""
    import low_latency_rig as rig

    import deep_ep

    size = deep_ep.Buffer.get_low_latency_rdma_size_hint(rig.TOKENS, options.hidden, options.ranks, options.experts)
    started = time.monotonic()
    buffer = deep_ep.Buffer(
        group, 0, size, low_latency_mode=True, explicitly_destroy=True, comm=Alone() if group is None else None,
        allow_nvlink_for_low_latency_mode=not options.no_stores,
    )  # fmt: skip
    if rank == 0:
        print(f"opened in {time.monotonic() - started:.1f} s: {buffer.runtime.describe()}", flush=True)
    tokens = [rig.TOKENS, max(rig.TOKENS - 3, 1), 0, 1] if options.ranks > 1 else [rig.TOKENS]
    failed, seed = 0, options.seed
    for way in ("plain", "hook", "event", "zero copy"):
        for name in rig.FORMATS:
            seed += 1
            sizes = {"hidden": options.hidden, "n_topk": min(3, options.experts), "n_experts": options.experts}
            world = rig.make_world(options.ranks, tokens, seed=seed, route="random", **sizes)
            started = time.monotonic()
            try:
                one_case(buffer, rig, world, name, way, device)
                verdict = "good"
            except AssertionError as error:
                failed += 1
                verdict = f"WRONG: {error}"
            took = (time.monotonic() - started) * 1000
            print(f"rank {rank}  {way:9}  {name:26}  {took:8.1f} ms  {verdict}", flush=True)
    print(f"rank {rank}  {buffer.runtime.stats_json()}", flush=True)
    buffer.destroy()
    return failed


def rank_process(rank: int, options: argparse.Namespace, port: int) -> None:
    faulthandler.dump_traceback_later(options.deadline_s, exit=True)
    os.environ.setdefault("DEEP_EP_EXECUTOR", options.device)
    os.environ.setdefault("DEEP_EP_TIMEOUT_S", "10")
    if options.ranks == 1:
        os.environ["DEEP_EP_SELF_BY_NETWORK"] = "1"
    if options.device == "gpu" and torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    group = None
    if options.ranks > 1:
        import torch.distributed as dist

        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=options.ranks, rank=rank)
        group = dist.group.WORLD
    try:
        failed = run(rank, options, group)
    except Exception:
        traceback.print_exc()
        failed = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by the interpreter's way out: a kernel that never ends would hold it.
    os._exit(1 if failed else 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ranks", type=int, default=1, help="each a process, and a GPU of its own where there are enough"
    )
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tokens", type=int, default=32, help="M, at most, of a rank")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suites", default="basic", help="of basic, graph, storm, stop; with commas, or all")
    parser.add_argument("--rounds", type=int, default=100, help="of each case of storm")
    parser.add_argument("--no-stores", action="store_true", help="all between ranks by the network")
    parser.add_argument("--deadline-s", type=float, default=180)
    options = parser.parse_args()
    if options.suites == "all":
        options.suites = ",".join(deep_ep_suites.SUITES)
    unknown = set(options.suites.split(",")) - set(deep_ep_suites.SUITES)
    if unknown:
        parser.error(f"--suites: there is no {', '.join(sorted(unknown))}")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=rank_process, args=(rank, options, port)) for rank in range(options.ranks)]
    for process in processes:
        process.start()
    end = time.monotonic() + options.deadline_s + 10
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    codes = [process.exitcode for process in processes]
    is_good = not late and not any(codes)
    print("good" if is_good else f"FAILED: exit codes of the ranks {codes}, {len(late)} of them too late", flush=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
