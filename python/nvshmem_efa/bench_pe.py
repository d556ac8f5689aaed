# SPDX-License-Identifier: Apache-2.0
"""One PE of `nvshmem-efa bench transport` on a GPU, started by bench_transport with the shim preloaded.

Its record has the fields of the one that perf/transport_bench.cpp writes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvshmem_efa.bench_gpu import Launcher, StepRunner, report_words
from nvshmem_efa.bench_plan import Step, from_text
from nvshmem_efa.bench_result import PATHS
from nvshmem_efa.errors import EfaError, ExitCode
from nvshmem_efa.gpu_calls import Cuda, NvshmemHost, share_file, transport_stats
from nvshmem_efa.gpu_posts import api

SCHEMA = "nvshmem-efa-bench-pe/1"
START_DEADLINE_S = 60.0
KERNEL_EXTRA_S = 30.0  # beyond the longest wait inside a kernel


def measure(runner: StepRunner, steps: list[Step], progress: Callable[[str, int], None]) -> dict[str, Any]:
    """All steps on both paths: the part of the record that they fill."""
    results: list[dict[str, Any]] = []
    checked: dict[str, Any] = {"bytes": 0, "mismatches": 0, "first_mismatch": None}
    for number, step in enumerate(steps):
        progress(step.call, number)
        for path in PATHS:
            measured = runner.run(step, path)
            checked["bytes"] += measured.checked
            if measured.wrong:
                checked["mismatches"] += 1
                checked["first_mismatch"] = checked["first_mismatch"] or measured.wrong
            if measured.samples_ns:
                results.append({"step": number, "path": path, "samples_ns": measured.samples_ns})
            elif measured.missing:
                results.append({"step": number, "path": path, "missing": measured.missing})
    return {"results": results, "checked": checked, "result": "failed" if checked["mismatches"] else "ok"}


def gpu_facts(device: int) -> dict[str, Any]:
    """Name of the GPU, and the driver's version as CUDA counts it."""
    cuda = ctypes.CDLL("libcuda.so.1")
    name, version = ctypes.create_string_buffer(128), ctypes.c_int()
    cuda.cuDeviceGetName(name, ctypes.c_int(128), ctypes.c_int(device))
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = Path("/proc/driver/nvidia/version")
    return {
        "gpu": name.value.decode(errors="replace"),
        "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
    }


def describe() -> str:
    """Mode and devices of the transport that is up."""
    library = api()
    library.nvshmem_efa_describe.restype = ctypes.c_char_p
    return str((library.nvshmem_efa_describe() or b"").decode(errors="replace"))


def arguments() -> argparse.Namespace:
    """Those that bench_transport gives."""
    parser = argparse.ArgumentParser(prog="nvshmem_efa.bench_pe")
    for name in ("--pe", "--pes", "--gpu", "--record-fd", "--progress-fd"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--library", "--unique-id", "--image"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--steps", type=from_text, required=True)
    return parser.parse_args()


def _drive(args: argparse.Namespace, record: dict[str, Any]) -> None:
    def progress(phase: str, done: int) -> None:
        line = json.dumps({"pe": args.pe, "phase": phase, "done": done, "total": len(args.steps)})
        os.write(args.progress_fd, line.encode() + b"\n")

    cuda = Cuda(args.gpu)
    record["machine"] = gpu_facts(args.gpu)
    nvshmem = NvshmemHost(args.library, cuda)
    nvshmem.init(args.pe, args.pes, lambda make: share_file(args.unique_id, args.pe, make, START_DEADLINE_S))
    nvshmem.barrier_all()  # the device state is valid from the first one on
    record["describe"] = describe()
    deadline_s = int(os.environ.get("NVSHMEM_EFA_TIMEOUT_MS") or 30000) / 1000 + KERNEL_EXTRA_S
    launcher = Launcher(args.image.read_bytes(), report_words(args.steps), deadline_s)
    record.update(measure(StepRunner(nvshmem, cuda, launcher, args.steps), args.steps, progress))
    record["stats"] = transport_stats()
    launcher.close()
    nvshmem.finalize()


def main() -> int:
    args = arguments()
    record: dict[str, Any] = {"schema": SCHEMA, "pe": args.pe, "result": "ok", "error": None, "results": []}
    code = 0
    try:
        _drive(args, record)
        code = int(record["result"] != "ok")
    except Exception as error:  # whatever it is, the record has to say it
        traceback.print_exc()
        usual = ExitCode.TIMEOUT if isinstance(error, TimeoutError) else ExitCode.FAILED
        code = int(getattr(error, "exit_code", usual))
        hint = error.hint if isinstance(error, EfaError) else None
        record.update(result="error", error={"code": type(error).__name__, "message": str(error), "hint": hint})
    data = json.dumps(record).encode() + b"\n"
    while data:
        data = data[os.write(args.record_fd, data) :]
    sys.stdout.flush()
    if code:
        os._exit(code)  # NVSHMEM's own exit handlers may wait for peers that will not come
    return 0


if __name__ == "__main__":
    sys.exit(main())
