# SPDX-License-Identifier: Apache-2.0
"""What the Python tests share: the installed command, and an environment without settings of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import Command

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's shell does not change what is tested."""
    for name in list(os.environ):
        if name.startswith("NVSHMEM"):
            monkeypatch.delenv(name)


@pytest.fixture
def clean_env() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("NVSHMEM", "LD_PRELOAD"))}


@pytest.fixture
def command(clean_env: dict[str, str]) -> Command:
    """Runs `nvshmem-efa` with arguments; settings by keyword `env`."""

    def run(*args: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nvshmem_efa", *args],
            env={**clean_env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run
