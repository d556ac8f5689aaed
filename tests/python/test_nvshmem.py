# SPDX-License-Identifier: Apache-2.0
"""Where NVSHMEM is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

from nvshmem_efa.nvshmem import HOST_LIBRARY, find_nvshmem


def install(home: Path, abi: int = 3) -> Path:
    (home / "lib").mkdir(parents=True)
    (home / "lib" / HOST_LIBRARY).touch()
    (home / "lib" / f"nvshmem_transport_ibrc.so.{abi}").touch()
    return home


def test_nothing_is_none(tmp_path: Path) -> None:
    found = find_nvshmem({}, [str(tmp_path)])
    assert found is None or found.found_by == "system folder"


def test_the_wheel_is_found_on_the_python_path(tmp_path: Path) -> None:
    install(tmp_path / "nvidia" / "nvshmem", abi=6)
    found = find_nvshmem({}, [str(tmp_path)])
    assert found is not None
    assert (found.found_by, found.plugin_abis, found.transports) == ("Python package", (6,), ["ibrc"])


def test_our_own_setting_goes_before_nvshmem_home_and_that_before_the_wheel(tmp_path: Path) -> None:
    install(tmp_path / "nvidia" / "nvshmem")
    theirs, ours = install(tmp_path / "theirs"), install(tmp_path / "ours")
    env = {"NVSHMEM_HOME": str(theirs)}
    found = find_nvshmem(env, [str(tmp_path)])
    assert found is not None
    assert found.home == theirs
    found = find_nvshmem({**env, "NVSHMEM_EFA_NVSHMEM_HOME": str(ours)}, [str(tmp_path)])
    assert found is not None
    assert found.home == ours


def test_a_folder_without_the_library_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path / "nvidia" / "nvshmem")
    found = find_nvshmem({"NVSHMEM_HOME": str(tmp_path / "nowhere")}, [str(tmp_path)])
    assert found is not None
    assert found.found_by == "Python package"
