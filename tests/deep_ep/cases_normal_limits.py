# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""Cases at the limits of normal mode: wrong arguments, ranks that differ or do not come, the end of a Buffer."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import torch
import torch.distributed as dist
from cases_normal import CONFIG, HIDDEN, buffer_of, check_combine, check_received, dispatched, layout_of
from oracle import make_world
from rank_processes import Job
from settings_scope import environment, raises

import deep_ep

COUNTS = ("num_tokens_per_rank", "is_token_in_rank", "num_tokens_per_expert")
Wrong = list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]]


def check_all(wrong: Wrong) -> None:
    for call, kind, words in wrong:
        with raises(kind, *words):
            call()


def case_each_wrong_argument_of_dispatch_is_named(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [12], HIDDEN, 4, 16, seed=40)
    batch = world.batches[job.rank]
    x, idx, weights = batch.x, batch.topk_idx, batch.topk_weights
    good = layout_of(buffer, world) | {"topk_idx": idx, "topk_weights": weights, "config": CONFIG}
    per_rank, in_rank, per_expert = (good[name] for name in COUNTS)
    handle = dispatched(buffer, world)[4]
    fp8, scales = oracle.fp8(x)

    def send(rows: Any = x, **changes: Any) -> Callable[[], Any]:
        return lambda: buffer.dispatch(rows, **(good | changes))

    def again(rows: Any = x, **changes: Any) -> Callable[[], Any]:
        return lambda: buffer.dispatch(rows, **({"handle": handle, "config": CONFIG} | changes))

    check_all([
        (send(x.float()), TypeError, ("x is torch.float32", "torch.bfloat16")),
        (send(None), TypeError, ("x is None",)),
        (send(x[0]), ValueError, ("x has shape [512]", "[T, H]")),
        (send(x[:, ::2]), ValueError, ("x has strides", "contiguous")),
        (send(x[:, :4].contiguous()), ValueError, ("bytes of a row of x is 8", "16")),
        (send((fp8,)), ValueError, ("x is a tuple of 1",)),
        (send((x, scales)), TypeError, ("x[0] is torch.bfloat16", "float8_e4m3fn")),
        (send((fp8, scales.double())), TypeError, ("x[1] is torch.float64", "torch.int32")),
        (send((fp8, scales[:3])), ValueError, ("x[1] has shape [3, 4]", "[12, S]")),
        (send(x.to("meta")), ValueError, ("x lies on meta", "cpu", "DEEP_EP_EXECUTOR")),
        (send(num_tokens_per_rank=None), ValueError, ("num_tokens_per_rank is None", "get_dispatch_layout")),
        (send(num_tokens_per_rank=per_rank.long()), TypeError, ("num_tokens_per_rank is torch.int64",)),
        (send(is_token_in_rank=in_rank[:5]), ValueError, ("is_token_in_rank has shape [5, 4]", "[12, 4]")),
        (send(is_token_in_rank=None), ValueError, ("is_token_in_rank is None",)),
        (send(num_tokens_per_expert=None), ValueError, ("num_tokens_per_expert is None",)),
        (send(num_tokens_per_expert=per_expert[:7]), ValueError, ("num_tokens_per_expert", "7", "(4)")),
        (send(topk_idx=idx.int()), TypeError, ("topk_idx is torch.int32", "torch.int64")),
        (send(topk_idx=idx[:, :0]), ValueError, ("K of topk_idx is 0", "at least 1 and at most 32")),
        (send(topk_weights=None), ValueError, ("topk_weights is None", "with topk_idx")),
        (send(topk_idx=None), ValueError, ("topk_weights is a Tensor", "None without topk_idx")),
        (send(topk_weights=weights[:, :2]), ValueError, ("topk_weights", "[12, 4]")),
        (send(expert_alignment=0), ValueError, ("expert_alignment is 0", "at least 1")),
        (send(num_worst_tokens=-1), ValueError, ("num_worst_tokens is -1",)),
        (send(num_worst_tokens=9, topk_idx=None, topk_weights=None), ValueError, ("num_worst_tokens is 9", "topk_idx")),
        (send(config=24), TypeError, ("config is a int", "deep_ep.Config")),
        (send(config=deep_ep.Config(7)), ValueError, ("config.num_sms is 7", "even")),
        (send(async_finish=1), TypeError, ("async_finish is a int",)),
        (send(allocate_on_comm_stream=True), ValueError, ("allocate_on_comm_stream", "previous_event")),
        (send(allocate_on_comm_stream=True, previous_event=buffer.capture()), ValueError, ("async_finish=True",)),
        (send(previous_event=deep_ep.EventOverlap(3)), TypeError, ("previous_event.event is a int",)),  # type: ignore[arg-type]
        (send(use_nvfp4=True), TypeError, ("use_nvfp4",)),
        (again(topk_idx=idx), ValueError, ("topk_idx is a Tensor", "None with a handle")),
        (again(topk_weights=weights), ValueError, ("topk_weights", "None with a handle")),
        (again(num_worst_tokens=99), ValueError, ("num_worst_tokens is 99", "0 with a handle")),
        (again(x[:5]), ValueError, ("x has 5 tokens", "had 12")),
        (again(config=deep_ep.Config(20)), ValueError, ("num_sms makes 10 channels", "had 12")),
        (again(handle=handle[:5]), TypeError, ("handle is a tuple of 5", "dispatch returned")),
        (again(handle=3), TypeError, ("handle is a int",)),
    ])  # fmt: skip
    check_received(job.rank, world, dispatched(buffer, world))


