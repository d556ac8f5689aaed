# SPDX-License-Identifier: Apache-2.0
"""What of deep_ep needs no second rank: each function case_* of CASES is a test."""

from __future__ import annotations

import pytest
from rank_processes import RankProcesses, case_names

CASES = ("cases_api",)
RANKS = 1

pytestmark = pytest.mark.xdist_group("deep_ep_api")


@pytest.mark.parametrize("case", case_names(*CASES))
def test_interface(ranks: RankProcesses, case: str) -> None:
    ranks.run(case)
