# SPDX-License-Identifier: Apache-2.0
"""What the demo concludes from the records of its PEs. The PEs here are shell scripts; test_demo.py runs real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvshmem_efa import demo
from nvshmem_efa.demo import DemoOptions, DemoResult, run_demo
from nvshmem_efa.errors import ConfigError, ExitCode

PREFIX = "RECORD_FD=/proc/self/fd/{record_fd}; "
GOOD: dict[str, Any] = {
    "schema": "nvshmem-efa-pe/1",
    "result": "ok",
    "exit_code": 0,
    "error": None,
    "checked": {"bytes": 100, "tokens": 2, "words": 3, "mismatches": 0, "first_mismatch": None},
    "operations": [
        {
            "op": "put",
            "lane": "host",
            "count": 10,
            "bytes": 80,
            "p50_ns": 1,
            "p99_ns": 1,
            "histogram": [[16, 9], [32, 1]],
        },
        {"op": "fence", "lane": "proxy", "count": 4, "bytes": 0, "p50_ns": None, "p99_ns": None, "histogram": []},
    ],
    "stats": {"work_requests": 7, "nested": {"inner": 1}},
}


def run_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scripts: list[str], deadline_s: float = 20) -> DemoResult:
    """Runs the demo with a shell script for each PE; GOOD in a script is a file that holds a good record."""
    good = tmp_path / "record"
    good.write_text(json.dumps(GOOD))

    def commands(options: DemoOptions) -> list[list[str]]:
        del options
        return [["/bin/sh", "-c", PREFIX + script.replace("GOOD", str(good))] for script in scripts]

    monkeypatch.setattr(demo, "_commands", commands)
    return run_demo(DemoOptions(pes=len(scripts), deadline_s=deadline_s), lambda *_: None, lambda _: None)


def test_good_records_are_merged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_with(monkeypatch, tmp_path, ["cat GOOD >$RECORD_FD"] * 2)
    assert (result.exit_code, result.result, result.errors) == (ExitCode.GOOD, "ok", [])
    put, fence = result.operations
    assert (put.op, put.count, put.bytes, put.p50_ns, put.p99_ns) == ("put", 20, 160, 16, 32)
    assert (fence.count, fence.p50_ns) == (8, None)
    assert result.checked == {"bytes": 200, "tokens": 4, "words": 6, "mismatches": 0}
    assert result.stats == {"work_requests": 14, "nested.inner": 2}


def test_a_pe_without_a_record_is_a_failure_even_with_exit_code_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run_with(monkeypatch, tmp_path, ["cat GOOD >$RECORD_FD", "true"])
    assert result.exit_code == ExitCode.FAILED
    assert "PE 1" in result.errors[0]


def test_a_good_record_with_a_bad_exit_code_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_with(
        monkeypatch,
        tmp_path,
        ["cat GOOD >$RECORD_FD", "cat GOOD >$RECORD_FD; exit 5"],
    )
    assert result.exit_code == ExitCode.FAILED
    assert "PE 1" in result.errors[0]


@pytest.mark.parametrize(("code", "exit_code"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (139, 1)])
def test_the_exit_code_of_the_pe_that_failed_first_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, exit_code: int
) -> None:
    script = f"echo why it failed >&2; exit {code}"
    result = run_with(monkeypatch, tmp_path, ["cat GOOD >$RECORD_FD", script])
    assert result.exit_code == exit_code
    assert "why it failed" in result.errors[0]


def test_an_error_in_a_record_is_shown_with_its_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = {**GOOD, "result": "error", "error": {"code": "peer", "message": "PE 0 is gone", "hint": "look at PE 0"}}
    (tmp_path / "bad").write_text(json.dumps(record))
    result = run_with(
        monkeypatch,
        tmp_path,
        ["cat GOOD >$RECORD_FD", f"cat {tmp_path}/bad >$RECORD_FD; exit 4"],
    )
    assert result.exit_code == ExitCode.TIMEOUT
    assert result.errors == ["PE 1: peer: PE 0 is gone; hint: look at PE 0"]


def test_wrong_data_names_the_first_mismatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checked = {**GOOD["checked"], "mismatches": 3, "first_mismatch": "token 7 byte 12"}
    (tmp_path / "bad").write_text(json.dumps({**GOOD, "result": "failed", "checked": checked}))
    result = run_with(
        monkeypatch,
        tmp_path,
        ["cat GOOD >$RECORD_FD", f"cat {tmp_path}/bad >$RECORD_FD; exit 1"],
    )
    assert result.exit_code == ExitCode.FAILED
    assert "3 wrong values" in result.errors[0]
    assert "token 7 byte 12" in result.errors[0]


def test_the_deadline_is_exit_code_4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run_with(monkeypatch, tmp_path, ["cat GOOD >$RECORD_FD", "sleep 60"], deadline_s=1)
    assert result.exit_code == ExitCode.TIMEOUT
    assert "no end after 1 s" in result.errors[0]


@pytest.mark.parametrize("garbage", ["nonsense", "[1, 2]", '{"result": "ok"', '"ok"', ""])
def test_garbage_instead_of_a_record_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, garbage: str
) -> None:
    (tmp_path / "bad").write_text(garbage)
    result = run_with(monkeypatch, tmp_path, [f"cat {tmp_path}/bad >$RECORD_FD"] * 2)
    assert result.exit_code == ExitCode.FAILED


@pytest.mark.parametrize("wrong", [{"pes": 1}, {"pes": 17}, {"seed": -1}, {"seed": 2**63}])
def test_options_out_of_range_are_usage_errors(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        DemoOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("pes", range(2, 17))
def test_experts_are_enough_and_a_multiple_of_the_pes(pes: int) -> None:
    experts = DemoOptions(pes=pes).experts
    assert experts % pes == 0
    assert experts >= 16


def test_json_is_one_object_with_schema_and_label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = json.loads(run_with(monkeypatch, tmp_path, ["cat GOOD >$RECORD_FD"] * 2).to_json())
    assert result["schema"] == "nvshmem-efa-demo/1"
    assert "not of EFA" in result["times_are"]
    assert result["exit_code"] == 0
    assert len(result["records"]) == 2
