# SPDX-License-Identifier: Apache-2.0
"""Normal mode among four ranks of one NVLink domain: each function case_* of CASES is a test."""

from __future__ import annotations

import pytest
from rank_processes import RankProcesses, case_names

CASES = ("cases_normal", "cases_normal_limits")
RANKS = 4
ENVIRONMENT = {"DEEP_EP_TIMEOUT_S": "20", "DEEP_EP_EXECUTOR": "cpu"}

pytestmark = pytest.mark.xdist_group("deep_ep_normal")


@pytest.mark.parametrize("case", case_names(*CASES))
def test_normal_mode(ranks: RankProcesses, case: str) -> None:
    ranks.run(case)
