# SPDX-License-Identifier: Apache-2.0
"""Asks Debian's archive for packages, by apt's own programs with a configuration of our own.

The mirror and its keys are read from the system's own sources, only the suites are ours; apt checks every signature.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import EXIT_MISSING, VmError, say
from .pins import Group, Pin

SOURCES_DIR = Path("/etc/apt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
UPDATE_TIMEOUT_S = 120
DOWNLOAD_TIMEOUT_S = 300
LISTS_FRESH_S = 6 * 3600


@dataclass(frozen=True)
class Mirror:
    uri: str
    signed_by: str


def _entries_of_list(text: str) -> Iterable[Mirror]:
    """Of the one-line format: deb [options] uri suite component..."""
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+\S+\s+.*\bmain\b", line)
        if match:
            signed = re.search(r"signed-by=(\S+)", match.group(1) or "")
            yield Mirror(match.group(2), signed.group(1) if signed else KEYRING)


def _entries_of_deb822(text: str) -> Iterable[Mirror]:
    for stanza in re.split(r"\n\s*\n", text):
        fields = {key.lower(): value.strip() for key, value in re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M)}
        if "deb" in fields.get("types", "").split() and "main" in fields.get("components", "").split():
            for uri in fields.get("uris", "").split():
                yield Mirror(uri, fields.get("signed-by", KEYRING))


def find_mirror(sources: Path = SOURCES_DIR) -> Mirror:
    """Where this system has its own Debian packages from. Security archives do not carry whole suites."""
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in {".list", ".sources"} or not path.is_file():
            continue
        read = _entries_of_list if path.suffix == ".list" else _entries_of_deb822
        for mirror in read(path.read_text(errors="replace")):
            if re.search(r"/debian/?$", mirror.uri) and Path(mirror.signed_by).is_file():
                return mirror
    raise VmError(
        f"no source of Debian packages in {sources}",
        "this needs a Debian system whose apt sources name a Debian mirror (a URI that ends in /debian), "
        "or a cache that was filled on one (EFA_VM_CACHE)",
        EXIT_MISSING,
    )


class Archive:
    """apt with its state, lists and downloads in one folder of ours."""

    def __init__(self, folder: Path, suites: tuple[str, ...]) -> None:
        self._folder = folder
        self._suites = suites
        self._is_fresh = False

    def _environment(self) -> dict[str, str]:
        ours = {"APT_CONFIG": str(self._folder / "apt.conf"), "TMPDIR": str(self._folder / "tmp"), "LC_ALL": "C"}
        return {**os.environ, **ours}

    def _sources(self, suites: Iterable[str]) -> Path:
        mirror = find_mirror()
        path = self._folder / f"{'+'.join(sorted(suites))}.list"
        lines = [
            f"{kind} [signed-by={mirror.signed_by}] {mirror.uri} {suite} main\n"
            for suite in sorted(suites)
            for kind in ("deb", "deb-src")
        ]
        path.write_text("".join(lines))
        return path

    def _write_configuration(self) -> None:
        for name in (
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "state/lists/partial",
            "archives/partial",
            "tmp",
        ):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "state" / "status").touch()
        # Versions are pinned, so an old index is as good as a new one: its date is not looked at, its signature is.
        (self._folder / "apt.conf").write_text(
            f'Dir "{self._folder}/etc";\nDir::State "{self._folder}/state";\n'
            f'Dir::State::status "{self._folder}/state/status";\nDir::Cache "{self._folder}";\n'
            f'Dir::Cache::archives "{self._folder}/archives";\nDir::Etc "{self._folder}/etc";\n'
            'APT::Architecture "amd64";\nAPT::Install-Recommends "false";\nAPT::Get::Assume-Yes "true";\n'
            'APT::Get::List-Cleanup "false";\nAPT::Sandbox::User "";\nAcquire::Languages "none";\n'
            'Acquire::Check-Valid-Until "false";\nAcquire::Retries "2";\nAcquire::http::Timeout "20";\n'
        )

    def _apt(self, suites: Iterable[str], arguments: list[str], timeout_s: int, cwd: Path | None = None) -> str:
        # The last suite comes first: what a backport needs of its own suite is taken from there.
        first = f"APT::Default-Release={list(suites)[-1]}"
        options = ["-o", f"Dir::Etc::sourcelist={self._sources(suites)}", "-o", first]
        command = [arguments[0], *options, *arguments[1:]]
        try:
            done = subprocess.run(
                command, env=self._environment(), cwd=cwd, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            raise VmError(
                f"{' '.join(arguments[:2])} did not end within {timeout_s} s", "is the mirror slow?"
            ) from error
        if done.returncode != 0:
            told = [line for line in done.stdout.splitlines() if "Depends:" in line]
            told += [line for line in done.stderr.splitlines() if line.startswith("E:")]
            raise VmError(
                f"{' '.join(arguments[:3])} failed:\n  " + "\n  ".join(told[-6:]),
                "without a network, use a cache that was filled with one (EFA_VM_CACHE)",
                EXIT_MISSING,
            )
        return done.stdout

    def refresh(self) -> None:
        """Fetches the indices, unless they were fetched a short while ago."""
        if self._is_fresh:
            return
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise VmError(
                "apt-get or dpkg-deb is not there", "this needs a Debian system (or a full cache)", EXIT_MISSING
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        stamp = self._folder / f"fresh-{'+'.join(self._suites)}"
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_FRESH_S:
            say(f"asking the archive for its indices: {' '.join(self._suites)}")
            self._apt(self._suites, ["apt-get", "update", "--error-on=any"], UPDATE_TIMEOUT_S)
            stamp.touch()
        self._is_fresh = True

    def choose(self, group: Group, pin: Pin, is_source: bool) -> str:
        """The version to take: the pinned one, or, when it is gone, the first that `accepts` allows."""
        listed = self._apt(group.suites, ["apt-cache", "madison", pin.name], UPDATE_TIMEOUT_S)
        rows = [[cell.strip() for cell in line.split("|")] for line in listed.splitlines()]
        versions = [row[1] for row in rows if row[0] == pin.name and row[2].endswith("Sources") == is_source]
        if pin.version in versions:
            return pin.version
        found = ", ".join(dict.fromkeys(versions)) or "none"
        for version in versions:
            if version.startswith(pin.accepts):
                say(f"warning: {pin.name} {pin.version} is gone from {' '.join(group.suites)}: going on with {version}")
                return version
        raise VmError(
            f"package {pin.name}: version {pin.version} is pinned, the archive has {found} in {' '.join(group.suites)}",
            f"try that version: change [{group.name}] in tests/vm/packages",
            EXIT_MISSING,
        )

    def download(self, group: Group) -> list[Path]:
        """The group's packages with their dependencies: .deb files, each with signature and hash checked by apt."""
        self.refresh()
        wanted = [f"{pin.name}={self.choose(group, pin, False)}" for pin in group.packages]
        planned = self._apt(group.suites, ["apt-get", "install", "--print-uris", *wanted], UPDATE_TIMEOUT_S)
        files = [match.group(1) for match in re.finditer(r"^'[^']*' (\S+_\S+\.deb) \d+", planned, re.M)]
        # Named one by one, because what is not unpacked need not be fetched either.
        chosen = [name.split("_") for name in files if group.wants(name.split("_")[0])]
        names = [f"{name}={version.replace('%3a', ':')}" for name, version, _ in chosen]
        folder = self._folder / "archives"
        say(f"fetching {len(names)} packages for {group.name}")
        self._apt(group.suites, ["apt-get", "download", *names], DOWNLOAD_TIMEOUT_S, cwd=folder)
        return [folder / "_".join(parts) for parts in chosen]

    def download_source(self, group: Group) -> list[Path]:
        """The upstream archive of the group's source package."""
        assert group.source is not None
        self.refresh()
        wanted = f"{group.source.name}={self.choose(group, group.source, True)}"
        folder = self._folder / "archives"
        options = ["--download-only", "--tar-only"]
        self._apt(group.suites, ["apt-get", "source", *options, wanted], DOWNLOAD_TIMEOUT_S, cwd=folder)
        return sorted(folder.glob(f"{group.source.name}_*.orig.tar.*"))
