# SPDX-License-Identifier: Apache-2.0
"""The documentation says what is there: generated pages do not drift, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from running import Command

from nvshmem_efa.cli import cli

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "transport_efa" / "README.md"])
CODES = ("invalid_argument", "config", "missing", "too_old", "unsupported", "resource", "unregistered", "peer",
         "timeout", "device", "mismatch", "protocol", "auth", "internal")  # fmt: skip


def test_env_page_is_what_the_table_says(command: Command) -> None:
    assert (ROOT / "docs" / "env.md").read_text() == command("env", "--markdown").stdout, (
        "write it again: nvshmem-efa env --markdown > docs/env.md"
    )


def test_cli_page_is_what_the_commands_say(clean_env: dict[str, str]) -> None:
    generated = subprocess.run(
        [sys.executable, "-m", "nvshmem_efa.cli_page"], env=clean_env, capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "cli.md").read_text() == generated.stdout, (
        "write it again: python -m nvshmem_efa.cli_page > docs/cli.md"
    )


def shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    for line in shell_lines(page):
        for call in re.findall(r"(?:^|[ /])nvshmem-efa ((?:[\w-]+ ?)+(?:.*))", line):
            words = call.split("#")[0].split("&&")[0].split("|")[0].split(" -- ")[0].split()
            current: click.Command = cli
            while words and isinstance(current, click.Group):
                name = words.pop(0)
                assert name.startswith("-") or name in current.commands, f"{page.name}: {line}"
                if name.startswith("-"):
                    break
                current = current.commands[name]
            known = {option for param in current.params for option in param.opts} | {"--help", "--version"}
            shown = {word.split("=")[0] for word in words if word.startswith("--") and word != "--"}
            assert shown <= known, f"{page.name}: {line}: {shown - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)(#[\w-]+)?\)", page.read_text())
    dead = [target for target, _ in links if not (page.parent / target).exists()]
    assert not dead


def test_every_setting_named_in_the_docs_exists(command: Command) -> None:
    known = set(re.findall(r"`(NVSHMEM_EFA_\w+)`", command("env", "--markdown").stdout))
    for page in PAGES:
        named = set(re.findall(r"\bNVSHMEM_EFA_[A-Z_]+[A-Z]\b", page.read_text()))
        cmake_options = {"NVSHMEM_EFA_TESTS", "NVSHMEM_EFA_WERROR", "NVSHMEM_EFA_SANITIZE"}
        assert named - known - cmake_options <= {"NVSHMEM_EFA_MOED"}, page


def test_every_error_code_has_a_place_in_troubleshooting() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [code for code in CODES if f"## {code}" not in text] == []


def test_every_place_that_a_hint_names_exists() -> None:
    sources = [*(ROOT / "transport_efa").rglob("*.cpp"), *(ROOT / "python").rglob("*.py")]
    named = {found for path in sources for found in re.findall(r"docs/([\w-]+\.md)(?:#([\w-]+))?", path.read_text())}
    assert len(named) > 3
    for page, anchor in named:
        text = (ROOT / "docs" / page).read_text()
        headings = {
            re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-")
            for line in re.findall(r"^#+ (.*)", text, re.M)
        }
        assert not anchor or anchor in headings, f"{page} has no #{anchor}"


def test_the_readme_shows_both_commands_on_its_first_screen() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    assert "nvshmem-efa demo" in first_screen
    assert "pytest" in first_screen
    assert ".venv/bin/pip install torch==2.13.0 . " in first_screen
    assert ".venv/bin/pip install torch==2.13.0 '.[test]'" in first_screen


def test_changelog_names_the_version() -> None:
    import nvshmem_efa

    assert nvshmem_efa.__version__ in (ROOT / "CHANGELOG.md").read_text()
