# SPDX-License-Identifier: Apache-2.0
"""What tests need to run programs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

# The type of the `command` fixture, which runs `nvshmem-efa` with arguments.
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def interruptible() -> None:
    """For a child: SIGINT has its effect even if these tests run in a shell's background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
