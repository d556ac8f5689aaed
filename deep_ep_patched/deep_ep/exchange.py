# SPDX-License-Identifier: Apache-2.0
"""One rank's side of the exchange in the C library: its life, and the memory that results lie in."""

from __future__ import annotations

import atexit
import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from ctypes import byref, c_int64, c_void_p

import torch

from deep_ep import events, native
from deep_ep.errors import Code, ExchangeError
from deep_ep.events import EventHandle, EventOverlap
from deep_ep.group import Gather, Ranks

# After these nothing is agreed between the ranks any more, so that closing does not wait for anybody.
_BREAKING = {Code.PEER, Code.TIMEOUT, Code.DEVICE, Code.MISMATCH, Code.PROTOCOL, Code.AUTH, Code.INTERNAL}


class Memory:
    """Bytes of the exchange. Tensors over them keep them, and with them the exchange."""

    def __init__(self, address: int, array: ctypes.Array[ctypes.c_uint8]) -> None:
        self.address = address
        self._array = array

    def tensor(self, address: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A tensor whose first element lies at `address`, which is inside."""
        count = 1
        for size in shape:
            count *= size
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        return torch.frombuffer(self._array, dtype=dtype, count=count, offset=address - self.address).view(tuple(shape))


class Exchange:
    """What `Buffer.runtime` is. Its memory outlives close() for as long as tensors over it live."""

    def __init__(self, ranks: Ranks, options: native.Options) -> None:
        """Collective. ExchangeError, or what the group's own collective raised."""
        self.rank, self.n_ranks = ranks.rank, ranks.size
        self.nvlink_ranks = int(options.nvlink_ranks)
        self._gather = Gather(ranks)
        self._callback = native.AllGather(self._gather)
        self._lock = threading.RLock()  # entered again by finalizers that the garbage collector runs in between
        self._lent = 0
        self._is_open = False
        self._has_failed = self._is_broken = False
        self._handle = c_void_p()
        try:
            native.call("ep_open", byref(options), self._callback, None, byref(self._handle))
        except ExchangeError as error:
            if self._gather.error is not None:
                raise error from self._gather.error
            raise
        self._is_open = True
        self.end_of_buffer: Callable[[], object] | None = None  # what the process's end does first
        atexit.register(_end_of_process, weakref.ref(self))

    def call(self, name: str, *arguments: object) -> None:
        """A function of the group. ExchangeError says what failed, and which rank was waited for."""
        if not self._is_open:
            raise ExchangeError("the exchange is closed", Code.INVALID_ARGUMENT)
        try:
            native.call(name, self._handle, *arguments)
        except ExchangeError as error:
            self._has_failed = True
            self._is_broken = self._is_broken or error.code in _BREAKING
            raise

    # What a call in normal mode does beside its work; on the CPU, where nothing runs later, next to nothing.

    def begin(self, previous: EventHandle | None) -> None:
        """The call's work comes after `previous`, or after all of the current stream."""
        if previous is not None:
            previous.synchronize()

    def finish(self, is_async: bool, *tensors: object) -> EventOverlap:
        """What the call returns; `tensors` are what it used."""
        return events.finish(is_async, *tensors)

    def work(self) -> AbstractContextManager[object]:
        """Inside, operations of torch are part of the call's work."""
        return nullcontext()

    def result(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor for the call's work to fill."""
        return torch.empty(shape, dtype=dtype, device="cpu")

    def layout(self, arguments: native.LayoutArgs) -> None:
        """get_dispatch_layout; the counts are zero at first."""
        native.call("ep_layout", byref(arguments))

    def place(self, n_bytes: int) -> Memory:
        """A block that peers can write into, given back when the last tensor over it is gone. Not collective."""
        if not self._is_open:
            raise ExchangeError("the exchange is closed", Code.INVALID_ARGUMENT)
        address = native.library().ep_place(self._handle, max(n_bytes, 1))
        if not address:
            raise MemoryError(f"rank {self.rank}: no room for a result of {n_bytes} bytes: {native.last_error()}")
        return self._lend(address, n_bytes, is_block=True)

    def buffer(self, is_rdma: bool) -> tuple[Memory | None, int]:
        """The raw buffer and its bytes; no memory when it has none."""
        base, n_bytes = c_void_p(), c_int64()
        self.call("ep_buffer", int(is_rdma), byref(base), byref(n_bytes))
        if not base.value or n_bytes.value == 0:
            return None, 0
        return self._lend(base.value, n_bytes.value, is_block=False), n_bytes.value

    def window(self, address: int, n_bytes: int) -> Memory:
        """Memory of the exchange at an address that the library gave."""
        return self._lend(address, n_bytes, is_block=False)

    def close(self) -> None:
        """Collective: all ranks arrive, then each gives back what it has; again: nothing.

        Waits for nobody when an earlier call has shown that others are gone. ExchangeError when a rank does not come.
        """
        with self._lock:
            if not self._is_open:
                return
        had_failed = self._has_failed
        try:
            if not self._is_broken:
                self.call("ep_barrier")
        except ExchangeError as error:
            if not had_failed or error.code != Code.PEER:  # what broke it was said when it broke
                raise
        finally:
            self.abandon()

    def break_off(self) -> None:
        """This rank has failed between two steps of a collective call: others wait for it, and it waits for nobody."""
        self._is_broken = True

    def abandon(self) -> None:
        """Gives back what this rank has, at once or with the last tensor over its memory. Waits for nobody."""
        with self._lock:
            self._is_open = False
            self._free_if_unused()

    def end_of_process(self) -> None:
        """Gives back what tensors still keep: nobody reads them any more, and shared memory outlives a process."""
        if self.end_of_buffer is not None:
            self.end_of_buffer()
        with self._lock:
            self._is_open, self._lent = False, 0
            self._free_if_unused()

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def n_lent(self) -> int:
        """Blocks and windows over which tensors live."""
        return self._lent

    def describe(self) -> str:
        """Ranks, domains, devices and the way of arrival, in one line."""
        return self._text("ep_describe")

    def stats_json(self) -> str:
        """Counts since the start, as a JSON object."""
        return self._text("ep_stats_json")

    def is_available(self) -> bool:
        return self._is_open

    def get_num_rdma_ranks(self) -> int:
        return self.n_ranks // self.nvlink_ranks

    def get_rdma_rank(self) -> int:
        return self.rank // self.nvlink_ranks

    def _text(self, name: str) -> str:
        if not self._is_open:
            raise ExchangeError("the exchange is closed", Code.INVALID_ARGUMENT)
        return (getattr(native.library(), name)(self._handle) or b"").decode(errors="replace")

    def _lend(self, address: int, n_bytes: int, is_block: bool) -> Memory:
        array = (ctypes.c_uint8 * max(n_bytes, 1)).from_address(address)
        with self._lock:
            self._lent += 1
        back = weakref.finalize(array, self._take_back, address if is_block else None)
        back.atexit = False  # _end_of_process() comes later: tensors may still be read on the way there
        return Memory(address, array)

    def _take_back(self, block: int | None) -> None:
        with self._lock:
            if not self._handle:
                return  # end_of_process() was before
            if block is not None:
                native.library().ep_unplace(self._handle, block)
            self._lent -= 1
            self._free_if_unused()

    def _free_if_unused(self) -> None:
        if not self._is_open and self._lent == 0 and self._handle:
            handle, self._handle = self._handle, c_void_p()
            native.library().ep_abandon(handle)


def _end_of_process(exchange: weakref.ref[Exchange]) -> None:
    found = exchange()
    if found is not None:
        found.end_of_process()
