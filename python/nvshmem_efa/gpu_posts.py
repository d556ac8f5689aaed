# SPDX-License-Identifier: Apache-2.0
"""The device state: what a kernel needs to post by itself (nvshmem_efa/device_state.h)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from nvshmem_efa import installed
from nvshmem_efa.errors import ConfigError, EfaError, MissingError, PeerError, TimedOutError

# Codes of nvshmem_efa/api.h that have an error class of their own (docs/troubleshooting.md).
_ERRORS: dict[int, type[EfaError]] = {2: ConfigError, 3: MissingError, 4: MissingError, 5: ConfigError, 8: PeerError,
                                      9: TimedOutError}  # fmt: skip


@dataclass(frozen=True)
class DeviceState:
    """Where the state lies, as posters see it, and what layout it has."""

    address: int
    version: int
    bytes: int


def api() -> ctypes.CDLL:
    """The C API, nvshmem_efa/api.h."""
    try:
        library = ctypes.CDLL(str(installed.library()))
    except OSError as error:
        raise MissingError(f"the C API cannot be loaded: {error}", "reinstall the package on this machine") from None
    library.nvshmem_efa_last_error.restype = ctypes.c_char_p
    return library


def check(library: ctypes.CDLL, code: int) -> None:
    """Raises what a call that returned this code has reported."""
    if code != 0:
        text = library.nvshmem_efa_last_error(None).decode(errors="replace")
        message, _, hint = text.partition("; hint: ")
        raise _ERRORS.get(code, EfaError)(message, hint)


def device_state() -> DeviceState:
    """The state of the transport that is up in this process; an argument for kernels, valid until finalize."""
    library = api()
    address, version, size = ctypes.c_void_p(), ctypes.c_uint32(), ctypes.c_size_t()
    check(library, library.nvshmem_efa_device_state(ctypes.byref(address), ctypes.byref(version), ctypes.byref(size)))
    return DeviceState(address.value or 0, version.value, size.value)
