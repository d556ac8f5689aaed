# SPDX-License-Identifier: Apache-2.0
"""The real NVSHMEM over soft EFA on this machine's GPUs: tests/gpu by way of its launcher. Run with `pytest -m gpu`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvshmem_efa import installed

ROOT = Path(__file__).resolve().parent.parent.parent
GPU_TESTS = ROOT / "tests" / "gpu"
BUILD_TIMEOUT_S = 900
DEADLINE_S = 500

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("gpus"), pytest.mark.timeout(BUILD_TIMEOUT_S + DEADLINE_S + 60)]


def missing() -> str | None:
    """What this machine lacks for the GPU tests, beside the GPUs themselves."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return "no nvcc; hint: install CUDA 12 or 13, or set NVCC"
    if not os.environ.get("NVSHMEM_HOME"):
        try:
            found = importlib.util.find_spec("nvidia.nvshmem")
        except ModuleNotFoundError:
            found = None
        if found is None:
            return "no NVSHMEM; hint: pip install '.[cu13]', or set NVSHMEM_HOME"
    return None


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lacking = missing()
    if lacking:
        pytest.skip(lacking)
    given = os.environ.get("NVSHMEM_EFA_GPU_BUILD")  # a folder that keeps the programs between sessions
    folder = Path(given) if given else tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        [str(GPU_TESTS / "build.sh"), str(folder), "nvshmem_ops"],
        capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"tests/gpu/build.sh failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return folder / "nvshmem_ops"


def launch(program: Path, out: Path, *arguments: str) -> dict[str, object]:
    """Runs the launcher; its output is the failure's text. Returns result.json."""
    done = subprocess.run(
        [sys.executable, str(GPU_TESTS / "launch.py"), "--program", str(program), "--shim", str(installed.shim()),
         "--out", str(out), "--deadline", str(DEADLINE_S), *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S + 60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-20000:]}\n{done.stderr[-4000:]}"
    result: dict[str, object] = json.loads((out / "result.json").read_text())
    return result


CASES = "all"
VARIANTS = {
    "vmm": ("--cases", CASES, "--compare"),
    "static_heap": ("--heap", "static", "--cases", f"{CASES},-strided", "--scale", "0.2"),
    "amo_gpu": ("--amo", "gpu", "--cases", "smoke,amo,amo_gpu,signal_order", "--scale", "0.3"),
    "init_twice": ("--cycles", "2", "--cases", "smoke,put_nbi_thread,signal_add,reduce_int_stream", "--scale", "0.2"),
    "dead_peer": ("--expect-death",),
}


@pytest.mark.gpus(2)
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_gpus(program: Path, tmp_path: Path, variant: str) -> None:
    launch(program, tmp_path, "--pes", "2", *VARIANTS[variant])


@pytest.mark.gpus(4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_four_gpus(program: Path, tmp_path: Path, variant: str) -> None:
    launch(program, tmp_path, "--pes", "4", *VARIANTS[variant])
