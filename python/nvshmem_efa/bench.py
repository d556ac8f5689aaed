# SPDX-License-Identifier: Apache-2.0
"""Runs the micro-benchmark of the host path."""

from __future__ import annotations

import subprocess

from nvshmem_efa import installed
from nvshmem_efa.errors import ExitCode, TimedOutError

PROGRAM = "nvshmem-efa-bench-host"
DEADLINE_S = 300


def run_host_bench(as_json: bool) -> ExitCode:
    """Its output goes straight to ours."""
    command = [str(installed.find("bin", PROGRAM)), *(["--json"] if as_json else [])]
    try:
        done = subprocess.run(command, timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"{PROGRAM} did not end within {DEADLINE_S} s", "is the machine overloaded?") from None
    return ExitCode.GOOD if done.returncode == 0 else ExitCode.FAILED
