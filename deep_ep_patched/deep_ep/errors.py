# SPDX-License-Identifier: Apache-2.0
"""Errors of the exchange. Wrong arguments are ValueError and TypeError; both name the argument."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """What kind of error the C library reports; docs/troubleshooting.md has a section for each."""

    INVALID_ARGUMENT = 1
    CONFIG = 2
    MISSING = 3
    TOO_OLD = 4
    UNSUPPORTED = 5
    RESOURCE = 6
    UNREGISTERED = 7
    PEER = 8
    TIMEOUT = 9
    DEVICE = 10
    MISMATCH = 11
    PROTOCOL = 12
    AUTH = 13
    INTERNAL = 14


class ExchangeError(RuntimeError):
    """The exchange failed: what, on which rank, and after "hint:" what to do. `code` is a Code, or a plain number."""

    def __init__(self, message: str, code: int = Code.INTERNAL) -> None:
        super().__init__(message)
        self.code = Code(code) if code in Code._value2member_map_ else code
