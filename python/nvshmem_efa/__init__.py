# SPDX-License-Identifier: Apache-2.0
"""NVSHMEM over AWS EFA. Importing this package honours NVSHMEM_REMOTE_TRANSPORT=efa and does nothing else.

The import must come before NVSHMEM reads its options, that is before unique-id creation or init; `nvshmem-efa run`
does the same for programs that are not Python.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nvshmem_efa.gpu_posts import DeviceState

__all__ = ["__version__", "device_state"]


def _asked_for() -> bool:
    """Whether this process, or the one that started it, was told to use EFA (the marker outlives the switch)."""
    return os.environ.get("NVSHMEM_REMOTE_TRANSPORT", "").lower() == "efa" or "NVSHMEM_EFA_SELECTED" in os.environ


def _is_own_command() -> bool:
    """The command nvshmem-efa runs no NVSHMEM itself, and `doctor` must start where the switch would fail."""
    program = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return program == "nvshmem-efa" or sys.orig_argv[1:3] == ["-m", "nvshmem_efa"]


def device_state() -> DeviceState:
    """What a kernel needs to post by itself: address, version and size of the state of this process's transport."""
    from nvshmem_efa import gpu_posts

    return gpu_posts.device_state()


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("nvshmem-efa")
        except PackageNotFoundError:
            return "0+copied"  # a folder that was copied, not installed: pip knows nothing of it
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if _asked_for() and not _is_own_command():
    from nvshmem_efa.switch import select

    select()
