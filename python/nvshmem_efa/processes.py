# SPDX-License-Identifier: Apache-2.0
"""Runs the PEs of a job as processes: one deadline over everything, and nothing left behind however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# How long the other PEs get to write their records once one has failed.
GRACE_S = 3.0
PR_SET_PDEATHSIG = 1


@dataclass
class Member:
    """One PE: its process, and what it has written so far."""

    pe: int
    process: subprocess.Popen[bytes]
    record: bytes = b""
    progress: bytes = b""
    errors: bytes = b""
    open_pipes: int = field(default=0)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode


@dataclass(frozen=True)
class Outcome:
    """How the job ended."""

    members: list[Member]
    timed_out: bool
    first_failed: int | None  # the PE
    elapsed_s: float


OnLine = Callable[[int, str, str], None]  # (pe, "progress" | "errors", line)


def run_job(commands: list[list[str]], env: dict[str, str], deadline_s: float, on_line: OnLine) -> Outcome:
    """Starts every command with pipes on the fds that it finds in {record_fd} and {progress_fd}, and waits for all.

    After the first failure the others have GRACE_S seconds; at the deadline all are killed.
    """
    started = time.monotonic()
    members: list[Member] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        stack.callback(_kill_all, members)
        for pe, command in enumerate(commands):
            members.append(_start(pe, command, env, selector, stack))
        end = started + deadline_s
        timed_out = False
        first_failed: int | None = None
        while any(member.open_pipes or member.process.poll() is None for member in members):
            for key, _ in selector.select(timeout=0.05):
                _read(selector, key, on_line)
            failed = [m.pe for m in members if m.process.poll() not in (None, 0)]
            if failed and first_failed is None:
                first_failed = failed[0]
                end = min(end, time.monotonic() + GRACE_S)
            if time.monotonic() > end:
                timed_out = first_failed is None
                break
    return Outcome(members, timed_out, first_failed, time.monotonic() - started)


def _start(
    pe: int, command: list[str], env: dict[str, str], selector: selectors.BaseSelector, stack: contextlib.ExitStack
) -> Member:
    record_read, record_write = os.pipe()
    stack.callback(os.close, record_read)
    progress_read, progress_write = os.pipe()
    stack.callback(os.close, progress_read)
    try:
        process = subprocess.Popen(
            [part.format(record_fd=record_write, progress_fd=progress_write) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
            pass_fds=(record_write, progress_write),
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    finally:
        os.close(record_write)
        os.close(progress_write)
    assert process.stderr is not None
    stack.callback(process.stderr.close)
    member = Member(pe, process)
    for fd, what in ((record_read, "record"), (progress_read, "progress"), (process.stderr.fileno(), "errors")):
        os.set_blocking(fd, False)
        selector.register(fd, selectors.EVENT_READ, (member, what))
        member.open_pipes += 1
    return member


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """So that a PE ends even if this process is killed with SIGKILL."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(selector: selectors.BaseSelector, key: selectors.SelectorKey, on_line: OnLine) -> None:
    member: Member
    member, what = key.data
    data = os.read(key.fd, 65536)
    if not data:
        selector.unregister(key.fd)
        member.open_pipes -= 1
        return
    before: bytes = getattr(member, what)
    setattr(member, what, before + data)
    if what != "record":
        for line in _whole_lines(before, data):
            on_line(member.pe, what, line)


def _whole_lines(before: bytes, data: bytes) -> Iterator[str]:
    """The lines that `data` completes, given what was there before it."""
    text = before[before.rfind(b"\n") + 1 :] + data
    for line in text.split(b"\n")[:-1]:
        yield line.decode(errors="replace")


def _kill_all(members: list[Member]) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            if member.process.poll() is None:
                os.killpg(member.process.pid, signal.SIGKILL)
    for member in members:
        member.process.wait()
