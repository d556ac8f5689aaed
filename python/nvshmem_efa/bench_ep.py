# SPDX-License-Identifier: Apache-2.0
"""Runs `nvshmem-efa bench ep`: deep_ep's calls on GPUs or on CPU tensors, one process a rank."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nvshmem_efa.bench_result import versions_here
from nvshmem_efa.demo import Log, Progress
from nvshmem_efa.errors import ConfigError, ExitCode, MissingError
from nvshmem_efa.machine import Machine
from nvshmem_efa.processes import Outcome, run_job
from nvshmem_efa.records import errors_of, exit_code_of, parse_record

SCHEMA = "nvshmem-efa-bench-ep/1"
# A part is a module with measure(job: RankJob), which adds rows to job.rows.
PART_MODULES = {"low_latency": "nvshmem_efa.bench_ep_low_latency", "normal": "nvshmem_efa.bench_ep_normal"}
RANKS_MAX = 64
CPU_LABEL = "CPU threads in place of kernels: no speed of a GPU or of EFA"
GPU_LABEL = "kernels on {gpus} GPU(s); by stores into memory of the domain; nothing here is a speed of EFA"
SHARED_LABEL = "; ranks share a GPU and take turns on it: times of more than one rank mean nothing"
SHARED_MPS_LABEL = "; ranks share a GPU through NVIDIA MPS: times are of kernels that share its memory and processors"


@dataclass(frozen=True)
class EpPlan:
    """What every rank runs."""

    ranks: int
    tokens: int
    hidden: int
    experts: int
    topk: int
    quick: bool
    cpu: bool
    seed: int
    batch_tokens: int
    batch_experts: int
    parts: tuple[str, ...] | list[str]


@dataclass(frozen=True)
class EpOptions:
    """What the user asked for."""

    ranks: int | None = None  # None: one for each GPU; on CPUs 2
    tokens: int = 128
    hidden: int = 7168
    experts: int = 288
    topk: int = 8
    batch_tokens: int = 4096
    batch_experts: int = 256
    quick: bool = False
    cpu: bool = False
    seed: int = 1
    parts: tuple[str, ...] = ()
    deadline_s: float = 300.0


@dataclass(frozen=True)
class EpResult:
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
    describe: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of rank 0
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)  # of all ranks

    def to_dict(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        return {"schema": SCHEMA, **asdict(self), "exit_code": int(self.exit_code)}


def run_ep_bench(options: EpOptions, on_progress: Progress, log: Log) -> EpResult:
    """Runs all ranks to the end, or kills them. What a rank did wrong is in the result; what cannot run is raised."""
    if importlib.util.find_spec("torch") is None:
        raise MissingError("bench ep needs torch", "pip install 'nvshmem-efa[deep_ep]'")
    gpus = 0 if options.cpu else Machine().gpu_count() or 0
    plan = _plan(options, gpus)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    env["NVSHMEM_EFA_MODE"] = env.get("NVSHMEM_EFA_MODE") or "soft"
    env["DEEP_EP_EXECUTOR"] = "cpu" if plan.cpu else "gpu"
    env.setdefault("DEEP_EP_TIMEOUT_S", "30")
    env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory(prefix="nvshmem-efa-bench-") as folder:
        store, text = str(Path(folder) / "store"), json.dumps(asdict(plan)).replace("{", "{{").replace("}", "}}")
        start = [sys.executable, "-m", "nvshmem_efa.bench_ep_rank"]
        commands = [[*start, str(rank), store, "{record_fd}", text] for rank in range(plan.ranks)]
        on_progress(0, 1, "ranks run")
        outcome = run_job(
            commands, env, options.deadline_s, lambda _, what, line: log(line) if what == "errors" else None
        )
    return conclude(options, plan, gpus, outcome, env)


def _plan(options: EpOptions, gpus: int) -> EpPlan:
    ranks = options.ranks or (gpus if gpus else 2)
    if not 1 <= ranks <= RANKS_MAX:
        raise ConfigError(f"--ranks {ranks} is not in 1..{RANKS_MAX}")
    if options.experts % ranks or options.experts < 1:
        raise ConfigError(f"--experts {options.experts} cannot be shared by {ranks} rank(s)", "use a multiple")
    if not 1 <= options.topk <= min(11, options.experts):
        raise ConfigError(f"--topk {options.topk} is not in 1..{min(11, options.experts)}")
    for name, number in (("tokens", options.batch_tokens), ("experts", options.batch_experts)):
        if number < 1:
            raise ConfigError(f"--batch-{name} {number} is less than 1")
    unknown = [part for part in options.parts if part not in PART_MODULES]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: there is no such part", f"one of {', '.join(PART_MODULES)}")
    return EpPlan(ranks, options.tokens, options.hidden, options.experts, options.topk, options.quick, gpus == 0,
                  options.seed, options.batch_tokens, options.batch_experts,
                  options.parts or tuple(PART_MODULES))  # fmt: skip


def conclude(options: EpOptions, plan: EpPlan, gpus: int, outcome: Outcome, env: Mapping[str, str]) -> EpResult:
    """The result of ranks that have ended, however they did."""
    records, errors = [], []
    checked = {"values": 0, "mismatches": 0}
    for member in outcome.members:
        record = parse_record(member.record)
        errors += [
            error.replace("PE ", "rank ", 1) for error in errors_of(member.pe, member.returncode, record, member.errors)
        ]
        if record is None:
            continue
        records.append(record)
        for name in checked:
            checked[name] += int((record.get("checked") or {}).get(name, 0))
    if outcome.timed_out:
        errors.insert(0, f"no end after {options.deadline_s:g} s; all ranks were killed")
    first: dict[str, Any] = next((record for record in records if record.get("pe") == 0), {})
    return EpResult(
        label=_label(plan, gpus),
        on_gpu=not plan.cpu,
        exit_code=exit_code_of(outcome, errors),
        errors=errors,
        started=datetime.fromtimestamp(time.time() - outcome.elapsed_s, timezone.utc).isoformat(timespec="seconds"),
        elapsed_s=round(outcome.elapsed_s, 3),
        options=asdict(plan),
        machine={"host": Machine().describe(), "gpus": gpus, **(first.get("machine") or {})},
        versions={**versions_here(), "torch": first.get("torch")},
        settings={name: env[name] for name in sorted(env) if name.startswith(("NVSHMEM_", "DEEP_EP_", "CUDA_"))},
        describe=first.get("describe") or {},
        rows=first.get("rows") or [],
        notes=first.get("notes") or [],
        checked=checked,
    )


def _label(plan: EpPlan, gpus: int) -> str:
    if plan.cpu:
        return CPU_LABEL
    label = GPU_LABEL.format(gpus=min(gpus, plan.ranks))
    if plan.ranks <= gpus:
        return label
    return label + (SHARED_MPS_LABEL if os.environ.get("CUDA_MPS_PIPE_DIRECTORY") else SHARED_LABEL)
