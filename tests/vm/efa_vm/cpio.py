# SPDX-License-Identifier: Apache-2.0
"""Writes the archive that a Linux kernel unpacks as its first file system (cpio, "newc")."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

TRAILER = "TRAILER!!!"


class CpioWriter:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._folders = {""}

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        self._out.write(header + b"\0" * (-len(header) % 4))
        self._out.write(data)
        self._out.write(b"\0" * (-len(data) % 4))

    def folder(self, name: str, mode: int = 0o755) -> None:
        if name not in self._folders:
            self.folder(str(Path(name).parent).removeprefix("."))
            self._folders.add(name)
            self._entry(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self.folder(str(Path(name).parent).removeprefix("."))
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self.folder(str(Path(name).parent).removeprefix("."))
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self.folder(str(Path(name).parent).removeprefix("."))
        self._entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def tree(self, root: Path) -> None:
        """All below `root`, by its names there; links to folders are links."""
        for here, folders, names in os.walk(root):
            relative = Path(here).relative_to(root)
            for name in sorted(folders + names):
                path = Path(here, name)
                inside = str(relative / name)
                if path.is_symlink():
                    self.link(inside, os.readlink(path))
                elif path.is_dir():
                    self.folder(inside, stat.S_IMODE(path.stat().st_mode))
                elif path.is_file():
                    self.file(inside, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def close(self) -> None:
        self._entry(TRAILER, 0)
