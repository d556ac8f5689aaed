# SPDX-License-Identifier: Apache-2.0
"""What GPU jobs found, merged over PEs and transports: statuses, digests, the machine, a table."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from pe_group import JobResult

START_LINE = re.compile(r"nvshmem-efa \S+: mode \S+.*")


class CaseResult:
    """One case over all PEs of one transport."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = "not run"
        self.seconds = 0.0
        self.digests: list[str] = []
        self.detail = ""

    def take(self, per_pe: list[dict[str, Any] | None]) -> None:
        """From the "case" event of every PE (None where there is none)."""
        have = [event for event in per_pe if event]
        self.seconds = max((event["seconds"] for event in have), default=0.0)
        self.digests = [event["digest"] for event in have]
        statuses = [event["status"] if event else "missing" for event in per_pe]
        failed = [(pe, event) for pe, event in enumerate(per_pe) if event and event["status"] == "fail"]
        wrong = [f"PE {pe}: {event['detail']}" for pe, event in failed]
        if wrong:
            self.status, self.detail = "fail", " || ".join(wrong)
        elif "missing" in statuses:
            self.status = "missing"
        else:
            self.status = "skip" if all(status == "skip" for status in statuses) else "pass"
            self.detail = have[0]["detail"]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "seconds": round(self.seconds, 3), "digests": self.digests,
                "detail": self.detail}  # fmt: skip


class TransportResult:
    """All cases over one transport, over as many jobs as it took (a job that died is followed by another)."""

    def __init__(self, transport: str, cases: list[str], env: dict[str, str]) -> None:
        self.transport, self.env = transport, env
        self.cases = {name: CaseResult(name) for name in cases}
        self.jobs: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.start_lines: list[str] = []
        self.started: list[dict[str, Any]] = []
        self.counters: list[dict[str, int]] = []

    def remaining(self) -> list[str]:
        return [name for name, case in self.cases.items() if case.status == "not run"]

    def take(self, job: JobResult, folder: Path) -> None:
        for name in self.remaining():
            per_pe = [_worst([e for e in events if e.get("event") == "case" and e["case"] == name])
                      for events in job.events]  # fmt: skip
            if any(per_pe):
                self.cases[name].take(per_pe)
        if job.unfinished in self.cases:
            case = self.cases[job.unfinished]
            if case.status in ("not run", "missing"):
                hung = job.stopped is not None and "ended with" not in job.stopped
                case.status = "hang" if hung else "crash"
            case.detail = "; ".join(filter(None, [case.detail, *self._why(job)]))
        self.jobs.append({"codes": job.codes, "stopped": job.stopped, "unfinished": job.unfinished,
                          "seconds": round(job.seconds, 2), "folder": str(folder), "stacks": job.stacks})  # fmt: skip
        flat = [event for events in job.events for event in events]
        self.started = self.started or [e for e in flat if e.get("event") == "started"]
        self.counters += [e["counters"] for e in flat if e.get("event") == "stats"]
        for log in sorted(folder.glob("pe*.log")):
            found = START_LINE.search(log.read_text(errors="replace"))
            if found:
                self.start_lines.append(f"{log.stem}: {found.group(0)}")
        if not job.good and not any(e.get("event") == "finished" for e in flat):
            tails = "\n".join(f"--- PE {pe}\n" + "\n".join(tail) for pe, tail in enumerate(job.tails))
            self.problems.append(f"job ended early in {job.unfinished}: {'; '.join(self._why(job))}\n{tails}")
        if self.transport == "efa" and not self.start_lines:
            self.problems.append("no start line of nvshmem-efa in the logs: was the transport in use at all?")

    @staticmethod
    def _why(job: JobResult) -> list[str]:
        found = []
        for pe, events in enumerate(job.events):
            for event in events:
                if event.get("event") == "watchdog":
                    found.append(f"PE {pe} hung at [{event['stage']}]")
                if event.get("event") == "died":
                    found.append(f"PE {pe} died at [{event['stage']}]: {event['why']}")
        return [*found, f"exit codes {job.codes}, stopped by {job.stopped}"]

    def count(self, name: str) -> int:
        return sum(counters.get(name, 0) for counters in self.counters)

    def check_disorder(self) -> str:
        """That the device model did disorder and double what it was told to; else this run proves less than it says."""
        for knob, counter in (("REORDER_NS", "soft_out_of_order"), ("DUPLICATE_PPM", "soft_duplicates")):
            asked = int(self.env.get(f"NVSHMEM_EFA_SOFT_{knob}", "0"))
            if asked > 0 and self.count("soft_work_requests") > 10000 and self.count(counter) == 0:
                self.problems.append(f"NVSHMEM_EFA_SOFT_{knob}={asked}, but {counter} stayed 0")
        return (f"{self.count('soft_work_requests')} work requests, {self.count('soft_packets_received')} packets, "
                f"{self.count('soft_out_of_order')} out of order, {self.count('soft_duplicates')} twice")  # fmt: skip

    @property
    def good(self) -> bool:
        return not self.problems and all(case.status in ("pass", "skip") for case in self.cases.values())

    def as_json(self) -> dict[str, Any]:
        return {"transport": self.transport, "env": self.env, "started": self.started, "start_lines": self.start_lines,
                "jobs": self.jobs, "problems": self.problems, "counters": self.counters,
                "cases": [case.as_json() for case in self.cases.values()]}  # fmt: skip


def _worst(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the cycles of one case on one PE: the first that failed, else the last."""
    failed = [event for event in events if event["status"] == "fail"]
    return failed[0] if failed else events[-1] if events else None


def compare(left: TransportResult, right: TransportResult) -> tuple[int, list[str]]:
    """How many cases passed on both sides with equal digests, and those whose digests differ."""
    equal, differ = 0, []
    for name, case in left.cases.items():
        other = right.cases.get(name)
        if other is None or case.status != "pass" or other.status != "pass":
            continue
        if case.digests == other.digests:
            equal += 1
        else:
            differ.append(f"{name}: {left.transport} {case.digests}, {right.transport} {other.digests}")
    return equal, differ


def table(results: list[TransportResult], show_passed: bool) -> str:
    lines = []
    for result in results:
        counts: dict[str, int] = {}
        for case in result.cases.values():
            counts[case.status] = counts.get(case.status, 0) + 1
        for case in result.cases.values():
            if show_passed or case.status not in ("pass", "skip"):
                facts = f"{case.status:8} {case.name:24} {case.seconds:7.2f} s  {case.detail[:400]}"
                lines.append(f"{result.transport:4} {facts}")
        lines += [f"{result.transport:4} PROBLEM {problem}" for problem in result.problems]
        total = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        lines.append(f"{result.transport:4} total: {total}; {len(result.jobs)} job(s), "
                     f"{sum(job['seconds'] for job in result.jobs):.1f} s")  # fmt: skip
    return "\n".join(lines)


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> dict[str, Any]:
    here = str(Path(__file__).resolve().parent)
    gpus = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    release = re.search(r"release ([\d.]+)", _output("nvcc", "--version"))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", here, "rev-parse", "HEAD"),
        "gpus": gpus.splitlines(),
        "nvcc": release.group(1) if release else "",
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
