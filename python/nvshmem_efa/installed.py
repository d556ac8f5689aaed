# SPDX-License-Identifier: Apache-2.0
"""Where the files of this installation lie: shared libraries, programs, headers."""

from __future__ import annotations

from pathlib import Path

import nvshmem_efa
from nvshmem_efa.errors import MissingError

PLUGIN_ABIS = (3, 4, 5, 6, 7)


def find(kind: str, name: str) -> Path:
    """The installed file `name` in the folder `kind` (lib, bin or include)."""
    for folder in nvshmem_efa.__path__:  # several with an editable install
        path = Path(folder) / kind / name
        if path.exists():
            return path
    raise MissingError(
        f"{kind}/{name} is not in this installation of nvshmem-efa ({', '.join(nvshmem_efa.__path__)})",
        "install the package with pip; a source folder on PYTHONPATH has no compiled parts",
    )


def plugin(abi: int) -> Path:
    """The transport plugin for one NVSHMEM plugin ABI."""
    return find("lib", f"nvshmem_transport_efa_abi{abi}.so")


def library() -> Path:
    """The C API (nvshmem_efa/api.h)."""
    return find("lib", "libnvshmem_efa.so")


def shim() -> Path:
    """The small library that makes NVSHMEM take our plugin."""
    return find("lib", "libnvshmem_efa_shim.so")
