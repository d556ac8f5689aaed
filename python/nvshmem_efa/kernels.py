# SPDX-License-Identifier: Apache-2.0
"""This package's kernels, compiled for the GPU at hand and kept on disk by content: docs/kernels.md."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvshmem_efa import installed
from nvshmem_efa.errors import ConfigError, MissingError
from nvshmem_efa.nvrtc import Compiler, CudaPython

LAYOUT = b"nvshmem-efa-kernel/1"  # of the files in the cache; part of every key
FILES_MAX = 256  # the oldest go first
STALE_S = 3600  # after which a partial file is a dead process's
ARCH_FEATURES = {9: "a", 10: "a", 12: "a"}  # compute capabilities whose own instructions are used


@dataclass(frozen=True)
class Built:
    """One kernel source compiled for one architecture."""

    name: str
    arch: str
    path: Path  # a cubin for cuModuleLoad
    size: int
    was_cached: bool
    seconds: float


def names(part: str = "") -> list[str]:
    """The kernel sources of this package, without their suffix; `part` "deep_ep": that package's, as "deep_ep/..."."""
    folder = _folder("kernels")
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in (folder / part).glob("*.cu"))


def archs_here() -> list[str]:
    """The architectures of this machine's GPUs, as NVRTC names them; [] without a GPU."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return sorted({_arch_of(cuda, device) for device in range(count.value)})


def _arch_of(cuda: ctypes.CDLL, device: int) -> str:
    numbers = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int(0)
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            raise MissingError(f"the driver does not say what GPU {device} is", "look at it with nvidia-smi")
        numbers.append(value.value)
    return f"sm_{numbers[0]}{numbers[1]}{ARCH_FEATURES.get(numbers[0], '')}"


def build(name: str, arch: str, compiler: Compiler | None = None, cache: Path | None = None) -> Built:
    """The cubin of one kernel source, from the cache or compiled now. Any number of processes at once."""
    started = time.monotonic()
    compiler = compiler or CudaPython()
    source = _source(name)
    options = [f"--gpu-architecture={arch}", "--std=c++20"]
    folder = cache_folder() if cache is None else _private(cache)
    path = folder / f"{name.replace('/', '-')}-{arch}-{_key(source, options, compiler.version)}.cubin"
    image = _load(path)
    was_cached = image is not None
    if image is None:
        include = [f"--include-path={folder}" for folder in (_folder("include"), _folder("kernels"), source.parent)]
        image = compiler.compile(source.read_text(), source.name, [*options, *include])
        _store(path, image)
    return Built(name, arch, path, len(image), was_cached, time.monotonic() - started)


def build_all(archs: Sequence[str] = ()) -> list[Built]:
    """Every kernel for these architectures, or for those of the GPUs here."""
    wanted = list(archs) or archs_here()
    if not wanted:
        raise MissingError(
            "there is no GPU here to compile for", "name an architecture: nvshmem-efa warmup --arch sm_90a"
        )
    compiler = CudaPython()
    return [build(name, arch, compiler) for arch in dict.fromkeys(wanted) for name in [*names(), *names("deep_ep")]]


def cache_folder() -> Path:
    """Where compiled kernels are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the rule of XDG: other values do not count
        base = os.path.expanduser("~/.cache")
    return _private(Path(base) / "nvshmem-efa" / "kernels")


def _private(folder: Path) -> Path:
    """The folder, which only this user may write: what lies there will run on the GPU."""
    hint = "set XDG_CACHE_HOME to a folder of your own"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        seen = folder.lstat()
    except OSError as error:
        raise ConfigError(f"compiled kernels cannot be kept in {folder}: {error.strerror}", hint) from None
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is not a private folder (owner {seen.st_uid}, mode {seen.st_mode & 0o7777:o})",
            f"chmod 700 it if it is yours, or {hint}",
        )
    return folder


def _source(name: str) -> Path:
    if name not in [*names(), *names("deep_ep")]:
        raise ConfigError(f"there is no kernel {name!r}", f"one of {', '.join([*names(), *names('deep_ep')])}")
    return _folder("kernels") / f"{name}.cu"


def _folder(kind: str) -> Path:
    return installed.find(kind, ".")


def _key(source: Path, options: Sequence[str], version: tuple[int, int]) -> str:
    """Changes with everything that the image depends on; all headers count, included or not."""
    digest = hashlib.sha256()
    for part in _inputs(source, options, version):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:40]


def _inputs(source: Path, options: Sequence[str], version: tuple[int, int]) -> Iterator[bytes]:
    yield LAYOUT
    yield f"{version[0]}.{version[1]}".encode()
    yield from (option.encode() for option in options)
    yield source.read_bytes()
    for folder, files in ((_folder("include"), "*"), (_folder("kernels"), "*.*h")):
        for path in sorted(path for path in folder.rglob(files) if path.is_file()):
            yield str(path.relative_to(folder)).encode()
            yield path.read_bytes()


def _trailer(image: bytes) -> bytes:
    """Ends every file. A loader of cubins, which are ELF files, does not look at it."""
    return LAYOUT + hashlib.sha256(image).digest()


def _load(path: Path) -> bytes | None:
    """The image, if the file is whole, ours, and nobody else could write it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            seen = os.fstat(file.fileno())
            if seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
                return None
            content = file.read()
    except OSError:
        return None
    image = content[: -len(_trailer(b""))]
    return image if image and content == image + _trailer(image) else None


def _store(path: Path, image: bytes) -> None:
    """Whole or not at all: whoever looks meanwhile sees no file, or an older one."""
    try:
        handle, partial = tempfile.mkstemp(prefix=".partial-", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(image + _trailer(image))
            os.rename(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
    except OSError as error:
        raise ConfigError(
            f"a compiled kernel cannot be kept in {path.parent}: {error.strerror}",
            "set XDG_CACHE_HOME to a folder with room",
        ) from None
    _prune(path.parent)


def _prune(folder: Path) -> None:
    """Removes what dead processes left, and the oldest images beyond FILES_MAX. Others may do the same meanwhile."""
    ages: list[tuple[float, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.lstat().st_mtime, path))
    stale = [path for age, path in ages if path.name.startswith(".partial-") and time.time() - age > STALE_S]
    images = sorted(item for item in ages if item[1].suffix == ".cubin")
    for path in stale + [path for _, path in images[: max(0, len(images) - FILES_MAX)]]:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
