# SPDX-License-Identifier: Apache-2.0
"""What programs written for DeepEP import from here: events, and the helpers of its test programs."""

from __future__ import annotations

from deep_ep.events import EventHandle, EventOverlap
from deep_ep.utils.envs import dist_print, init_dist, init_seed
from deep_ep.utils.math import (
    align,
    calc_diff,
    ceil_div,
    create_grouped_scores,
    hash_tensor,
    inplace_unique,
    per_token_cast_back,
    per_token_cast_to_fp8,
)
from deep_ep.utils.testing import bench, bench_kineto

__all__ = [
    "EventHandle",
    "EventOverlap",
    "align",
    "bench",
    "bench_kineto",
    "calc_diff",
    "ceil_div",
    "create_grouped_scores",
    "dist_print",
    "hash_tensor",
    "init_dist",
    "init_seed",
    "inplace_unique",
    "per_token_cast_back",
    "per_token_cast_to_fp8",
]
