# SPDX-License-Identifier: Apache-2.0
"""The budget of one put: transport_efa/README.md walks it in at most five files and 500 lines.

`python tests/python/test_one_put.py` sets the line numbers of its links again after the code has moved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "transport_efa" / "README.md"
FILES_MAX = 5
LINES_MAX = 500
LINK = re.compile(r"\[`?([^\]`]+)`?\]\(([^)#\s]+)#L(\d+)-L(\d+)\)")


@dataclass(frozen=True)
class Stop:
    """One link of the walk: a function, and where the page says that it stands."""

    name: str
    path: Path
    first: int
    last: int

    @property
    def function(self) -> str:
        return re.split(r"::|\s", self.name)[-1]


def stops() -> list[Stop]:
    found = LINK.findall(PAGE.read_text())
    return [Stop(name, (PAGE.parent / path).resolve(), int(first), int(last)) for name, path, first, last in found]


def definition_of(stop: Stop) -> tuple[int, int] | None:
    """First and last line of the function's definition: from its name to the closing brace at the same indent."""
    lines = stop.path.read_text().splitlines()
    qualified = re.escape(stop.name.split()[-1])
    for pattern in (rf"\b{qualified}\(", rf"\b{stop.function}\("):
        for first, line in enumerate(lines):
            if not re.search(pattern, line) or re.match(r"\s*(//|return|if|while)", line):
                continue
            head = next((i for i in range(first, min(first + 6, len(lines))) if re.search(r"[;{]", lines[i])), None)
            if head is None or re.search(r"[;}]\s*$", lines[head]):
                continue  # a declaration or a call
            indent = re.match(r"\s*", line)
            closing = (indent.group() if indent else "") + "}"
            last = next((i for i in range(head + 1, len(lines)) if lines[i].startswith(closing)), None)
            if last is not None:
                return first + 1, last + 1
    return None


def test_the_page_walks_the_stops_of_a_put() -> None:
    assert len(stops()) >= 6


def test_one_put_is_within_its_budget() -> None:
    lines = {(stop.path, number) for stop in stops() for number in range(stop.first, stop.last + 1)}
    files = {path for path, _ in lines}
    print(f"one put: {len(files)} files, {len(lines)} lines")
    assert len(files) <= FILES_MAX, sorted(path.name for path in files)
    assert len(lines) <= LINES_MAX


def test_every_link_shows_a_whole_function_of_that_name() -> None:
    wrong = [
        f"{stop.name}: the page says {stop.path.name} {stop.first}-{stop.last}, it is at {definition_of(stop)}"
        for stop in stops()
        if definition_of(stop) != (stop.first, stop.last)
    ]
    assert not wrong, "\n".join([*wrong, "set them again: python tests/python/test_one_put.py"])


def main() -> None:
    def again(link: re.Match[str]) -> str:
        name, path, first, last = link.groups()
        found = definition_of(Stop(name, (PAGE.parent / path).resolve(), int(first), int(last)))
        return link.group() if found is None else link.group().replace(f"#L{first}-L{last}", f"#L{found[0]}-L{found[1]}")

    PAGE.write_text(LINK.sub(again, PAGE.read_text()))


if __name__ == "__main__":
    main()
