# SPDX-License-Identifier: Apache-2.0
"""The kernel that docs/device-api.md shows is the one that a test runs (tests/cpp/test_device_api_example.cpp)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_quotes_the_example_whole_and_it_is_short() -> None:
    example = (ROOT / "tests/gpu/device_api_example.cu").read_text()
    shown = example[example.index("#include") :]
    assert f"```c++\n{shown}```\n" in (ROOT / "docs/device-api.md").read_text()
    assert len(shown.splitlines()) < 30
