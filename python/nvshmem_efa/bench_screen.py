# SPDX-License-Identifier: Apache-2.0
"""The tables of `nvshmem-efa bench transport` and `nvshmem-efa bench ep`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from nvshmem_efa.bench_ep import EpResult
from nvshmem_efa.bench_result import BenchResult, Row, Summary
from nvshmem_efa.screen import format_bytes, out

ERRORS_SHOWN = 10


def show_transport_bench(result: BenchResult) -> None:
    """All rows, then why some have no figure, then the verdict."""
    console = out()
    console.print(Text(result.label, style="bold"), soft_wrap=True)
    console.print(f"{result.options['pes']} PEs; {result.describe}", style="dim", soft_wrap=True)
    table = Table(box=None, header_style="bold")
    for heading in ("test", "size"):
        table.add_column(heading, no_wrap=True)
    for heading in ("unit", "posted (p10-p90)", "proxy (p10-p90)", "ratio", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            f"{row.test} {row.what}", format_bytes(row.bytes), row.unit, _cell(row.posted), _cell(row.proxy),
            "-" if row.ratio is None else _number(row.ratio), _goal(row),
        )  # fmt: skip
    console.print(table)
    for note, names in _notes(result.rows).items():
        console.print(Text(f"- {', '.join(names)}: {note}", style="dim"), soft_wrap=True)
    for error in result.errors[:ERRORS_SHOWN]:
        console.print(Text(error, style="red"), soft_wrap=True)
    checked = f"{result.checked.get('bytes', 0):,} bytes checked, {result.checked.get('mismatches', 0)} wrong values"
    commit = result.versions.get("commit") or "of no known commit"
    console.print(f"{checked}; {result.elapsed_s:.1f} s; version {result.versions.get('package')} {commit[:13]}")


def show_ep_bench(result: EpResult) -> None:
    """All rows, notes, then the verdict."""
    console = out()
    plan = result.options
    console.print(Text(result.label, style="bold"), soft_wrap=True)
    sizes = f"{plan['tokens']} tokens x {plan['hidden']}, top-{plan['topk']} of {plan['experts']} experts"
    where = result.machine.get("gpu", "no GPU")
    console.print(f"{plan['ranks']} rank(s), {sizes}; {where}", style="dim", soft_wrap=True)
    for way, text in result.describe.items():
        console.print(Text(f"{way}: {text}", style="dim"), soft_wrap=True)
    table = Table(box=None, header_style="bold")
    table.add_column("way", no_wrap=True)
    table.add_column("what")
    for heading in ("median (p10-p90)", "unit", "GB/s", "samples"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        rate, summary = row.get("gb_per_s"), row["summary"]
        value = f"{_number(summary['median'])} ({_number(summary['p10'])}-{_number(summary['p90'])})"
        if summary["samples"] == 1:
            value = _number(summary["median"])
        table.add_row(
            row["way"], row["what"], value, row["unit"], "" if rate is None else _number(rate), str(summary["samples"])
        )
    console.print(table)
    for note in result.notes:
        console.print(Text(f"- {note}", style="dim"), soft_wrap=True)
    for error in result.errors[:ERRORS_SHOWN]:
        console.print(Text(error, style="red"), soft_wrap=True)
    checked = f"{result.checked['values']:,} values checked, {result.checked['mismatches']} wrong bytes"
    commit = result.versions.get("commit") or "of no known commit"
    console.print(f"{checked}; {result.elapsed_s:.1f} s; version {result.versions.get('package')} {commit[:13]}")


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    return f"{_number(summary.median)} ({_number(summary.p10)}-{_number(summary.p90)})"


def _number(value: float) -> str:
    """Three digits, and no exponent that a reader would have to undo."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _goal(row: Row) -> str:
    if not row.goal_text:
        return ""
    return f"{row.goal_text} {'yes' if row.meets_goal else '-' if row.meets_goal is None else 'NO'}"


def _notes(rows: list[Row]) -> dict[str, list[str]]:
    """Each reason once, with the tests that it holds for."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in (row.ratio_note, row.goal_note):
            names = notes.setdefault(note, []) if note else []
            if f"{row.test} {row.what}" not in names:
                names.append(f"{row.test} {row.what}")
    return notes
