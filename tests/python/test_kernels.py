# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every GPU we serve, with NVRTC 12.9 and 13 and no GPU; what the image cache promises."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from nvrtc_library import Library
from running import Command

import nvshmem_efa
from nvshmem_efa import kernels
from nvshmem_efa.errors import ConfigError, MissingError
from nvshmem_efa.nvrtc import CompileError, CudaPython

ROOT = Path(__file__).resolve().parent.parent.parent
INCLUDE = ROOT / "transport_efa" / "include"
SOURCES = sorted((ROOT / "transport_efa" / "kernels").glob("*.cu"))
WHOLE_API = ROOT / "tests" / "gpu" / "device_api_compile.cu"
HEADERS = sorted(path for path in (INCLUDE / "nvshmem_efa").iterdir() if path.name not in ("api.h", "module_record.h"))
ARCHS = ("sm_90a", "sm_100a")
VERSIONS = (12, 13)
OPTIONS = ("--std=c++20", f"--include-path={INCLUDE}", f"--include-path={ROOT / 'transport_efa' / 'kernels'}")
LARGE = {"transport_bench"}  # most of its time is the assembler's: machine code is made by the test of warmup alone

_compilers: dict[int, Library] = {}


def compiler_of(major: int) -> Library:
    if major not in _compilers:
        _compilers[major] = Library(major)
    return _compilers[major]


# ---- what is compiled ----


def test_the_two_versions_are_those_we_promise() -> None:
    assert compiler_of(12).version == (12, 9)
    assert compiler_of(13).version >= (13, 0)


