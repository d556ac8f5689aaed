# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""Low-latency calls against the oracle, in three shapes of the group: what the cases share."""

from __future__ import annotations

from typing import Any

import torch
from oracle import World, make_world, same
from rank_processes import Job
from settings_scope import environment

import deep_ep
from deep_ep.utils import per_token_cast_back, per_token_cast_to_fp8

HIDDEN = 2048
TOKENS = 8  # M
EXPERTS = 8
FORMATS: dict[str, dict[str, bool]] = {
    "bf16": {"use_fp8": False},
    "fp8": {},
    "fp8 by powers of two": {"round_scale": True},
    "fp8 with packed exponents": {"round_scale": True, "use_ue8m0": True},
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # ranks of a domain, arguments of Buffer
    "one domain": ("4", {}),
    "two domains of two": ("2", {}),
    "all by the network": ("4", {"allow_nvlink_for_low_latency_mode": False}),
}


def make(job: Job, shape: str, hidden: int = HIDDEN, experts: int = EXPERTS, **more: Any) -> deep_ep.Buffer:
    ranks, arguments = SHAPES[shape]
    size = deep_ep.Buffer.get_low_latency_rdma_size_hint(TOKENS, hidden, job.size, experts)
    with environment(DEEP_EP_NVLINK_RANKS=ranks):
        return deep_ep.Buffer(
            job.group, 0, size, low_latency_mode=True, explicitly_destroy=True, **{**arguments, **more}
        )


def buffer_of(job: Job, shape: str) -> deep_ep.Buffer:
    return job.keep(shape, lambda: make(job, shape))


def world_of(job: Job, seed: int, tokens: list[int] | None = None, route: str = "random", **more: int) -> World:
    sizes = {"hidden": HIDDEN, "n_topk": 3, "n_experts": EXPERTS} | more
    return make_world(job.size, tokens or [TOKENS, 5, 0, 1], seed=seed, route=route, **sizes)


def dispatch(buffer: deep_ep.Buffer, world: World, **options: Any) -> Any:
    batch = world.batches[buffer.rank]
    return buffer.low_latency_dispatch(batch.x, batch.topk_idx, TOKENS, world.n_experts, **options)


def rows_of(world: World, expert: int, source: int) -> list[int]:
    """The tokens of a source that go to an expert."""
    return (world.batches[source].topk_idx == expert).any(dim=1).nonzero().flatten().tolist()


def check_received(rank: int, world: World, result: Any, name: str = "bf16") -> None:
    """Counts, ranges, and every valid row with its scales."""
    data, count, handle, _, _ = result
    source_info, ranges, *sizes = handle
    hidden = world.batches[0].x.shape[1]
    assert sizes == [TOKENS, hidden, world.n_experts]
    rows_max = world.size * TOKENS
    x, scales = data if isinstance(data, tuple) else (data, None)
    assert x.shape == (world.n_local, rows_max, hidden)
    assert source_info.shape == (world.n_local, rows_max)
    if name != "bf16":
        width = hidden // (512 if "packed" in name else 128)
        assert scales.shape == (world.n_local, rows_max, width)
        assert scales.stride() == (width * rows_max, 1, rows_max)
    for expert in range(world.n_local):
        begins = []
        for source in range(world.size):
            begin, n = int(ranges[expert, source]) >> 32, int(ranges[expert, source]) & 0xFFFFFFFF
            begins += list(range(begin, begin + n))
            tokens = source_info[expert, begin : begin + n].tolist()
            assert sorted(tokens) == rows_of(world, rank * world.n_local + expert, source), f"{name}: expert {expert}"
            sent = world.batches[source].x[tokens]
            if name == "bf16":
                same(x[expert, begin : begin + n], sent, f"{name}: rows of rank {source} for expert {expert}")
                continue
            options = {key: value for key, value in FORMATS[name].items() if key != "use_fp8"}
            values, factors = per_token_cast_to_fp8(sent, **options)
            same(x[expert, begin : begin + n], values, f"{name}: rows of rank {source} for expert {expert}")
            same(scales[expert, begin : begin + n], factors, f"{name}: scales of rank {source} for expert {expert}")
        assert sorted(begins) == list(range(int(count[expert]))), "the sources' ranges fill the rows"


def expert_of(rank: int, world: World, data: Any) -> torch.Tensor:
    """What this rank's experts make of all rows: bf16 [El, R*M, H]. Rows that are not there may hold anything."""
    if isinstance(data, tuple):
        x = torch.stack([per_token_cast_back(*pair) for pair in zip(*data, strict=True)])
    else:
        x = data
    factors = torch.tensor([1 + (rank * world.n_local + expert) / 4 for expert in range(world.n_local)])
    return (x.float() * factors.view(-1, 1, 1)).to(torch.bfloat16)


def combined(world: World, rank: int, name: str) -> torch.Tensor:
    """What the combine must give: choices in order, in float32, rounded once."""
    batch = world.batches[rank]
    x = batch.x
    if name != "bf16":
        options = {key: value for key, value in FORMATS[name].items() if key != "use_fp8"}
        x = per_token_cast_back(*per_token_cast_to_fp8(x, **options))
    total = torch.zeros(x.shape, dtype=torch.float32)
    for choice in range(batch.topk_idx.shape[1]):
        expert = batch.topk_idx[:, choice : choice + 1]
        row = (x.float() * (1 + expert / 4).float()).to(torch.bfloat16).float()
        total = torch.where(expert >= 0, total + batch.topk_weights[:, choice : choice + 1] * row, total)
    return total.to(torch.bfloat16)


def combine(buffer: deep_ep.Buffer, world: World, result: Any, zero_copy: bool = False, **options: Any) -> Any:
    """The result of the combine, after its hook if it has one."""
    batch = world.batches[buffer.rank]
    data, _, handle, *_ = result
    y = expert_of(buffer.rank, world, data)
    if zero_copy:
        buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = y
        y = torch.full_like(y, float("nan"))
    out, event, hook = buffer.low_latency_combine(
        y, batch.topk_idx, batch.topk_weights, handle, zero_copy=zero_copy, **options
    )
    assert (event.event is not None) == options.get("async_finish", False)
    assert (hook is not None) == options.get("return_recv_hook", False)
    if hook is not None:
        hook()
    return out
