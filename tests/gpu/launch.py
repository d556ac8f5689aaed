#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the GPU test program: N PEs, over soft EFA and over P2P, with a hard deadline over all. See docs/gpu-tests.md.

tests/gpu/launch.py --program build/gpu/nvshmem_ops --pes 2 --cases all --compare --out out/
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_report import TransportResult, compare, machine, table
from pe_group import Event, run_job

ROOT = Path(__file__).resolve().parent.parent.parent
SHIM = "libnvshmem_efa_shim.so"
START_S = 30  # what a job may take beside its cases
MAX_RESTARTS = 8
DEATH_TIMEOUT_MS = 5000
DEATH_SLACK_S = 10.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the NVSHMEM test program on GPUs.")
    add = parser.add_argument
    add("--program", type=Path, default=ROOT / "build/gpu/nvshmem_ops", help="what tests/gpu/build.sh built")
    add("--pes", type=int, default=2, help="PEs; PE i uses GPU i modulo the number of GPUs")
    add("--cases", default="all", help="names or groups, comma-separated; all; -name leaves out")
    add("--list", action="store_true", help="print the cases and their groups")
    add("--transport", choices=["efa", "p2p"], default="efa")
    add("--compare", action="store_true", help="run over P2P too, and compare what every case left in memory")
    add("--shim", type=Path, default=None, help=f"{SHIM}; default: $NVSHMEM_EFA_SHIM, the build folder, the package")
    add("--seed", type=lambda text: int(text, 0), default=None, help="of all data and plans; default: a fresh one")
    add("--soft-seed", type=int, default=None, help="of the software device; default: a fresh one")
    add("--reorder-ns", type=int, default=20000)
    add("--duplicate-ppm", type=int, default=20000)
    add("--profile", default="efa3", choices=["efa2", "efa3", "efa4"])
    add("--heap", choices=["vmm", "static"], default="vmm")
    add("--amo", choices=["agent", "gpu"], default="agent")
    add("--scale", type=float, default=1.0, help="multiplies message counts")
    add("--max-bytes", type=int, default=256 << 20, help="largest single transfer")
    add("--cycles", type=int, default=1, help="init and finalize so often in one process")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="more settings for the PEs")
    add("--debug", action="store_true", help="verbose logs of NVSHMEM and of the transport")
    add("--deadline", type=float, default=600, help="seconds, over everything")
    add("--expect-death", action="store_true", help="the last PE kills itself; the others must end with a named error")
    add("--out", type=Path, default=Path("gpu-tests"), help="folder of logs and result.json")
    add("--quiet", action="store_true", help="print only what did not pass")
    return parser.parse_args(arguments)


def find_shim(options: argparse.Namespace) -> Path:
    tried = [options.shim] if options.shim else []
    if not tried:
        given = os.environ.get("NVSHMEM_EFA_SHIM")
        tried = [Path(given)] if given else []
        tried += [folder / "nvshmem_efa/lib" / SHIM for folder in (ROOT / "build", *sorted((ROOT / "build").glob("*")))]
        tried += sorted(Path(p) / "nvshmem_efa/lib" / SHIM for p in sys.path if p and "site-packages" in p)
    for path in tried:
        if path.is_file():
            return path.resolve()
    sys.exit(f"launch.py: no {SHIM} ({', '.join(map(str, tried))}); hint: build the project, or pass --shim")


