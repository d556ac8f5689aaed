# SPDX-License-Identifier: Apache-2.0
"""Finds NVIDIA's NVSHMEM on this machine, without loading it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

HOST_LIBRARY = "libnvshmem_host.so.3"
SYSTEM_HOMES = ("/usr/local/nvshmem", "/opt/nvshmem", "/usr")
LIBRARY_FOLDERS = ("lib", "lib64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")


@dataclass(frozen=True)
class Nvshmem:
    """One installation."""

    home: Path
    library: Path
    found_by: str
    version: str | None  # "3.4.5", from its own header
    plugin_abis: tuple[int, ...]  # suffixes of the transport files beside the library

    @property
    def transports(self) -> list[str]:
        """Names of the transports that it carries, for instance ibrc and ucx."""
        files = self.library.parent.glob("nvshmem_transport_*.so.*")
        return sorted({file.name.split(".so")[0].removeprefix("nvshmem_transport_") for file in files})


def find_nvshmem(env: Mapping[str, str] | None = None, sys_path: list[str] | None = None) -> Nvshmem | None:
    """The first of: NVSHMEM_EFA_NVSHMEM_HOME, NVSHMEM_HOME, the wheel in site-packages, the usual system folders."""
    env = os.environ if env is None else env
    for home, found_by in _homes(env, sys.path if sys_path is None else sys_path):
        for folder in LIBRARY_FOLDERS:
            library = home / folder / HOST_LIBRARY
            if library.exists():
                return Nvshmem(home, library, found_by, _version(home), _plugin_abis(library.parent))
    return None


def _homes(env: Mapping[str, str], sys_path: list[str]) -> Iterator[tuple[Path, str]]:
    for name in ("NVSHMEM_EFA_NVSHMEM_HOME", "NVSHMEM_HOME"):
        if env.get(name):
            yield Path(env[name]), name
    for entry in sys_path:
        yield Path(entry or ".") / "nvidia" / "nvshmem", "Python package"
    for home in SYSTEM_HOMES:
        yield Path(home), "system folder"


def _version(home: Path) -> str | None:
    header = home / "include" / "non_abi" / "nvshmem_version.h"
    try:
        text = header.read_text(errors="replace")
    except OSError:
        return None
    parts = [re.search(rf"NVSHMEM_VENDOR_{part}_VERSION (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(part.group(1) for part in parts if part) if all(parts) else None


def _plugin_abis(folder: Path) -> tuple[int, ...]:
    suffixes = (file.name.rpartition(".so.")[2] for file in folder.glob("nvshmem_transport_*.so.*"))
    return tuple(sorted({int(suffix) for suffix in suffixes if suffix.isdigit()}))
