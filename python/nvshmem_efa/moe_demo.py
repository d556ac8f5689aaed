# SPDX-License-Identifier: Apache-2.0
"""The second half of the demo: a mixture-of-experts layer on several processes, through deep_ep on CPU tensors."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from nvshmem_efa.processes import Outcome, run_job
from nvshmem_efa.records import ERROR_LINES_KEPT, parse_record

HIDDEN = 2048
INTERMEDIATE = 128
EXPERTS_A_RANK = 4
TOPK = 4
MAX_TOKENS = 32
RANKS_MAX = 8


@dataclass(frozen=True)
class MoeResult:
    """What the layer did. `left_out` says why it did not run, which is no failure."""

    left_out: str = ""
    errors: list[str] = field(default_factory=list)
    ranks: int = 0
    tokens: int = 0
    how: str = ""  # what carried the data
    difference: dict[str, float] = field(default_factory=dict)  # way through the library -> largest of all ranks
    stats: dict[str, int] = field(default_factory=dict)  # of all ranks
    timed_out: bool = False
    elapsed_s: float = 0.0

    @property
    def work_requests(self) -> int:
        """By the host's path, and by what posts for itself as a GPU does."""
        return self.stats.get("work_requests", 0) + self.stats.get("gpu_work_requests", 0)


def why_not(ranks: int) -> str:
    """Why the layer cannot run here; empty if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; hint: pip install torch"
    return "" if ranks <= RANKS_MAX else f"it runs on 2 to {RANKS_MAX} ranks"


def run_moe(ranks: int, seed: int, profile: str, deadline_s: float) -> MoeResult:
    """Runs all ranks to the end, or kills them. Never raises for what a rank did wrong: the result says it."""
    reason = why_not(ranks)
    if reason:
        return MoeResult(left_out=reason)
    with tempfile.TemporaryDirectory(prefix="nvshmem-efa-moe-") as folder:
        store = str(Path(folder) / "store")
        commands = [
            [sys.executable, "-m", "nvshmem_efa.moe_rank", str(rank), str(ranks), str(seed), store, "{record_fd}"]
            for rank in range(ranks)
        ]
        outcome = run_job(commands, _environment(seed, profile), deadline_s, lambda *_: None)
    return conclude(ranks, deadline_s, outcome)


def _environment(seed: int, profile: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    env.update(
        NVSHMEM_EFA_MODE="soft",
        NVSHMEM_EFA_SOFT_PROFILE=profile,
        NVSHMEM_EFA_SOFT_SEED=str(seed),
        DEEP_EP_EXECUTOR="cpu",
        GLOO_SOCKET_IFNAME="lo",  # nobody else is to be reached
        OMP_NUM_THREADS="1",
    )
    return env


def conclude(ranks: int, deadline_s: float, outcome: Outcome) -> MoeResult:
    """The result of ranks that have ended, however they did."""
    errors: list[str] = []
    tokens = 0
    how = ""
    difference: dict[str, float] = {}
    stats: dict[str, int] = {}
    for member in outcome.members:
        record = parse_record(member.record)
        if record is None:
            tail = "\n    ".join(member.errors.decode(errors="replace").splitlines()[-ERROR_LINES_KEPT:])
            errors.append(f"rank {member.pe} ended with exit code {member.returncode} and left no record\n    {tail}")
            continue
        if "error" in record:
            errors.append(f"rank {member.pe}: {record['error']}")
            continue
        errors += [
            f"rank {member.pe}: {name}: {record['difference'][name]:.2g} off the reference" for name in record["wrong"]
        ]
        tokens += record["tokens"]
        how = record["how"]
        for name, value in record["difference"].items():
            difference[name] = max(value, difference.get(name, 0.0))
        for name, count in record["stats"].items():
            stats[name] = stats.get(name, 0) + int(count)
    if outcome.timed_out:
        errors.insert(0, f"no end after {deadline_s:g} s; all ranks were killed")
    return MoeResult("", errors, ranks, tokens, how, difference, stats, outcome.timed_out, round(outcome.elapsed_s, 3))
