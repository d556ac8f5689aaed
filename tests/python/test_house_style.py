# SPDX-License-Identifier: Apache-2.0
"""Guards that keep the source readable: sizes, first lines, names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LINES_MAX = 400
KERNEL_LINES_MAX = 500
COLUMNS_MAX = 170  # what a reader can bear; formatters aim at 120
SOURCE = {".cpp", ".h", ".cu", ".cuh", ".py", ".cmake"}
GENERATED_MARK = "do not edit"
BANNED_NAMES = {"util", "utils", "common", "helper", "helpers", "manager", "misc"}


def source_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # not a clone: a source archive
        hidden = {"build", ".venv", "dist"}
        files = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in files if path.is_file() and (path.suffix in SOURCE or path.name == "CMakeLists.txt"))


FILES = source_files()


def is_generated(text: str) -> bool:
    return any(GENERATED_MARK in line for line in text.splitlines()[:4])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_keeps_to_the_house_style(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    limit = KERNEL_LINES_MAX if path.suffix in {".cu", ".cuh"} else LINES_MAX
    assert "SPDX-License-Identifier: Apache-2.0" in "\n".join(lines[:2]), "the first line is the SPDX line"
    assert is_generated(text) or len(lines) <= limit, f"{len(lines)} lines; cut the file by subject"
    todos = [line.strip() for line in lines if re.search(r"\b(TODO|FIXME|XXX)\b(?!\(#\d+\))", line)]
    assert path == Path(__file__).resolve() or not todos, f"TODO(#issue) only: {todos}"
    assert (
        is_generated(text) or path.name == "CMakeLists.txt" or not BANNED_NAMES & set(re.split(r"[_\-.]", path.stem))
    ), "the name says nothing"
    assert is_generated(text) or "\t" not in text, "indent with blanks"
    long = [number + 1 for number, line in enumerate(lines) if len(line) > COLUMNS_MAX]
    assert is_generated(text) or not long, f"more than {COLUMNS_MAX} columns in lines {long}"


def test_there_is_source_to_look_at() -> None:
    assert len(FILES) > 50
