# SPDX-License-Identifier: Apache-2.0
"""Buffer: a group of ranks, the memory that they share, and the exchange between them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from typing import ClassVar

import torch

from deep_ep import checks, config, low_latency, native, settings
from deep_ep import group as groups
from deep_ep.config import Config
from deep_ep.events import EventHandle, EventOverlap
from deep_ep.exchange import Exchange
from deep_ep.gpu import GpuExchange, current_device
from deep_ep.low_latency import LowLatencyMode
from deep_ep.normal import NormalMode

INT_MAX = 2**31 - 1
NORMAL_RANKS_MAX = 160


class Buffer(NormalMode, LowLatencyMode):
    """The expert-parallel exchange of one rank. All of the group make it together and call it in the same order."""

    num_sms: ClassVar[int] = 20

    def __init__(
        self,
        group: torch.distributed.ProcessGroup | None,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: groups.Communicator | None = None,
    ) -> None:
        """Collective.

        group: a ProcessGroup of any backend, or None and `comm`: an mpi4py communicator. num_nvl_bytes: how large the
        memory for results begins (it grows by demand); num_rdma_bytes: the symmetric buffer of the low-latency mode
        (get_low_latency_rdma_size_hint); both multiples of 128. num_qps_per_rank and allow_mnnvl are taken for
        compatibility: queues come from NVSHMEM_EFA_GPU_QUEUES, and domains end with the host.
        allow_nvlink_for_low_latency_mode False: all bytes between ranks go by the network. explicitly_destroy: only
        destroy() ends it. enable_shrink: a late rank is left out instead of an error. Settings: docs/deep-ep.md.
        """
        ranks = groups.ranks_of(group, comm)
        chosen = settings.read()
        self.rank, self.group_size = ranks.rank, ranks.size
        self.group = group
        self.low_latency_mode = checks.flag("low_latency_mode", low_latency_mode)
        self.explicitly_destroy = checks.flag("explicitly_destroy", explicitly_destroy)
        self.enable_shrink = checks.flag("enable_shrink", enable_shrink)
        checks.flag("allow_mnnvl", allow_mnnvl)
        checks.integer("num_qps_per_rank", num_qps_per_rank, at_least=1)
        domain = _domain(ranks.size, chosen, self.low_latency_mode)
        self.num_nvl_bytes, self.num_rdma_bytes = _sizes(
            num_nvl_bytes, num_rdma_bytes, self.low_latency_mode, ranks.size > domain
        )
        is_gpu = _is_on_gpu(chosen.executor)
        self.device = current_device() if is_gpu else torch.device("cpu")
        uses_stores = checks.flag("allow_nvlink_for_low_latency_mode", allow_nvlink_for_low_latency_mode)
        options = native.Options(
            rank=self.rank, n_ranks=self.group_size, nvlink_ranks=domain, low_latency=int(self.low_latency_mode),
            nvlink_for_ll=-1 if chosen.self_by_network else int(uses_stores), executor=int(is_gpu),
            arrivals=settings.ARRIVALS.index(chosen.arrivals), workers=chosen.workers_of(domain),
            nvl_bytes=self.num_nvl_bytes, rdma_bytes=self.num_rdma_bytes, timeout_ms=chosen.timeout_ms,
            enable_shrink=int(self.enable_shrink),
        )  # fmt: skip
        self.runtime = GpuExchange(ranks, options) if is_gpu else Exchange(ranks, options)
        end = _warn_not_destroyed if self.explicitly_destroy else _close
        self._end = weakref.finalize(self, end, self.runtime)
        self._end.atexit = False  # the runtime's own way out calls it, before it gives back what tensors still keep
        self.runtime.end_of_buffer = self._end

    def destroy(self) -> None:
        """Collective: waits for all ranks, then gives everything back; tensors that calls have returned stay valid.

        AssertionError unless the Buffer was made with explicitly_destroy; again: nothing.
        """
        if not self.explicitly_destroy:
            raise AssertionError("destroy() is for a Buffer made with explicitly_destroy=True")
        self._end.detach()
        runtime, self.runtime = self.runtime, None
        if runtime is not None:
            runtime.close()

    @staticmethod
    def is_sm90_compiled() -> bool:
        """Whether features of Hopper are there: FP8 and bulk copies. The CPU executor has what they do."""
        return True

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """SMs of a call without a `config`, for all Buffers. AssertionError when odd."""
        if checks.integer("new_num_sms", new_num_sms, at_least=0) % 2:
            raise AssertionError(f"new_num_sms is {new_num_sms}, must be even")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """The current stream's work so far, as a `previous_event`."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """Bytes for `num_rdma_bytes` in low-latency mode."""
        return low_latency.size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """The Config of a dispatch that is given none; AssertionError for a number of ranks that has none."""
        return config.default("dispatch", num_ranks, Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """The Config of a combine that is given none; AssertionError for a number of ranks that has none."""
        return config.default("combine", num_ranks, Buffer.num_sms)

    def get_comm_stream(self) -> torch.cpu.Stream | torch.cuda.Stream:
        """The stream that normal mode works in. On the CPU torch's stand-in, which waits for nothing."""
        return self._exchange.comm_stream if isinstance(self._exchange, GpuExchange) else torch.cpu.Stream()

    def get_local_buffer_tensor(
        self, dtype: torch.dtype, size: Sequence[int] | None = None, offset: int = 0, use_rdma_buffer: bool = False
    ) -> torch.Tensor:
        """This rank's raw buffer from `offset` bytes to its end, flat; with `size`, its first values in that shape.

        Results of calls lie in the same memory (use_rdma_buffer False): for tests of the memory, not for keeping data.
        """
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype is a {type(dtype).__name__}, must be a torch.dtype")
        memory, n_bytes = self._exchange.buffer(checks.flag("use_rdma_buffer", use_rdma_buffer))
        checks.integer("offset", offset, 0, n_bytes)
        checks.multiple("offset", offset, dtype.itemsize)
        count = (n_bytes - offset) // dtype.itemsize
        if memory is None:
            flat = torch.empty(0, dtype=dtype, device=self.device)
        else:
            flat = memory.tensor(memory.address + offset, dtype, (count,))
        if size is None:
            return flat
        wanted = torch.Size(size)
        if wanted.numel() > count:
            raise ValueError(f"size has {wanted.numel()} values, must have at most {count} (what lies behind offset)")
        return flat[: wanted.numel()].view(wanted)


def _domain(n_ranks: int, chosen: settings.Settings, is_low_latency: bool) -> int:
    """Ranks of an NVLink domain."""
    if n_ranks > NORMAL_RANKS_MAX and not is_low_latency:
        raise ValueError(
            f"the group has {n_ranks} ranks, must have at most {NORMAL_RANKS_MAX} without low_latency_mode"
        )
    return chosen.domain_of(n_ranks)


def _sizes(nvl: int, rdma: int, is_low_latency: bool, has_nodes: bool) -> tuple[int, int]:
    """The two sizes, checked."""
    for name, value in (("num_nvl_bytes", nvl), ("num_rdma_bytes", rdma)):
        checks.integer(name, value, at_least=0)
        checks.multiple(name, value, config.BUFFER_ALIGNMENT)
    if nvl > INT_MAX and rdma:
        raise ValueError(f"num_nvl_bytes is {nvl}, must be at most {INT_MAX} when num_rdma_bytes is not 0")
    if rdma > INT_MAX and not is_low_latency:
        raise ValueError(f"num_rdma_bytes is {rdma}, must be at most {INT_MAX} without low_latency_mode")
    if rdma and not is_low_latency and not has_nodes:
        raise ValueError(f"num_rdma_bytes is {rdma}, must be 0 within one NVLink domain without low_latency_mode")
    return nvl, rdma


def _is_on_gpu(executor: str) -> bool:
    """Where torch sees a GPU, calls take its tensors, unless DEEP_EP_EXECUTOR says otherwise."""
    return torch.cuda.is_available() if executor == "auto" else executor == "gpu"


def _close(runtime: Exchange) -> None:
    """The end of a Buffer that nobody destroys: as destroy(), and nobody is there to take an error."""
    try:
        runtime.close()
    except Exception as error:
        print(f"deep_ep: rank {runtime.rank}: closing failed: {error}", file=sys.stderr, flush=True)


def _warn_not_destroyed(runtime: Exchange) -> None:
    print(
        f"deep_ep: warning: rank {runtime.rank}: a Buffer made with explicitly_destroy=True ends without destroy()"
        "; what it held is given back without waiting for other ranks",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    runtime.abandon()
