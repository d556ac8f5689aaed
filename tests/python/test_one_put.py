# SPDX-License-Identifier: Apache-2.0
"""The budget of one put: what a reader must read, from NVSHMEM's call to the doorbell."""

from __future__ import annotations

import one_put

FILES_MAX = 5
LINES_MAX = 500


def test_links_cover_the_functions_they_name() -> None:
    for stop in one_put.stops():
        wanted = one_put.definition(stop.name, stop.file)
        assert (stop.first, stop.last) == wanted, f"{stop.name}: run python tests/python/one_put.py"


def test_one_put_is_five_files_and_500_lines() -> None:
    stops = one_put.stops()
    assert len(stops) >= 10, "the README no longer links to the stops"
    files = {stop.file for stop in stops}
    lines = {(stop.file, n) for stop in stops for n in range(stop.first, stop.last + 1)}
    assert len(files) <= FILES_MAX, sorted(str(f) for f in files)
    assert len(lines) < LINES_MAX, len(lines)
