# SPDX-License-Identifier: Apache-2.0
"""The few calls of CUDA's driver API and of NVSHMEM's public host API that the GPU demo needs, by ctypes.

Layouts and names are facts from NVSHMEM's installed headers; NVSHMEM itself is loaded, never linked.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from ctypes import c_char, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path

from nvshmem_efa import installed
from nvshmem_efa.errors import MissingError

STREAM_NON_BLOCKING = 1
INIT_WITH_UNIQUEID = 1 << 3
SIGNAL_SET = 9
SIGNAL_ADD = 10
CMP_GE = 5
UNIQUE_ID_BYTES = 128


class UniqueId(ctypes.Structure):
    """nvshmemx_uniqueid_t."""

    _fields_ = [("version", c_int), ("internal", c_char * 124)]


class InitAttr(ctypes.Structure):
    """nvshmemx_init_attr_t; only its version is ours to set, the rest is filled by NVSHMEM."""

    _fields_ = [("version", c_int), ("mpi_comm", c_void_p), ("args", c_char * 128)]


assert ctypes.sizeof(UniqueId) == UNIQUE_ID_BYTES
assert ctypes.sizeof(InitAttr) == 144


class CudaError(RuntimeError):
    """A driver call failed."""


class Cuda:
    """One GPU's primary context, current on this thread, and one stream."""

    def __init__(self, device: int) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise MissingError(f"CUDA's driver cannot be loaded: {error}", "install NVIDIA's driver") from None
        handle, context, self.stream = c_int(), c_void_p(), c_void_p()
        self._call("cuInit", c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(handle), c_int(device))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)
        self._call("cuStreamCreate", ctypes.byref(self.stream), c_uint(STREAM_NON_BLOCKING))

    def _call(self, name: str, *args: object) -> None:
        code = getattr(self._driver, name)(*args)
        if code != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorName(c_int(code), ctypes.byref(text))
            raise CudaError(f"{name} failed with {(text.value or b'?').decode()} ({code})")

    def write(self, target: int, data: bytes) -> None:
        self._call("cuMemcpyHtoD_v2", c_uint64(target), data, c_size_t(len(data)))

    def read(self, source: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        self._call("cuMemcpyDtoH_v2", buffer, c_uint64(source), c_size_t(size))
        return buffer.raw

    def read_word(self, source: int) -> int:
        return int.from_bytes(self.read(source, 8), "little")

    def fill(self, target: int, value: int, size: int) -> None:
        self._call("cuMemsetD8_v2", c_uint64(target), ctypes.c_ubyte(value), c_size_t(size))
        self._call("cuCtxSynchronize")

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self.stream)


class NvshmemHost:
    """NVSHMEM's host library. One PE a process."""

    def __init__(self, library: Path, cuda: Cuda) -> None:
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._cuda = cuda
        self.pe, self.pes = -1, 0
        self._library.nvshmem_malloc.restype = c_void_p

    def init(self, pe: int, pes: int, share: Callable[[Callable[[], bytes]], bytes]) -> None:
        """Collective. `share` hands PE 0's unique id to everybody."""
        unique_id = UniqueId.from_buffer_copy(share(self._make_unique_id))
        attr = InitAttr(version=(1 << 16) + ctypes.sizeof(InitAttr))
        self._checked(
            "nvshmemx_set_attr_uniqueid_args", c_int(pe), c_int(pes), ctypes.byref(unique_id), ctypes.byref(attr)
        )
        self._checked("nvshmemx_hostlib_init_attr", c_uint(INIT_WITH_UNIQUEID), ctypes.byref(attr))
        self.pe, self.pes = self._library.nvshmem_my_pe(), self._library.nvshmem_n_pes()
        if (self.pe, self.pes) != (pe, pes):
            raise RuntimeError(f"NVSHMEM says PE {self.pe} of {self.pes}; this is PE {pe} of {pes}")

    def _make_unique_id(self) -> bytes:
        unique_id = UniqueId(version=(1 << 16) + ctypes.sizeof(UniqueId))
        self._checked("nvshmemx_get_uniqueid", ctypes.byref(unique_id))
        return bytes(unique_id)

    def _checked(self, name: str, *args: object) -> None:
        code = getattr(self._library, name)(*args)
        if code != 0:
            raise RuntimeError(f"{name} failed with status {code}; its reason is on standard error")

    def finalize(self) -> None:
        self._library.nvshmemx_hostlib_finalize()

    def malloc(self, size: int) -> int:
        address = self._library.nvshmem_malloc(c_size_t(size))
        if not address:
            raise MemoryError(f"nvshmem_malloc of {size} bytes failed; raise NVSHMEM_SYMMETRIC_SIZE")
        return int(address)

    def putmem_signal(self, target: int, source: int, size: int, signal: int, value: int, pe: int) -> None:
        """On the stream: data, then signal SET."""
        self._library.nvshmemx_putmem_signal_on_stream(
            c_void_p(target), c_void_p(source), c_size_t(size), c_void_p(signal), c_uint64(value), c_int(SIGNAL_SET),
            c_int(pe), self._cuda.stream,
        )  # fmt: skip

    def getmem(self, target: int, source: int, size: int, pe: int) -> None:
        self._library.nvshmem_getmem(c_void_p(target), c_void_p(source), c_size_t(size), c_int(pe))

    def signal_add(self, target: int, value: int, pe: int) -> None:
        """On the stream: an atomic addition to a word of `pe`."""
        self._library.nvshmemx_signal_op_on_stream(
            c_void_p(target), c_uint64(value), c_int(SIGNAL_ADD), c_int(pe), self._cuda.stream
        )

    def put_nbi(self, target: int, source: int, size: int, pe: int) -> None:
        """On the stream, as the three that follow."""
        self._library.nvshmemx_putmem_nbi_on_stream(
            c_void_p(target), c_void_p(source), c_size_t(size), c_int(pe), self._cuda.stream
        )

    def get_nbi(self, target: int, source: int, size: int, pe: int) -> None:
        self._library.nvshmemx_getmem_nbi_on_stream(
            c_void_p(target), c_void_p(source), c_size_t(size), c_int(pe), self._cuda.stream
        )

    def wait_signal(self, signal: int, value: int) -> None:
        """The stream goes on once our word is at least `value`."""
        self._library.nvshmemx_signal_wait_until_on_stream(
            c_void_p(signal), c_int(CMP_GE), c_uint64(value), self._cuda.stream
        )

    def quiet_on_stream(self) -> None:
        self._library.nvshmemx_quiet_on_stream(self._cuda.stream)

    def barrier_all(self) -> None:
        self._library.nvshmem_barrier_all()

    def quiet(self) -> None:
        self._library.nvshmem_quiet()


def share_file(path: Path, pe: int, make: Callable[[], bytes], deadline_s: float) -> bytes:
    """PE 0 makes and writes it; the others wait for it. It appears whole, by rename."""
    if pe == 0:
        data = make()
        partial = path.with_suffix(".partial")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
        partial.rename(path)
        return data
    end = time.monotonic() + deadline_s
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"PE 0 wrote no unique id to {path} within {deadline_s:g} s")
        time.sleep(0.01)
    return path.read_bytes()


def transport_stats() -> dict[str, int] | None:
    """The counts of the transport that is up in this process; None where there is none."""
    library = ctypes.CDLL(str(installed.library()))  # the plugin has loaded it: this is the same one
    library.nvshmem_efa_stats_json.restype = ctypes.c_char_p
    stats = json.loads(library.nvshmem_efa_stats_json() or b"{}")
    return stats if isinstance(stats, dict) and stats else None
