#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""NVSHMEM on GPUs, over soft EFA (with its device model in between) and over P2P, in one run.

    perf/gpu/run.py --program build/gpu/nvshmem_perf --out perf/results/

Figures are medians over the repeats of each repeat's p50, with the spread of the repeats; the p99 is the median of the
repeats' p99. Not a measurement of EFA: there is no NIC and no wire in it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/gpu"))
import launch  # noqa: E402
from gpu_report import START_LINE, machine  # noqa: E402
from pe_group import run_job  # noqa: E402

# (name, bytes): what a throw-away plugin without any device model reached on two H200s, P2P disabled.
BAR = {
    ("put_signal_pingpong", 8): 30.7,
    ("put_signal_pingpong", 7168): 30.7,
    ("put_signal_pingpong", 1 << 20): 36.0,
    ("put_nbi_rate", 8): 0.29,
    ("put_bandwidth", 1 << 20): 210.0,
}
HIGHER_IS_BETTER = {"put_nbi_rate", "put_bandwidth"}
Row = dict[str, Any]


def summary(events: list[dict[str, Any]]) -> list[Row]:
    """One row for each (name, bytes), over the repeats."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for event in events:
        if event.get("event") == "perf":
            groups.setdefault((event["name"], event["bytes"]), []).append(event)
    rows = []
    for (name, size), repeats in groups.items():
        middles = [event["p50"] for event in repeats]
        first = repeats[0]
        row: Row = {"name": name, "bytes": size, "unit": first["unit"], "rounds": first["rounds"],
                    "repeats": len(repeats), "median": statistics.median(middles),
                    "low": min(middles), "high": max(middles)}  # fmt: skip
        if "p99" in repeats[0]:
            row["p99"] = statistics.median(event["p99"] for event in repeats)
        if "millions_per_s" in repeats[0]:
            row["millions_per_s"] = statistics.median(event["millions_per_s"] for event in repeats)
            row["GB_per_s"] = statistics.median(event["GB_per_s"] for event in repeats)
        if (name, size) in BAR:
            row["bar"] = BAR[name, size]
            row["meets_bar"] = row["median"] >= row["bar"] if name in HIGHER_IS_BETTER else row["median"] <= row["bar"]
        rows.append(row)
    return rows


def measure(options: argparse.Namespace, transport: str, ends_at: float) -> dict[str, Any]:
    env = launch.environment(options, transport)
    folder = options.out / f"perf.{transport}"

    def command(pe: int, private: str) -> list[str]:
        flags = ["--p2p"] if transport == "p2p" else []
        return [str(options.program), "--pe", str(pe), "--npes", str(options.pes), "--dir", private,
                "--repeats", str(options.repeats), *flags]  # fmt: skip

    job = run_job(options.pes, command, launch.full_environment(env), folder, max(5.0, ends_at - time.monotonic()))
    flat = [event for events in job.events for event in events]
    lines = [START_LINE.search(log.read_text(errors="replace")) for log in sorted(folder.glob("pe*.log"))]
    starts = [line.group(0) for line in lines if line]
    problems = [] if job.good else [f"codes {job.codes}, stopped by {job.stopped} in {job.unfinished}: {job.tails}"]
    problems += [event["why"] for event in flat if event.get("event") == "died"]
    if transport == "efa" and not starts:
        problems.append("no start line of nvshmem-efa: was it in use?")
    return {"transport": transport, "env": env, "start_lines": starts, "problems": problems,
            "seconds": round(job.seconds, 1), "rows": summary(job.events[0]),
            "started": [e for e in flat if e.get("event") == "started"],
            "counters": [e["counters"] for e in flat if e.get("event") == "stats"]}  # fmt: skip


def size_text(size: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size // scale} {unit}"
    return f"{size} B"


def table(results: list[dict[str, Any]]) -> str:
    def cell(result: dict[str, Any], key: tuple[str, int]) -> str:
        row = next((row for row in result["rows"] if (row["name"], row["bytes"]) == key), None)
        if row is None:
            return "-"
        tail = f" p99 {row['p99']:.1f}" if "p99" in row else ""
        return f"{row['median']:.2f} ({row['low']:.2f}-{row['high']:.2f}){tail}"

    keys = list(dict.fromkeys((row["name"], row["bytes"], row["unit"]) for result in results for row in result["rows"]))
    names = ["soft EFA" if result["transport"] == "efa" else "P2P" for result in results]
    lines = [f"{'':22}{'size':>8} {'unit':>5}  " + "".join(f"{name:36}" for name in names) + "bar"]
    for name, size, unit in keys:
        bar = BAR.get((name, size))
        cells = "".join(f"{cell(result, (name, size)):36}" for result in results)
        lines.append(f"{name:22}{size_text(size):>8} {unit:>5}  {cells}{bar or ''}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Times NVSHMEM operations between two GPUs.")
    add = parser.add_argument
    add("--program", type=Path, default=ROOT / "build/gpu/nvshmem_perf")
    add("--pes", type=int, default=2)
    add("--repeats", type=int, default=5)
    add("--transports", default="efa,p2p")
    add("--shim", type=Path, default=None)
    add("--reorder-ns", type=int, default=0, help="the device model's window of disorder")
    add("--duplicate-ppm", type=int, default=0)
    add("--rails", type=int, default=None, help="software devices a process has (NVSHMEM_EFA_SOFT_RAILS)")
    add("--env", action="append", default=[], metavar="NAME=VALUE")
    add("--heap", choices=["vmm", "static"], default="vmm")
    add("--amo", choices=["agent", "gpu"], default="agent")
    add("--deadline", type=float, default=300)
    add("--out", type=Path, default=ROOT / "perf/results")
    options = parser.parse_args()
    options.program, options.out = options.program.resolve(), options.out.resolve()
    options.debug, options.profile, options.soft_seed = False, "efa3", 1
    if options.rails:
        options.env.append(f"NVSHMEM_EFA_SOFT_RAILS={options.rails}")
    if not options.program.is_file():
        sys.exit(f"run.py: no {options.program}; hint: tests/gpu/build.sh {options.program.parent}")
    options.out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + options.deadline
    results = [measure(options, transport, ends_at) for transport in options.transports.split(",")]
    facts = machine()
    print(f"{facts['gpus'][:1]} x {len(facts['gpus'])}, nvcc {facts['nvcc']}, {facts['cpus']} CPUs, "
          f"commit {facts['commit'][:12]}, medians of {options.repeats} repeats (low-high)")  # fmt: skip
    print("soft EFA: work requests through the software device model on this host; not a figure of EFA hardware")
    print(table(results))
    problems = [f"{result['transport']}: {problem}" for result in results for problem in result["problems"]]
    print("".join(f"PROBLEM {problem}\n" for problem in problems), end="")
    path = options.out / f"gpu-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps({"schema": 1, "machine": facts, "command": sys.argv[1:], "results": results}, indent=1))
    print(f"written: {os.path.relpath(path)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
