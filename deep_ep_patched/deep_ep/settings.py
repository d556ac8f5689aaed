# SPDX-License-Identifier: Apache-2.0
"""Settings by environment (DEEP_EP_*), read when a Buffer is made. docs/deep-ep.md lists them."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "DEEP_EP_"
EXECUTORS = ("auto", "cpu", "gpu")
ARRIVALS = ("auto", "counters", "immediates", "lines")  # the order is that of enum ep_arrivals
WORKERS_MAX = 16
NVLINK_RANKS_MAX = 8
TIMEOUT_S_DEFAULT = 100
TIMEOUT_S_MAX = 24 * 3600
NAMES = ("EXECUTOR", "NVLINK_RANKS", "TIMEOUT_S", "ARRIVALS", "WORKERS", "LIBRARY", "SELF_BY_NETWORK")


@dataclass(frozen=True)
class Settings:
    """What the environment says. None: decided by the size of the group."""

    executor: str = "auto"
    nvlink_ranks: int | None = None
    timeout_ms: int = TIMEOUT_S_DEFAULT * 1000
    arrivals: str = "auto"
    workers: int | None = None
    self_by_network: bool = False  # in low-latency mode a rank sends to itself through the network, too: for tests

    def domain_of(self, n_ranks: int) -> int:
        """Ranks that share one NVLink domain; ValueError where it does not divide the group."""
        size = self.nvlink_ranks or min(n_ranks, NVLINK_RANKS_MAX)
        if n_ranks % size:
            raise ValueError(
                f"a group of {n_ranks} ranks cannot be cut into NVLink domains of {size}"
                f"; hint: {PREFIX}NVLINK_RANKS sets the ranks of a domain (it must divide the group)"
            )
        return size

    def workers_of(self, domain: int) -> int:
        """Threads that copy for one rank: this machine's processors, shared by the ranks of a domain."""
        return self.workers or max(1, min(WORKERS_MAX, len(os.sched_getaffinity(0)) // domain))


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """Reads DEEP_EP_*. An empty value is not set; a wrong one is a ValueError that names the variable."""
    source = os.environ if environment is None else environment
    values = {name[len(PREFIX) :]: text for name, text in source.items() if name.startswith(PREFIX) and text}
    for name in values.keys() - set(NAMES):
        near = difflib.get_close_matches(name, NAMES, 1)
        guess = f"; did you mean {PREFIX}{near[0]}?" if near else ""
        warnings.warn(f"{PREFIX}{name} is not a setting of deep_ep{guess}", stacklevel=2)
    timeout_s = _number(values, "TIMEOUT_S", 0.01, TIMEOUT_S_MAX)
    nvlink_ranks = _number(values, "NVLINK_RANKS", 1, NVLINK_RANKS_MAX, whole=True)
    workers = _number(values, "WORKERS", 1, WORKERS_MAX, whole=True)
    return Settings(
        executor=_choice(values, "EXECUTOR", EXECUTORS),
        nvlink_ranks=None if nvlink_ranks is None else int(nvlink_ranks),
        timeout_ms=round((TIMEOUT_S_DEFAULT if timeout_s is None else timeout_s) * 1000),
        arrivals=_choice(values, "ARRIVALS", ARRIVALS),
        workers=None if workers is None else int(workers),
        self_by_network=bool(_number(values, "SELF_BY_NETWORK", 0, 1, whole=True)),
    )


def _choice(values: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    text = values.get(name, choices[0]).lower()
    if text not in choices:
        raise ValueError(f"{PREFIX}{name} is {values[name]!r}, must be one of {', '.join(choices)}")
    return text


def _number(values: Mapping[str, str], name: str, low: float, high: float, whole: bool = False) -> float | None:
    text = values.get(name)
    if text is None:
        return None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{PREFIX}{name} is {text!r}, must be {kind} from {low} to {high}")
    return number
