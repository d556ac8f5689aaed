# SPDX-License-Identifier: Apache-2.0
"""One rank of the demo's MoE layer, as a process: `python -m nvshmem_efa.moe_rank RANK RANKS SEED STORE RECORD_FD`.

It needs torch, so nothing else imports it. What it found goes to RECORD_FD as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import deep_ep
from deep_ep.examples.moe_layer import MoELayer
from nvshmem_efa.moe_demo import EXPERTS_A_RANK, HIDDEN, INTERMEDIATE, MAX_TOKENS, TOPK

DIFFERENCE_MAX = {"normal": 2e-5, "low latency": 2e-5, "low latency, FP8": 2e-3}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """1 - cosine-like similarity, of everything at once: 0 for equal tensors, about the squared relative error else."""
    x, y = found.double(), expected.double()
    return float(1 - 2 * (x * y).sum() / (x * x + y * y).sum().clamp(min=1e-30))


def run(rank: int, n_ranks: int, seed: int) -> dict[str, Any]:
    """All passes through the layer; raises if a rank cannot go on."""
    n_experts = EXPERTS_A_RANK * n_ranks
    group = dist.group.WORLD
    bytes_needed = deep_ep.Buffer.get_low_latency_rdma_size_hint(MAX_TOKENS, HIDDEN, n_ranks, n_experts)
    buffer = deep_ep.Buffer(
        group,
        num_nvl_bytes=4 << 20,
        num_rdma_bytes=bytes_needed,
        low_latency_mode=True,
        num_qps_per_rank=EXPERTS_A_RANK,
        allow_nvlink_for_low_latency_mode=False,  # every byte between ranks as EFA work requests
        explicitly_destroy=True,
    )
    layer = MoELayer(buffer, HIDDEN, INTERMEDIATE, n_experts, TOPK, MAX_TOKENS)
    generator = torch.Generator().manual_seed(seed * 64 + rank)
    tokens = MAX_TOKENS - 3 * rank  # ranks differ
    x = torch.randn(tokens, HIDDEN, generator=generator).to(torch.bfloat16)
    expected = layer.reference(x, INTERMEDIATE)
    passes = {
        "normal": layer.forward(x),
        "low latency": layer.forward_low_latency(x),
        "low latency, FP8": layer.forward_low_latency(x, use_fp8=True),
    }
    found = {name: difference(y, expected) for name, y in passes.items()}
    wrong = [name for name, value in found.items() if not value <= DIFFERENCE_MAX[name]]
    exchange = buffer.runtime
    assert exchange is not None  # not destroyed yet
    stats = json.loads(exchange.stats_json())
    record = {"tokens": tokens, "difference": found, "wrong": wrong, "stats": stats, "how": exchange.describe()}
    buffer.destroy()
    return record


def main(arguments: list[str]) -> int:
    """Exit code 0: right; 1: wrong values, or it could not go on."""
    rank, n_ranks, seed = (int(text) for text in arguments[:3])
    store, record_fd = arguments[3], int(arguments[4])
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=n_ranks, timeout=timedelta(seconds=60)
        )
        record = run(rank, n_ranks, seed)
        dist.destroy_process_group()
    except Exception as error:
        traceback.print_exc()
        record = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(record_fd, "w") as out:
        json.dump(record, out)
    return 1 if record.get("error") or record.get("wrong") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
