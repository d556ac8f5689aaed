# SPDX-License-Identifier: Apache-2.0
"""The outcome of `nvshmem-efa bench transport`: medians with their spread, ratios, and what --json writes."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nvshmem_efa
from nvshmem_efa import installed
from nvshmem_efa.bench_plan import Step
from nvshmem_efa.errors import ExitCode

SCHEMA = "nvshmem-efa-bench-transport/1"
PATHS = ("posted", "proxy")
CPU_LABEL = "CPU posters, software device: no speed of EFA or of a GPU"
SOFT_GPU_LABEL = "GPU posters, software device on this host: no speed of EFA hardware"


@dataclass(frozen=True)
class Summary:
    """What all samples of one path say, in the unit of the row."""

    median: float
    min: float
    p10: float
    p90: float
    p99: float
    max: float
    samples: int


def summarize(values: Sequence[float]) -> Summary:
    """Of at least one value."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return _rounded(ordered[round(share * (len(ordered) - 1))])

    return Summary(_rounded(statistics.median(ordered)), at(0), at(0.1), at(0.9), at(0.99), at(1), len(ordered))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


@dataclass(frozen=True)
class Row:
    """One step on both paths. What could not be measured is None, and its note says why."""

    test: str
    what: str
    bytes: int
    in_flight: int
    posters: int
    unit: str
    better: str  # "more" or "less"
    posted: Summary | None
    posted_note: str
    proxy: Summary | None
    proxy_note: str
    ratio: float | None  # posted / proxy, of the medians
    ratio_note: str
    goal: dict[str, float] | None
    goal_text: str
    meets_goal: bool | None
    goal_note: str


@dataclass(frozen=True)
class BenchResult:
    """What --json writes, with the schema in front."""

    label: str
    on_gpu: bool
    exit_code: ExitCode
    errors: list[str]
    started: str  # UTC
    elapsed_s: float
    options: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, Any]
    settings: dict[str, str]
    describe: str = ""
    rows: list[Row] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    stats: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        return {"schema": SCHEMA, **asdict(self), "exit_code": int(self.exit_code)}


def make_rows(steps: Sequence[Step], results: Sequence[Mapping[str, Any]], on_gpu: bool) -> list[Row]:
    """One row a step, from the entries {"step", "path", "samples_ns" | "missing"} of the PE that times."""
    found = {(int(entry["step"]), str(entry["path"])): entry for entry in results}
    return [_row(step, [found.get((i, path)) for path in PATHS], on_gpu) for i, step in enumerate(steps)]


def _row(step: Step, entries: Sequence[Mapping[str, Any] | None], on_gpu: bool) -> Row:
    (posted, posted_note), (proxy, proxy_note) = (_path(step, entry) for entry in entries)
    ratio, ratio_note = None, ""
    if posted is None or proxy is None:
        ratio_note = f"posted: {posted_note}" if posted is None else f"proxy: {proxy_note}"
    elif proxy.median > 0:
        ratio = _rounded(posted.median / proxy.median)
    else:
        ratio_note = "the proxy's median is 0"
    meets, goal_note = None, ""
    if step.goal is not None:
        if not on_gpu:
            goal_note = "the goal is for posters on a GPU"
        elif ratio is None:
            goal_note = "there is no ratio"
        else:
            meets = step.goal.is_met(ratio)
    goal = {name: value for name, value in asdict(step.goal).items() if value is not None} if step.goal else None
    return Row(
        test=step.test, what=step.what, bytes=step.bytes, in_flight=step.in_flight, posters=step.posters,
        unit=step.unit, better="more" if step.is_better_when_more else "less", posted=posted, posted_note=posted_note,
        proxy=proxy, proxy_note=proxy_note, ratio=ratio, ratio_note=ratio_note, goal=goal,
        goal_text=str(step.goal or ""), meets_goal=meets, goal_note=goal_note,
    )  # fmt: skip


def _path(step: Step, entry: Mapping[str, Any] | None) -> tuple[Summary | None, str]:
    if entry is None:
        return None, "the run ended before it"
    samples = entry.get("samples_ns") or []
    if not samples:
        return None, str(entry.get("missing") or "no samples")
    return summarize([step.value(max(float(ns), 1.0)) for ns in samples]), ""


def label_of(on_gpu: bool, describe: str) -> str:
    """What the figures are figures of."""
    if not on_gpu:
        return CPU_LABEL
    return SOFT_GPU_LABEL if "mode soft" in describe or not describe else f"GPU posters, {describe}"


def versions_here() -> dict[str, Any]:
    """What ran: the package, the exact library, and the commit of the source folder around it, if there is one."""
    return {
        "package": nvshmem_efa.__version__,
        "library_sha256": hashlib.sha256(installed.library().read_bytes()).hexdigest(),
        "commit": commit_of(Path(__file__).resolve().parent),
        "python": sys.version.split()[0],
    }


def commit_of(folder: Path) -> str | None:
    """The commit of this project's own sources around `folder`, with "+" where they were changed; else None."""
    for above in (folder, *folder.parents):
        if (above / ".git").exists() and (above / "transport_efa" / "include" / "nvshmem_efa").is_dir():
            break
    else:
        return None
    try:
        head = _git(above, "rev-parse", "HEAD")
        changed = _git(above, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
