# SPDX-License-Identifier: Apache-2.0
"""Processes that end with us, and a folder for one run that is gone after it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO

PR_SET_PDEATHSIG = 1
TERM_GRACE_S = 5.0
FOLDER_PREFIX = "nvshmem-efa-vm-"
ORPHAN_AGE_S = 60


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also when the runner itself is killed outright


class Child:
    """A program in a process group of its own, and where its output goes."""

    def __init__(
        self,
        name: str,
        command: list[str],
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self.program = Path(command[0]).name
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            env={key: value for key, value in os.environ.items() if not key.startswith("NVSHMEM_EFA_VM_")},
        )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Asks it to end, then insists. Returns its exit code (negative: the signal)."""
        if not self.has_ended():
            self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(TERM_GRACE_S)
        self.signal(signal.SIGKILL)  # and what it may have started
        return self.process.wait(TERM_GRACE_S)


class RunFolder:
    """Sockets, logs and the job of one run: for this user only, gone afterwards."""

    def __enter__(self) -> Path:
        self._remove_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._owner = (self.path / "owner").open("w")
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._owner.close()

    @staticmethod
    def _remove_orphans() -> None:
        """Folders of runs that were killed outright: nobody holds their lock."""
        for left in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
            with contextlib.suppress(OSError):
                if left.stat().st_uid != os.getuid() or time.time() - left.stat().st_mtime < ORPHAN_AGE_S:
                    continue
                with (left / "owner").open() as owner:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
