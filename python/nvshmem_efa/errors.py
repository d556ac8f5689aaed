# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on, and the exit codes they become."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the process returns; the numbers are documented in docs/cli.md and do not change."""

    GOOD = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    TIMEOUT = 4


class EfaError(Exception):
    """What failed, where, what was expected; `hint` says what to do next."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(EfaError):
    """A setting or an argument is wrong."""

    exit_code = ExitCode.USAGE


class MissingError(EfaError):
    """Needed hardware or software is not there, or too old."""

    exit_code = ExitCode.MISSING


class PeerError(EfaError):
    """Another process of the job died or answered with an error."""

    exit_code = ExitCode.TIMEOUT


class TimedOutError(EfaError):
    """A wait reached its deadline."""

    exit_code = ExitCode.TIMEOUT
