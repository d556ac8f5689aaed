# SPDX-License-Identifier: Apache-2.0
"""The demo on GPUs: NVIDIA's own NVSHMEM host library, one process a GPU, with our plugin as its remote transport."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from nvshmem_efa import installed
from nvshmem_efa.demo import DemoOptions, DemoResult, Log, Progress, Tracker, conclude
from nvshmem_efa.errors import ConfigError, MissingError
from nvshmem_efa.launch import launch_environment
from nvshmem_efa.machine import Machine
from nvshmem_efa.nvshmem import Nvshmem, find_nvshmem
from nvshmem_efa.processes import run_job


def run_gpu_demo(options: DemoOptions, on_progress: Progress, log: Log) -> DemoResult:
    """Runs one PE a GPU to the end, or kills them. A machine that cannot is a named error."""
    found = _require(options)
    env = launch_environment(
        dict(os.environ), mode=os.environ.get("NVSHMEM_EFA_MODE") or "soft", profile=options.profile
    )
    env.update(
        NVSHMEM_EFA_SOFT_SEED=str(options.seed),
        NVSHMEM_DISABLE_P2P="1",  # else NVLink carries everything and no transport is asked
        NVSHMEM_DISABLE_NCCL="1",
        NVSHMEM_DISABLE_NVLS="1",
    )
    env.setdefault("NVSHMEM_SYMMETRIC_SIZE", str(64 << 20))
    tracker = Tracker(options.pes, on_progress, log)
    with tempfile.TemporaryDirectory(prefix="nvshmem-efa-") as folder:
        commands = [_command(options, found, Path(folder) / "unique-id", pe) for pe in range(options.pes)]
        outcome = run_job(commands, env, options.deadline_s, tracker.on_line)
    return conclude(options, outcome)


def _require(options: DemoOptions) -> Nvshmem:
    gpus = Machine().gpu_count()
    if gpus is None:
        raise MissingError("--gpu needs CUDA: libcuda.so.1 cannot be loaded", "run the demo without --gpu")
    if gpus == 0:
        raise MissingError("--gpu needs a GPU: the driver shows none", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if options.pes > gpus:
        raise ConfigError(f"--pes {options.pes} is more than the {gpus} GPU(s) here", f"use --pes {gpus}")
    found = find_nvshmem()
    if found is None:
        raise MissingError(
            "--gpu needs NVSHMEM: no libnvshmem_host.so.3", "pip install 'nvshmem-efa[cu13]' (or [cu12])"
        )
    installed.shim()  # named error rather than a loader's warning in every PE
    return found


def _command(options: DemoOptions, found: Nvshmem, unique_id: Path, pe: int) -> list[str]:
    return [
        sys.executable, "-m", "nvshmem_efa.gpu_pe", "--library", str(found.library), "--unique-id", str(unique_id),
        "--pe", str(pe), "--pes", str(options.pes), "--seed", str(options.seed),
        "--record-fd", "{record_fd}", "--progress-fd", "{progress_fd}",
    ]  # fmt: skip
