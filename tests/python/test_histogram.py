# SPDX-License-Identifier: Apache-2.0
"""Merged histograms give the percentiles of all samples together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvshmem_efa.gpu_pe import lower_bound
from nvshmem_efa.histogram import merge, percentile

samples = st.lists(st.lists(st.integers(0, 10**9), max_size=50), min_size=1, max_size=5)


def histogram_of(values: list[int]) -> list[list[int]]:
    buckets = sorted({lower_bound(value) for value in values})
    return [[bucket, sum(1 for value in values if lower_bound(value) == bucket)] for bucket in buckets]


def test_no_samples_have_no_percentile() -> None:
    assert percentile(merge([]), 0.5) is None
    assert percentile(merge([[], []]), 0.99) is None


def test_equal_buckets_are_added_up_and_walked_in_order() -> None:
    merged = merge([[[10, 1], [20, 3]], [[20, 5], [5, 1]]])
    assert merged == [(5, 1), (10, 1), (20, 8)]
    assert percentile(merged, 0.1) == 5
    assert percentile(merged, 0.2) == 10
    assert percentile(merged, 0.5) == 20


@given(samples, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_of_the_merged_is_within_a_bucket_of_the_true_one(groups: list[list[int]], fraction: float) -> None:
    everything = sorted(value for group in groups for value in group)
    found = percentile(merge(histogram_of(group) for group in groups), fraction)
    if not everything:
        assert found is None
        return
    rank = next(i for i in range(len(everything)) if i + 1 >= fraction * len(everything))
    assert found == lower_bound(everything[rank])


@given(st.integers(0, 2**62))
def test_a_bucket_is_at_most_a_sixteenth_below_its_samples(ns: int) -> None:
    bound = lower_bound(ns)
    assert bound <= ns
    assert (ns - bound) * 16 <= ns
