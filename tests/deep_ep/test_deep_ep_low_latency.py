# SPDX-License-Identifier: Apache-2.0
"""Low-latency mode among four ranks over software EFA: each function case_* of CASES is a test."""

from __future__ import annotations

import pytest
from rank_processes import RankProcesses, case_names

CASES = ("cases_low_latency", "cases_low_latency_limits")
RANKS = 4
ENVIRONMENT = {"DEEP_EP_TIMEOUT_S": "20", "DEEP_EP_EXECUTOR": "cpu", "NVSHMEM_EFA_MODE": "soft"}

pytestmark = pytest.mark.xdist_group("deep_ep_low_latency")


@pytest.mark.parametrize("case", case_names(*CASES))
def test_low_latency_mode(ranks: RankProcesses, case: str) -> None:
    ranks.run(case)
