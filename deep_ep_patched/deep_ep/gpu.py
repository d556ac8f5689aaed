# SPDX-License-Identifier: Apache-2.0
"""The exchange on a GPU: buffers in its memory, kernels in the caller's stream or in one of the exchange's own."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from ctypes import byref
from typing import cast

import torch

from deep_ep import native
from deep_ep.errors import Code, ExchangeError
from deep_ep.events import EventHandle, EventOverlap
from deep_ep.exchange import Exchange, Memory
from deep_ep.group import Ranks

_IN_STREAM = {
    "ep_ll_dispatch",
    "ep_ll_combine",
    "ep_ll_combine_buffer",
    "ep_ll_clean",
    "ep_ll_mask",
    "ep_ll_unmask_all",
}
_IN_COMM_STREAM = {"ep_gpu_layout", "ep_notify", "ep_dispatch", "ep_combine"}


class _Bytes:
    """GPU memory of the exchange, as torch takes it; a tensor over it keeps this object."""

    def __init__(self, address: int, n_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (n_bytes,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3,
        }  # fmt: skip


class GpuMemory(Memory):
    """Memory on the GPU that is current."""

    def __init__(self, address: int, owner: _Bytes, device: torch.device) -> None:
        self.address = address
        self._device = device
        self._all = torch.as_tensor(owner, device=device)  # keeps the owner, as every tensor over it does

    def tensor(self, address: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A tensor whose first element lies at `address`, which is inside."""
        count = torch.Size(shape).numel()
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)
        first = address - self.address
        return self._all[first : first + count * dtype.itemsize].view(dtype).view(tuple(shape))


class GpuExchange(Exchange):
    """An Exchange whose calls take the GPU's pointers and put kernels into a stream.

    Normal mode has a stream of its own, so that its work overlaps with the caller's. An error of a kernel is raised by
    a later call, or when the Buffer ends.
    """

    def __init__(self, ranks: Ranks, options: native.Options) -> None:
        """Collective. The first time it compiles kernels, for some ten seconds; later they are on disk."""
        self.device = current_device()
        self.comm_stream = torch.cuda.Stream(self.device, priority=-1)
        self._is_result_of_comm_stream = False
        self._joint = torch.cuda.Event()  # of one stream's wait for another, over at once
        self._freed: list[torch.cuda.Event] = []
        self._spare: list[torch.cuda.Event] = []
        images = _kernels(self.device)
        super().__init__(ranks, options)
        for image in images:
            self.call("ep_load_kernels", image, len(image))

    def call(self, name: str, *arguments: object) -> None:
        """As Exchange.call(). The receiving half of an operation runs in the stream of its sending half."""
        if name == "ep_ll_masked":
            self._masked(cast(int, arguments[0]))
            return
        if name in _IN_STREAM:
            struct = getattr(arguments[0], "_obj", None)  # of byref()
            stream = getattr(struct, "stream", None) or torch.cuda.current_stream(self.device)
            if isinstance(struct, native.Sized):
                struct.stream = stream
            super().call("ep_use_stream", stream.cuda_stream)
        if name in _IN_COMM_STREAM:
            # Blocks that were given back may be read by kernels yet. From here on peers may write them.
            freed, self._freed = self._freed, []
            for event in freed:
                self.comm_stream.wait_event(event)
            self._spare += freed
            super().call("ep_use_stream", self.comm_stream.cuda_stream)
        super().call(name, *arguments)

    def begin(self, previous: EventHandle | None) -> None:
        """As Exchange.begin(): waits are the stream's, not the caller's."""
        self._is_result_of_comm_stream = previous is not None
        if previous is None:
            self._wait(self.comm_stream, torch.cuda.current_stream(self.device))
        else:
            previous.stream_wait(self.comm_stream)

    def finish(self, is_async: bool, *tensors: object) -> EventOverlap:
        """As Exchange.finish(): the current stream waits for the work, or an event stands for it."""
        if not is_async:
            self._wait(torch.cuda.current_stream(self.device), self.comm_stream)
            return EventOverlap()
        for tensor in _flat(tensors):
            tensor.record_stream(self.comm_stream)
        with self.work():
            return EventOverlap(EventHandle(), tensors)

    def work(self) -> AbstractContextManager[object]:
        """As Exchange.work()."""
        return torch.cuda.stream(self.comm_stream)

    def result(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """As Exchange.result()."""
        if not self._is_result_of_comm_stream:
            return torch.empty(shape, dtype=dtype, device=self.device)
        # The work may begin before what the current stream does now: memory that was freed there is not free there yet.
        stream = torch.cuda.current_stream(self.device)
        with self.work():
            made = torch.empty(shape, dtype=dtype, device=self.device)
        made.record_stream(stream)
        return made

    def layout(self, arguments: native.LayoutArgs) -> None:
        """As Exchange.layout()."""
        self.call("ep_gpu_layout", byref(arguments))

    def _masked(self, to: int) -> None:
        masks = torch.empty(self.n_ranks, dtype=torch.int32, device="cpu")
        super().call("ep_ll_masked", native.pointer(masks))
        GpuMemory(to, _Bytes(to, 4 * self.n_ranks), self.device).tensor(to, torch.int32, (self.n_ranks,)).copy_(masks)

    def _take_back(self, block: int | None) -> None:
        if block is not None and self._is_open:
            event = self._spare.pop() if self._spare else torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._freed.append(event)
        super()._take_back(block)

    def _wait(self, later: torch.cuda.Stream, earlier: torch.cuda.Stream) -> None:
        self._joint.record(earlier)
        later.wait_event(self._joint)

    def _lend(self, address: int, n_bytes: int, is_block: bool) -> Memory:
        owner = _Bytes(address, n_bytes)
        with self._lock:
            self._lent += 1
        back = weakref.finalize(owner, self._take_back, address if is_block else None)
        back.atexit = False  # as in Exchange
        return GpuMemory(address, owner, self.device)


def current_device() -> torch.device:
    """The GPU of this process, with its context made; ExchangeError where torch has none."""
    if not torch.cuda.is_available():
        raise ExchangeError(
            "DEEP_EP_EXECUTOR=gpu, and torch sees no GPU; hint: DEEP_EP_EXECUTOR=cpu runs the exchange on CPU tensors",
            Code.MISSING,
        )
    device = torch.device("cuda", torch.cuda.current_device())
    torch.empty(1, device=device)
    return device


def _flat(things: object) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples."""
    if isinstance(things, torch.Tensor):
        yield things
    elif isinstance(things, tuple):
        for thing in things:
            yield from _flat(thing)


def _kernels(device: torch.device) -> list[bytes]:
    from nvshmem_efa import kernels  # here, as its import may switch NVSHMEM's transport

    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}{kernels.ARCH_FEATURES.get(major, '')}"
    return [kernels.build(name, arch).path.read_bytes() for name in kernels.names("deep_ep")]
