# SPDX-License-Identifier: Apache-2.0
"""Runs the micro-benchmark of the host path."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

from nvshmem_efa import installed
from nvshmem_efa.errors import EfaError, TimedOutError

PROGRAM = "nvshmem-efa-bench-host"
DEADLINE_S = 300


def run_host_bench() -> dict[str, Any]:
    """The program's one JSON object; its log goes to standard error."""
    try:
        done = subprocess.run([str(installed.find("bin", PROGRAM))], timeout=DEADLINE_S, stdout=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"{PROGRAM} did not end within {DEADLINE_S} s", "is the machine overloaded?") from None
    if done.returncode != 0:
        raise EfaError(f"{PROGRAM} failed with exit code {done.returncode}; its reason is on standard error")
    result = json.loads(done.stdout)
    if not isinstance(result, dict):
        raise EfaError(f"{PROGRAM} printed no JSON object")
    return result


def measured(prefix: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401 - JSON of any shape
    """Every summary (an object with a median) with the path that leads to it."""
    if isinstance(value, dict):
        if "median" in value:
            yield prefix, value
            return
        label = " ".join(str(value[key]) for key in ("name", "what", "case") if key in value)
        for name, inner in value.items():
            yield from measured(" / ".join(filter(None, (prefix, label, name))), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from measured(prefix, inner)
