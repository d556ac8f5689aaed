# SPDX-License-Identifier: Apache-2.0
"""What the exchange must do, in plain torch. Each rank makes all ranks' inputs from a seed and computes its part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deep_ep.utils import per_token_cast_to_fp8


@dataclass
class Batch:
    """The input of one rank."""

    x: torch.Tensor  # bf16 [T, H]
    topk_idx: torch.Tensor  # int64 [T, K]
    topk_weights: torch.Tensor  # float32 [T, K]


@dataclass
class World:
    """The inputs of all ranks."""

    batches: list[Batch]
    n_experts: int

    @property
    def size(self) -> int:
        return len(self.batches)

    @property
    def n_local(self) -> int:
        return self.n_experts // self.size


def make_world(
    size: int, tokens: list[int], hidden: int, n_topk: int, n_experts: int, seed: int = 0, route: str = "random"
) -> World:
    """Routes: "random" with some -1, "one": all to expert 0, "none": all -1, "last": all to the last rank's experts."""
    batches = []
    for rank in range(size):
        generator = torch.Generator().manual_seed(seed * 1000 + rank)
        n_tokens = tokens[rank % len(tokens)]
        x = torch.randn((n_tokens, hidden), generator=generator).to(torch.bfloat16)
        topk_idx = torch.rand((n_tokens, n_experts), generator=generator).argsort(dim=1)[:, :n_topk].contiguous()
        if route == "one":
            topk_idx[:] = -1
            topk_idx[:, 0] = 0
        elif route == "none":
            topk_idx[:] = -1
        elif route == "last":
            local = n_experts // size
            topk_idx = n_experts - local + topk_idx % local
            topk_idx[:, local:] = -1  # a choice may not come twice
            for row in topk_idx:
                row[: min(local, n_topk)] = n_experts - local + torch.arange(min(local, n_topk))
        else:
            topk_idx[torch.rand(topk_idx.shape, generator=generator) < 0.1] = -1
        weights = torch.rand((n_tokens, n_topk), generator=generator)
        batches.append(Batch(x, topk_idx, weights))
    return World(batches, n_experts)


def in_rank(world: World, source: int) -> torch.Tensor:
    """bool [T, R]: which tokens of `source` go to whom."""
    idx = world.batches[source].topk_idx
    owner = torch.where(idx >= 0, idx // world.n_local, -1)
    return torch.stack([(owner == rank).any(dim=1) for rank in range(world.size)], dim=1)


def layout(world: World, source: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens for each rank, for each expert, in_rank)."""
    inside = in_rank(world, source)
    idx = world.batches[source].topk_idx
    per_expert = torch.tensor([int((idx == expert).sum()) for expert in range(world.n_experts)], dtype=torch.int32)
    return inside.sum(dim=0, dtype=torch.int32), per_expert, inside


def received(world: World, rank: int) -> list[tuple[int, int]]:
    """(source, token) of each row of recv_x."""
    return [
        (source, token)
        for source in range(world.size)
        for token in in_rank(world, source)[:, rank].nonzero().flatten().tolist()
    ]


def gathered(world: World, rows: list[tuple[int, int]], of: list[torch.Tensor]) -> torch.Tensor:
    """Row by row what each source has in `of`."""
    first = of[0]
    if not rows:
        return first.new_empty((0, *first.shape[1:]))
    return torch.stack([of[source][token] for source, token in rows])


def recv_topk(world: World, rank: int, rows: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    idx = gathered(world, rows, [batch.topk_idx for batch in world.batches])
    weights = gathered(world, rows, [batch.topk_weights for batch in world.batches])
    here = (idx >= 0) & (idx // world.n_local == rank)
    local = torch.where(here, idx - rank * world.n_local, -1)
    return local, torch.where(here, weights, torch.zeros(()))


def processed(x: torch.Tensor, rank: int) -> torch.Tensor:
    """What an expert's rank makes of its rows; another on each rank."""
    return (x.float() * (rank + 1) + 0.125 * rank).to(torch.bfloat16)


def combined(
    world: World, source: int, biases: tuple[torch.Tensor, ...] = (), x: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 in the order of the ranks, then the biases, rounded once. `x`: other rows than the batch's."""
    rows = world.batches[source].x if x is None else x
    inside = in_rank(world, source)
    total = torch.zeros(rows.shape, dtype=torch.float32)
    for rank in range(world.size):
        total = torch.where(inside[:, rank : rank + 1], total + processed(rows, rank).float(), total)
    for bias in biases:
        total = total + bias.float()
    return total.to(torch.bfloat16)


def combined_weights(world: World, source: int) -> torch.Tensor:
    """The sums of each rank's recv_topk_weights times (rank + 1)."""
    idx, weights = world.batches[source].topk_idx, world.batches[source].topk_weights
    owner = idx // world.n_local
    return torch.where(idx >= 0, weights * (owner + 1).float(), torch.zeros(()))


def fp8(x: torch.Tensor, is_int: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(e4m3, column-major scales); `is_int`: packed exponents."""
    data, scales = per_token_cast_to_fp8(x, use_ue8m0=is_int)
    return data, scales.t().contiguous().t()


def same(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Bitwise equality, with shape and dtype."""
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    a, b = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (actual, expected))
    if not torch.equal(a, b):
        wrong = (a != b).nonzero().flatten() // actual.element_size()
        first = int(wrong[0])
        raise AssertionError(
            f"{what}: {wrong.unique().numel()} of {actual.numel()} values differ, first at {first}: "
            f"{actual.reshape(-1)[first]}, expected {expected.reshape(-1)[first]}"
        )
