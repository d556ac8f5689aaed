# SPDX-License-Identifier: Apache-2.0
"""A mixture-of-experts layer whose experts are spread over ranks: router, dispatch, expert GEMMs, combine.

Both ways through the library are here: `forward()` as in training and prefill, `forward_low_latency()` as in decoding.
Shapes: T tokens of this rank, H hidden values, K experts a token, E experts of all ranks, El = E / ranks of this one.
"""

from __future__ import annotations

import torch

import deep_ep


class Expert:
    """Two linear maps with a ReLU between them. Its weights follow from its number: every rank can make any expert."""

    def __init__(self, number: int, hidden: int, intermediate: int) -> None:
        generator = torch.Generator().manual_seed(1000 + number)
        self.up = torch.randn(hidden, intermediate, generator=generator) / hidden**0.5
        self.down = torch.randn(intermediate, hidden, generator=generator) / intermediate**0.5

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """bf16 or float [n, H] -> float [n, H]."""
        y: torch.Tensor = torch.relu(x.float() @ self.up) @ self.down
        return y


class MoELayer:
    """The layer as one rank holds it: the whole router, and experts [rank * El, (rank + 1) * El)."""

    def __init__(
        self, buffer: deep_ep.Buffer, hidden: int, intermediate: int, num_experts: int, num_topk: int, max_tokens: int
    ) -> None:
        if num_experts % buffer.group_size != 0:
            raise ValueError(f"num_experts is {num_experts}: it must be a multiple of the {buffer.group_size} ranks")
        self.buffer = buffer
        self.num_experts = num_experts
        self.num_topk = num_topk
        self.max_tokens = max_tokens
        self.router = torch.randn(hidden, num_experts, generator=torch.Generator().manual_seed(7)) / hidden**0.5
        n_local = num_experts // buffer.group_size
        first = buffer.rank * n_local
        self.experts = [Expert(number, hidden, intermediate) for number in range(first, first + n_local)]

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x bf16 [T, H] -> experts int64 [T, K] and their weights float [T, K], which add up to 1 for each token."""
        scores = torch.softmax(x.float() @ self.router, dim=-1)
        weights, experts = torch.topk(scores, self.num_topk, dim=-1)
        return experts.to(deep_ep.topk_idx_t), weights / weights.sum(dim=-1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normal mode: x bf16 [T, H] -> bf16 [T, H]. A token travels once to each rank that has one of its experts."""
        topk_idx, topk_weights = self.route(x)
        per_rank, per_node, per_expert, is_in_rank, _ = self.buffer.get_dispatch_layout(topk_idx, self.num_experts)
        recv_x, recv_idx, recv_weights, _, handle, _ = self.buffer.dispatch(
            x,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=is_in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk_idx,
            topk_weights=topk_weights,
        )
        y = torch.zeros(recv_x.shape, dtype=torch.float32)
        for number, expert in enumerate(self.experts):
            rows, choices = torch.where(recv_idx == number)
            y[rows] += recv_weights[rows, choices].unsqueeze(1) * expert(recv_x[rows])
        combined, _, _ = self.buffer.combine(y.to(torch.bfloat16), handle)
        return combined

    def forward_low_latency(self, x: torch.Tensor, use_fp8: bool = False) -> torch.Tensor:
        """Low-latency mode: the same, with rows packed by expert, and weights applied where the token came from.

        Between the call and its hook nothing runs for us: that is where another batch's work goes.
        """
        topk_idx, topk_weights = self.route(x)
        packed, counts, handle, _, receive = self.buffer.low_latency_dispatch(
            x, topk_idx, self.max_tokens, self.num_experts, use_fp8=use_fp8, return_recv_hook=True
        )
        receive()
        rows = _rows_of(packed)
        y = torch.zeros(rows.shape, dtype=torch.bfloat16)
        for number, expert in enumerate(self.experts):
            n = int(counts[number])
            y[number, :n] = expert(rows[number, :n]).to(torch.bfloat16)
        combined, _, receive = self.buffer.low_latency_combine(y, topk_idx, topk_weights, handle, return_recv_hook=True)
        receive()
        return combined

    def reference(self, x: torch.Tensor, intermediate: int) -> torch.Tensor:
        """What one process alone computes, with all experts and nothing rounded on the way: float [T, H]."""
        topk_idx, topk_weights = self.route(x)
        y = torch.zeros(x.shape, dtype=torch.float32)
        for number in range(self.num_experts):
            rows, choices = torch.where(topk_idx == number)
            if len(rows):
                expert = Expert(number, x.shape[1], intermediate)
                y[rows] += topk_weights[rows, choices].unsqueeze(1) * expert(x[rows])
        return y


def _rows_of(packed: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[El, R * M, H] in floating point, whether it came as bf16 or as FP8 with a scale for each 128 values."""
    if isinstance(packed, torch.Tensor):
        return packed
    values, scales = packed
    rows: torch.Tensor = (values.float().unflatten(-1, (-1, 128)) * scales.unsqueeze(-1)).flatten(-2)
    return rows
