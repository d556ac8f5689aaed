# SPDX-License-Identifier: Apache-2.0
"""One run: device processes, guests, their consoles, one deadline for all; nothing is left when it returns."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .errors import EXIT_FAILED, EXIT_TIMEOUT, VmError, say
from .job import Job, read_results, write_job
from .machine import Machine
from .processes import Child, RunFolder

SOCKET_TIMEOUT_S = 15.0
GRACE_AFTER_FAILURE_S = 20.0  # for the other guests, once one has failed
TAIL_LINES = 25
SOCKET_PATH_MAX = 107
# On a console line of the kernel's own ("[   12.345678] ...").
COMPLAINT = re.compile(
    rb"^\[ *\d+\.\d+\].*(BUG:|WARNING: |Oops|Call Trace:|general protection fault|Kernel panic|blocked for more than)"
)


@dataclass(frozen=True)
class Images:
    """What of the cache a guest is started from."""

    qemu: Path
    kernel: Path
    initramfs: Path


@dataclass(frozen=True)
class Options:
    job: Job
    guests: int = 1
    devices: int = 0  # of each guest
    profile: str = "efa3"
    device_program: Path | None = None
    device_arguments: tuple[str, ...] = ()
    seed: int = 1
    memory_mb: int = 1024
    cpus: int = 2
    timeout_s: float = 300.0
    results: Path | None = None
    device_logs: Path | None = None


@dataclass(frozen=True)
class Device:
    guest: int
    child: Child
    log: Path


@dataclass
class Guest:
    machine: Machine
    child: Child
    console: list[bytes] = field(default_factory=list)  # whole lines
    partial: bytes = b""
    exit_code: int | None = None

    def tail(self) -> str:
        lines = [*self.console, self.partial][-TAIL_LINES:]
        return b"\n".join(lines).decode(errors="replace")


class Session:
    def __init__(self, images: Images, options: Options, log: BinaryIO | None = None) -> None:
        self._images = images
        self._options = options
        self._log = log
        self._devices: list[Device] = []
        self._guests: list[Guest] = []

    def run(self) -> int:
        """The exit code of the command (of the first guest that failed). Raises VmError for all other failures."""
        with RunFolder() as folder, _signals_raise():
            deadline = time.monotonic() + self._options.timeout_s
            try:
                self._start_devices(folder, deadline)
                self._start_guests(folder)
                self._watch(deadline)
                return self._verdict()
            finally:
                self._end_all()

    # --- devices

    def _start_devices(self, folder: Path, deadline: float) -> None:
        options = self._options
        (folder / "fabric").mkdir(mode=0o700)
        for guest in range(options.guests):
            for index in range(options.devices):
                assert options.device_program is not None
                socket = self._socket(folder, guest, index)
                log = folder / f"device{guest}-{index}.log"
                command = [
                    str(options.device_program),
                    *("--socket", str(socket), "--profile", options.profile, "--fabric", str(folder / "fabric")),
                    *("--seed", str(options.seed + guest * options.devices + index)),
                    *arguments_of(index, options.device_arguments),
                ]
                with log.open("wb") as out:
                    child = Child(f"device {index} of guest {guest}", command, stdout=out, stderr=out)
                self._devices.append(Device(guest, child, log))
        limit = min(deadline, time.monotonic() + SOCKET_TIMEOUT_S)
        for guest in range(options.guests):
            for index in range(options.devices):
                self._await_socket(self._socket(folder, guest, index), limit)

    @staticmethod
    def _socket(folder: Path, guest: int, index: int) -> Path:
        path = folder / f"device{guest}-{index}"
        if len(str(path)) > SOCKET_PATH_MAX:
            raise VmError(f"{path} is too long for a socket's name", "set TMPDIR to a shorter path")
        return path

    def _await_socket(self, socket: Path, limit: float) -> None:
        while not (socket.exists() and stat.S_ISSOCK(socket.stat().st_mode)):
            self._check_devices()
            if time.monotonic() > limit:
                raise VmError(f"{socket.name}: the device process opened no socket", self._device_tails(), EXIT_TIMEOUT)
            time.sleep(0.02)

    def _check_devices(self) -> None:
        """Raises when a device process has ended although its guest still needs it."""
        for device in self._devices:
            child = device.child
            needed = device.guest >= len(self._guests) or not self._guests[device.guest].child.has_ended()
            if needed and child.has_ended():
                raise VmError(
                    f"{child.name}: {child.program} ended early with exit code "
                    f"{child.process.returncode}; its last lines:\n{_tail_of(device.log)}"
                )

    def _device_tails(self) -> str:
        return "\n".join(f"{device.child.name} said:\n{_tail_of(device.log)}" for device in self._devices)

    # --- guests

    def _start_guests(self, folder: Path) -> None:
        options, images = self._options, self._images
        for index in range(options.guests):
            sockets = tuple(self._socket(folder, index, device) for device in range(options.devices))
            machine = Machine(index, options.guests, folder, options.memory_mb, options.cpus, sockets)
            write_job(machine.path("job"), options.job, index, options.guests)
            command = machine.command(images.qemu, images.kernel, images.initramfs)
            console = None if options.job.is_shell else subprocess.PIPE
            stdin = None if options.job.is_shell else subprocess.DEVNULL
            child = Child(
                f"guest {index}", command, stdin, console, None if options.job.is_shell else subprocess.STDOUT
            )
            self._guests.append(Guest(machine, child))

    def _watch(self, deadline: float) -> None:
        """Until every guest has ended."""
        with selectors.DefaultSelector() as selector:
            for guest in self._guests:
                if guest.child.process.stdout is not None:
                    selector.register(guest.child.process.stdout, selectors.EVENT_READ, guest)
            while any(guest.exit_code is None for guest in self._guests):
                for key, _ in selector.select(0.1) if selector.get_map() else []:
                    data = os.read(key.fd, 65536)
                    self._take(key.data, data)
                    if not data:
                        selector.unregister(key.fileobj)
                if not selector.get_map():
                    time.sleep(0.05)
                deadline = self._collect(deadline)
                if time.monotonic() > deadline:
                    self._raise_timeout()
                if any(not guest.child.has_ended() for guest in self._guests):
                    self._check_devices()

    def _take(self, guest: Guest, data: bytes) -> None:
        *lines, guest.partial = (guest.partial + data.replace(b"\r", b"")).split(b"\n")
        if not data and guest.partial:
            lines, guest.partial = [guest.partial], b""
        prefix = b"[%d] " % guest.machine.index if self._options.guests > 1 else b""
        for line in lines:
            guest.console.append(line)
            for out in (sys.stdout.buffer, self._log):
                if out is not None:
                    out.write(prefix + line + b"\n")
        if lines:
            sys.stdout.buffer.flush()

    def _collect(self, deadline: float) -> float:
        """Takes the verdict of guests that have ended; a failed one shortens the others' time."""
        for guest in self._guests:
            if guest.exit_code is not None or not guest.child.has_ended():
                continue
            if guest.child.process.stdout is not None:
                self._take(guest, guest.child.process.stdout.read())
                self._take(guest, b"")
            guest.exit_code = self._exit_code_of(guest)
            if self._options.results is not None:
                many = self._options.guests > 1
                into = self._options.results / f"guest{guest.machine.index}" if many else self._options.results
                read_results(guest.machine.path("results"), into)
            if guest.exit_code != 0:
                deadline = min(deadline, time.monotonic() + GRACE_AFTER_FAILURE_S)
        return deadline

    def _exit_code_of(self, guest: Guest) -> int:
        verdict = guest.machine.path("verdict")
        match = re.match(r"exit (\d+)\n", verdict.read_text() if verdict.exists() else "")
        if match:
            return int(match.group(1))
        raise VmError(
            f"{guest.child.name} ended without a verdict (QEMU's exit code {guest.child.process.returncode}); "
            f"its last lines:\n{guest.tail()}\n{self._device_tails()}",
            "a kernel that panics ends the guest; more memory: --mem",
        )

    def _raise_timeout(self) -> None:
        late = [guest for guest in self._guests if guest.exit_code is None]
        failed = [guest for guest in self._guests if guest.exit_code]
        if failed:
            return self._stop_waiting(late)
        told = "\n".join(f"{guest.child.name}, last lines:\n{guest.tail()}" for guest in late)
        raise VmError(
            f"no end within {self._options.timeout_s:g} s\n{told}\n{self._device_tails()}",
            "--timeout gives it longer",
            EXIT_TIMEOUT,
        )

    def _stop_waiting(self, late: list[Guest]) -> None:
        for guest in late:
            say(f"{guest.child.name} is ended: another guest failed {GRACE_AFTER_FAILURE_S:g} s ago")
            guest.child.end()
            guest.exit_code = EXIT_FAILED

    def _verdict(self) -> int:
        complaints = [line for guest in self._guests for line in guest.console if COMPLAINT.match(line)]
        for line in complaints[:5]:
            say(f"the guest's kernel complained: {line.decode(errors='replace')}")
        codes = [guest.exit_code or 0 for guest in self._guests]
        return next((code for code in codes if code), EXIT_FAILED if complaints else 0)

    def _end_all(self) -> None:
        for guest in self._guests:
            guest.child.end()
        for device in self._devices:
            child, log = device.child, device.log
            was_running = not child.has_ended()
            code = child.end()
            if was_running and code not in (0, -signal.SIGTERM):
                say(f"{child.name} did not end well (exit code {code}); its last lines:\n{_tail_of(log)}")
            if self._options.device_logs is not None:
                self._options.device_logs.mkdir(parents=True, exist_ok=True)
                (self._options.device_logs / log.name).write_bytes(log.read_bytes())


def arguments_of(index: int, arguments: tuple[str, ...]) -> list[str]:
    """Those for all devices, and those that begin with this one's index and a colon."""
    chosen = []
    for argument in arguments:
        match = re.match(r"(\d+):(.*)", argument, re.S)
        if match is None:
            chosen.append(argument)
        elif int(match.group(1)) == index:
            chosen.append(match.group(2))
    return chosen


def _tail_of(log: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    return ""


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does: through every `finally`."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
