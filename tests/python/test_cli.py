# SPDX-License-Identifier: Apache-2.0
"""The command: exit codes, JSON on standard output and nothing else there, named errors with hints."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from running import Command

from nvshmem_efa.launch import launch_environment


@pytest.mark.parametrize("args", [["--help"], ["demo", "--help"], ["doctor", "--help"], ["bench", "host", "--help"]])
def test_help_is_exit_code_0(command: Command, args: list[str]) -> None:
    done = command(*args)
    assert done.returncode == 0
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["demo", "--nonsense"], ["demo", "--profile", "efa9"], ["demo", "--pes", "x"],
     ["demo", "--pes", "1"], ["demo", "--seed", "-1"], ["run"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2_and_says_what(command: Command, args: list[str]) -> None:
    done = command(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_version_names_the_program(command: Command) -> None:
    assert command("--version").stdout.startswith("nvshmem-efa, version 0.")


@pytest.mark.parametrize("args", [["info", "--json"], ["env", "--json"], ["doctor", "--json"]])
def test_json_is_one_object_with_a_schema(command: Command, args: list[str]) -> None:
    done = command(*args)
    assert json.loads(done.stdout)["schema"].startswith("nvshmem-efa-")


def test_info_says_what_is_installed(command: Command) -> None:
    facts = json.loads(command("info", "--json").stdout)
    assert facts["plugin_abis"] == [3, 4, 5, 6, 7]
    assert Path(facts["installed_in"]).is_dir()


def test_doctor_finds_this_installation_good_for_the_demo(command: Command) -> None:
    done = command("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["checks"][0] == {**report["checks"][0], "name": "package", "verdict": "good"}
    assert done.returncode == report["exit_code"]


def test_doctor_exit_code_3_without_an_efa_device(command: Command) -> None:
    if Path("/sys/class/infiniband").is_dir():
        pytest.skip("this machine has an RDMA device")
    done = command("doctor", "--for", "efa")
    assert done.returncode in (1, 3)
    assert "hint: " in done.stdout


def test_a_misspelt_setting_is_named_with_the_nearest(command: Command) -> None:
    done = command("doctor", "--json", env={"NVSHMEM_EFA_MOED": "soft"})
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["settings"]["verdict"] == "wrong"
    assert "NVSHMEM_EFA_MODE?" in checks["settings"]["evidence"]
    assert done.returncode == 1
    assert (
        "did you mean NVSHMEM_EFA_MODE?"
        in json.loads(command("env", "--json", env={"NVSHMEM_EFA_MOED": "x"}).stdout)["warnings"][0]
    )


def test_a_wrong_setting_is_exit_code_2_with_range_and_hint(command: Command) -> None:
    done = command("env", env={"NVSHMEM_EFA_RAILS": "17"})
    assert done.returncode == 2
    assert "NVSHMEM_EFA_RAILS=17 is not in 0..16" in done.stderr
    assert "hint: " in done.stderr


def test_env_shows_the_values_of_the_shell(command: Command) -> None:
    rows = json.loads(command("env", "--json", env={"NVSHMEM_EFA_MODE": "soft"}).stdout)["settings"]
    values = {row["name"]: row["value"] for row in rows}
    assert values["NVSHMEM_EFA_MODE"] == "soft"
    assert values["NVSHMEM_EFA_RAILS"] is None


def test_the_gpu_demo_without_a_gpu_is_exit_code_3_by_name(command: Command, clean_env: dict[str, str]) -> None:
    done = command("demo", "--gpu", "--pes", "2", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 3
    assert "--gpu needs" in done.stderr
    assert "hint: " in done.stderr


def test_run_sets_the_switch_and_becomes_the_program(command: Command) -> None:
    # The program is the shell's own `env`, so it shows what a program would see after the shim's constructor.
    script = "cat /proc/self/maps | grep -c libnvshmem_efa_shim; printenv NVSHMEM_EFA_MODE; exit 42"
    done = command("run", "--mode", "soft", "--", "/bin/sh", "-c", script)
    assert done.returncode == 42, done.stderr
    lines = done.stdout.split()
    assert int(lines[0]) > 0
    assert lines[1] == "soft"


def test_run_names_a_program_that_is_not_there(command: Command) -> None:
    done = command("run", "--", "no-such-program-anywhere")
    assert done.returncode == 3
    assert "no-such-program-anywhere cannot be started" in done.stderr


def test_run_keeps_what_was_preloaded_and_adds_itself_once() -> None:
    once = launch_environment({"LD_PRELOAD": "/lib/a.so", "KEPT": "1"}, None, None)
    assert once["LD_PRELOAD"].endswith(":/lib/a.so")
    assert (once["NVSHMEM_REMOTE_TRANSPORT"], once["KEPT"]) == ("efa", "1")
    assert launch_environment(once, None, None)["LD_PRELOAD"] == once["LD_PRELOAD"]


@pytest.mark.parametrize("no_color", [False, True])
def test_colour_on_a_terminal_only_and_never_with_no_color(clean_env: dict[str, str], no_color: bool) -> None:
    env = {**clean_env, "TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "nvshmem_efa", "doctor"], env=env, stdout=theirs, stdin=theirs
    ) as process:
        os.close(theirs)
        text = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the terminal is gone
                break
            if not data:
                break
            text += data
        process.wait(timeout=30)
    os.close(ours)
    assert (b"\x1b[3" in text) is not no_color


def test_a_pipe_gets_no_escape_sequences(command: Command) -> None:
    done = command("doctor")
    assert "\x1b" not in done.stdout + done.stderr


def test_a_reader_that_goes_away_is_no_traceback(clean_env: dict[str, str]) -> None:
    script = f"{sys.executable} -m nvshmem_efa env | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", script], env=clean_env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
