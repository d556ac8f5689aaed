# SPDX-License-Identifier: Apache-2.0
"""What a person sees: tables on standard output, progress and log lines on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nvshmem_efa.bench import measured
from nvshmem_efa.checks import Verdict
from nvshmem_efa.demo import DemoResult
from nvshmem_efa.doctor import Report
from nvshmem_efa.errors import ExitCode
from nvshmem_efa.moe_demo import MoeResult
from nvshmem_efa.settings import Setting

PIPE_WIDTH = 110  # where there is no terminal to ask

_VERDICT_STYLES = {Verdict.GOOD: "green", Verdict.NOTE: "cyan", Verdict.MISSING: "yellow", Verdict.WRONG: "red"}


def out() -> Console:
    """Standard output. Colour only on a terminal, and never with NO_COLOR."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
    """A bar on a terminal, nothing elsewhere. Gives the functions for a step and for a log line."""
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    # No refresh thread: the demo forks.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None, phase="")

        def step(done: int, total: int, phase: str) -> None:
            bar.update(task, completed=done, total=max(total, 1), phase=phase, refresh=True)

        def log(line: str) -> None:
            bar.console.print(Text(line), soft_wrap=True)

        yield step, log


def format_bytes(count: int) -> str:
    """Whole bytes below 1 KiB, else three digits with a binary unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_ns(ns: int | None) -> str:
    """Nanoseconds as microseconds; a dash where nothing was timed."""
    return "-" if ns is None else f"{ns / 1000:.1f} us"


def show_demo(result: DemoResult) -> None:
    """The demo's table and verdict."""
    console = out()
    options = result.options
    table = Table(title=f"{options.pes} PEs, profile {options.profile}, seed {options.seed}, plugin ABI {options.abi}")
    for heading in ("operation", "lane"):
        table.add_column(heading)
    for heading in ("count", "bytes", "p50", "p99"):
        table.add_column(heading, justify="right")
    for row in result.operations:
        table.add_row(
            row.op, row.lane, f"{row.count:,}", format_bytes(row.bytes), format_ns(row.p50_ns), format_ns(row.p99_ns)
        )
    if result.operations:
        console.print(table)
        console.print(f"Times are {result.times_are}.", style="dim")
        for name, value in _totals(result):
            console.print(f"{name:<28} {value}")
    if result.moe:
        _show_moe(console, result.moe)
    for error in result.errors:
        console.print(Text(error, style="red"), soft_wrap=True)
    good = result.exit_code == ExitCode.GOOD
    verdict = "ok, every byte is right" if good else result.result
    console.print(
        Text(f"{'result':<28} {verdict} ({result.elapsed_s:.1f} s)", style="bold green" if good else "bold red")
    )


def _show_moe(console: Console, moe: MoeResult) -> None:
    if moe.left_out:
        console.print(f"{'MoE layer':<28} left out: {moe.left_out}", soft_wrap=True)
        return
    console.print(f"{'MoE layer':<28} {moe.tokens} tokens on {moe.ranks} ranks: {moe.how}", soft_wrap=True)
    for name, value in moe.difference.items():
        console.print(f"{'  ' + name:<28} {value:.1e} off one process alone, relative and squared")
    console.print(f"{'  work requests posted':<28} {moe.work_requests:,}")


def _totals(result: DemoResult) -> Iterator[tuple[str, str]]:
    known = (
        ("work_requests", "work requests posted"),
        ("doorbells", "doorbells rung"),
        ("soft_packets_received", "packets received"),
        ("soft_out_of_order", "out-of-order deliveries"),
        ("soft_duplicates", "payloads written twice"),
    )
    for key, title in known:
        if key in result.stats:
            yield title, f"{result.stats[key]:,}"
    if "bytes" in result.checked:
        yield "bytes checked", f"{result.checked['bytes']:,}"
    if "mismatches" in result.checked:
        yield "wrong values", f"{result.checked['mismatches']:,}"


def show_report(report: Report) -> None:
    """The doctor's checks, in order."""
    console = out()
    for check in report.checks:
        style = _VERDICT_STYLES[check.verdict] if check.needed else "dim"
        console.print(
            Text.assemble((f"{check.verdict.value:<8}", style), (f"{check.name:<16}", "bold"), check.evidence),
            soft_wrap=True,
        )
        if check.hint and check.verdict is not Verdict.GOOD:
            console.print(Text(f"{'':24}hint: {check.hint}"), soft_wrap=True)
    code = report.exit_code
    verdict = "ready" if code == ExitCode.GOOD else "not ready"
    console.print(Text(f"{verdict} for {report.purpose.value} (exit code {int(code)})", style="bold"))


def show_settings(rows: list[Setting], given: dict[str, str], warnings: list[str]) -> None:
    """The table of settings with the values of this environment."""
    table = Table(show_lines=False)
    for heading in ("name", "value", "allowed", "what it does"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        value = (
            Text(given[row.name], style="bold") if row.name in given else Text(row.default or "(empty)", style="dim")
        )
        table.add_row(row.name, value, row.range.replace("|", " "), row.doc)
    console = out()
    console.print(table)
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))


def show_bench(result: dict[str, Any]) -> None:
    """Every figure with its spread; the software device's are its own."""
    machine = result.get("machine", {})
    table = Table(title=f"{machine.get('cpu', 'unknown processor')}, {machine.get('cores', '?')} cores")
    table.add_column("what", overflow="fold")
    for heading in ("median", "min", "p99", "samples"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    for name, summary in measured("", result):
        cells = [str(summary.get(key, "-")) for key in ("median", "min", "p99", "samples", "unit")]
        table.add_row(name, *cells)
    console = out()
    console.print(table)
    console.print("Rows of `soft` are the software device's on this machine, not EFA's.", style="dim")
