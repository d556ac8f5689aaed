# SPDX-License-Identifier: Apache-2.0
"""Processes of a test program: how they find each other, their seeds, their prints."""

from __future__ import annotations

import os
import random
from typing import Any

import torch
import torch.distributed as dist

_local_rank: int | None = None


def init_dist(local_rank: int, num_local_ranks: int, seed: int = 0) -> tuple[int, int, dist.ProcessGroup]:
    """Joins the job and returns (rank, number of ranks, a group of all).

    The environment: MASTER_ADDR (127.0.0.1), MASTER_PORT (8361), WORLD_SIZE: the number of *nodes* (1), RANK: this
    node's (0). With a GPU: NCCL on cuda:local_rank, which becomes the default device. Without one: gloo on the CPU. The
    default dtype becomes bfloat16. Seeds by init_seed(seed).
    """
    global _local_rank
    address = f"tcp://{os.getenv('MASTER_ADDR', '127.0.0.1')}:{os.getenv('MASTER_PORT', '8361')}"
    n_nodes, node = int(os.getenv("WORLD_SIZE", "1")), int(os.getenv("RANK", "0"))
    world, rank = n_nodes * num_local_ranks, node * num_local_ranks + local_rank
    has_gpu = torch.cuda.is_available()
    more: dict[str, Any] = {"device_id": torch.device("cuda", local_rank)} if has_gpu else {}
    dist.init_process_group("nccl" if has_gpu else "gloo", init_method=address, world_size=world, rank=rank, **more)
    if has_gpu:
        torch.cuda.set_device(local_rank)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("cuda" if has_gpu else "cpu")
    _local_rank = local_rank
    init_seed(seed)
    group = dist.new_group(list(range(world)))
    if group is None:
        raise RuntimeError(f"rank {rank} of {world} got no group")
    return rank, world, group


def init_seed(seed: int = 0) -> None:
    """Seeds Python's and torch's generators with `seed` plus the rank, so that ranks differ and runs do not."""
    number = seed + (dist.get_rank() if dist.is_available() and dist.is_initialized() else 0)
    random.seed(number)
    torch.manual_seed(number)


def dist_print(*values: object, once_in_node: bool = False) -> None:
    """Prints on every rank, or on the first of a node, and waits for all ranks. Collective once there is a job."""
    if not once_in_node or _local_rank in (None, 0):
        print(*values, flush=True)
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
