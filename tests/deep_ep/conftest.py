# SPDX-License-Identifier: Apache-2.0
"""What the tests of deep_ep share: ranks as processes, started once a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from rank_processes import RankProcesses

HAS_TORCH = importlib.util.find_spec("torch") is not None  # found, not imported: it takes a second


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not HAS_TORCH and "deep_ep" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs torch; pip install '.[deep_ep]' brings it"))


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> Iterator[RankProcesses]:
    """The processes of this file: its RANKS and, if it has one, its ENVIRONMENT."""
    module = request.module
    processes = RankProcesses(module.RANKS, getattr(module, "ENVIRONMENT", None))
    yield processes
    processes.stop()
