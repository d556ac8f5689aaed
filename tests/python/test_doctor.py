# SPDX-License-Identifier: Apache-2.0
"""The doctor on made-up machines: the right verdict for each, and no false alarm."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from nvshmem_efa import checks
from nvshmem_efa.checks import Verdict
from nvshmem_efa.doctor import Purpose, run_doctor
from nvshmem_efa.errors import ExitCode
from nvshmem_efa.machine import Machine

VERBS = {"libibverbs.so.1": True, "libefa.so.1": True}


class MadeUp:
    """A machine below a folder: devices, device files, NVIDIA's parameters, an NVSHMEM installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env: dict[str, str] = {}

    def add_nic(self, name: str, driver: str, version: str = "2.17.0", numa: int = 0) -> MadeUp:
        device = self.root / "sys/devices" / name
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{numa}\n")
        module = self.root / "sys/module" / driver
        module.mkdir(parents=True, exist_ok=True)
        (module / "version").write_text(version + "\n")
        (device / "driver").symlink_to(module)
        entry = self.root / "sys/class/infiniband" / name
        entry.mkdir(parents=True)
        (entry / "device").symlink_to(device)
        return self

    def add_file(self, path: str, text: str = "") -> MadeUp:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return self

    def add_nvshmem(self, abi: int, version: tuple[int, int, int] | None = (3, 4, 5)) -> MadeUp:
        home = self.root / "nvshmem"
        self.add_file("nvshmem/lib/libnvshmem_host.so.3")
        for name in ("ibrc", "libfabric"):
            self.add_file(f"nvshmem/lib/nvshmem_transport_{name}.so.{abi}")
        if version:
            lines = zip(("MAJOR", "MINOR", "PATCH"), version, strict=True)
            text = "".join(f"#define NVSHMEM_VENDOR_{part}_VERSION {number}\n" for part, number in lines)
            self.add_file("nvshmem/include/non_abi/nvshmem_version.h", text)
        self.env["NVSHMEM_EFA_NVSHMEM_HOME"] = str(home)
        return self

    def machine(self, gpus: int | None = None, memlock: int = -1, libraries: dict[str, bool] | None = None) -> Machine:
        loadable = VERBS if libraries is None else libraries
        return Machine(self.root, loadable=loadable, cuda_devices=gpus, memlock_bytes=memlock, env=self.env)


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def test_two_efa_devices_are_good_and_others_are_named_as_skipped(made_up: MadeUp) -> None:
    made_up.add_nic("rdmap86s0", "efa", numa=1).add_nic("rdmap87s0", "efa").add_nic("mlx5_0", "mlx5_core")
    check = checks.efa_devices(made_up.machine())
    assert check.verdict is Verdict.GOOD
    assert "rdmap86s0 (NUMA 1), rdmap87s0 (NUMA 0)" in check.evidence
    assert "skipped: mlx5_0 (mlx5_core)" in check.evidence


def test_other_makers_devices_alone_are_no_efa(made_up: MadeUp) -> None:
    check = checks.efa_devices(made_up.add_nic("mlx5_0", "mlx5_core").machine())
    assert check.verdict is Verdict.MISSING
    assert "mlx5_0 (mlx5_core)" in check.evidence


def test_no_rdma_device_at_all_hints_at_the_software_device(made_up: MadeUp) -> None:
    check = checks.efa_devices(made_up.machine())
    assert check.verdict is Verdict.MISSING
    assert "NVSHMEM_EFA_MODE=soft" in check.hint


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        ("2.3.9", Verdict.WRONG),
        ("1.16.0g", Verdict.WRONG),
        ("2.4.0", Verdict.GOOD),
        ("2.10.0g", Verdict.GOOD),
        ("3.3.0", Verdict.GOOD),
        ("built-in", Verdict.GOOD),
    ],
)
def test_an_efa_driver_without_rdma_write_is_too_old(made_up: MadeUp, version: str, verdict: Verdict) -> None:
    assert checks.efa_devices(made_up.add_nic("efa0", "efa", version).machine()).verdict is verdict


def test_device_files_are_needed_where_there_is_a_device(made_up: MadeUp) -> None:
    made_up.add_nic("efa0", "efa")
    without = checks.device_files(made_up.machine())
    assert without.verdict is Verdict.MISSING
    assert "--device" in without.hint
    assert checks.device_files(made_up.add_file("dev/infiniband/uverbs0").machine()).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("params", "verdict"),
    [
        ('EnableMSI: 1\nRegistryDwords: "PeerMappingOverride=1;"\n', Verdict.GOOD),
        ('RegistryDwords: "Other=2;PeerMappingOverride=1;"\n', Verdict.GOOD),
        ('RegistryDwords: ""\n', Verdict.NOTE),
        ('RegistryDwords: "PeerMappingOverride=0;"\n', Verdict.NOTE),
    ],
)
def test_peer_mapping_is_read_from_the_driver_s_parameters(made_up: MadeUp, params: str, verdict: Verdict) -> None:
    check = checks.peer_mapping(made_up.add_file("proc/driver/nvidia/params", params).machine())
    assert check.verdict is verdict


def test_a_missing_library_is_named(made_up: MadeUp) -> None:
    check = checks.verbs_libraries(made_up.machine(libraries={"libibverbs.so.1": True}))
    assert check.verdict is Verdict.MISSING
    assert "libefa.so.1" in check.evidence
    assert "libibverbs" not in check.evidence
    assert checks.verbs_libraries(made_up.machine()).verdict is Verdict.GOOD


