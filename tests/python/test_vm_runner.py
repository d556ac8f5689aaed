# SPDX-License-Identifier: Apache-2.0
"""tests/vm/run without a network, QEMU or a guest: what it says, when it ends, what it leaves."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

VM_DIR = Path(__file__).resolve().parent.parent / "vm"
sys.path.insert(0, str(VM_DIR))

from efa_vm.errors import EXIT_MISSING, EXIT_TIMEOUT, EXIT_USAGE, VmError  # noqa: E402
from efa_vm.job import Job, read_results  # noqa: E402
from efa_vm.pins import read_groups  # noqa: E402
from efa_vm.processes import RunFolder  # noqa: E402
from efa_vm.session import Images, Options, Session, arguments_of  # noqa: E402
from efa_vm.sets import SETS, GuestSet, Step, outcomes, script, steps_around, table  # noqa: E402
from efa_vm.transport_sets import TRANSPORT_SETS, package_files  # noqa: E402

# Plays QEMU: stands where the unpacked loader would, and finds the files that it has to write in its arguments.
FAKE_QEMU = """#!/bin/sh
for word in "$@"; do
    case "$word" in *id=verdict,path=*) verdict=${word##*path=} ;; esac
done
"""


def fake_images(folder: Path, script: str) -> Images:
    loader = folder / "root/usr/lib64/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text(FAKE_QEMU + script)
    loader.chmod(0o755)
    return Images(folder / "root", folder / "vmlinuz", folder / "initramfs")


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where runs put their folders; short, for the sockets' sake."""
    with tempfile.TemporaryDirectory(prefix="vmtest") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


def run_cli(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(VM_DIR / "run"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no command"),
        (["--devices", "9", "--", "true"], "--devices 9: from 0 to 8"),
        (["--guests", "0", "--", "true"], "--guests 0: from 1 to 8"),
        (["--mem", "16", "--", "true"], "--mem is at least 512"),
        (["--timeout", "0", "--", "true"], "--timeout more than 0"),
        (["--env", "A", "--", "true"], "--env A: expected NAME=VALUE"),
        (["--files", "/no/such/file", "--", "true"], "--files /no/such/file: not there"),
        (["--shell"], "--shell takes no command, one guest and a terminal"),
        (["--profile", "efa9", "--", "true"], "invalid choice"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], told: str) -> None:
    done = run_cli(*arguments)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert told in done.stderr


def test_a_missing_device_program_is_named() -> None:
    done = run_cli("--devices", "1", "--device-program", "/no/such/program", "--", "true")
    assert done.returncode == EXIT_MISSING
    assert "/no/such/program: not a program" in done.stderr and "build it" in done.stderr


def test_offline_with_an_empty_cache_says_what_is_missing(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "apt-cache"):
        (tools / name).write_text("#!/bin/sh\necho 'E: Could not resolve the mirror' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    cache = tmp_path / "cache"
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "EFA_VM_CACHE": str(cache)}
    done = run_cli("--", "true", env=env)
    assert done.returncode == EXIT_MISSING, done.stderr
    pin = read_groups()["kernel"].packages[0]
    assert f"missing from the cache {cache}: [kernel] ({pin.name}={pin.version})" in done.stderr
    assert "hint: " in done.stderr
    assert not list(cache.glob("roots/*")) and not list(cache.glob("roots/.making-*"))


def test_the_exit_code_is_the_commands(
    tmp_path: Path, scratch: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    script = 'printf "a line\\r\\nthe last"; echo "exit 7" > "$verdict"\n'
    log = io.BytesIO()
    assert Session(fake_images(tmp_path, script), Options(Job("true")), log).run() == 7
    assert log.getvalue() == b"a line\nthe last\n"
    assert not list(scratch.iterdir())


def test_a_guest_without_a_verdict_is_a_failure_with_its_last_lines(tmp_path: Path, scratch: Path) -> None:
    images = fake_images(tmp_path, "echo '[    1.000000] Kernel panic - not syncing'; exit 3\n")
    with pytest.raises(VmError, match=r"(?s)without a verdict \(QEMU's exit code 3\).*Kernel panic"):
        Session(images, Options(Job("true"))).run()
    assert not list(scratch.iterdir())


def test_a_kernel_warning_fails_a_run_that_went_well(tmp_path: Path, scratch: Path) -> None:
    line = "[    1.000000] WARNING: CPU: 0 PID: 1 at efa_verbs.c:1"
    images = fake_images(tmp_path, f"echo '{line}'; echo 'exit 0' > \"$verdict\"\n")
    assert Session(images, Options(Job("true"))).run() == 1


def test_a_run_over_its_deadline_is_killed_with_all_that_it_started(tmp_path: Path, scratch: Path) -> None:
    pids = tmp_path / "pids"
    images = fake_images(tmp_path, f"trap '' TERM\nsleep 600 &\necho $$ $! > {pids}\necho started\nwait; wait\n")
    began = time.monotonic()
    with pytest.raises(VmError, match=r"(?s)no end within 1 s.*started") as error:
        Session(images, Options(Job("true"), timeout_s=1)).run()
    assert error.value.exit_code == EXIT_TIMEOUT
    assert time.monotonic() - began < 15
    for pid in pids.read_text().split():
        assert not is_running(int(pid)), f"process {pid} was left"
    assert not list(scratch.iterdir())


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_device_that_ends_early_ends_the_run_with_its_log(tmp_path: Path, scratch: Path) -> None:
    program = tmp_path / "device"
    program.write_text("#!/bin/sh\necho 'no fabric here'\nexit 9\n")
    program.chmod(0o755)
    options = Options(Job("true"), devices=1, device_program=program)
    with pytest.raises(VmError, match=r"(?s)device 0 of guest 0: device ended early with exit code 9.*no fabric here"):
        Session(fake_images(tmp_path, "sleep 60\n"), options).run()
    assert not list(scratch.iterdir())


DEVICE = """#!{python}
import socket, sys, signal, time
path = sys.argv[sys.argv.index("--socket") + 1]
open({words!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
time.sleep(60)
"""


def test_devices_get_a_socket_a_seed_and_one_fabric(tmp_path: Path, scratch: Path) -> None:
    program, words = tmp_path / "device", tmp_path / "words"
    program.write_text(DEVICE.format(python=sys.executable, words=str(words)))
    program.chmod(0o755)
    options = Options(Job("true"), guests=2, devices=2, device_program=program, profile="efa4", seed=5)
    arguments = tmp_path / "arguments"
    script = f'echo "$@" >> {arguments}; echo "exit 0" > "$verdict"\n'
    assert Session(fake_images(tmp_path, script), options).run() == 0
    told = [line.split() for line in words.read_text().splitlines()]
    assert sorted(line[line.index("--seed") + 1] for line in told) == ["5", "6", "7", "8"]
    assert len({line[line.index("--fabric") + 1] for line in told}) == 1
    assert all(line[line.index("--profile") + 1] == "efa4" for line in told)
    for line in told:
        socket = line[line.index("--socket") + 1]
        assert arguments.read_text().count(f'"{socket}"') == 1, "each socket is one guest's"
    assert not list(scratch.iterdir())


def start_runner(tmp_path: Path, scratch: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A run in a process of its own, and the pid of its fake QEMU."""
    pid = tmp_path / "pid"
    images = fake_images(tmp_path, f"echo $$ > '{pid}'\nexec sleep 600\n")
    code = (
        f"import sys; sys.path.insert(0, {str(VM_DIR)!r})\n"
        "from pathlib import Path\nfrom efa_vm.session import *\nfrom efa_vm.job import Job\n"
        f"images = Images(Path({str(images.qemu)!r}), Path('k'), Path('i'))\n"
        "try:\n    Session(images, Options(Job('true'))).run()\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    runner = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(scratch)})
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline and runner.poll() is None, "the guest never started"
        time.sleep(0.02)
    return runner, int(pid.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path: Path, scratch: Path, number: int) -> None:
    runner, qemu = start_runner(tmp_path, scratch)
    (folder,) = scratch.glob("nvshmem-efa-vm-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    runner.send_signal(number)
    assert runner.wait(20) == 130
    assert not is_running(qemu)
    assert not list(scratch.iterdir())


def test_a_runner_killed_outright_leaves_no_process_and_the_next_removes_its_folder(
    tmp_path: Path, scratch: Path
) -> None:
    runner, qemu = start_runner(tmp_path, scratch)
    runner.kill()
    runner.wait(20)
    deadline = time.monotonic() + 10
    while is_running(qemu):
        assert time.monotonic() < deadline, "QEMU outlived its runner"
        time.sleep(0.02)
    (folder,) = scratch.glob("nvshmem-efa-vm-*")
    with RunFolder():
        assert folder.exists(), "a folder this young may be another run's that has no lock yet"
    os.utime(folder, (0, 0))
    with RunFolder():
        assert not folder.exists()
    assert not list(scratch.iterdir())


def test_results_stay_below_their_folder(tmp_path: Path) -> None:
    archive = tmp_path / "results.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("good/file", "../escaped", "/absolute"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"ok"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    into = tmp_path / "into"
    assert read_results(archive, into) == 1
    assert [path.name for path in into.rglob("*") if path.is_file()] == ["file"]
    assert not (tmp_path / "escaped").exists()


def test_results_that_break_off_are_named(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x" * 4096)
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "content", "first")
        tar.add(tmp_path / "content", "second")
    for bytes_left in (100, 3000, 4608, 6000, 9216):
        (tmp_path / "part.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:bytes_left])
        with pytest.raises(VmError, match="damaged"):
            read_results(tmp_path / "part.tar", tmp_path / "into")


def test_a_set_tells_failed_from_late_from_left_out(tmp_path: Path) -> None:
    steps = (
        Step("good", "true"),
        Step("bad", "false", summary=r"^FAILED.*"),
        Step("late", "sleep 9"),
        Step("known", "false", explained="not modelled"),
        Step("elsewhere", "true", left_out={"efa4": "unknown there"}),
        Step("unreached", "true"),
    )
    assert "elsewhere" not in script(steps, "efa4") and "elsewhere" in script(steps, "efa3")
    (tmp_path / "steps").write_text("good 0 1.0\nbad 1 0.5\nlate 124 9.0\nknown 1 0.1\n")
    (tmp_path / "bad.log").write_text("noise\nFAILED (errors=3)\n")
    rows = table(outcomes(steps, "efa4", tmp_path), "title").splitlines()
    assert [row.split(" | ")[1] for row in rows[4:]] == [
        "passed",
        "FAILED (exit code 1)",
        "FAILED (over its time)",
        "explained (exit code 1)",
        "left out",
        "FAILED (did not run)",
    ]
    assert "FAILED (errors=3)" in rows[5] and "not modelled" in rows[7] and "unknown there" in rows[8]


def test_a_sets_script_fails_when_one_of_its_steps_does(tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.write_text('#!/bin/sh\nexec sh -c "$3"\n')
    step.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def code_of(*steps: Step) -> int:
        return subprocess.run(["sh", "-c", script(steps, "efa3")], env=env, timeout=20).returncode

    assert code_of(Step("a", "true"), Step("b", "exit 3", explained="known")) == 0
    assert code_of(Step("a", "exit 3"), Step("b", "true")) == 1


@pytest.mark.parametrize("chosen", [*SETS.values(), *TRANSPORT_SETS.values()], ids=[*SETS, *TRANSPORT_SETS])
def test_a_sets_steps_have_names_of_their_own(chosen: GuestSet) -> None:
    names = [step.name for step in steps_around(chosen)]
    assert len(set(names)) == len(names), "a step's name is its log's file name"
    assert chosen.about


def test_what_other_projects_test_stands_in_standard() -> None:
    assert all(step in SETS["standard"].steps for chosen in SETS.values() for step in chosen.steps)


def test_a_device_takes_the_arguments_for_all_and_its_own() -> None:
    given = ("--seed", "1:--fault", "1:dead_rail=0@5", "0:--without", "0:a:b")
    assert arguments_of(0, given) == ["--seed", "--without", "a:b"]
    assert arguments_of(1, given) == ["--seed", "--fault", "dead_rail=0@5"]
    assert arguments_of(2, given) == ["--seed"]


def test_our_own_sets_need_a_build_with_the_device_cases(tmp_path: Path) -> None:
    program = tmp_path / "nvshmem_efa/bin/nvshmem-efa-pci"
    with pytest.raises(VmError, match="NVSHMEM_EFA_TESTS=ON") as refused:
        package_files(program)
    assert refused.value.exit_code == EXIT_MISSING
    cases = tmp_path / "tests/device/efa-device-tests"
    cases.parent.mkdir(parents=True)
    cases.write_text("")
    names = dict(package_files(program))
    assert names["nvshmem_efa/lib"] == tmp_path / "nvshmem_efa/lib"
    assert (names["transport"] / "common.sh").exists()


def test_the_sets_are_listed() -> None:
    done = run_cli("--list-sets")
    assert done.returncode == 0
    assert {line.split()[0] for line in done.stdout.splitlines()} == {*SETS, *TRANSPORT_SETS}
