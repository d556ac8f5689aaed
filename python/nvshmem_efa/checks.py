# SPDX-License-Identifier: Apache-2.0
"""The checks of `nvshmem-efa doctor`, one function each. A check looks and says; it changes nothing."""

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass, replace

from nvshmem_efa import installed, settings
from nvshmem_efa.errors import EfaError
from nvshmem_efa.machine import Machine
from nvshmem_efa.nvshmem import find_nvshmem

SHARED_MEMORY_BYTES = 32 << 20  # what four PEs with two rails use for their rings
MEMLOCK_MIN = 64 << 20
EFA_DRIVER_MIN = (2, 4, 0)  # the first with RDMA write
AMAZON_DRIVER = "efa"


class Verdict(enum.Enum):
    """GOOD and NOTE never fail the doctor; WRONG is exit code 1, MISSING is 3."""

    GOOD = "good"
    NOTE = "note"
    MISSING = "missing"
    WRONG = "wrong"


@dataclass(frozen=True)
class Check:
    """One check's outcome. `needed` is set by the purpose that the doctor was asked about."""

    name: str
    verdict: Verdict
    evidence: str
    hint: str = ""
    needed: bool = True

    def with_needed(self, needed: bool) -> Check:
        """The same outcome, counted or not."""
        return replace(self, needed=needed)


def package(machine: Machine) -> Check:
    """Our own compiled parts are there and can be loaded."""
    del machine
    name = "package"
    try:
        plugins = [installed.plugin(abi) for abi in installed.PLUGIN_ABIS]
        installed.find("bin", "nvshmem-efa-pe")
        shim = installed.shim()
    except EfaError as error:
        return Check(name, Verdict.MISSING, str(error), error.hint)
    for path in plugins:
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            return Check(name, Verdict.WRONG, f"{path} cannot be loaded: {error}", "reinstall for this C library")
    abis = ", ".join(str(abi) for abi in installed.PLUGIN_ABIS)
    return Check(name, Verdict.GOOD, f"plugins for ABI {abis} in {shim.parent}")


def environment(machine: Machine) -> Check:
    """NVSHMEM_EFA_* variables are known and in range."""
    name = "settings"
    try:
        warnings = settings.check()
    except EfaError as error:
        return Check(name, Verdict.WRONG, str(error), error.hint)
    if warnings:
        return Check(name, Verdict.WRONG, "; ".join(warnings), "`nvshmem-efa env` lists all settings")
    ours = sorted(entry for entry in machine.env if entry.startswith(settings.PREFIX))
    return Check(name, Verdict.GOOD, f"{len(ours)} set: {', '.join(ours)}" if ours else "none set, all defaults")


def shared_memory(machine: Machine) -> Check:
    """The software device moves data between processes through shared memory (memfd)."""
    name = "shared memory"
    error = machine.shared_memory_error(SHARED_MEMORY_BYTES)
    amount = f"{SHARED_MEMORY_BYTES >> 20} MiB of anonymous shared memory"
    if error is not None:
        hint = "free memory, raise the container's memory limit, or lower NVSHMEM_EFA_SOFT_RING_BYTES"
        return Check(name, Verdict.WRONG, f"no {amount}: {error.strerror}", hint)
    return Check(name, Verdict.GOOD, f"{amount} could be had")


