# SPDX-License-Identifier: Apache-2.0
"""`nvshmem-efa bench ep` on CPU tensors: a small run, its JSON, and what it says when a rank is wrong or never ends."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from nvshmem_efa.bench_ep import EpOptions, EpPlan, conclude, run_ep_bench
from nvshmem_efa.errors import ConfigError, ExitCode
from nvshmem_efa.processes import Member, Outcome

SMALL = ("--tokens", "8", "--hidden", "2048", "--experts", "8", "--topk", "3", "--quick", "--cpu")
PLAN = EpPlan(1, 8, 2048, 8, 3, True, True, 1, 64, 8, ("low_latency",))


def run(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "nvshmem_efa", "bench", "ep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_small_run_is_checked_and_has_all_rows(ranks: int) -> None:
    code, text = run(*SMALL, "--ranks", str(ranks), "--only", "low_latency", "--json", "-")
    result = json.loads(text)
    assert code == 0 and result["schema"] == "nvshmem-efa-bench-ep/1" and not result["errors"]
    assert "no speed" in result["label"] and not result["on_gpu"]
    # By each way: rows, scales and sources of both formats, and sums.
    assert result["checked"]["values"] > ranks * 4 * 8 * 2048 and result["checked"]["mismatches"] == 0
    rows = {(row["way"], row["what"]): row["summary"] for row in result["rows"]}
    for what in ("dispatch FP8", "dispatch BF16", "combine BF16"):
        whole = rows["stores", what]
        assert whole["samples"] >= 10 and 0 < whole["min"] <= whole["median"] <= whole["max"]
        assert {f"{what}: send half", f"{what}: receive half"} <= {name for way, name in rows if way == "stores"}
        assert rows["network", f"{what}: work requests a token"]["median"] > 0
    assert (
        rows["network", "dispatch FP8: work requests a token"]
        == rows["network", "dispatch BF16: work requests a token"]
    )
    if ranks == 1:  # to itself by the network: a token once, a row for each choice, a record or credit each
        assert rows["network", "dispatch FP8: work requests a token"]["median"] == 1 + 2 / 8
        assert rows["network", "combine BF16: work requests a token"]["median"] == 3 + 1 / 8


def test_normal_mode_is_checked_and_has_all_rows() -> None:
    small = (*SMALL, "--batch-tokens", "24", "--batch-experts", "8", "--only", "normal")
    code, text = run(*small, "--ranks", "2", "--json", "-")
    result = json.loads(text)
    assert code == 0 and not result["errors"] and result["checked"]["mismatches"] == 0
    assert result["checked"]["values"] > 2 * 2 * 24 * 2048  # at least all sums of both ranks, by each number of SMs
    rows = {(row["way"], row["what"]): row for row in result["rows"]}
    for sms in ("normal, 24 SMs", "normal, 8 SMs"):
        for what in ("dispatch BF16", "dispatch FP8", "combine BF16"):
            assert rows[sms, what]["gb_per_s"] > 0
            assert rows[sms, f"{what}: host's time of the call"]["summary"]["median"] > 0
    assert (
        rows["normal, ceiling", "as many rows within one memory, BF16"]["bytes"] == rows[sms, "dispatch BF16"]["bytes"]
    )
    code, text = run(*small, "--ranks", "1", "--json", "-")
    assert code == 0 and "needs 2 to 8 ranks" in json.loads(text)["notes"][0]


def test_the_table_says_what_was_checked() -> None:
    code, text = run(*SMALL, "--ranks", "1", "--only", "low_latency")
    assert code == 0 and "0 wrong bytes" in text and "copy of the same bytes" in text and "no speed of a GPU" in text


def outcome(record: dict[str, Any] | None, timed_out: bool = False) -> Outcome:
    member = Member(0, subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"]))
    member.process.wait()
    member.record = json.dumps(record).encode() if record is not None else b""
    return Outcome([member], timed_out, None if timed_out else 0, 1.0)


def test_wrong_values_and_a_missing_end_are_errors() -> None:
    wrong = {
        "pe": 0,
        "result": "failed",
        "checked": {"values": 9, "mismatches": 2, "first_mismatch": "sums: 2 bytes differ"},
    }
    result = conclude(EpOptions(), PLAN, 0, outcome(wrong), {})
    assert (
        result.exit_code == ExitCode.FAILED
        and "sums: 2 bytes differ" in result.errors[0]
        and "rank 0" in result.errors[0]
    )
    result = conclude(EpOptions(deadline_s=7), PLAN, 0, outcome(None, timed_out=True), {})
    assert result.exit_code == ExitCode.TIMEOUT and "no end after 7 s" in result.errors[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (EpOptions(ranks=5, cpu=True), "--experts 288 cannot be shared by 5"),
        (EpOptions(ranks=0, cpu=True, experts=0), "--experts 0"),
        (EpOptions(ranks=99, cpu=True), "--ranks 99"),
        (EpOptions(topk=12, cpu=True), "--topk 12"),
        (EpOptions(batch_tokens=0, cpu=True), "--batch-tokens 0"),
        (EpOptions(parts=("all",), cpu=True), "--only all"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: EpOptions, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("--", "")):
        run_ep_bench(options, lambda *_: None, lambda _: None)
