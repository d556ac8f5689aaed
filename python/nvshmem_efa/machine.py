# SPDX-License-Identifier: Apache-2.0
"""Facts about this machine. Every file is read below a root folder, so that tests can make up machines."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Nic:
    """An RDMA device of any maker, as the kernel shows it."""

    name: str
    driver: str
    numa_node: int
    pci_path: str
    driver_version: str


@dataclass
class Machine:
    """Where facts are read. `loadable` answers whether a shared library can be loaded; None asks the loader."""

    root: Path = Path("/")
    loadable: dict[str, bool] | None = None
    cuda_devices: int | None = None
    memlock_bytes: int | None = None
    shared_memory_errno: int | None = None
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def read(self, path: str) -> str | None:
        """A small file's text without surrounding blanks; None where there is none."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Whether the path is there."""
        return (self.root / path.lstrip("/")).exists()

    def can_load(self, soname: str) -> bool:
        """Whether the loader finds this library."""
        if self.loadable is not None:
            return self.loadable.get(soname, False)
        try:
            ctypes.CDLL(soname)
        except OSError:
            return False
        return True

    def gpu_count(self) -> int | None:
        """GPUs that the driver shows; None without a driver."""
        if self.cuda_devices is not None:
            return self.cuda_devices
        if not self.can_load("libcuda.so.1"):
            return None
        cuda = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
        return count.value

    def memlock(self) -> int:
        """Bytes that may be locked in memory; -1 for no limit."""
        if self.memlock_bytes is not None:
            return self.memlock_bytes
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return -1 if soft == resource.RLIM_INFINITY else soft

    def shared_memory_error(self, size: int) -> OSError | None:
        """Why this process cannot have `size` bytes of anonymous shared memory; None if it can."""
        if self.shared_memory_errno is not None:
            return OSError(self.shared_memory_errno, os.strerror(self.shared_memory_errno))
        try:
            fd = os.memfd_create("nvshmem-efa-doctor")
            try:
                os.posix_fallocate(fd, 0, size)
            finally:
                os.close(fd)
        except OSError as error:
            return error
        return None

    def nics(self) -> list[Nic]:
        """All RDMA devices, by name."""
        folder = self.root / "sys/class/infiniband"
        if not folder.is_dir():
            return []
        return [self._nic(entry) for entry in sorted(folder.iterdir())]

    def _nic(self, entry: Path) -> Nic:
        device = entry / "device"
        driver = device / "driver"
        driver_name = driver.resolve().name if driver.exists() else "unknown"
        numa = self._text(device / "numa_node")
        return Nic(
            name=entry.name,
            driver=driver_name,
            numa_node=int(numa) if numa.lstrip("-").isdigit() else -1,
            pci_path=str(device.resolve()),
            driver_version=self.read(f"/sys/module/{driver_name}/version") or "unknown",
        )

    @staticmethod
    def _text(path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    def describe(self) -> str:
        """Kernel, processor and C library in one line."""
        libc = " ".join(platform.libc_ver()).strip() or "unknown C library"
        cores = len(os.sched_getaffinity(0))
        return f"Linux {platform.release()} {platform.machine()}, {cores} cores, {libc}"