def cuda(machine: Machine) -> Check:
    """A CUDA driver with at least one GPU."""
    name = "CUDA GPUs"
    count = machine.gpu_count()
    if count is None:
        return Check(
            name, Verdict.MISSING, "libcuda.so.1 cannot be loaded", "install NVIDIA's driver; the demo needs none"
        )
    if count == 0:
        return Check(name, Verdict.MISSING, "the driver shows no GPU", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
    return Check(name, Verdict.GOOD, f"{count} GPU(s)")


def nvshmem_library(machine: Machine) -> Check:
    """NVIDIA's NVSHMEM is installed."""
    name = "NVSHMEM"
    found = find_nvshmem(machine.env)
    if found is None:
        hint = "pip install 'nvshmem-efa[cu13]' (or [cu12]), or set NVSHMEM_EFA_NVSHMEM_HOME"
        return Check(name, Verdict.MISSING, "no libnvshmem_host.so.3 in site-packages or system folders", hint)
    return Check(name, Verdict.GOOD, f"{found.version or 'unknown version'} at {found.home} (by {found.found_by})")


def nvshmem_abi(machine: Machine) -> Check:
    """There is a plugin of ours for the ABI that this NVSHMEM speaks."""
    name = "plugin ABI"
    found = find_nvshmem(machine.env)
    if found is None:
        return Check(name, Verdict.MISSING, "no NVSHMEM, so no ABI to match")
    known = [abi for abi in found.plugin_abis if abi in installed.PLUGIN_ABIS]
    if not known:
        seen = ", ".join(map(str, found.plugin_abis)) or "none"
        ours = ", ".join(map(str, installed.PLUGIN_ABIS))
        return Check(
            name, Verdict.WRONG, f"NVSHMEM has transports of ABI {seen}; ours are {ours}", "see docs/install.md"
        )
    return Check(name, Verdict.GOOD, f"ABI {known[-1]}; NVSHMEM's own transports: {', '.join(found.transports)}")


def selection(machine: Machine) -> Check:
    """NVSHMEM_REMOTE_TRANSPORT asks for us."""
    name = "selection"
    value = machine.env.get("NVSHMEM_REMOTE_TRANSPORT", "")
    if value.lower() == "efa":
        return Check(name, Verdict.GOOD, "NVSHMEM_REMOTE_TRANSPORT=efa")
    if "NVSHMEM_EFA_SELECTED" in machine.env:
        return Check(name, Verdict.GOOD, f"asked for by a parent process (the variable now says {value or 'nothing'})")
    hint = "set NVSHMEM_REMOTE_TRANSPORT=efa, or start the program with `nvshmem-efa run`"
    return Check(name, Verdict.NOTE, f"NVSHMEM_REMOTE_TRANSPORT is {value or 'not set'}", hint)


def memlock(machine: Machine) -> Check:
    """Registered memory is locked memory."""
    name = "locked memory"
    limit = machine.memlock()
    if limit == -1:
        return Check(name, Verdict.GOOD, "no limit")
    evidence = f"at most {limit >> 10} KiB"
    if limit < MEMLOCK_MIN:
        return Check(name, Verdict.WRONG, evidence, "ulimit -l unlimited (containers: --ulimit memlock=-1)")
    return Check(name, Verdict.NOTE, evidence, "registering a large heap may need ulimit -l unlimited")


def verbs_libraries(machine: Machine) -> Check:
    """libibverbs and libefa, which the verbs provider loads at run time."""
    name = "verbs libraries"
    missing = [soname for soname in ("libibverbs.so.1", "libefa.so.1") if not machine.can_load(soname)]
    if missing:
        hint = "install rdma-core (AWS's EFA installer brings one that is new enough)"
        return Check(name, Verdict.MISSING, f"cannot be loaded: {', '.join(missing)}", hint)
    return Check(name, Verdict.GOOD, "libibverbs.so.1 and libefa.so.1 can be loaded")


def efa_devices(machine: Machine) -> Check:
    """Devices of the efa driver; those of other drivers are named, since they are skipped."""
    name = "EFA devices"
    nics = machine.nics()
    ours = [nic for nic in nics if nic.driver == AMAZON_DRIVER]
    others = ", ".join(f"{nic.name} ({nic.driver})" for nic in nics if nic.driver != AMAZON_DRIVER)
    if not ours:
        evidence = f"none; other RDMA devices: {others}" if others else "no RDMA device in /sys/class/infiniband"
        return Check(name, Verdict.MISSING, evidence, "use an instance type with EFA, or NVSHMEM_EFA_MODE=soft")
    evidence = ", ".join(f"{nic.name} (NUMA {nic.numa_node})" for nic in ours)
    evidence += f"; driver {ours[0].driver_version}" + (f"; skipped: {others}" if others else "")
    version = _version_tuple(ours[0].driver_version)
    if version and version < EFA_DRIVER_MIN:
        wanted = ".".join(map(str, EFA_DRIVER_MIN))
        return Check(name, Verdict.WRONG, evidence, f"update the efa driver to {wanted} or newer for RDMA write")
    return Check(name, Verdict.GOOD, evidence)


def device_files(machine: Machine) -> Check:
    """The device files that libibverbs opens; containers often lack them."""
    name = "device files"
    if not any(nic.driver == AMAZON_DRIVER for nic in machine.nics()):
        return Check(name, Verdict.MISSING, "no EFA device, so no device file to look for")
    folder = machine.root / "dev/infiniband"
    files = sorted(entry.name for entry in folder.glob("uverbs*")) if folder.is_dir() else []
    if not files:
        hint = "give the container the devices: --device /dev/infiniband, or the EFA device plugin of Kubernetes"
        return Check(name, Verdict.MISSING, "no /dev/infiniband/uverbs*", hint)
    return Check(name, Verdict.GOOD, ", ".join(files))


def peer_mapping(machine: Machine) -> Check:
    """Whether a GPU may map a device's doorbells, which `direct` needs and the other modes do not."""
    name = "peer mapping"
    text = machine.read("/proc/driver/nvidia/params")
    if text is None:
        return Check(name, Verdict.NOTE, "no /proc/driver/nvidia/params", "only mode direct needs it")
    for line in text.splitlines():
        if line.startswith("RegistryDwords:") and "PeerMappingOverride=1" in line.replace(" ", ""):
            return Check(name, Verdict.GOOD, "PeerMappingOverride=1")
    hint = "for mode direct: options nvidia NVreg_RegistryDwords=PeerMappingOverride=1"
    return Check(name, Verdict.NOTE, "PeerMappingOverride is not set", hint)


def _version_tuple(text: str) -> tuple[int, ...] | None:
    numbers = text.rstrip("g").split(".")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else None
