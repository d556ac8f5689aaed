# SPDX-License-Identifier: Apache-2.0
"""Runs a package's programs out of the folder it was unpacked into: by that folder's own loader and libraries.

So nothing is installed, no privilege is needed, and neither the host's libc nor its age matters.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

PT_INTERP = 3
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio", "usr/lib")


def loader(root: Path) -> list[str]:
    folders = ":".join(str(root / name) for name in LIBRARY_FOLDERS)
    return [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", folders]


def _needs_loader(path: Path) -> bool:
    """A dynamically linked program: an ELF file that names an interpreter."""
    with path.open("rb") as file:
        head = file.read(4096)
    if len(head) < 64 or head[:4] != b"\x7fELF":
        return False
    offset = struct.unpack_from("<Q", head, 32)[0]
    size, count = struct.unpack_from("<HH", head, 54)
    starts = [offset + size * index for index in range(count) if offset + size * (index + 1) <= len(head)]
    return any(struct.unpack_from("<I", head, start)[0] == PT_INTERP for start in starts)


def wrap_programs(root: Path) -> int:
    """Puts a script in the place of every program, so that they can call each other (make, gcc, cc1, as, objtool)."""
    command = " ".join(f"'{word}'" for word in loader(root))
    wrapped = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() or ".so" in name or not os.access(path, os.X_OK) or not _needs_loader(path):
                continue
            real = path.with_name(name + ".elf")
            path.rename(real)
            # gcc finds cc1 and its headers by the name that it was called by.
            path.write_text(f'#!/bin/sh\nexec {command} --argv0 "$0" \'{real}\' "$@"\n')
            path.chmod(0o755)
            wrapped += 1
    return wrapped
