# SPDX-License-Identifier: Apache-2.0
"""The demo with real PEs and software devices: every byte right, and by name when something is not."""

from __future__ import annotations

import json
import resource
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import Command, interruptible

from nvshmem_efa import demo, installed
from nvshmem_efa.demo import DemoOptions, run_demo
from nvshmem_efa.errors import ExitCode

SECONDS_MAX = 20
pytestmark = pytest.mark.xdist_group("jobs")  # several busy processes each: not beside one another


@pytest.fixture
def mark() -> str:
    """A variable in the environment of everything that one test starts, so that its processes can be told apart."""
    return f"TEST_OF_NVSHMEM_EFA={secrets.token_hex(8)}"


def marked_pes(mark: str) -> set[int]:
    """PEs that run with this mark in their environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ, command = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in environ.split(b"\0") and command.split(b"\0")[0].endswith(b"nvshmem-efa-pe"):
                found.add(int(entry.name))
    return found


def assert_none_left(mark: str) -> None:
    """Shared memory and sockets of the software device have no names, so they cannot outlive the processes."""
    deadline = time.monotonic() + 5
    while marked_pes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert marked_pes(mark) == set()


def test_the_demo_is_right_and_quick(command: Command) -> None:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("demo", "--json", timeout=90)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["result"] == "ok"
    assert result["options"]["pes"] == 4
    assert result["checked"]["mismatches"] == 0
    assert result["checked"]["bytes"] > 1_000_000
    assert result["stats"]["work_requests"] > 1000
    assert result["stats"]["soft_out_of_order"] > 0, "nothing was reordered, so nothing was shown"
    moe = result["moe"]
    assert (moe["left_out"], moe["errors"], moe["ranks"]) == ("", [], 4)
    assert set(moe["difference"]) == {"normal", "low latency", "low latency, FP8"}
    assert moe["stats"]["gpu_work_requests"] > 100, "the bytes between ranks did not go through work requests"
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    print(f"demo: {result['elapsed_s']} s, {cpu_s:.1f} s of processor time")
    assert cpu_s < 2 * SECONDS_MAX  # rather than elapsed time, which other work on the machine makes longer


def test_the_demo_uses_every_kind_of_operation(command: Command) -> None:
    result = json.loads(command("demo", "--json", "--no-moe", "--pes", "2", timeout=90).stdout)
    ops = {row["op"] for row in result["operations"]}
    assert {"put", "get", "p", "g", "amo", "amo_fetch", "put_signal", "fence", "quiet", "barrier"} <= ops
    timed = [row for row in result["operations"] if row["op"] == "put_signal" and row["p50_ns"]]
    assert timed
    assert all(row["p50_ns"] <= row["p99_ns"] for row in timed)


@pytest.mark.parametrize("profile", ["efa2", "efa4"])
def test_other_generations_are_right_too(command: Command, profile: str) -> None:
    done = command("demo", "--no-moe", "--pes", "2", "--profile", profile, "--seed", "7", timeout=90)
    assert done.returncode == 0, done.stderr
    assert "every byte is right" in done.stdout
    assert "not of EFA" in done.stdout


def test_the_demo_is_right_with_every_fault_that_srd_allows(command: Command) -> None:
    faults = {
        "NVSHMEM_EFA_SOFT_DUPLICATE_PPM": "200000",
        "NVSHMEM_EFA_SOFT_DELAY_PPM": "2000",
        "NVSHMEM_EFA_SOFT_RNR_PPM": "20000",
    }
    done = command("demo", "--json", "--no-moe", "--pes", "3", "--seed", "5", env=faults, timeout=90)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stats"]["soft_duplicates"] > 0


def start_and_tamper(monkeypatch: pytest.MonkeyPatch, *extra: str) -> demo.DemoResult:
    """Runs the demo with extra options for every PE."""
    original = demo._commands

    def commands(options: DemoOptions) -> list[list[str]]:
        return [[*command, *extra] for command in original(options)]

    monkeypatch.setattr(demo, "_commands", commands)
    return run_demo(DemoOptions(pes=2, seed=3, deadline_s=60), lambda *_: None, lambda _: None)


def test_a_flipped_byte_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    result = start_and_tamper(monkeypatch, "--corrupt")
    assert result.exit_code == ExitCode.FAILED
    assert result.checked["mismatches"] >= 1
    assert any("PE 0" in error and "wrong values" in error for error in result.errors)


def test_a_pe_that_dies_ends_the_demo_by_name(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setenv(*mark.split("="))
    started = time.monotonic()
    result = start_and_tamper(monkeypatch, "--die-at", "exchange", "--die-pe", "1", "--timeout-ms", "5000")
    assert time.monotonic() - started < 20
    assert result.exit_code != ExitCode.GOOD
    assert any("PE 1" in error for error in result.errors)
    assert_none_left(mark)


def test_a_wrong_setting_ends_the_demo_with_its_name(command: Command) -> None:
    done = command("demo", "--no-moe", "--pes", "2", env={"NVSHMEM_EFA_TIMEOUT_MS": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert "NVSHMEM_EFA_TIMEOUT_MS=1 is not in 10..3600000" in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_demo_leaves_nothing_behind(clean_env: dict[str, str], number: signal.Signals, mark: str) -> None:
    env = {**clean_env, **dict([mark.split("=")])}
    arguments = [sys.executable, "-m", "nvshmem_efa", "demo", "--no-moe", "--json"]
    with subprocess.Popen(
        arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=interruptible
    ) as process:
        deadline = time.monotonic() + 20
        while len(marked_pes(mark)) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        process.wait(timeout=20)
    assert process.returncode != 0
    assert_none_left(mark)


def test_a_demo_on_devices_says_what_is_missing_where_there_are_none(command: Command) -> None:
    if any(Path("/sys/class/infiniband").glob("*")):
        pytest.skip("this machine has RDMA devices")
    done = command("demo", "--device", "--json", "--pes", "2", timeout=60)
    assert done.returncode == ExitCode.MISSING
    result = json.loads(done.stdout)
    assert result["times_are"] == "of this machine's EFA devices"
    first = result["errors"][0]
    assert first.startswith("PE 0: missing: ") and "no EFA device on this machine" in first and "hint" in first
    assert command("demo", "--device", "--gpu").returncode == ExitCode.USAGE


def test_two_demos_at_once_do_not_meet(clean_env: dict[str, str]) -> None:
    arguments = [sys.executable, "-m", "nvshmem_efa", "demo", "--no-moe", "--json", "--pes", "2"]
    both = [subprocess.Popen(arguments, env=clean_env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=90)[0]) for process in both]
    assert [result["result"] for result in results] == ["ok", "ok"]


@pytest.mark.parametrize("abi", installed.PLUGIN_ABIS)
def test_conformance_through_every_abi(abi: int, clean_env: dict[str, str]) -> None:
    arguments = [
        str(installed.find("bin", "nvshmem-efa-pe")), "check", "--quick", "--plugin", str(installed.plugin(abi)),
        "--abi", str(abi), "--spawn", "2",
    ]  # fmt: skip
    done = subprocess.run(arguments, env=clean_env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["result"] for record in records] == ["ok", "ok"]
    assert all(record["abi"] == abi for record in records)
