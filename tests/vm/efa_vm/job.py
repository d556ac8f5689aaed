# SPDX-License-Identifier: Apache-2.0
"""What goes into a guest and what comes out: a tar archive as a disk, a tar archive through a serial port."""

from __future__ import annotations

import io
import os
import shlex
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from .errors import EXIT_USAGE, VmError


END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Job:
    command: str  # for the guest's sh
    files: tuple[tuple[str, Path], ...] = ()  # the name in the guest, the place here
    environment: dict[str, str] = field(default_factory=dict)
    has_driver: bool = True
    is_shell: bool = False


def quoted(command: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in command)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    data = text.encode()
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return None if entry.name.endswith("__pycache__") else entry


def write_job(path: Path, job: Job, guest: int, guests: int) -> None:
    variables = {
        **job.environment,
        "EFA_VM_GUEST": str(guest),
        "EFA_VM_GUESTS": str(guests),
        "EFA_VM_DRIVER": "1" if job.has_driver else "0",
        "EFA_VM_SHELL": "1" if job.is_shell else "0",
    }
    names = [name for name, _ in job.files]
    if len(set(names)) != len(names):
        raise VmError(f"two of the files have one name: {' '.join(sorted(names))}", "rename one", EXIT_USAGE)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, dereference=False) as archive:
        folder = tarfile.TarInfo("files")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        _add_text(
            archive, "environment", "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())
        )
        _add_text(archive, "command", job.command + "\n")
        for name, source in job.files:
            if not source.exists():
                raise VmError(f"{source} is not there", "--files names files and folders of this machine", EXIT_USAGE)
            archive.add(source.resolve(), f"files/{name}", filter=_as_root)


def read_results(path: Path, into: Path) -> int:
    """Unpacks what a guest left in /results: plain files only, below `into` only. Returns how many."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    count = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for entry in archive:
                name = os.path.normpath(entry.name)
                if not entry.isreg() or name.startswith(("/", "..")):
                    continue
                content = archive.extractfile(entry)
                assert content is not None
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(content.read())
                count += 1
        with path.open("rb") as file:  # an archive that breaks off between its members is read without a complaint
            file.seek(-len(END_OF_ARCHIVE), os.SEEK_END)
            if file.read() != END_OF_ARCHIVE:
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise VmError(
            f"what the guest left in /results came back damaged ({error}); {count} files are in {into}",
            "had the guest memory for it? --mem gives it more",
        ) from error
    return count
