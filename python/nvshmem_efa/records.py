# SPDX-License-Identifier: Apache-2.0
"""What the PEs of a job leave behind, one JSON object each, and what it says of the job."""

from __future__ import annotations

import json
from typing import Any

from nvshmem_efa.errors import ExitCode
from nvshmem_efa.processes import Outcome

ERROR_LINES_KEPT = 20


def parse_record(data: bytes) -> dict[str, Any] | None:
    """The object, or None for anything else: a PE may have died while it wrote."""
    try:
        record = json.loads(data)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def errors_of(pe: int, returncode: int | None, record: dict[str, Any] | None, stderr: bytes) -> list[str]:
    """Why this PE is not good, in its own words where it had any; empty for a good one."""
    if returncode == 0 and record is not None and record.get("result") == "ok":
        return []
    if record is not None and isinstance(record.get("error"), dict):
        error = record["error"]
        hint = f"; hint: {error['hint']}" if error.get("hint") else ""
        return [f"PE {pe}: {error.get('code')}: {error.get('message')}{hint}"]
    if record is not None and record.get("result") == "failed":
        checked = record.get("checked") or {}
        return [f"PE {pe}: {checked.get('mismatches')} wrong values; first: {checked.get('first_mismatch')}"]
    how = "was killed by signal" if returncode is not None and returncode < 0 else "ended with exit code"
    tail = stderr.decode(errors="replace").splitlines()[-ERROR_LINES_KEPT:]
    return ["\n    ".join([f"PE {pe} {how} {abs(returncode or 0)} and left no record of a good run", *tail])]


def exit_code_of(outcome: Outcome, errors: list[str]) -> ExitCode:
    """That of the whole job: the first failed PE's, where it has a meaning of its own."""
    if outcome.timed_out:
        return ExitCode.TIMEOUT
    if outcome.first_failed is not None:
        code = outcome.members[outcome.first_failed].returncode
        return ExitCode(code) if code in (2, 3, 4) else ExitCode.FAILED  # pe-runtime.md has the same numbers
    return ExitCode.FAILED if errors else ExitCode.GOOD


def sum_integers(objects: Any) -> dict[str, int]:  # noqa: ANN401 - JSON of any shape
    """The integer fields of several JSON objects added up; nested objects as `outer.inner`."""
    totals: dict[str, int] = {}
    for item in objects:
        for name, value in _integers("", item):
            totals[name] = totals.get(name, 0) + value
    return totals


def _integers(prefix: str, value: Any) -> list[tuple[str, int]]:  # noqa: ANN401
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in _integers(f"{prefix}.{name}".lstrip("."), inner)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(prefix, value)]
    return []