def environment(options: argparse.Namespace, transport: str) -> dict[str, str]:
    """The PEs' settings. Multicast stays off: on shared hosts it can put GPUs out of service."""
    env = {
        "NVSHMEM_DISABLE_NCCL": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
        "NCCL_NVLS_ENABLE": "0",
        # A kernel that is loaded lazily while another one spins can wait for it for ever.
        "CUDA_MODULE_LOADING": "EAGER",
    }
    if options.heap == "static":
        env |= {"NVSHMEM_DISABLE_CUDA_VMM": "1", "NVSHMEM_SYMMETRIC_SIZE": str(2 << 30)}
    if options.debug:
        env |= {"NVSHMEM_DEBUG": "INFO"}
    if transport == "p2p":
        env |= {"NVSHMEM_REMOTE_TRANSPORT": "none"}
    else:
        env |= {
            "NVSHMEM_REMOTE_TRANSPORT": "efa",
            "LD_PRELOAD": str(find_shim(options)),
            "NVSHMEM_DISABLE_P2P": "1",
            "NVSHMEM_EFA_MODE": "soft",
            "NVSHMEM_EFA_AMO": options.amo,
            "NVSHMEM_EFA_SOFT_PROFILE": options.profile,
            "NVSHMEM_EFA_SOFT_SEED": str(options.soft_seed),
            "NVSHMEM_EFA_SOFT_REORDER_NS": str(options.reorder_ns),
            "NVSHMEM_EFA_SOFT_DUPLICATE_PPM": str(options.duplicate_ppm),
            "NVSHMEM_EFA_TIMEOUT_MS": "10000",  # before the kernels' own 15 s, so that the named error comes first
            "NVSHMEM_EFA_LOG_LEVEL": "debug" if options.debug else "info",
        }
    for setting in options.env:
        name, _, value = setting.partition("=")
        env[name] = value
    return env