def case_each_wrong_argument_of_layout_and_combine_is_named(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [12], HIDDEN, 4, 16, seed=41)
    idx = world.batches[job.rank].topk_idx
    data, _, weights, _, handle, _ = result = dispatched(buffer, world)
    bias = torch.zeros(12, HIDDEN, dtype=torch.bfloat16)
    n = len(data)
    check_all([
        (lambda: buffer.get_dispatch_layout(idx.int(), 16), TypeError, ("topk_idx is torch.int32",)),
        (lambda: buffer.get_dispatch_layout(idx[0], 16), ValueError, ("topk_idx has shape [4]", "[T, K]")),
        (lambda: buffer.get_dispatch_layout(idx, 15), ValueError, ("num_experts is 15", "number of ranks (4)")),
        (lambda: buffer.get_dispatch_layout(idx, 16.0), TypeError, ("num_experts is a float",)),  # type: ignore[arg-type]
        (lambda: buffer.get_dispatch_layout(idx * 0 + 16, 16), deep_ep.ExchangeError, ("16",)),
        (lambda: buffer.combine(data.float(), handle), TypeError, ("x is torch.float32", "bfloat16")),
        (lambda: buffer.combine(data[:-1], handle), ValueError, (f"x has shape [{n - 1}, 512]", f"[{n}, H]")),
        (lambda: buffer.combine(data, None), TypeError, ("handle is a NoneType",)),  # type: ignore[arg-type]
        (lambda: buffer.combine(data, handle, weights.double()), TypeError, ("topk_weights is torch.float64",)),
        (lambda: buffer.combine(data, handle, weights[:-1]), ValueError, ("topk_weights has shape",)),
        (lambda: buffer.combine(data, handle, bias=bias[:3]), ValueError, ("bias has shape [3, 512]", "[12, 512]")),
        (lambda: buffer.combine(data, handle, bias=(bias, bias.float())), TypeError, ("bias[1] is torch.float32",)),
        (lambda: buffer.combine(data, handle, bias=(bias,) * 3), ValueError, ("bias is a tuple of 3",)),
        (lambda: buffer.combine(data, handle, config="fast"), TypeError, ("config is a str",)),  # type: ignore[arg-type]
        (lambda: buffer.combine(data, handle, allocate_on_comm_stream=True), ValueError, ("allocate_on_comm_stream",)),
        (lambda: buffer.internode_dispatch(data), NotImplementedError, ("internode_dispatch",)),
        (lambda: buffer.low_latency_dispatch(data, idx, 8, 16), RuntimeError, ("needs low_latency_mode",)),
        (lambda: buffer.clean_low_latency_buffer(8, 2048, 16), RuntimeError, ("low_latency_mode",)),
    ])  # fmt: skip
    check_combine(buffer, world, result)


def case_too_few_rows_for_the_worst_case_are_an_error_on_all_ranks(job: Job) -> None:
    with environment(DEEP_EP_TIMEOUT_S="2"):
        buffer = deep_ep.Buffer(job.group, explicitly_destroy=True)
    world = make_world(job.size, [12], HIDDEN, 4, 16, seed=42, route="one")
    n_sent = len(oracle.received(world, 0))
    wrong = (ValueError, ("num_worst_tokens is 20", f"at least {n_sent}"))
    # Named is rank 0, or a rank that has learnt of it and left already.
    kind, words = wrong if job.rank == 0 else (deep_ep.ExchangeError, ("rank ", "hint:"))
    with raises(kind, *words):
        dispatched(buffer, world, num_worst_tokens=20)
    buffer.destroy()


def case_sizes_that_differ_are_named(job: Job) -> None:
    with environment(DEEP_EP_TIMEOUT_S="2"):
        buffer = deep_ep.Buffer(job.group, explicitly_destroy=True)
    hidden = 1024 if job.rank == 1 else HIDDEN
    world = make_world(job.size, [6], hidden, 2, 8, seed=43)
    with raises(deep_ep.ExchangeError, "rank"):
        dispatched(buffer, world)
    buffer.destroy()


def case_options_that_differ_are_named(job: Job) -> None:
    with raises(deep_ep.ExchangeError, "low_latency", "rank"), environment(NVSHMEM_EFA_MODE="soft"):
        deep_ep.Buffer(job.group, low_latency_mode=job.rank == 1, explicitly_destroy=True)


