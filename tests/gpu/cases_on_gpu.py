# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""The CPU's cases of deep_ep on GPUs: a Buffer that takes the CPU's tensors, works on its GPU, and hands copies back."""

from __future__ import annotations

import os
from typing import Any

import torch

import deep_ep

_Buffer = deep_ep.Buffer


def device_of(rank: int) -> torch.device:
    """Ranks share the GPUs there are."""
    return torch.device("cuda", rank % torch.cuda.device_count())


def moved(thing: Any, device: torch.device | str) -> Any:
    """Tensors on another device, with their strides; tuples and lists of them."""
    if isinstance(thing, torch.Tensor):
        made = torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=device)
        return made.copy_(thing)
    if isinstance(thing, (tuple, list)):
        return type(thing)(moved(part, device) for part in thing)
    return thing


class OnGpu(_Buffer):
    """As deep_ep.Buffer in normal mode, for programs that know CPU tensors only."""

    def __init__(self, group: Any, *args: Any, **options: Any) -> None:
        os.environ["DEEP_EP_EXECUTOR"] = "gpu"
        comm = options.get("comm")
        torch.cuda.set_device(device_of(comm.Get_rank() if group is None else torch.distributed.get_rank()))
        super().__init__(group, *args, **options)

    def get_dispatch_layout(self, topk_idx: Any, *args: Any, **options: Any) -> Any:
        *tensors, event = super().get_dispatch_layout(moved(topk_idx, self.device), *args, **options)
        return (*self._back(tensors, event), event)

    def dispatch(self, x: Any, handle: Any = None, **options: Any) -> Any:
        on_gpu = None if handle is None else handle[0].on_gpu
        there = {name: moved(value, self.device) for name, value in options.items()}
        *results, made, event = super().dispatch(moved(x, self.device), handle=on_gpu, **there)
        back = self._back(results, event)
        copies = None
        if made is not None:
            copies = moved(made, "cpu")
            copies[0].on_gpu = made
        return (*back, copies, event)

    def combine(self, x: Any, handle: Any, topk_weights: Any = None, bias: Any = None, **options: Any) -> Any:
        there = [moved(value, self.device) for value in (x, topk_weights, bias)]
        *results, event = super().combine(there[0], handle[0].on_gpu, there[1], there[2], **options)
        return (*self._back(results, event), event)

    def _back(self, results: Any, event: Any) -> Any:
        if event.event is not None:
            event.event.current_stream_wait()
        return moved(results, "cpu")


deep_ep.Buffer = OnGpu  # type: ignore[misc]
from cases_normal import *  # noqa: E402, F403
from cases_normal_limits import *  # noqa: E402, F403
