# SPDX-License-Identifier: Apache-2.0
"""What `nvshmem-efa bench transport` measures: tests, their steps, and the goals that some of them have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nvshmem_efa.errors import ConfigError

TESTS = ("issue", "put", "get", "p", "put_signal", "amo", "quiet", "alltoall", "rate")
KIB, MIB = 1 << 10, 1 << 20
BURST = 16  # transfers in flight where bandwidth is measured
DIRTY_QUEUES = (0, 1, 2, 4, 8)


@dataclass(frozen=True)
class Goal:
    """A bound on posted / proxy, which holds for posters on a GPU."""

    ratio_at_most: float | None = None
    ratio_at_least: float | None = None

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio of medians is within it."""
        return (self.ratio_at_most is None or ratio <= self.ratio_at_most) and (
            self.ratio_at_least is None or ratio >= self.ratio_at_least
        )

    def __str__(self) -> str:
        return f"<= {self.ratio_at_most:g}" if self.ratio_at_most is not None else f">= {self.ratio_at_least:g}"


@dataclass(frozen=True)
class Step:
    """One row of the table: a call, made `rounds` times by each path.

    A round is `in_flight` calls of `bytes` each by each of `posters`, and the wait for them; but of "issue" the time is
    that of the calls alone, and of "quiet" that of the wait alone.
    """

    test: str
    call: str  # as perf/transport_steps.h and bench_gpu.py know it
    what: str  # beside the test's name, for people
    bytes: int = 8
    in_flight: int = 1
    posters: int = 1
    rounds: int = 1
    unit: str = "us"  # or GB/s, M/s
    goal: Goal | None = None

    @property
    def text(self) -> str:
        """For the programs that run it."""
        return f"{self.call}:{self.bytes}:{self.in_flight}:{self.posters}:{self.rounds}"

    @property
    def warm_up(self) -> int:
        """Rounds that come first and are not kept; perf/transport_steps.h has the same."""
        return self.rounds // 10 + 1

    def value(self, ns: float) -> float:
        """A round's time in the row's unit."""
        if self.unit == "GB/s":
            return self.bytes * self.in_flight / ns
        if self.unit == "M/s":
            return self.posters * self.in_flight * 1000 / ns
        return ns / 1000 / (self.in_flight if self.call == "issue" else 1)

    @property
    def is_better_when_more(self) -> bool:
        """Of the unit: rates, not times."""
        return self.unit != "us"


def from_text(text: str) -> list[Step]:
    """Steps as the programs are told them; what is only for people is empty."""
    steps = []
    for one in text.split(","):
        call, *numbers = one.split(":")
        size, in_flight, posters, rounds = (int(number) for number in numbers)
        steps.append(Step("", call, "", size, in_flight, posters, rounds))
    return steps


def plan(on_gpu: bool, pes: int, quick: bool = False, only: Sequence[str] = ()) -> list[Step]:
    """The steps of a run, in order. A name in `only` that is no test is a ConfigError."""
    unknown = sorted(set(only) - set(TESTS))
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: there is no such test", f"one of {', '.join(TESTS)}")
    return [step for step in _all(on_gpu, pes, quick) if not only or step.test in only]


def _all(on_gpu: bool, pes: int, quick: bool) -> Iterator[Step]:
    many, some, few = (20, 5, 3) if quick else (1000 if on_gpu else 300, 50, 10)
    sizes = (8, 64 * KIB) if quick else (8, 512, 4 * KIB, 64 * KIB, MIB)
    yield Step("issue", "issue", "a put of 8", in_flight=8, rounds=many)
    for call in ("put", "get"):
        for size in sizes:
            yield Step(call, call, "latency", size, rounds=many if size < 64 * KIB else some)
        for size in sizes[1:]:
            yield Step(call, call, f"bandwidth x{BURST}", size, BURST, rounds=some, unit="GB/s")
    yield Step("p", "p", "latency", rounds=many)
    for size in sizes[:1] if quick else (8, 7 * KIB, MIB):
        goal = Goal(ratio_at_most=0.6) if size == 8 else None
        yield Step("put_signal", "put_signal", "round trip", size, rounds=many, goal=goal)
    yield Step("amo", "amo_add", "add", rounds=many)
    yield Step("amo", "amo_fetch", "fetching add", rounds=many)
    for queues in DIRTY_QUEUES:
        yield Step("quiet", "quiet", f"{queues} dirty queues", in_flight=queues, rounds=many)
    for size in (8,) if quick else (8, 4 * KIB, 64 * KIB):
        yield Step("alltoall", "alltoall", f"{pes} PEs", size, rounds=many if size < 64 * KIB else some)
    rates = ((1, 1000), (32, 200), (64 * 128, 4)) if on_gpu else ((1, 1000), (2, 1000))
    for posters, puts in rates:
        goal = Goal(ratio_at_least=10) if posters == rates[-1][0] else None
        yield Step("rate", "rate", f"{posters} posters", 8, puts, posters, few, "M/s", goal)