def case_a_rank_that_does_not_come_is_named(job: Job) -> None:
    with environment(DEEP_EP_TIMEOUT_S="0.5"):
        buffer = deep_ep.Buffer(job.group, explicitly_destroy=True)
    world = make_world(job.size, [6], HIDDEN, 2, 8, seed=44)
    begin = time.perf_counter()
    if job.rank != 2:
        with raises(deep_ep.ExchangeError, "rank 2", "hint:"):
            dispatched(buffer, world)
    assert time.perf_counter() - begin < 5
    dist.barrier()
    assert buffer.runtime is not None
    begin = time.perf_counter()
    if job.rank == 2:
        with raises(deep_ep.ExchangeError, "rank"):
            buffer.destroy()
    else:
        buffer.destroy()
    assert time.perf_counter() - begin < 5, "destroy() waits for nobody once a rank is known to be missing"


def case_results_outlive_their_buffer(job: Job) -> None:
    buffer = deep_ep.Buffer(job.group, 128, explicitly_destroy=True)
    world = make_world(job.size, [30], HIDDEN, 4, 16, seed=45)
    result = dispatched(buffer, world)
    runtime = buffer.runtime
    buffer.destroy()
    assert buffer.runtime is None
    assert runtime is not None
    assert not runtime.is_available()
    del buffer
    gc.collect()
    check_received(job.rank, world, result)
    assert runtime.n_lent == 1
    del result
    gc.collect()
    assert runtime.n_lent == 0
    with raises(deep_ep.ExchangeError, "closed"):
        runtime.describe()


def case_the_example_of_the_documentation_runs(job: Job) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "deep-ep.md"
    names: dict[str, Any] = {"__name__": "example"}
    exec(page.read_text().split("```python\n")[1].split("```")[0], names)
    names["dist"] = SimpleNamespace(init_process_group=lambda *_, **__: None, group=dist.group)  # there is one
    said: list[str] = []
    names["print"] = said.append
    names["rank_main"](job.rank, job.size)
    differs = re.search(r"out is x within ([\d.]+)$", said[0])
    assert differs
    assert float(differs[1]) < 0.05


def case_nothing_works_after_destroy(job: Job) -> None:
    buffer = deep_ep.Buffer(job.group, explicitly_destroy=True)
    buffer.destroy()
    buffer.destroy()
    world = make_world(job.size, [3], HIDDEN, 2, 8)
    for call in (lambda: dispatched(buffer, world), lambda: buffer.get_local_buffer_tensor(torch.int8)):
        with raises(RuntimeError, "destroyed"):
            call()


def case_a_buffer_that_nobody_destroys_ends_with_its_last_reference(job: Job) -> None:
    buffer = deep_ep.Buffer(job.group)
    with raises(AssertionError, "explicitly_destroy"):
        buffer.destroy()
    runtime = buffer.runtime
    del buffer
    gc.collect()
    assert runtime is not None
    assert not runtime.is_open


def case_a_process_that_ends_with_results_leaves_no_shared_memory_behind(job: Job) -> None:
    def names() -> set[str]:
        mapped = set(re.findall(r"/dev/shm/(nvshmem_efa_ep\.\w+)", Path("/proc/self/maps").read_text()))
        return mapped & set(os.listdir("/dev/shm"))

    buffer = deep_ep.Buffer(job.group)
    result = dispatched(buffer, make_world(job.size, [30], HIDDEN, 4, 16, seed=46))
    dist.barrier()  # each rank takes its names away at the end of its call
    assert not names(), "what the call had the memory grow by is mapped by all"
    assert buffer.runtime is not None
    block = buffer.runtime.place(64 << 20)
    assert names(), "peers learn of what the memory grew by, and map it, in the next call"
    dist.barrier()
    buffer.runtime.end_of_process()
    dist.barrier()
    assert not names()
    del result, block, buffer


def case_the_raw_buffer_and_the_stand_in_stream(job: Job) -> None:
    buffer = buffer_of(job)
    assert buffer.get_local_buffer_tensor(torch.int32, (2, 8)).shape == (2, 8)
    whole = buffer.get_local_buffer_tensor(torch.int8)
    assert whole.numel() >= buffer.num_nvl_bytes
    assert buffer.get_local_buffer_tensor(torch.int8, use_rdma_buffer=True).numel() == 0
    buffer.get_comm_stream().wait_stream(torch.cpu.current_stream())
    assert buffer.is_sm90_compiled()
    assert (buffer.group_size, buffer.low_latency_mode, buffer.explicitly_destroy) == (job.size, False, True)
    assert (buffer.num_nvl_bytes, buffer.num_rdma_bytes, buffer.enable_shrink) == (1 << 20, 0, False)
    assert f"{job.size} ranks" in buffer.runtime.describe()  # type: ignore[union-attr]


def case_the_end(job: Job) -> None:
    if "buffer" in job.kept:
        job.kept.pop("buffer").destroy()