@pytest.mark.parametrize(("limit", "verdict"), [(-1, Verdict.GOOD), (8 << 20, Verdict.WRONG), (16 << 30, Verdict.NOTE)])
def test_a_low_limit_of_locked_memory_is_wrong(made_up: MadeUp, limit: int, verdict: Verdict) -> None:
    assert checks.memlock(made_up.machine(memlock=limit)).verdict is verdict


@pytest.mark.parametrize(("gpus", "verdict"), [(0, Verdict.MISSING), (1, Verdict.GOOD), (8, Verdict.GOOD)])
def test_gpus_are_counted(made_up: MadeUp, gpus: int, verdict: Verdict) -> None:
    assert checks.cuda(made_up.machine(gpus=gpus)).verdict is verdict


def test_no_cuda_driver_is_told_apart_from_no_gpu(made_up: MadeUp) -> None:
    assert "libcuda.so.1" in checks.cuda(made_up.machine()).evidence


def test_nvshmem_is_found_with_version_and_abi(made_up: MadeUp) -> None:
    machine = made_up.add_nvshmem(6, (3, 7, 2)).machine()
    assert "3.7.2" in checks.nvshmem_library(machine).evidence
    abi = checks.nvshmem_abi(machine)
    assert abi.verdict is Verdict.GOOD
    assert "ABI 6" in abi.evidence
    assert "ibrc, libfabric" in abi.evidence


def test_an_nvshmem_that_is_newer_than_we_know_is_wrong_by_number(made_up: MadeUp) -> None:
    check = checks.nvshmem_abi(made_up.add_nvshmem(9).machine())
    assert check.verdict is Verdict.WRONG
    assert "ABI 9" in check.evidence


def test_nvshmem_without_headers_has_an_unknown_version(made_up: MadeUp) -> None:
    assert "unknown version" in checks.nvshmem_library(made_up.add_nvshmem(3, None).machine()).evidence


@pytest.mark.parametrize(
    ("env", "verdict"),
    [
        ({"NVSHMEM_REMOTE_TRANSPORT": "efa"}, Verdict.GOOD),
        ({"NVSHMEM_REMOTE_TRANSPORT": "libfabric", "NVSHMEM_EFA_SELECTED": "1"}, Verdict.GOOD),
        ({"NVSHMEM_REMOTE_TRANSPORT": "ibrc"}, Verdict.NOTE),
        ({}, Verdict.NOTE),
    ],
)
def test_selection_reads_the_variable_and_the_marker(made_up: MadeUp, env: dict[str, str], verdict: Verdict) -> None:
    made_up.env.update(env)
    assert checks.selection(made_up.machine()).verdict is verdict


def test_a_p5en_with_everything_is_ready_for_efa(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVSHMEM_EFA_MODE", raising=False)
    made_up.add_nic("rdmap86s0", "efa").add_file("dev/infiniband/uverbs0").add_nvshmem(6)
    report = run_doctor(made_up.machine(gpus=8), Purpose.EFA)
    assert [check.name for check in report.checks if check.verdict in (Verdict.MISSING, Verdict.WRONG)] == []
    assert report.exit_code == ExitCode.GOOD


def test_no_shared_memory_is_wrong_with_the_reason(made_up: MadeUp) -> None:
    assert checks.shared_memory(made_up.machine()).verdict is Verdict.GOOD
    machine = made_up.machine()
    machine.shared_memory_errno = errno.ENOMEM
    check = checks.shared_memory(machine)
    assert check.verdict is Verdict.WRONG
    assert "Cannot allocate memory" in check.evidence


def test_what_the_purpose_does_not_need_is_shown_but_does_not_count(made_up: MadeUp) -> None:
    report = run_doctor(made_up.machine(libraries={}), Purpose.DEMO)
    assert report.exit_code == ExitCode.GOOD
    assert any(check.verdict is Verdict.MISSING and not check.needed for check in report.checks)
    assert run_doctor(made_up.machine(libraries={}), Purpose.EFA).exit_code == ExitCode.MISSING


def test_wrong_counts_more_than_missing(made_up: MadeUp) -> None:
    made_up.add_nvshmem(9)
    report = run_doctor(made_up.machine(libraries={}), Purpose.GPU)
    verdicts = {check.verdict for check in report.checks if check.needed}
    assert {Verdict.WRONG, Verdict.MISSING} <= verdicts
    assert report.exit_code == ExitCode.FAILED


def test_every_finding_that_is_not_good_has_a_hint_or_follows_from_one(made_up: MadeUp) -> None:
    report = run_doctor(made_up.machine(libraries={}), Purpose.EFA)
    for check in report.checks:
        assert check.evidence
        assert check.verdict is Verdict.GOOD or check.hint or check.evidence.startswith("no ")


def test_json_holds_every_check(made_up: MadeUp) -> None:
    report = json.loads(run_doctor(made_up.machine(libraries={}), Purpose.GPU).to_json())
    assert report["schema"] == "nvshmem-efa-doctor/1"
    assert report["exit_code"] in (1, 3)
    assert {"name", "verdict", "evidence", "hint", "needed"} <= set(report["checks"][0])
