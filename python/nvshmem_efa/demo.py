# SPDX-License-Identifier: Apache-2.0
"""The demo: an expert-parallel token exchange between processes of this machine, through the software EFA device.

Then the same as a framework sees it: a mixture-of-experts layer on deep_ep (moe_demo.py).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nvshmem_efa import histogram, installed
from nvshmem_efa.errors import ConfigError, ExitCode
from nvshmem_efa.moe_demo import MoeResult, run_moe
from nvshmem_efa.processes import Outcome, run_job
from nvshmem_efa.records import errors_of, exit_code_of, parse_record, sum_integers

SCHEMA = "nvshmem-efa-demo/1"
PES_MAX = 16
EXPERTS_MIN = 16
TOPK = 4

_RESULTS = {
    ExitCode.GOOD: "ok",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "refused: wrong settings",
    ExitCode.MISSING: "cannot run: something is missing",
    ExitCode.TIMEOUT: "timed out",
}

Progress = Callable[[int, int, str], None]  # (steps done, steps known, phase)
Log = Callable[[str], None]


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs; every byte that it moves follows from these."""

    pes: int = 4
    seed: int = 1
    profile: str = "efa3"
    abi: int = 6
    deadline_s: float = 60.0
    on_devices: bool = False  # this machine's EFA devices rather than software ones

    def __post_init__(self) -> None:
        if not 2 <= self.pes <= PES_MAX:
            raise ConfigError(f"--pes {self.pes} is not in 2..{PES_MAX}", "the demo needs somebody to talk to")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed} is not in 0..2^63-1")

    @property
    def experts(self) -> int:
        """At least EXPERTS_MIN, and a multiple of the PEs."""
        return self.pes * -(-EXPERTS_MIN // self.pes)


@dataclass(frozen=True)
class OperationRow:
    """One operation in one lane, over all PEs."""

    op: str
    lane: str
    count: int
    bytes: int
    p50_ns: int | None
    p99_ns: int | None


@dataclass(frozen=True)
class DemoResult:
    """What `nvshmem-efa demo --json` prints."""

    options: DemoOptions
    exit_code: ExitCode
    result: str
    errors: list[str]
    elapsed_s: float
    operations: list[OperationRow] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    moe: MoeResult | None = None

    @property
    def times_are(self) -> str:
        """Of what the times speak; a virtual EFA device looks like a real one from here."""
        return "of this machine's EFA devices" if self.options.on_devices else "of the software device, not of EFA"

    def to_json(self) -> str:
        """One object; the records of the PEs are in it as they wrote them."""
        return json.dumps({"schema": SCHEMA, "times_are": self.times_are, **asdict(self)})


def run_demo(options: DemoOptions, on_progress: Progress, log: Log) -> DemoResult:
    """Runs all PEs to the end, or kills them. Never raises for what a PE did wrong: the result says it."""
    tracker = Tracker(options.pes, on_progress, log)
    outcome = run_job(_commands(options), _environment(options), options.deadline_s, tracker.on_line)
    return conclude(options, outcome)


def _commands(options: DemoOptions) -> list[list[str]]:
    program = str(installed.find("bin", "nvshmem-efa-pe"))
    plugin = str(installed.plugin(options.abi))
    job = "demo-" + secrets.token_hex(16)
    common = [
        program, "demo", "--plugin", plugin, "--abi", str(options.abi), "--job", job, "--pes", str(options.pes),
        "--seed", str(options.seed), "--experts", str(options.experts), "--topk", str(TOPK),
        "--record-fd", "{record_fd}", "--progress-fd", "{progress_fd}",
    ]  # fmt: skip
    return [[*common, "--pe", str(pe)] for pe in range(options.pes)]


def _environment(options: DemoOptions) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    env.update(
        NVSHMEM_EFA_MODE="proxy" if options.on_devices else "soft",
        NVSHMEM_EFA_SOFT_PROFILE=options.profile,
        NVSHMEM_EFA_SOFT_SEED=str(options.seed),
    )
    return env


def with_moe(result: DemoResult, on_progress: Progress) -> DemoResult:
    """The result with a MoE layer's after it. A demo that failed already is left as it is."""
    if result.exit_code != ExitCode.GOOD:
        return result
    options = result.options
    on_progress(0, 1, "MoE layer")
    moe = run_moe(options.pes, options.seed, options.profile, options.deadline_s)
    on_progress(1, 1, "MoE layer")
    code = ExitCode.TIMEOUT if moe.timed_out else ExitCode.FAILED if moe.errors else ExitCode.GOOD
    return replace(
        result,
        exit_code=code,
        result=_RESULTS[code],
        errors=[*result.errors, *(f"MoE layer: {error}" for error in moe.errors)],
        elapsed_s=round(result.elapsed_s + moe.elapsed_s, 3),
        moe=moe,
    )


class Tracker:
    """Adds up the progress of all PEs; the job is as far as their sum."""

    def __init__(self, pes: int, on_progress: Progress, log: Log) -> None:
        self._done: dict[int, tuple[int, int]] = dict.fromkeys(range(pes), (0, 0))
        self._on_progress = on_progress
        self._log = log

    def on_line(self, pe: int, what: str, line: str) -> None:
        if what == "errors":
            self._log(line)
            return
        try:
            step = json.loads(line)
            self._done[pe] = (int(step["done"]), int(step["total"]))
            phase = str(step["phase"])
        except (ValueError, KeyError, TypeError):
            return  # progress is for the eye: a broken line must not end a good run
        known = max(total for _, total in self._done.values()) * len(self._done)
        self._on_progress(sum(done for done, _ in self._done.values()), known, phase)


def conclude(options: DemoOptions, outcome: Outcome) -> DemoResult:
    """The result of a job that has ended, however it did."""
    records: list[dict[str, Any]] = []
    errors: list[str] = []
    for member in outcome.members:
        record = parse_record(member.record)
        if record is not None:
            records.append(record)
        errors += errors_of(member.pe, member.returncode, record, member.errors)
    if outcome.timed_out:
        errors.insert(0, f"no end after {options.deadline_s:g} s; all PEs were killed")
    exit_code = exit_code_of(outcome, errors)
    return DemoResult(
        options=options,
        exit_code=exit_code,
        result=_RESULTS[exit_code],
        errors=errors,
        elapsed_s=round(outcome.elapsed_s, 3),
        operations=merge_operations(records),
        checked=sum_integers(record.get("checked") for record in records),
        stats=sum_integers(record.get("stats") for record in records),
        records=records,
    )


def merge_operations(records: list[dict[str, Any]]) -> list[OperationRow]:
    """Rows of all PEs, those of one operation and lane as one; percentiles from the merged histograms."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        for entry in record.get("operations") or []:
            groups.setdefault((str(entry["op"]), str(entry["lane"])), []).append(entry)
    rows = []
    for (op, lane), entries in groups.items():
        buckets = histogram.merge(entry.get("histogram") or [] for entry in entries)
        rows.append(
            OperationRow(
                op=op,
                lane=lane,
                count=sum(int(entry["count"]) for entry in entries),
                bytes=sum(int(entry["bytes"]) for entry in entries),
                p50_ns=histogram.percentile(buckets, 0.50),
                p99_ns=histogram.percentile(buckets, 0.99),
            )
        )
    return rows
