# SPDX-License-Identifier: Apache-2.0
"""Who belongs to a Buffer: a torch ProcessGroup or an mpi4py communicator, as the exchange needs it."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
import torch.distributed as dist


class Ranks(Protocol):
    """A group of ranks; all of them call all_gather together."""

    rank: int
    size: int

    def all_gather(self, send: torch.Tensor, recv: torch.Tensor) -> None:
        """send uint8 [n], recv uint8 [size, n], both in host memory: row r becomes what rank r sent."""


class Communicator(Protocol):
    """What is used of an mpi4py communicator."""

    def Get_rank(self) -> int: ...

    def Get_size(self) -> int: ...

    def allgather(self, sendobj: bytes) -> list[bytes]: ...


class ProcessGroupRanks:
    """A torch ProcessGroup of any backend. Bytes go through the device that its backend serves: the CPU for gloo."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = int(group.rank())
        self.size = int(group.size())
        self._group = group

    def all_gather(self, send: torch.Tensor, recv: torch.Tensor) -> None:
        backends = str(dist.get_backend_config(self._group))  # "cpu:gloo,cuda:nccl"
        if "cpu:" in backends or not torch.cuda.is_available():
            dist.all_gather(list(recv.unbind()), send, group=self._group)
            return
        device = torch.device("cuda", torch.cuda.current_device())
        gathered = torch.empty(recv.shape, dtype=torch.uint8, device=device)
        dist.all_gather(list(gathered.unbind()), send.to(device), group=self._group)
        recv.copy_(gathered)


class MpiRanks:
    """An mpi4py communicator, or anything with its three methods."""

    def __init__(self, comm: Communicator) -> None:
        self.rank = int(comm.Get_rank())
        self.size = int(comm.Get_size())
        self._comm = comm

    def all_gather(self, send: torch.Tensor, recv: torch.Tensor) -> None:
        for row, sent in zip(recv.unbind(), self._comm.allgather(bytes(send.tolist())), strict=True):
            if sent:
                row.copy_(torch.frombuffer(bytearray(sent), dtype=torch.uint8))


def ranks_of(group: object, comm: Communicator | None) -> Ranks:
    """From the two arguments of Buffer; ValueError when neither is given, TypeError for something else."""
    if group is not None:
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(f"group is a {type(group).__name__}, must be a torch.distributed.ProcessGroup")
        return ProcessGroupRanks(group)
    if comm is None:
        raise ValueError("neither group nor comm is given; hint: pass a ProcessGroup or an mpi4py communicator")
    missing = [name for name in ("Get_rank", "Get_size", "allgather") if not hasattr(comm, name)]
    if missing:
        raise TypeError(f"comm is a {type(comm).__name__} without {', '.join(missing)}, must be an mpi4py communicator")
    return MpiRanks(comm)


class Gather:
    """The C callback ep_allgather on Ranks. It keeps the exception that it could not throw through C."""

    def __init__(self, ranks: Ranks) -> None:
        self.error: Exception | None = None
        self._ranks = ranks

    def __call__(self, _context: int | None, send: int, recv: int, n_bytes: int) -> int:
        try:
            self._ranks.all_gather(
                bytes_at(send, n_bytes), bytes_at(recv, n_bytes * self._ranks.size).view(self._ranks.size, n_bytes)
            )
        except Exception as error:
            self.error = error
            return 1
        return 0


def bytes_at(address: int, n_bytes: int) -> torch.Tensor:
    """uint8 [n_bytes] over memory of somebody else, who keeps it for as long as the tensor lives."""
    if n_bytes == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    memory = (ctypes.c_uint8 * n_bytes).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8)
