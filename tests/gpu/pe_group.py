# SPDX-License-Identifier: Apache-2.0
"""PEs of one GPU job as processes: one folder, one deadline, one failure ends all.

The PEs print events as lines "@@ {json}"; everything they print goes to a log file each. When a PE hangs, the stacks of
all PEs are written down before anything is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Event = dict[str, Any]

GRACE_S = 4.0  # after the first PE failed: the others may still say what they saw
DEBUGGER_S = 25
SIGNAL_PARENT_DIED = 1  # PR_SET_PDEATHSIG


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(SIGNAL_PARENT_DIED, signal.SIGKILL)


class Pe:
    """One process and what it printed."""

    def __init__(self, number: int, command: list[str], env: dict[str, str], log: Path,
                 on_event: Callable[[int, Event], None]) -> None:  # fmt: skip
        self.number, self.log, self.events = number, log, list[Event]()
        self.last_begun: str | None = None
        self._on_event = on_event
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_die_with_parent,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.log.open("wb", buffering=0) as log:
            for line in self.process.stdout:
                log.write(line)
                at = line.find(b"@@ {")  # a library's unfinished line may stand before it
                if at < 0:
                    continue
                try:
                    event = json.loads(line[at + 3 :])
                except ValueError:
                    continue
                if event.get("event") == "begin":
                    self.last_begun = event["case"]
                self.events.append(event)
                self._on_event(self.number, event)

    def finish(self) -> int:
        self._reader.join(timeout=5)
        return self.process.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 15) -> list[str]:
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if not line.startswith("@@ ")][-lines:]


def dump_stacks(pes: list[Pe], folder: Path) -> list[Path]:
    """What every thread of every PE is doing: from /proc, and from a debugger where there is one."""
    written = []
    for pe in pes:
        if pe.process.poll() is not None:
            continue
        path = folder / f"stacks.pe{pe.number}.txt"
        with path.open("w") as out:
            for task in sorted(Path(f"/proc/{pe.process.pid}/task").iterdir()):
                facts = []
                for name in ("comm", "wchan", "syscall", "stack", "status"):
                    try:
                        text = (task / name).read_text(errors="replace").strip()
                    except OSError as error:
                        text = error.strerror
                    if name == "status":
                        text = " ".join(x for x in text.splitlines() if x.startswith(("State", "voluntary")))
                    facts.append(f"{name}: {text}")
                out.write(f"thread {task.name}\n  " + "\n  ".join(facts) + "\n")
        written.append(path)
    debugger = shutil.which("gdb") or shutil.which("cuda-gdb") or shutil.which("cuda-gdb", path="/usr/local/cuda/bin")
    if debugger:
        runs = [
            (pe, subprocess.Popen(
                ["timeout", "-s", "KILL", str(DEBUGGER_S), debugger, "-batch", "-nx", "-ex", "set pagination off",
                 "-ex", "thread apply all bt 24", "-p", str(pe.process.pid)],
                stdout=(folder / f"backtrace.pe{pe.number}.txt").open("w"), stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            ))
            for pe in pes if pe.process.poll() is None
        ]  # fmt: skip
        for pe, run in runs:
            run.wait()
            written.append(folder / f"backtrace.pe{pe.number}.txt")
    return written


class JobResult:
    """How a job ended: exit codes, all events by PE, and why it was stopped when it was."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.events: list[list[Event]] = []
        self.stopped: str | None = None
        self.unfinished: str | None = None  # the case that was running when the job ended early
        self.tails: list[list[str]] = []
        self.stacks: list[str] = []
        self.seconds = 0.0
        self.dead_after_s: dict[int, float] = {}  # PE: seconds from the start to its end

    @property
    def good(self) -> bool:
        return self.stopped is None and all(code == 0 for code in self.codes)


def run_job(npes: int, command: Callable[[int, str], list[str]], env: dict[str, str], folder: Path, deadline_s: float,
            on_event: Callable[[int, Event], None] = lambda pe, event: None,
            expect_death: int | None = None) -> JobResult:  # fmt: skip
    """Runs `command(pe, private_folder)` for every PE. The first failure, a watchdog or the deadline ends all of them.

    With `expect_death`, that PE's death is no failure, and the others have until the deadline to end by themselves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = JobResult()
    private = tempfile.mkdtemp(prefix="nvshmem-efa-gpu-")  # mode 0700: the unique id is a secret
    hung = threading.Event()

    def seen(pe: int, event: Event) -> None:
        if event.get("event") == "watchdog":
            hung.set()
        on_event(pe, event)

    started = time.monotonic()
    pes: list[Pe] = []
    try:
        for number in range(npes):
            pes.append(Pe(number, command(number, private), env, folder / f"pe{number}.log", seen))
        failed_at: float | None = None
        while True:
            now = time.monotonic()
            for pe in pes:
                if pe.process.poll() is not None:
                    result.dead_after_s.setdefault(pe.number, now - started)
            alive = [pe for pe in pes if pe.process.poll() is None]
            bad = [pe for pe in pes if pe.process.poll() not in (None, 0) and pe.number != expect_death]
            if not alive:
                break
            if hung.is_set() or now - started > deadline_s:
                result.stopped = "a PE's watchdog" if hung.is_set() else f"the deadline of {deadline_s:g} s"
                result.stacks = [str(path) for path in dump_stacks(pes, folder)]
                break
            if bad and expect_death is None:
                failed_at = failed_at or now
                if now - failed_at > GRACE_S:
                    result.stopped = f"PE {bad[0].number} ended with {bad[0].process.poll()}"
                    break
            time.sleep(0.02)
        result.unfinished = _unfinished(pes)
    finally:
        for pe in pes:
            pe.kill()
        result.codes = [pe.finish() for pe in pes]
        shutil.rmtree(private, ignore_errors=True)
    result.seconds = time.monotonic() - started
    result.events = [pe.events for pe in pes]
    result.tails = [pe.tail() for pe in pes]
    return result


def _unfinished(pes: list[Pe]) -> str | None:
    """The case that some PE began and did not finish."""
    for pe in pes:
        done = {event["case"] for event in pe.events if event.get("event") == "case"}
        if pe.last_begun is not None and pe.last_begun not in done:
            return pe.last_begun
    return None
