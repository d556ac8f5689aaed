# SPDX-License-Identifier: Apache-2.0
"""The demo's MoE layer: right on real ranks (tests/python/test_demo.py runs it), and by name when something is not."""

from __future__ import annotations

import json
import sys

import pytest

from nvshmem_efa import demo, moe_demo
from nvshmem_efa.errors import ExitCode
from nvshmem_efa.moe_demo import MoeResult, run_moe

pytestmark = pytest.mark.xdist_group("jobs")  # several busy processes each: not beside one another

GOOD = {"tokens": 4, "difference": {"normal": 1e-6}, "wrong": [], "stats": {"work_requests": 2}, "how": "by hand"}


def ranks_that_say(monkeypatch: pytest.MonkeyPatch, *programs: str) -> MoeResult:
    """Runs these programs as ranks; `record` in them is the file to write to."""
    original = moe_demo.run_job

    def run(commands: list[list[str]], *rest: object) -> object:
        return original([[sys.executable, "-c", f"import os; record = os.fdopen({{record_fd}}, 'w')\n{text}"]
                         for text in programs], *rest)  # type: ignore[arg-type]  # fmt: skip

    monkeypatch.setattr(moe_demo, "run_job", run)
    return run_moe(len(programs), 1, "efa3", 20)


def writes(record: dict[str, object]) -> str:
    """A program that leaves this record; braces are doubled, as commands are templates."""
    return f"record.write({json.dumps(record)!r})".replace("{", "{{").replace("}", "}}")


def test_records_of_all_ranks_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    result = ranks_that_say(monkeypatch, writes(GOOD), writes({**GOOD, "difference": {"normal": 3e-6}}))
    assert result.errors == []
    assert (result.tokens, result.stats, result.difference, result.how) == (
        8,
        {"work_requests": 4},
        {"normal": 3e-6},
        "by hand",
    )


def test_a_wrong_value_and_a_dead_rank_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**GOOD, "difference": {"normal": 0.5}, "wrong": ["normal"]}
    result = ranks_that_say(monkeypatch, writes(GOOD), writes(wrong), "raise SystemExit('no memory left')")
    assert result.errors[0] == "rank 1: normal: 0.5 off the reference"
    assert result.errors[1].startswith("rank 2 ended with exit code 1 and left no record")
    assert "no memory left" in result.errors[1]


def test_without_torch_the_layer_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe_demo.importlib.util, "find_spec", lambda name: None)
    assert "torch is not installed" in run_moe(4, 1, "efa3", 5).left_out
    monkeypatch.undo()
    assert "2 to 8 ranks" in run_moe(9, 1, "efa3", 5).left_out


def test_a_wrong_layer_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    before = demo.DemoResult(demo.DemoOptions(), ExitCode.GOOD, "ok", [], 1.0)
    for moe, code in (
        (MoeResult(errors=["rank 0: x"]), ExitCode.FAILED),
        (MoeResult(errors=["late"], timed_out=True), ExitCode.TIMEOUT),
    ):
        monkeypatch.setattr(demo, "run_moe", lambda *_, moe=moe: moe)
        after = demo.with_moe(before, lambda *_: None)
        assert after.exit_code == code
        assert after.errors == [f"MoE layer: {moe.errors[0]}"]


def test_two_swapped_tokens_would_be_seen() -> None:
    """The bounds of the comparison are not so wide that they pass anything."""
    torch = pytest.importorskip("torch")
    from nvshmem_efa import moe_rank

    right = torch.randn(29, 64, generator=torch.Generator().manual_seed(1))
    swapped = right.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    for bound in moe_rank.DIFFERENCE_MAX.values():
        assert moe_rank.difference(swapped, right) > bound
        assert moe_rank.difference(right.bfloat16(), right) < bound