def full_environment(env: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NVSHMEM", "LD_PRELOAD"))}
    return kept | env


def cases_of(program: Path) -> dict[str, tuple[str, int]]:
    """name: (group, seconds), in order of importance."""
    if not program.is_file():
        sys.exit(f"launch.py: no program {program}; hint: tests/gpu/build.sh {program.parent}")
    done = subprocess.run([str(program), "--list"], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        sys.exit(f"launch.py: {program} --list failed: {done.stderr.strip()}")
    return {line.split()[0]: (line.split()[1], int(line.split()[2])) for line in done.stdout.splitlines()}


def choose(known: dict[str, tuple[str, int]], wanted: str) -> list[str]:
    words = [word for word in wanted.split(",") if word]
    positive = [word for word in words if not word.startswith("-")] or ["all"]
    for word in (word.lstrip("-") for word in words):
        if word != "all" and word not in known and word not in {group for group, _ in known.values()}:
            sys.exit(f"launch.py: no case or group named {word}; hint: --list shows them")
    return [
        name for name, (group, _) in known.items()
        if (("all" in positive and group != "death") or {name, group} & set(positive))
        and not {f"-{name}", f"-{group}"} & set(words)
    ]  # fmt: skip


def run_transport(options: argparse.Namespace, transport: str, cases: list[str], ends_at: float) -> TransportResult:
    """Runs the cases; after a crash or a hang the next job goes on with those that are left."""
    env = environment(options, transport)
    result = TransportResult(transport, cases, env)

    def on_event(pe: int, event: Event) -> None:
        if event.get("event") != "case" or (event["status"] != "fail" and (pe != 0 or options.quiet)):
            return
        print(f"  {transport} PE {pe} {event['status'].upper():5} {event['case']:24} {event['seconds']:7.2f} s  "
              f"{event['detail'][:300]}", flush=True)  # fmt: skip

    for attempt in range(MAX_RESTARTS + 1):
        left = result.remaining()
        seconds = ends_at - time.monotonic()
        if not left or seconds < 5:
            break
        folder = options.out / f"{transport}.job{attempt}"

        def command(pe: int, private: str, left: list[str] = left) -> list[str]:
            flags = ["--p2p"] if transport == "p2p" else []
            return [str(options.program), "--pe", str(pe), "--npes", str(options.pes), "--dir", private,
                    "--seed", str(options.seed), "--scale", str(options.scale), "--max-bytes", str(options.max_bytes),
                    "--cycles", str(options.cycles), "--cases", ",".join(left), *flags]  # fmt: skip

        job = run_job(options.pes, command, full_environment(env), folder, seconds, on_event)
        result.take(job, folder)
        if job.stopped:
            print(f"  {transport} job {attempt} stopped by {job.stopped} in {job.unfinished}", flush=True)
        if len(result.remaining()) == len(left):
            break  # nothing was done: it would not help to try again
    return result


def run_death(options: argparse.Namespace) -> list[str]:
    """The last PE kills itself amid traffic. Returns what was wrong about the end of the others."""
    options.env = [*options.env, "NVSHMEM_GPU_TEST_DEATH=1", f"NVSHMEM_EFA_TIMEOUT_MS={DEATH_TIMEOUT_MS}"]
    env = environment(options, "efa")
    victim = options.pes - 1

    def command(pe: int, private: str) -> list[str]:
        return [str(options.program), "--pe", str(pe), "--npes", str(options.pes), "--dir", private,
                "--seed", str(options.seed), "--cases", "dead_peer"]  # fmt: skip

    folder = options.out / "death"
    limit = min(options.deadline, START_S + DEATH_TIMEOUT_MS / 1000 + DEATH_SLACK_S + 5)
    job = run_job(options.pes, command, full_environment(env), folder, limit, expect_death=victim)
    wrong = []
    if job.stopped:
        wrong.append(f"stopped by {job.stopped}: {job.tails}")
    if not any(event.get("event") == "suicide" for event in job.events[victim]):
        wrong.append(f"PE {victim} did not come so far: {job.tails[victim]}")
    for pe in range(victim):
        late = job.dead_after_s.get(pe, limit) - job.dead_after_s.get(victim, 0.0)
        log = (folder / f"pe{pe}.log").read_text(errors="replace")
        named = [line for line in log.splitlines() if re.search(rf"(PE|peer) {victim}\b.*hint:", line, re.I)]
        if job.codes[pe] == 0:
            wrong.append(f"PE {pe} ended with 0")
        if late > DEATH_TIMEOUT_MS / 1000 + DEATH_SLACK_S:
            wrong.append(f"PE {pe} lived on for {late:.1f} s")
        if not named:
            wrong.append(f"PE {pe} named no error of PE {victim} with a hint: {job.tails[pe]}")
        else:
            print(f"  PE {pe} ended with {job.codes[pe]} {late:.1f} s after PE {victim}: {named[0].strip()[:300]}")
    return wrong


def main() -> int:
    options = parse()
    options.program = options.program.resolve()
    known = cases_of(options.program)
    if options.list:
        for name, (group, seconds) in known.items():
            print(f"{name:26} {group:8} {seconds} s")
        return 0
    fresh = random.SystemRandom()
    options.seed = fresh.getrandbits(40) if options.seed is None else options.seed
    options.soft_seed = fresh.getrandbits(40) if options.soft_seed is None else options.soft_seed
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    replay = f"--pes {options.pes} --seed {options.seed} --soft-seed {options.soft_seed}"
    print(f"{options.pes} PEs, heap {options.heap}, amo {options.amo}, replay with {replay}", flush=True)
    if options.expect_death:
        wrong = run_death(options)
        print("\n".join(wrong) or "a dead PE was named by all the others in time")
        record = {"schema": 1, "machine": machine(), "wrong": wrong}
        (options.out / "result.json").write_text(json.dumps(record, indent=1))
        return 1 if wrong else 0

    cases = choose(known, options.cases)
    ends_at = time.monotonic() + options.deadline
    results = [run_transport(options, options.transport, cases, ends_at)]
    if options.transport == "efa":
        print(f"device model: {results[0].check_disorder()}")
    differ: list[str] = []
    if options.compare and options.transport == "efa":
        results.append(run_transport(options, "p2p", cases, ends_at))
        equal, differ = compare(results[0], results[1])
        print(f"{equal} cases left the same bytes over efa and over P2P, {len(differ)} did not")
        print("".join(f"DIFFERS {line}\n" for line in differ), end="")
    print(table(results, show_passed=False))
    record = {"schema": 1, "machine": machine(), "seed": options.seed, "soft_seed": options.soft_seed,
              "pes": options.pes, "heap": options.heap, "amo": options.amo, "cycles": options.cycles,
              "scale": options.scale, "digests_differ": differ,
              "results": [result.as_json() for result in results]}  # fmt: skip
    (options.out / "result.json").write_text(json.dumps(record, indent=1))
    return 0 if results[0].good and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
