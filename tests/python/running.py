# SPDX-License-Identifier: Apache-2.0
"""The type of the `command` fixture, which runs `nvshmem-efa` with arguments."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Command = Callable[..., "subprocess.CompletedProcess[str]"]
