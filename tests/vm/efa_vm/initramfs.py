# SPDX-License-Identifier: Apache-2.0
"""The guest's whole file system: the packages' programs and libraries, the kernel's modules, our init."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

from . import driver
from .cache import Cache
from .cpio import CpioWriter
from .errors import VmError, say
from .modules import collect
from .relocate import loader

GUEST_DIR = Path(__file__).resolve().parent.parent / "guest"
COMPILE_TIMEOUT_S = 120
EMPTY_FOLDERS = ("dev", "proc", "sys", "tmp", "run", "root", "job", "results", "var/tmp", "etc")
ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n" + "".join(f"10.99.0.{n + 1} guest{n}\n" for n in range(8)),
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def _busybox(guest: Path) -> Path:
    for name in ("usr/bin/busybox", "bin/busybox"):
        if (guest / name).is_file():
            return guest / name
    raise VmError(f"no busybox in {guest}", "is the package busybox-static in tests/vm/packages?")


def _compile_python(guest: Path) -> None:
    """Byte code now, by the guest's own Python: in an emulated guest it would cost seconds a program."""
    for python in sorted(guest.glob("usr/bin/python3.[0-9]*")):
        library = guest / "usr/lib" / python.name
        command = [*loader(guest), str(python), "-I", "-S", "-m", "compileall", "-q", "-s", str(guest), "-p", "/"]
        done = subprocess.run(
            [*command, str(library), str(guest / "usr/lib/python3/dist-packages")],
            env={"PYTHONHOME": str(guest / "usr"), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
        )
        if done.returncode not in (0, 1):  # 1: a file that is not meant to compile
            say(f"warning: {python.name} could not compile its library, guests start slower: {done.stderr[-200:]}")


def _write(cache: Cache, guest: Path, folder: Path) -> None:
    started = time.monotonic()
    kernel = cache.root("kernel")
    release = driver.kernel_release(kernel)
    _compile_python(guest)
    busybox = _busybox(guest)
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True, timeout=10)
    with (folder / "initramfs").open("wb") as out:
        archive = CpioWriter(out)
        for name in EMPTY_FOLDERS:
            archive.folder(name)
        archive.character_device("dev/console", 5, 1)
        archive.tree(guest)
        for name, text in ETC.items():
            archive.file(name, text.encode())
        taken = {path.name for path in (*guest.glob("usr/bin/*"), *guest.glob("usr/sbin/*"))}
        for applet in applets.stdout.split():
            if applet not in taken:
                archive.link(f"usr/bin/{applet}", "/" + str(busybox.relative_to(guest)))
        for name, data in collect(kernel, release, driver.module(cache)).items():
            archive.file(f"usr/lib/modules/{release}/{name}", data)
        for path in sorted(GUEST_DIR.iterdir()):
            archive.file("init" if path.name == "init" else f"usr/bin/{path.name}", path.read_bytes(), 0o755)
        archive.close()
    megabytes = (folder / "initramfs").stat().st_size >> 20
    say(f"made the guest's file system ({megabytes} MB) in {time.monotonic() - started:.0f} s")


def name(cache: Cache, guest_group: str) -> str:
    code = [Path(__file__), *(Path(__file__).with_name(f"{module}.py") for module in ("cpio", "modules"))]
    made_by = [path.read_bytes() for path in (*sorted(GUEST_DIR.iterdir()), *code)]
    parts = [cache.root_name(guest_group).encode(), driver.digest(cache).encode(), *made_by]
    return f"initramfs/{guest_group}-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}"


def initramfs(cache: Cache, guest_group: str) -> Path:
    made = cache.folder / name(cache, guest_group)
    if not made.exists():
        driver.module(cache)
        guest = cache.root(guest_group)
        cache.make(name(cache, guest_group), lambda folder: _write(cache, guest, folder))
    return made / "initramfs"
