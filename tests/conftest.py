# SPDX-License-Identifier: Apache-2.0
"""pytest is the only front door: it builds the C++ tests once and shows each of their cases as an item of its own."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CASE_TIMEOUT_S = 240
BUILD_TIMEOUT_S = 1800
SKIP_EXIT_CODE = 77
SANITIZED_SEEDS = 20  # histories of each ABI under a sanitizer, in place of 2500
# Programs with threads, or with a fake driver that has them: what ThreadSanitizer is for. It sees nothing between processes.
THREADED = (
    "test_arrivals", "test_bench_launcher", "test_cuda_driver", "test_cuda_memory_port", "test_cuda_peers",
    "test_ep_gpu",
    "test_ep_group", "test_ep_ll", "test_ep_ll_faults", "test_ep_normal", "test_gpu_lane", "test_gpu_lane_cuda",
    "test_gpu_lane_paper", "test_gpu_lane_rings", "test_gpu_mix", "test_gpu_queue",
    "test_gpu_ring_direct", "test_gpu_ring_relay", "test_log", "test_module_registry",
    "test_pci_guest_memory", "test_pe_bootstrap", "test_pe_plugin", "test_pe_runtime", "test_plugin_files", "test_plugin_memory",
    "test_soft_device_engine", "test_verbs_nic", "test_words", "test_words_cuda",
)  # fmt: skip
JOBS = ("test_pe_program",)  # each case is several busy processes: one at a time, as in tests/python/test_demo.py
NOT_SANITIZED = {  # program: why not
    "test_pe_program": "what its processes run, test_pe_runtime and test_pe_plugin run sanitized, in one process",
    "test_shim": "a sanitizer's own dlopen looks in other folders than the program's, and cannot be preloaded",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nvshmem-efa")
    group.addoption("--slow", action="store_true", help="also run the tests marked slow")
    group.addoption("--sanitize", default="", help="sanitizers for the C++ tests: address,undefined or thread")
    group.addoption("--hosts", default="", help="comma-separated machines for the tests marked multinode")
    group.addoption("--build-dir", default=None, help="where the C++ tests are built (default: build/tests*)")


def _tool(name: str) -> str:
    """cmake or ninja: from this environment first (the [test] extra), then from PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise pytest.UsageError(f"{name} is not there; hint: pip install '.[test]' brings it")
    return found


class CppBuild:
    """The build of the C++ tests: configured and built once a session, also under pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.sanitize: str = config.getoption("--sanitize")
        suffix = "-" + self.sanitize.replace(",", "-") if self.sanitize else ""
        given = config.getoption("--build-dir")
        self.folder = Path(given).resolve() if given else ROOT / "build" / f"tests{suffix}"
        self._error: str | None = None
        self._done = False

    def program(self, name: str) -> Path:
        self._build()
        if self._error:
            error, self._error = self._error, "see the first file's error"
            raise BuildFailed(error)
        return self.folder / "tests" / "cpp" / name

    def _build(self) -> None:
        if self._done:
            return
        self._done = True
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # xdist workers collect at the same time: one of them builds
            configure = [
                _tool("cmake"), "-S", str(ROOT), "-B", str(self.folder), "-G", "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}", "-DCMAKE_BUILD_TYPE=Debug",
                f"-DCMAKE_CXX_FLAGS_DEBUG={'-O0' if self.sanitize else '-O2'} -g1 -D_GLIBCXX_ASSERTIONS",
                "-DNVSHMEM_EFA_TESTS=ON", "-DNVSHMEM_EFA_WERROR=ON", f"-DNVSHMEM_EFA_SANITIZE={self.sanitize}",
            ]  # fmt: skip
            targets = THREADED if self.sanitize == "thread" else ()  # () builds everything
            for command in (configure, [_tool("ninja"), "-C", str(self.folder), *targets]):
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
                )
                if done.returncode != 0:
                    self._error = f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}"
                    return


class BuildFailed(Exception):
    """The C++ tests could not be built; the text is the compiler's."""


