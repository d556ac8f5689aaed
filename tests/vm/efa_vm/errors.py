# SPDX-License-Identifier: Apache-2.0
"""What the runner itself can fail with. The command of a guest has its own exit codes."""

from __future__ import annotations

import sys

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_TIMEOUT = 4


class VmError(Exception):
    """What failed and where, and (hint) what to do about it."""

    def __init__(self, message: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.args[0]}\nhint: {self.hint}" if self.hint else str(self.args[0])


def say(text: str) -> None:
    """A line of the runner's own, apart from what a guest prints (which goes to stdout)."""
    print(f"vm: {text}", file=sys.stderr, flush=True)
