# SPDX-License-Identifier: Apache-2.0
"""Modules whose kernels post through `nvshmem_efa_state` of nvshmem_efa/module.cuh: docs/modules.md.

Only modules without host code need a call, such as those that NVRTC made.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass

from nvshmem_efa.gpu_posts import api, check


@dataclass(frozen=True)
class Module:
    """One symbol that the library knows of."""

    name: str
    has_state: bool
    trouble: str  # why it has none although it should; "" otherwise


def add(module: int) -> None:
    """Gives the device state to a CUmodule, now or as soon as NVSHMEM is initialised. It must be loaded, and stay so.

    Not beside a kernel that waits for the calling thread: CUDA may wait for the GPU to find the symbol.
    """
    library = api()
    check(library, library.nvshmem_efa_module_add_driver(ctypes.c_void_p(int(module))))


def remove(module: int) -> None:
    """Before it is unloaded."""
    library = api()
    check(library, library.nvshmem_efa_module_remove_driver(ctypes.c_void_p(int(module))))


def listed() -> list[Module]:
    """All that are registered in this process, those with host code too."""
    library = api()
    library.nvshmem_efa_modules_json.restype = ctypes.c_char_p
    return [Module(**entry) for entry in json.loads(library.nvshmem_efa_modules_json() or b"[]")]