class CppProgram(pytest.File):
    """tests/cpp/test_<subject>.cpp: one program, whose --list gives its cases."""

    def collect(self) -> Iterator[pytest.Item]:
        sanitize = self.config.stash[build_key].sanitize
        if sanitize and self.path.stem in NOT_SANITIZED:
            pytest.skip(NOT_SANITIZED[self.path.stem])
        if sanitize == "thread" and self.path.stem not in THREADED:
            return  # nothing to look for
        try:
            program = self.config.stash[build_key].program(self.path.stem)
        except BuildFailed as error:
            raise self.CollectError(f"the C++ tests do not build:\n{error}") from None
        if not program.exists():
            raise self.CollectError(f"the build made no program for {self.path.name} (expected {program})")
        listed = subprocess.run([str(program), "--list"], capture_output=True, text=True, timeout=30)
        if listed.returncode != 0:
            raise self.CollectError(f"{program.name} --list failed with {listed.returncode}:\n{listed.stderr}")
        for name in listed.stdout.split():
            case = CppCase.from_parent(self, name=name, program=program)
            if self.path.stem in JOBS:
                case.add_marker(pytest.mark.xdist_group("jobs"))
            yield case


class CppFailure(Exception):
    """A C++ case failed; the text is what it printed."""


class CppCase(pytest.Item):
    """One case of a C++ test program, run as a process of its own."""

    def __init__(self, *, program: Path, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.program = program

    def runtest(self) -> None:
        with subprocess.Popen(
            [str(self.program), self.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env=_case_environment(self.config), start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=CASE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                raise CppFailure(f"no end after {CASE_TIMEOUT_S} s\n{output}") from None
            finally:
                _kill_group(process.pid)  # whatever the case has left running
        if process.returncode == SKIP_EXIT_CODE:
            reasons = [line for line in output.splitlines() if line.startswith("skip ")]
            pytest.skip(reasons[0].partition(": ")[2] if reasons else "the program asked for it (exit code 77)")
        if process.returncode != 0:
            raise CppFailure(f"exit code {process.returncode}\n{output}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        if isinstance(excinfo.value, CppFailure):
            return f"{self.program.name} {self.name}: {excinfo.value}\nreplay: {self.program} {self.name}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.path.stem}: {self.name}"


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _case_environment(config: pytest.Config) -> dict[str, str]:
    """The environment without settings of ours, so that a developer's shell does not change what is tested."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NVSHMEM", "FI_"))}
    if config.getoption("--sanitize"):
        environment.setdefault("SEEDS", str(SANITIZED_SEEDS))
    return environment


build_key = pytest.StashKey[CppBuild]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[build_key] = CppBuild(config)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".cpp" and file_path.name.startswith("test_") and file_path.parent.name == "cpp":
        return CppProgram.from_parent(parent, path=file_path)
    return None


def _gpu_count() -> int:
    """GPUs that the driver shows; 0 without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _efa_count() -> int:
    folder = Path("/sys/class/infiniband")
    if not folder.is_dir():
        return 0
    drivers = [(device / "device" / "driver") for device in folder.iterdir()]
    return sum(1 for driver in drivers if driver.exists() and driver.resolve().name == "efa")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if any(item.iter_markers())]
    gpus = _gpu_count() if any(item.get_closest_marker(m) for item in marked for m in ("gpu", "gpus")) else 0
    for item in marked:
        many = item.get_closest_marker("gpus")
        needed = int(many.args[0]) if many else 1 if item.get_closest_marker("gpu") else 0
        if needed > gpus:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA GPU(s); this machine shows {gpus}"))
        if item.get_closest_marker("efa") and _efa_count() == 0:
            item.add_marker(pytest.mark.skip(reason="needs an EFA device; there is none in /sys/class/infiniband"))
        if item.get_closest_marker("multinode") and not config.getoption("--hosts"):
            item.add_marker(pytest.mark.skip(reason="needs several machines; name them with --hosts"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
