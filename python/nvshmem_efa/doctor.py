# SPDX-License-Identifier: Apache-2.0
"""Ordered checks of a machine: each with what was seen, a verdict, and what to do."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from nvshmem_efa import checks
from nvshmem_efa.checks import Check, Verdict
from nvshmem_efa.errors import ExitCode
from nvshmem_efa.machine import Machine

SCHEMA = "nvshmem-efa-doctor/1"


class Purpose(enum.Enum):
    """What the machine is to be used for; each needs what stands before it."""

    DEMO = "demo"
    GPU = "gpu"
    EFA = "efa"


@dataclass(frozen=True)
class Report:
    """All checks of one run."""

    purpose: Purpose
    checks: list[Check]

    @property
    def exit_code(self) -> ExitCode:
        """Good, unless a needed check is wrong (1) or something needed is missing (3)."""
        verdicts = [check.verdict for check in self.checks if check.needed]
        if Verdict.WRONG in verdicts:
            return ExitCode.FAILED
        return ExitCode.MISSING if Verdict.MISSING in verdicts else ExitCode.GOOD

    def to_json(self) -> str:
        """One object."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "purpose": self.purpose.value,
                "exit_code": int(self.exit_code),
                "checks": [{**asdict(check), "verdict": check.verdict.value} for check in self.checks],
            }
        )


_ORDERED: tuple[tuple[Callable[[Machine], Check], Purpose], ...] = (
    (checks.package, Purpose.DEMO),
    (checks.environment, Purpose.DEMO),
    (checks.shared_memory, Purpose.DEMO),
    (checks.cuda, Purpose.GPU),
    (checks.nvshmem_library, Purpose.GPU),
    (checks.nvshmem_abi, Purpose.GPU),
    (checks.selection, Purpose.GPU),
    (checks.memlock, Purpose.EFA),
    (checks.verbs_libraries, Purpose.EFA),
    (checks.efa_devices, Purpose.EFA),
    (checks.device_files, Purpose.EFA),
    (checks.peer_mapping, Purpose.EFA),
)


def run_doctor(machine: Machine, purpose: Purpose) -> Report:
    """Runs every check in order; those beyond the purpose are shown but do not count."""
    order = list(Purpose)
    results = []
    for check, belongs_to in _ORDERED:
        result = check(machine)
        needed = order.index(belongs_to) <= order.index(purpose)
        results.append(result.with_needed(needed))
    return Report(purpose, results)
