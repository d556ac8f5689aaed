# SPDX-License-Identifier: Apache-2.0
"""Numbers: differences, FP8 casts, routing helpers. On any device."""

from __future__ import annotations

import torch

FP8_MAX = 448.0  # the largest finite e4m3
AMAX_MIN = 1e-4
BLOCK = 128


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def align(x: int, y: int) -> int:
    """The least multiple of y that is not below x."""
    return ceil_div(x, y) * y


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 sum(xy) / sum(x^2 + y^2) of both plus 1, in float64: 0 when equal."""
    a, b = x.double() + 1, y.double() + 1
    both = (a * a + b * b).sum()
    return float(1 - 2 * (a * b).sum() / both) if a.numel() else 0.0


def per_token_cast_to_fp8(
    x: torch.Tensor, round_scale: bool = False, use_ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, H], H a multiple of 128, to (e4m3 [T, H], scales): amax / 448 of each 128 values, or the next power of two.

    Scales are float32 [T, H/128]; with `use_ue8m0` (which rounds) four exponents to an int32 [T, H/512].
    """
    n_tokens, hidden = x.shape
    if hidden % BLOCK:
        raise ValueError(f"x has {hidden} values a row, must have a multiple of {BLOCK}")
    blocks = x.float().view(n_tokens, hidden // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=2, keepdim=True).clamp(min=AMAX_MIN)
    scale = amax / FP8_MAX
    if round_scale or use_ue8m0:
        scale = _power_of_two(scale)
    q = (blocks / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).view(n_tokens, hidden)
    scale = scale.squeeze(2)
    return q, pack_ue8m0(scale) if use_ue8m0 else scale


def per_token_cast_back(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """bfloat16 [T, H] of what per_token_cast_to_fp8 gives, with scales of either kind."""
    if x.numel() == 0:
        return torch.empty(x.shape, dtype=torch.bfloat16, device=x.device)
    factors = unpack_ue8m0(scales) if scales.dtype == torch.int32 else scales.float()
    width = x.shape[1] // factors.shape[1]
    return (x.float().view(x.shape[0], -1, width) * factors.unsqueeze(2)).view(x.shape).to(torch.bfloat16)


def _power_of_two(x: torch.Tensor) -> torch.Tensor:
    """The least power of two that is not below x, from the bits of float32: exact, as the exchange does it."""
    bits = x.contiguous().view(torch.int32)
    return (((bits + 0x7FFFFF) >> 23) << 23).view(torch.float32)


def pack_ue8m0(scales: torch.Tensor) -> torch.Tensor:
    """Powers of two, float32 [..., 4n], to int32 [..., n]: exponent bytes, the lowest block's lowest."""
    return (scales.contiguous().view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)


def unpack_ue8m0(packed: torch.Tensor) -> torch.Tensor:
    """int32 [..., n] to the float32 [..., 4n] that pack_ue8m0 got."""
    return (packed.contiguous().view(torch.uint8).to(torch.int32) << 23).view(torch.float32)


def create_grouped_scores(scores: torch.Tensor, group_idx: torch.Tensor, num_groups: int) -> torch.Tensor:
    """scores [T, E], zeroed outside the groups of `group_idx` [T, g]; experts fall into `num_groups` equal groups."""
    chosen = torch.zeros((scores.shape[0], num_groups), dtype=torch.bool, device=scores.device)
    chosen.scatter_(1, group_idx, True)
    return scores * chosen.repeat_interleave(scores.shape[1] // num_groups, dim=1)


def inplace_unique(x: torch.Tensor, num_slots: int) -> None:
    """Makes each row of x [T, K] its distinct values below `num_slots`, the most frequent first, and -1 behind them."""
    valid = x >= 0
    slots = torch.where(valid, x, num_slots).long()
    times = torch.zeros((x.shape[0], num_slots + 1), dtype=torch.int64, device=x.device)
    times.scatter_add_(1, slots, torch.ones_like(slots))
    found = times[:, :num_slots].sort(dim=1, descending=True, stable=True)
    width = min(x.shape[1], num_slots)
    values = torch.where(found.values > 0, found.indices, -1)[:, :width]
    x.fill_(-1)
    x[:, :width] = values.to(x.dtype)


def hash_tensor(x: torch.Tensor) -> int:
    """The sum of its bits as int32s; the order of the values does not matter. Its bytes must be a multiple of 4."""
    return int(x.contiguous().view(-1).view(torch.int32).long().sum())
