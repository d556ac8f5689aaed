# SPDX-License-Identifier: Apache-2.0
"""Runs `nvshmem-efa bench transport`: one process a PE, on GPUs with NVSHMEM, or on CPU threads without either."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nvshmem_efa import installed, kernels
from nvshmem_efa.bench_plan import Step, plan
from nvshmem_efa.bench_result import BenchResult, label_of, make_rows, versions_here
from nvshmem_efa.demo import Log, Progress, Tracker
from nvshmem_efa.errors import ConfigError, MissingError
from nvshmem_efa.launch import launch_environment
from nvshmem_efa.machine import Machine
from nvshmem_efa.nvrtc import CudaPython
from nvshmem_efa.nvshmem import Nvshmem, find_nvshmem
from nvshmem_efa.processes import Outcome, run_job
from nvshmem_efa.records import errors_of, exit_code_of, parse_record, sum_integers

PES_MAX = 16
CPU_PES = 2
ABI = 6
KERNEL = "transport_bench"
# Where the user says nothing else. In order and without second copies, for both paths.
DEFAULTS = {
    "NVSHMEM_EFA_MODE": "soft",
    "NVSHMEM_EFA_GPU_QUEUES": "4",
    "NVSHMEM_EFA_SOFT_REORDER_NS": "0",
    # A software device takes a peer for dead after half of it. On few cores a process may stand still for seconds.
    "NVSHMEM_EFA_TIMEOUT_MS": "30000",
}
# NVLink would carry everything, and the transport would not be asked; a kernel that is loaded lazily while another one
# spins can wait for it for ever.
GPU_DEFAULTS = {
    "NVSHMEM_DISABLE_P2P": "1",
    "NVSHMEM_DISABLE_NCCL": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_SYMMETRIC_SIZE": str(256 << 20),
    "CUDA_MODULE_LOADING": "EAGER",
}


@dataclass(frozen=True)
class BenchOptions:
    """What the user asked for."""

    pes: int | None = None  # None: 2 on CPUs, on GPUs one each, at most 4
    only: tuple[str, ...] = ()
    quick: bool = False
    cpu: bool = False  # CPU threads although there are GPUs
    share_gpus: bool = False  # more PEs than GPUs, which NVIDIA MPS lets run at once
    deadline_s: float = 300.0


def run_transport_bench(options: BenchOptions, on_progress: Progress, log: Log) -> BenchResult:
    """Runs all PEs to the end, or kills them. What a PE did wrong is in the result; a machine that cannot is raised."""
    gpus = 0 if options.cpu else Machine().gpu_count() or 0
    pes = _pes(options, gpus)
    sharing = sharing_of(pes, gpus)
    steps = plan(gpus > 0, pes, options.quick, options.only)
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD" or gpus}
    for name, value in DEFAULTS.items():
        env[name] = env.get(name) or value
    tracker = Tracker(pes, on_progress, log)
    with tempfile.TemporaryDirectory(prefix="nvshmem-efa-") as folder:
        versions = versions_here()
        if gpus:
            found = _require_nvshmem()
            image, nvrtc = _image()
            env = {**GPU_DEFAULTS, **launch_environment(env, None, None)}
            if sharing:  # NVSHMEM lets PEs of one GPU wait for each other when their shares are at most all of it
                env.setdefault("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", str(100 * gpus // pes))
            versions |= {"nvshmem": found.version, "nvrtc": nvrtc, "image": image.name}
            commands = _gpu_commands(found, image, Path(folder) / "unique-id", steps, pes, gpus)
        else:
            commands = _cpu_commands(steps, pes)
        outcome = run_job(commands, env, options.deadline_s, tracker.on_line)
    return conclude(options, gpus > 0, pes, steps, outcome, versions, env, sharing)


def _pes(options: BenchOptions, gpus: int) -> int:
    pes = options.pes or (max(n for n in (1, 2, 4) if n <= gpus) if gpus else CPU_PES)
    if not 1 <= pes <= PES_MAX:
        raise ConfigError(f"--pes {pes} is not in 1..{PES_MAX}")
    if gpus and pes > gpus and not options.share_gpus:
        ways_out = f"use --pes {gpus}, --cpu, or --share-gpus"
        raise ConfigError(f"--pes {pes} is more than the {gpus} GPU(s) here", ways_out)
    if gpus and pes > gpus and not mps_is_running():
        raise ConfigError(
            "--share-gpus needs NVIDIA MPS: without it PEs of one GPU run in turns, and their times mean nothing",
            "start `nvidia-cuda-mps-control -d`, with the same CUDA_MPS_PIPE_DIRECTORY as here",
        )
    return pes


def mps_is_running() -> bool:
    """Whether an MPS control daemon listens where CUDA programs started from here look for it."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps") / "control").exists()


