# SPDX-License-Identifier: Apache-2.0
"""What the two modes of a Buffer share."""

from __future__ import annotations

import torch

from deep_ep import checks, events
from deep_ep.exchange import Exchange


class Mode:
    """The state of a Buffer that its modes use."""

    rank: int
    group_size: int
    low_latency_mode: bool
    enable_shrink: bool
    num_rdma_bytes: int
    runtime: Exchange | None
    device: torch.device  # where tensors of a call lie

    @property
    def _exchange(self) -> Exchange:
        if self.runtime is None:
            raise RuntimeError("this Buffer was destroyed; hint: nothing may be called on it after destroy()")
        return self.runtime

    def _begin(self, previous_event: object, async_finish: object, allocate_on_comm_stream: object) -> None:
        """The stream rules of a call in normal mode, and its wait for `previous_event`."""
        is_async = checks.flag("async_finish", async_finish)
        event = events.previous(previous_event)
        if checks.flag("allocate_on_comm_stream", allocate_on_comm_stream) and (event is None or not is_async):
            lacks = "previous_event with an event" if event is None else "async_finish=True"
            raise ValueError(f"allocate_on_comm_stream is True, must be False without {lacks}")
        self._exchange.begin(event)

    def _tensor(
        self, name: str, value: object, dtypes: torch.dtype | tuple[torch.dtype, ...], shape: checks.Shape
    ) -> torch.Tensor:
        return checks.tensor(name, value, dtypes, shape, self.device)

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _local_experts(self, name: str, num_experts: object) -> int:
        """Experts of this rank; ValueError when they are not the same number on each."""
        number = checks.integer(name, num_experts, at_least=1)
        checks.divides(name, number, "the number of ranks", self.group_size)
        return number // self.group_size
