# SPDX-License-Identifier: Apache-2.0
"""The job runner: one deadline over everything, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import interruptible

from nvshmem_efa import processes
from nvshmem_efa.processes import run_job


def shell(script: str) -> list[str]:
    """A PE that is a shell script; {record_fd} and {progress_fd} are replaced by the runner."""
    return ["/bin/sh", "-c", "FD=/proc/self/fd; " + script]


def ignore(pe: int, what: str, line: str) -> None:
    del pe, what, line


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_records_progress_and_errors_of_every_pe_arrive() -> None:
    lines: list[tuple[int, str, str]] = []
    script = "echo one >$FD/{progress_fd}; echo two >$FD/{progress_fd}; echo log >&2; printf record >$FD/{record_fd}"
    outcome = run_job([shell(script)] * 3, dict(os.environ), 30, lambda *line: lines.append(line))
    assert [member.record for member in outcome.members] == [b"record"] * 3
    assert [member.returncode for member in outcome.members] == [0, 0, 0]
    assert (outcome.timed_out, outcome.first_failed) == (False, None)
    for pe in range(3):
        assert [line for line in lines if line[:2] == (pe, "progress")] == [
            (pe, "progress", "one"),
            (pe, "progress", "two"),
        ]
        assert (pe, "errors", "log") in lines


def test_a_large_record_does_not_block_its_pe() -> None:
    script = "head -c 3000000 /dev/zero >$FD/{record_fd}"
    outcome = run_job([shell(script)], dict(os.environ), 30, ignore)
    assert len(outcome.members[0].record) == 3000000


def test_at_the_deadline_all_are_killed() -> None:
    started = time.monotonic()
    outcome = run_job([shell("sleep 60"), shell("true")], dict(os.environ), 1, ignore)
    assert time.monotonic() - started < 10
    assert outcome.timed_out
    assert outcome.members[0].returncode == -signal.SIGKILL
    assert outcome.members[1].returncode == 0


def test_after_a_failure_the_others_have_a_grace_and_are_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 1.0)
    started = time.monotonic()
    commands = [shell("sleep 60"), shell("exit 7"), shell("sleep 0.3; printf late >$FD/{record_fd}")]
    outcome = run_job(commands, dict(os.environ), 50, ignore)
    assert time.monotonic() - started < 10
    assert (outcome.timed_out, outcome.first_failed) == (False, 1)
    assert [member.returncode for member in outcome.members] == [-signal.SIGKILL, 7, 0]
    assert outcome.members[2].record == b"late"


def test_children_of_a_pe_are_killed_with_it() -> None:
    lines: list[str] = []
    script = "sleep 60 & echo $! >$FD/{progress_fd}; wait"
    run_job([shell(script)], dict(os.environ), 1, lambda pe, what, line: lines.append(line))
    deadline = time.monotonic() + 5
    while is_alive(int(lines[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(lines[0]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_pe_outlives_the_runner(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from nvshmem_efa.processes import run_job\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"run_job([['/bin/sh', '-c', 'echo $$ > {tmp_path}/pid; exec sleep 60']], dict(os.environ), 50, print)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, preexec_fn=interruptible) as runner:
        pid_file = tmp_path / "pid"
        deadline = time.monotonic() + 20
        while not (pid_file.exists() and pid_file.read_text().strip()):
            assert time.monotonic() < deadline, "the PE did not start"
            time.sleep(0.02)
        pid = int(pid_file.read_text())
        assert is_alive(pid)
        runner.send_signal(number)
        runner.wait(timeout=20)
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_no_file_descriptor_is_left_open() -> None:
    run_job([shell("true")], dict(os.environ), 30, ignore)
    before = len(os.listdir("/proc/self/fd"))
    run_job([shell("exit 1"), shell("sleep 60")], dict(os.environ), 0.5, ignore)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_that_cannot_be_started_leaves_nothing_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        run_job([shell("sleep 60"), ["/nonexistent/program"]], dict(os.environ), 30, ignore)
    assert len(os.listdir("/proc/self/fd")) == before
