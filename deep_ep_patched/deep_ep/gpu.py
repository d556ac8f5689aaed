# SPDX-License-Identifier: Apache-2.0
"""The exchange on a GPU: buffers in its memory, kernels in the caller's stream. It has not run on a GPU yet."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import cast

import torch

from deep_ep import native
from deep_ep.errors import Code, ExchangeError
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
        self._owner = owner
        self._device = device

    def tensor(self, address: int, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
        """A tensor whose first element lies at `address`, which is inside."""
        count = torch.Size(shape).numel()
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype, device=self._device)
        flat = torch.as_tensor(self._owner, device=self._device)[address - self.address :]
        return flat[: count * dtype.itemsize].view(dtype).view(tuple(shape))


class GpuExchange(Exchange):
    """An Exchange whose calls take the GPU's pointers and put kernels into the current stream.

    An error of a kernel is raised by a later call, or when the Buffer ends.
    """

    def __init__(self, ranks: Ranks, options: native.Options) -> None:
        """Collective. The first time it compiles kernels, for some ten seconds; later they are on disk."""
        self.device = current_device()
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
        super().call(name, *arguments)

    def place(self, n_bytes: int) -> Memory:
        """Blocks for results of normal mode: not there yet."""
        raise no_normal_mode()

    def _masked(self, to: int) -> None:
        masks = torch.empty(self.n_ranks, dtype=torch.int32, device="cpu")
        super().call("ep_ll_masked", native.pointer(masks))
        GpuMemory(to, _Bytes(to, 4 * self.n_ranks), self.device).tensor(to, torch.int32, (self.n_ranks,)).copy_(masks)

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


def no_normal_mode() -> NotImplementedError:
    return NotImplementedError(
        "normal mode on the GPU is not there yet"
        "; hint: low-latency mode is, and DEEP_EP_EXECUTOR=cpu runs both on CPU tensors"
    )


def _kernels(device: torch.device) -> list[bytes]:
    from nvshmem_efa import kernels  # here, as its import may switch NVSHMEM's transport

    major, minor = torch.cuda.get_device_capability(device)
    arch = f"sm_{major}{minor}{kernels.ARCH_FEATURES.get(major, '')}"
    return [kernels.build(name, arch).path.read_bytes() for name in kernels.names("deep_ep")]
