# SPDX-License-Identifier: Apache-2.0
"""Reads the file `packages`: which packages, of which suites and versions, a folder of the cache is made of."""

from __future__ import annotations

import configparser
import fnmatch
import hashlib
from dataclasses import dataclass
from pathlib import Path

from .errors import EXIT_USAGE, VmError

PACKAGES_FILE = Path(__file__).resolve().parent.parent / "packages"
KEYS = {"suites", "packages", "source", "keep", "leave_out", "paths"}


@dataclass(frozen=True)
class Pin:
    name: str
    version: str  # what was tried
    accepts: str  # what a newer version has to begin with, to be taken in its place


@dataclass(frozen=True)
class Group:
    """One section: what is unpacked into one folder."""

    name: str
    suites: tuple[str, ...]
    packages: tuple[Pin, ...]
    source: Pin | None
    keep: tuple[str, ...]
    leave_out: tuple[str, ...]
    paths: tuple[str, ...]

    def wants(self, package: str) -> bool:
        """Whether a package of the resolved set is unpacked."""
        kept = not self.keep or any(fnmatch.fnmatch(package, pattern) for pattern in self.keep)
        return kept and not any(fnmatch.fnmatch(package, pattern) for pattern in self.leave_out)

    def digest(self) -> str:
        """Changes with anything in the section, and so names the folder in the cache."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def _pin(words: list[str], where: str) -> Pin:
    if len(words) != 3:
        raise VmError(
            f"{where}: expected NAME VERSION ACCEPTS, found '{' '.join(words)}'", "mend that line", EXIT_USAGE
        )
    pin = Pin(*words)
    if not pin.version.startswith(pin.accepts):
        raise VmError(f"{where}: {pin.name}: version {pin.version} does not begin with {pin.accepts}", "", EXIT_USAGE)
    return pin


def read_groups(path: Path = PACKAGES_FILE) -> dict[str, Group]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(), source=str(path))
    except (OSError, configparser.Error) as error:
        raise VmError(f"the list of packages cannot be read: {error}", "see tests/vm/packages", EXIT_USAGE) from error
    groups = {}
    for name in parser.sections():
        section = parser[name]
        where = f"{path.name}, [{name}]"
        unknown = set(section) - KEYS
        if unknown:
            known = ", ".join(sorted(KEYS))
            raise VmError(f"{where}: unknown key {', '.join(sorted(unknown))}", f"known are {known}", EXIT_USAGE)
        pins = [_pin(line.split(), where) for line in section.get("packages", "").splitlines() if line.strip()]
        source = _pin(section["source"].split(), where) if "source" in section else None
        if not section.get("suites", "").split() or bool(pins) == bool(source):
            raise VmError(f"{where}: needs suites, and either packages or a source", "", EXIT_USAGE)
        keep, leave_out, paths = (tuple(section.get(key, "").split()) for key in ("keep", "leave_out", "paths"))
        groups[name] = Group(name, tuple(section["suites"].split()), tuple(pins), source, keep, leave_out, paths)
    return groups