@pytest.mark.parametrize("major", VERSIONS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_compiles_for_every_architecture(source: Path, arch: str, major: int) -> None:
    target = arch.replace("sm_", "compute_") if source.stem in LARGE else arch
    image = compiler_of(major).compile(source.read_text(), source.name, [f"--gpu-architecture={target}", *OPTIONS])
    assert b".visible .entry" in image if source.stem in LARGE else image[:4] == b"\x7fELF"


@pytest.mark.skipif(not WHOLE_API.exists(), reason="the device API is not in this tree")
def test_every_call_of_the_device_api_compiles() -> None:
    # To PTX only: it is almost a megabyte of machine code, and takes longer than all kernels together.
    text = compiler_of(12).compile(WHOLE_API.read_text(), WHOLE_API.name, ["--gpu-architecture=compute_90a", *OPTIONS])
    assert b".visible .entry" in text


@pytest.mark.parametrize("major", VERSIONS)
@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_every_public_header_compiles_alone_and_without_standard_headers(header: Path, major: int) -> None:
    source = f'#include "nvshmem_efa/{header.name}"\n'
    assert compiler_of(major).compile(source, "alone.cu", ["--gpu-architecture=sm_90a", *OPTIONS])[:4] == b"\x7fELF"


@pytest.mark.parametrize("major", VERSIONS)
def test_an_nvrtc_module_shows_its_symbols_by_name_and_the_layout_it_was_compiled_for(major: int) -> None:
    # nvshmem_efa_module_add_driver() looks for both, and compares the size of the second.
    source = (
        '#include "nvshmem_efa/module.cuh"\n'
        "using namespace nvshmem_efa;\n"
        "static_assert(sizeof nvshmem_efa_state_layout == kDeviceStateVersion * 4096 + sizeof(DeviceState));\n"
        'extern "C" __global__ void unrelated() {}\n'
    )
    image = compiler_of(major).compile(source, "module.cu", ["--gpu-architecture=sm_90a", *OPTIONS])
    assert b"\0nvshmem_efa_state\0" in image
    assert b"\0nvshmem_efa_state_layout\0" in image


# ---- the cache ----


class Counting:
    """A compiler whose image says what went in."""

    version = (13, 0)

    def __init__(self) -> None:
        self.calls = 0

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        self.calls += 1
        return b"\x7fELF" + hashlib.sha512(f"{source}{options}{self.version}".encode()).digest() * 20


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of one's own, to change."""
    folder = tmp_path / "package"
    shutil.copytree(ROOT / "transport_efa" / "include", folder / "include")
    shutil.copytree(ROOT / "transport_efa" / "kernels", folder / "kernels")
    monkeypatch.setattr(nvshmem_efa, "__path__", [str(folder)])
    return folder


def build(compiler: Counting, cache: Path, arch: str = "sm_90a") -> kernels.Built:
    return kernels.build("module_probe", arch, compiler, cache)


def test_a_kernel_is_compiled_once(package: Path, cache: Path) -> None:
    compiler = Counting()
    first, second = build(compiler, cache), build(compiler, cache)
    assert (first.was_cached, second.was_cached, compiler.calls) == (False, True, 1)
    assert first.path == second.path
    image = first.path.read_bytes()
    assert image[:4] == b"\x7fELF" and first.size == second.size < len(image)


def test_whatever_the_image_depends_on_makes_another_one(package: Path, cache: Path) -> None:
    compiler = Counting()
    seen = {build(compiler, cache).path}

    def changed() -> bool:
        built = build(compiler, cache)
        is_new = built.path not in seen and not built.was_cached
        seen.add(built.path)
        return is_new

    assert build(compiler, cache, "sm_100a").path not in seen
    headers = (package / "include" / "nvshmem_efa" / "wqe.h", package / "kernels" / "bench_bodies.h")
    for path in (package / "kernels" / "module_probe.cu", *headers):
        path.write_text(path.read_text() + "// more\n")
        assert changed(), path
    extra = package / "include" / "nvshmem_efa" / "extra1.cuh"
    extra.write_text("")
    assert changed()
    extra.rename(extra.with_name("extra2.cuh"))  # at the same place in the list
    assert changed()
    compiler.version = (13, 1)
    assert changed()
    assert not changed()


def spoil_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil_most(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def spoil_all(path: Path) -> None:
    path.write_bytes(b"")


def spoil_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def spoil_mode(path: Path) -> None:
    path.chmod(0o620)


def spoil_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.mark.parametrize("spoil", [spoil_end, spoil_most, spoil_all, spoil_byte, spoil_mode, spoil_link])
def test_a_file_that_is_not_whole_or_not_surely_ours_is_made_again(package: Path, cache: Path, spoil: object) -> None:
    compiler = Counting()
    path = build(compiler, cache).path
    good = path.read_bytes()
    assert callable(spoil)
    spoil(path)
    assert not build(compiler, cache).was_cached
    assert path.read_bytes() == good
    assert path.lstat().st_mode & 0o777 == 0o600
    assert build(compiler, cache).was_cached


def test_the_cache_is_private(package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        built = kernels.build("module_probe", "sm_90a", Counting())
    finally:
        os.umask(old)
    assert built.path.parent == tmp_path / "xdg" / "nvshmem-efa" / "kernels"
    assert built.path.parent.stat().st_mode & 0o777 == 0o700
    assert built.path.stat().st_mode & 0o777 == 0o600


def test_a_cache_that_others_can_write_is_refused(package: Path, cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    cache.chmod(0o770)
    with pytest.raises(ConfigError, match="not a private folder") as refused:
        build(Counting(), cache)
    assert "chmod 700" in refused.value.hint
    cache.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(cache)
    with pytest.raises(ConfigError, match="not a private folder"):
        build(Counting(), link)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be kept"):
        build(Counting(), tmp_path / "file" / "below")


def test_a_value_of_the_variable_that_is_no_absolute_path_does_not_count(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert kernels.cache_folder() == tmp_path / "home" / ".cache" / "nvshmem-efa" / "kernels"


def _build_in_process(cache: str, gate: object) -> str:
    gate.wait(30)  # type: ignore[attr-defined]
    return hashlib.sha256(build(Counting(), Path(cache)).path.read_bytes()).hexdigest()


def test_processes_that_compile_at_the_same_time_all_get_a_whole_image(package: Path, cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Manager() as manager, context.Pool(6) as pool:
        gate = manager.Barrier(6)
        images = pool.starmap(_build_in_process, [(str(cache), gate)] * 6, chunksize=1)
    assert len(set(images)) == 1
    assert [path.suffix for path in cache.iterdir()] == [".cubin"]


def test_the_cache_stays_small_and_is_cleaned_of_what_dead_processes_left(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "FILES_MAX", 3)
    compiler = Counting()
    cache.mkdir(mode=0o700)
    for name, age in ((".partial-dead", 7200), (".partial-alive", 10)):
        (cache / name).write_text("")
        os.utime(cache / name, (0, (cache / name).stat().st_mtime - age))
    made = []
    for minor in range(5):
        compiler.version = (13, minor)
        made.append(build(compiler, cache).path)
        os.utime(made[-1], (0, 1_000_000 + minor))
    left = {path.name for path in cache.iterdir()}
    assert left == {path.name for path in made[-3:]} | {".partial-alive"}


# ---- cuda-python and the command ----


def test_cuda_python_compiles_what_the_library_compiles() -> None:
    compiler = CudaPython()
    assert compiler.version[0] in VERSIONS
    source = (ROOT / "transport_efa" / "kernels" / "module_probe.cu").read_text()
    options = ["--gpu-architecture=sm_90a", *OPTIONS]
    library = compiler_of(compiler.version[0])
    assert compiler.compile(source, "p.cu", options) == library.compile(source, "p.cu", options)


def test_an_error_in_a_kernel_is_shown_with_its_line() -> None:
    words = r"bad\.cu does not compile with NVRTC 1\d\.\d+ and .*\n(.*\n)*bad\.cu\(2\): error"
    for compiler in (CudaPython(), compiler_of(12)):
        with pytest.raises(CompileError, match=words):
            compiler.compile("\nint broken = ;\n", "bad.cu", ["--gpu-architecture=sm_90a"])
    with pytest.raises(CompileError, match="invalid value for --gpu-architecture") as failed:
        CudaPython().compile("", "any.cu", ["--gpu-architecture=sm_999"])
    assert "newer" in failed.value.hint


def test_without_cuda_python_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.delattr("cuda.bindings.nvrtc", raising=False)
    with pytest.raises(MissingError, match="without cuda-python") as missing:
        CudaPython()
    assert "pip install" in missing.value.hint


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    def absent() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so"\nand where it was looked for')

    monkeypatch.setattr(nvrtc, "nvrtcVersion", absent)
    with pytest.raises(MissingError, match=r'^NVRTC cannot be loaded: Failure finding "libnvrtc\.so"$') as missing:
        CudaPython()
    assert "pip install" in missing.value.hint


def test_warmup_compiles_everything_ahead(command: Command, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    done = command("warmup", "--arch", "sm_90a", "--arch", "sm_90a", "--json", env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "nvshmem-efa-warmup/1"
    assert [(kernel["name"], kernel["arch"]) for kernel in result["kernels"]] == [
        (name, "sm_90a") for name in (*kernels.names(), *kernels.names("deep_ep"))
    ]
    assert not any(kernel["was_cached"] for kernel in result["kernels"])
    assert all(Path(kernel["path"]).read_bytes()[:4] == b"\x7fELF" for kernel in result["kernels"])
    again = command("warmup", "--arch", "sm_90a", env=env)
    assert again.returncode == 0 and again.stdout.count("in the cache") == len(result["kernels"])


def test_warmup_names_what_it_cannot_compile_for(command: Command, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    bad = command("warmup", "--arch", "sm_999", env=env)
    assert bad.returncode == 1 and "invalid value for --gpu-architecture" in bad.stderr
    if not kernels.archs_here():
        none = command("warmup", env=env)
        assert none.returncode == 3 and "--arch sm_90a" in none.stderr
