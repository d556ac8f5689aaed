# SPDX-License-Identifier: Apache-2.0
"""The lines that transport_efa/README.md sends a reader of one put to.

A link reads [`name`](file#Lfirst-Llast) and covers the definition of `name`. `python tests/python/one_put.py` rewrites
the line numbers after an edit; test_one_put.py checks that they are right and within the budget.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "transport_efa" / "README.md"
LINK = re.compile(r"\[`(?P<name>[^`]+)`\]\((?P<file>[^)#]+)#L(?P<first>\d+)-L(?P<last>\d+)\)")


@dataclass(frozen=True)
class Stop:
    name: str
    file: Path
    first: int
    last: int


def stops() -> list[Stop]:
    """The links as the README has them."""
    return [
        Stop(m["name"], README.parent / m["file"], int(m["first"]), int(m["last"]))
        for m in LINK.finditer(README.read_text())
    ]


def definition(name: str, file: Path) -> tuple[int, int]:
    """First and last line (from 1) of the function `name`, with the comment above it."""
    lines = file.read_text().splitlines()
    start = next(
        i
        for i, line in enumerate(lines)
        if re.search(rf"(^|[\s*&]){re.escape(name)}\(", line) and not line.startswith((" ", "//"))
    )
    last = start
    if not lines[start].rstrip().endswith("}"):
        last = next(i for i in range(start, len(lines)) if lines[i].startswith("}"))
    while start > 0 and lines[start - 1].startswith("//"):
        start -= 1
    return start + 1, last + 1


def rewrite() -> None:
    def fixed(match: re.Match[str]) -> str:
        first, last = definition(match["name"], README.parent / match["file"])
        return f"[`{match['name']}`]({match['file']}#L{first}-L{last})"

    README.write_text(LINK.sub(fixed, README.read_text()))


if __name__ == "__main__":
    rewrite()
