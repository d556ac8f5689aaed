# SPDX-License-Identifier: Apache-2.0
"""The GPU launcher, with a program that stands in for the real one: no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Launch = Callable[..., tuple[int, str, dict[str, Any]]]
HERE = Path(__file__).resolve().parent


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    shim = tmp_path / "empty.so"  # LD_PRELOAD is emptied below: there is nothing to load
    shim.touch()

    def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(HERE / "launch.py"), "--program", str(HERE / "stand_in.py"), "--shim", str(shim),
             "--env", "LD_PRELOAD=", "--out", str(tmp_path / "out"), "--deadline", "60", *arguments],
            capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})},
        )  # fmt: skip
        result = tmp_path / "out" / "result.json"
        return done.returncode, done.stdout + done.stderr, json.loads(result.read_text()) if result.exists() else {}

    return run


def statuses(result: dict[str, Any], which: int = 0) -> dict[str, str]:
    return {case["name"]: case["status"] for case in result["results"][which]["cases"]}


def test_a_good_run_over_both_transports_exits_with_0(launch: Launch) -> None:
    code, text, result = launch("--cases", "smoke,last", "--compare", "--pes", "3")
    assert code == 0, text
    assert statuses(result) == statuses(result, 1) == {"smoke": "pass", "last": "pass"}
    assert result["results"][0]["cases"][0]["digests"] == ["0", "1", "2"]
    assert "2 cases left the same bytes" in text
    assert result["results"][0]["env"]["NVSHMEM_EFA_SOFT_REORDER_NS"] == "20000"


def test_a_difference_between_the_transports_fails_and_names_the_case(launch: Launch) -> None:
    code, text, _ = launch("--cases", "smoke,differs", "--compare")
    assert code == 1
    assert "DIFFERS differs" in text


def test_a_failed_case_does_not_keep_the_next_from_running(launch: Launch) -> None:
    code, text, result = launch("--cases", "fails,last")
    assert code == 1
    assert statuses(result) == {"fails": "fail", "last": "pass"}
    assert "PE 1: byte 3 is wrong" in text


def test_after_a_hang_the_stacks_are_kept_and_the_rest_is_run(launch: Launch) -> None:
    code, text, result = launch("--cases", "smoke,hangs,last")
    assert code == 1
    assert statuses(result) == {"smoke": "pass", "hangs": "hang", "last": "pass"}
    assert "waits for what never comes" in text
    stacks = [Path(path) for path in result["results"][0]["jobs"][0]["stacks"]]
    assert {path.name for path in stacks} >= {"stacks.pe0.txt", "stacks.pe1.txt"}
    assert "comm: python" in stacks[0].read_text()


def test_after_a_crash_the_others_are_ended_and_the_rest_is_run(launch: Launch) -> None:
    code, _, result = launch("--cases", "crashes,last")
    assert code == 1
    assert statuses(result) == {"crashes": "crash", "last": "pass"}
    assert result["results"][0]["jobs"][0]["codes"][0] == -6


def test_a_run_in_which_nothing_came_out_of_order_proves_too_little(launch: Launch) -> None:
    code, text, _ = launch("--cases", "smoke", env={"STAND_IN_ORDERED": "1"})
    assert code == 1
    assert "soft_out_of_order stayed 0" in text
    code, text, _ = launch("--cases", "smoke", "--reorder-ns", "0", env={"STAND_IN_ORDERED": "1"})
    assert code == 0, text


def test_the_deadline_ends_a_job_that_says_nothing(launch: Launch) -> None:
    started = time.monotonic()
    code, _, result = launch("--cases", "hangs", "--deadline", "6", "--pes", "1")
    assert code == 1
    assert statuses(result) == {"hangs": "hang"}
    assert time.monotonic() - started < 50


def test_a_dead_peer_must_be_named(launch: Launch) -> None:
    code, text, _ = launch("--expect-death", "--pes", "3")
    assert code == 0, text
    assert "named by all the others in time" in text
    code, text, result = launch("--expect-death", "--pes", "3", env={"STAND_IN_SILENT": "1"})
    assert code == 1
    assert "named no error of PE 2" in result["wrong"][0]


def test_an_unknown_case_is_refused_by_name(launch: Launch) -> None:
    code, text, _ = launch("--cases", "smoke,nonsense")
    assert code != 0
    assert "no case or group named nonsense" in text
