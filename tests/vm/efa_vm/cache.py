# SPDX-License-Identifier: Apache-2.0
"""The cache: a folder a group of packages, named by what is in it, made once and then only read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .archive import Archive
from .errors import EXIT_TIMEOUT, VmError, say
from .pins import Group

LOCK_TIMEOUT_S = 600
UNPACK_TIMEOUT_S = 180
MERGED = ("bin", "sbin", "lib", "lib64")  # Debian's own base package makes these links; it is not among ours
DOCUMENTATION = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale", "./usr/share/info", "./usr/share/lintian")


def default_folder() -> Path:
    named = os.environ.get("EFA_VM_CACHE")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nvshmem-efa" / "vm"


class Cache:
    def __init__(self, folder: Path, groups: dict[str, Group]) -> None:
        self.folder = folder
        self._groups = groups
        suites = sorted({suite for group in groups.values() for suite in group.suites})
        self._archive = Archive(folder / "apt", tuple(suites))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One maker at a time. Readers need no lock: a folder appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            deadline = time.monotonic() + LOCK_TIMEOUT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise VmError(
                            f"another run has held the cache {self.folder} for {LOCK_TIMEOUT_S} s",
                            "end it, or use a cache of your own (EFA_VM_CACHE)",
                            EXIT_TIMEOUT,
                        ) from None
                    time.sleep(0.2)
            yield

    def make(self, name: str, build: Callable[[Path], None]) -> Path:
        """The folder `name`, built by `build` into an empty one beside it when it is not there yet."""
        final = self.folder / name
        if final.exists():
            return final
        with self.locked():
            if final.exists():
                return final
            final.parent.mkdir(parents=True, exist_ok=True)
            for left in final.parent.glob(".making-*"):  # of a run that was killed: the lock is ours
                shutil.rmtree(left, ignore_errors=True)
            making = Path(tempfile.mkdtemp(prefix=".making-", dir=final.parent))
            try:
                making.chmod(0o755)
                build(making)
                making.rename(final)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        return final

    def root_name(self, group_name: str) -> str:
        return f"roots/{group_name}-{self._groups[group_name].digest()}"

    def missing(self, group_names: list[str]) -> list[str]:
        return [name for name in group_names if not (self.folder / self.root_name(name)).exists()]

    def root(self, group_name: str) -> Path:
        """The unpacked packages of a group."""
        group = self._groups[group_name]
        try:
            return self.make(self.root_name(group_name), lambda folder: self._fill(group, folder))
        except VmError as error:
            wanted = group.packages or (group.source,)
            names = " ".join(f"{pin.name}={pin.version}" for pin in wanted if pin is not None)
            raise VmError(
                f"missing from the cache {self.folder}: [{group_name}] ({names}), and it cannot be fetched:\n"
                f"{error.args[0]}",
                error.hint,
                error.exit_code,
            ) from error

    def drop_root(self, group_name: str) -> None:
        """For what is only needed to make something else that the cache keeps."""
        with self.locked():
            shutil.rmtree(self.folder / self.root_name(group_name), ignore_errors=True)

    def _fill(self, group: Group, folder: Path) -> None:
        started = time.monotonic()
        if group.source is not None:
            files = self._archive.download_source(group)
            for path in files:
                patterns = ["--wildcards", *group.paths] if group.paths else []
                _run(["tar", "-x", "-f", str(path), "-C", str(folder), "--strip-components=1", *patterns])
        else:
            files = self._archive.download(group)
            for link in MERGED:
                (folder / "usr" / link).mkdir(parents=True)
                (folder / link).symlink_to(f"usr/{link}")
            for path in files:
                _unpack_deb(path, folder, group.paths)
        (folder / ".packages.json").write_text(json.dumps([path.name for path in files], indent=1) + "\n")
        for path in files:
            path.unlink()
        say(f"unpacked [{group.name}] in {time.monotonic() - started:.0f} s")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=UNPACK_TIMEOUT_S)
    if done.returncode != 0:
        raise VmError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-500:]}", "is the disk full?")


def _unpack_deb(path: Path, folder: Path, paths: tuple[str, ...]) -> None:
    patterns = ["--wildcards", *paths] if paths else [f"--exclude={left}" for left in DOCUMENTATION]
    options = ["--keep-directory-symlink", "--no-same-owner", "--delay-directory-restore", *patterns]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as deb:
        tar = ["tar", "-x", "-C", str(folder), *options]
        done = subprocess.run(tar, stdin=deb.stdout, capture_output=True, text=True, timeout=UNPACK_TIMEOUT_S)
    if deb.returncode != 0 or done.returncode != 0:
        raise VmError(f"{path.name} cannot be unpacked: {done.stderr.strip()[-500:]}", "is the disk full?")