def sharing_of(pes: int, gpus: int) -> str:
    """What the reader of the figures must know when PEs share GPUs; else empty."""
    if not gpus or pes <= gpus:
        return ""
    return f"{pes} PEs share {'one GPU' if gpus == 1 else f'{gpus} GPUs'} through MPS"


def _require_nvshmem() -> Nvshmem:
    found = find_nvshmem()
    if found is None:
        raise MissingError(
            "the GPUs here need NVSHMEM: no libnvshmem_host.so.3",
            "pip install 'nvshmem-efa[cu13]' (or [cu12]), or measure with --cpu",
        )
    installed.shim()  # named errors rather than a loader's warning in every PE
    installed.find("lib", "libnvshmem_efa_bench.so")
    return found


def _image() -> tuple[Path, str]:
    """The kernels for the GPUs here, and the version of NVRTC that compiled them."""
    archs = kernels.archs_here()
    if len(archs) != 1:
        raise ConfigError(f"the GPUs here are of several kinds: {', '.join(archs)}", "choose with CUDA_VISIBLE_DEVICES")
    compiler = CudaPython()
    version = ".".join(str(number) for number in compiler.version)
    return kernels.build(KERNEL, archs[0], compiler).path, version


def _common(steps: list[Step], pes: int) -> list[str]:
    return ["--pes", str(pes), "--steps", ",".join(step.text for step in steps),
            "--record-fd", "{record_fd}", "--progress-fd", "{progress_fd}"]  # fmt: skip


def _cpu_commands(steps: list[Step], pes: int) -> list[list[str]]:
    program = str(installed.find("bin", "nvshmem-efa-bench-transport"))
    start = [program, "--plugin", str(installed.plugin(ABI)), "--abi", str(ABI),
             "--job", "bench-" + secrets.token_hex(16), *_common(steps, pes)]  # fmt: skip
    return [[*start, "--pe", str(pe)] for pe in range(pes)]


def _gpu_commands(
    found: Nvshmem, image: Path, unique_id: Path, steps: list[Step], pes: int, gpus: int
) -> list[list[str]]:
    start = [sys.executable, "-m", "nvshmem_efa.bench_pe", "--library", str(found.library), "--image", str(image),
             "--unique-id", str(unique_id), *_common(steps, pes)]  # fmt: skip
    return [[*start, "--pe", str(pe), "--gpu", str(pe % gpus)] for pe in range(pes)]


def conclude(
    options: BenchOptions, on_gpu: bool, pes: int, steps: list[Step], outcome: Outcome, versions: Mapping[str, Any],
    env: Mapping[str, str], sharing: str = "",
) -> BenchResult:  # fmt: skip
    """The result of a job that has ended, however it did."""
    records, errors = [], []
    for member in outcome.members:
        record = parse_record(member.record)
        if record is not None:
            records.append(record)
        errors += errors_of(member.pe, member.returncode, record, member.errors)
    if outcome.timed_out:
        errors.insert(0, f"no end after {options.deadline_s:g} s; all PEs were killed")
    first: dict[str, Any] = next((record for record in records if record.get("pe") == 0), {})
    describe = str(first.get("describe") or "")
    return BenchResult(
        label=label_of(on_gpu, describe) + (f"; {sharing}" if sharing else ""),
        on_gpu=on_gpu,
        exit_code=exit_code_of(outcome, errors),
        errors=errors,
        started=datetime.fromtimestamp(time.time() - outcome.elapsed_s, timezone.utc).isoformat(timespec="seconds"),
        elapsed_s=round(outcome.elapsed_s, 3),
        options={**asdict(options), "pes": pes, "only": list(options.only)},
        machine={"host": Machine().describe(), "cpu": _cpu_name(), "load_average_1min": round(os.getloadavg()[0], 1),
                 **(first.get("machine") or {})},
        versions=dict(versions),
        settings={name: env[name] for name in sorted(env) if name.startswith(("NVSHMEM_", "CUDA_", "NCCL_"))},
        describe=describe,
        rows=make_rows(steps, first.get("results") or [], on_gpu),
        checked=sum_integers(record.get("checked") for record in records),
        stats=sum_integers(record.get("stats") for record in records),
    )  # fmt: skip


def _cpu_name() -> str:
    for line in (Machine().read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
