# SPDX-License-Identifier: Apache-2.0
"""Latency histograms of several PEs, merged. Buckets are [lower bound in ns, count], 16 an octave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def merge(histograms: Iterable[list[list[int]]]) -> list[tuple[int, int]]:
    """The counts of equal buckets added up, ascending."""
    counts: Counter[int] = Counter()
    for histogram in histograms:
        for lower_ns, count in histogram:
            counts[lower_ns] += count
    return sorted(counts.items())


def percentile(buckets: list[tuple[int, int]], fraction: float) -> int | None:
    """Lower bound of the bucket that holds the sample at `fraction` of the way; None without samples."""
    total = sum(count for _, count in buckets)
    if total == 0:
        return None
    seen = 0
    for lower_ns, count in buckets:
        seen += count
        if seen >= fraction * total:
            return lower_ns
    return buckets[-1][0]
