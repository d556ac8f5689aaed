# SPDX-License-Identifier: Apache-2.0
"""Builds efa.ko, which Debian leaves out of its kernels, from Debian's own kernel source against its own headers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from .cache import Cache
from .errors import VmError, say
from .relocate import wrap_programs

BUILD_TIMEOUT_S = 240
DRIVER = "drivers/infiniband/hw/efa"
GROUPS = ("kernel", "driver-build", "driver-source")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise VmError(f"{folder}: {len(found)} files match {pattern}, expected one", "are the packages as pinned?")
    return found[0]


def kernel_release(kernel: Path) -> str:
    return _only(kernel, "usr/lib/modules/*").name


def _prepare_headers(tools: Path, release: str) -> Path:
    """The packages name their own places by absolute paths; vmlinux would call for type information for nobody."""
    headers = tools / "usr/src" / f"linux-headers-{release}"
    if not headers.is_dir():
        raise VmError(f"no headers for kernel {release} in {tools}/usr/src", "pin kernel and headers to one version")
    for name in ("Makefile", ".kernelvariables"):
        path = headers / name
        path.write_text(path.read_text().replace("/usr/src/", f"{tools}/usr/src/"))
    (headers / "vmlinux").unlink(missing_ok=True)
    return headers


def _build(cache: Cache, folder: Path) -> None:
    started = time.monotonic()
    release = kernel_release(cache.root("kernel"))
    work = folder / "work"
    tools = work / "tools"
    work.mkdir()
    shutil.copytree(cache.root("driver-build"), tools, symlinks=True)
    archive = _only(cache.root("driver-source"), "usr/src/linux-source-*.tar.xz")
    inside = f"{archive.name.removesuffix('.tar.xz')}/{DRIVER}"
    subprocess.run(["tar", "-xJf", str(archive), "-C", str(work), inside], check=True, timeout=BUILD_TIMEOUT_S)
    wrap_programs(tools)
    headers = _prepare_headers(tools, release)
    source = work / inside
    make = [str(tools / "usr/bin/make"), f"-j{min(2, os.cpu_count() or 1)}", "-C", str(headers), f"M={source}"]
    environment = {**os.environ, "PATH": f"{tools}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}", "LC_ALL": "C"}
    for name in ("MAKEFLAGS", "MAKELEVEL", "CC", "CFLAGS", "LDFLAGS", "ARCH", "CROSS_COMPILE", "LD_LIBRARY_PATH"):
        environment.pop(name, None)
    command = [*make, "CONFIG_INFINIBAND_EFA=m", "PAHOLE=true", "modules"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode != 0:
        raise VmError(f"efa.ko does not build for {release}:\n{(done.stdout + done.stderr)[-3000:]}")
    strip = [str(tools / "usr/bin/x86_64-linux-gnu-strip"), "-g", "-o", str(folder / "efa.ko"), str(source / "efa.ko")]
    subprocess.run(strip, check=True, timeout=60)
    shutil.rmtree(work)
    say(f"built efa.ko for {release} in {time.monotonic() - started:.0f} s")


def digest(cache: Cache) -> str:
    names = " ".join(cache.root_name(group) for group in GROUPS)
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def module_name(cache: Cache) -> str:
    return f"driver/{digest(cache)}"


def module(cache: Cache) -> Path:
    """efa.ko. What it was built with goes out of the cache again: 500 MB that nothing else needs."""
    name = module_name(cache)
    if not (cache.folder / name).exists():
        for group in GROUPS:  # each fetched under the cache's lock, before the build takes it
            cache.root(group)
        cache.make(name, lambda folder: _build(cache, folder))
        for group in ("driver-build", "driver-source"):
            cache.drop_root(group)
    return cache.folder / name / "efa.ko"
