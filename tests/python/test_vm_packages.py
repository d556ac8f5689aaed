# SPDX-License-Identifier: Apache-2.0
"""What a guest is made of: the pinned packages, the archive, the kernel's modules. Without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

VM_DIR = Path(__file__).resolve().parent.parent / "vm"
sys.path.insert(0, str(VM_DIR))

from efa_vm.archive import Archive, Mirror, find_mirror  # noqa: E402
from efa_vm.cpio import CpioWriter  # noqa: E402
from efa_vm.errors import EXIT_MISSING, EXIT_USAGE, VmError  # noqa: E402
from efa_vm.modules import collect  # noqa: E402
from efa_vm.pins import Group, Pin, read_groups  # noqa: E402


def test_the_pinned_packages_are_well_formed() -> None:
    groups = read_groups()
    assert {"qemu", "kernel", "driver-build", "driver-source", "guest-65", "guest-56"} <= set(groups)
    kernels = {groups[name].packages[0].version for name in ("kernel", "driver-build", "driver-source")}
    assert len(kernels) == 1, f"image, headers and source of one kernel: {kernels}"
    for version in ("65", "56"):
        pins = {pin.name: pin for pin in groups[f"guest-{version}"].packages}
        source = groups[f"rdma-core-source-{version}"].source
        assert source is not None and pins["python3-pyverbs"].version == source.version
        assert pins["ibverbs-providers"].accepts == f"{version}."
    assert not groups["kernel"].wants("systemd") and groups["guest-65"].wants("perftest")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a]\nsuites = x\npackages =\n  p 1.0\n", "expected NAME VERSION ACCEPTS"),
        ("[a]\nsuites = x\npackages =\n  p 1.0 2.\n", "does not begin with 2."),
        ("[a]\nsuites = x\n", "needs suites, and either packages or a source"),
        ("[a]\nsuites = x\npakcages =\n  p 1.0 1.\n", "unknown key pakcages"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_bad_list_of_packages_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "packages").write_text(text)
    with pytest.raises(VmError, match=told) as error:
        read_groups(tmp_path / "packages")
    assert error.value.exit_code == EXIT_USAGE


def test_modules_come_in_the_order_that_they_load_in(tmp_path: Path) -> None:
    base = tmp_path / "usr/lib/modules/1.0"
    base.mkdir(parents=True)
    (base / "modules.builtin").write_text("kernel/virtio.ko\n")
    depends = {"ib_core": "", "ib_uverbs_support": "ib_core", "ib_uverbs": "ib_core,ib_uverbs_support"}
    depends |= {"ib_umad": "ib_core", "rdma_ucm": "ib_core", "virtio_net": "virtio", "virtio_blk": ""}
    for name, needs in depends.items():
        (base / f"{name.replace('_', '-')}.ko").write_bytes(b"\0depends=" + needs.encode() + b"\0")
    (tmp_path / "efa.ko").write_bytes(b"\0depends=ib_core\0")
    files = collect(tmp_path, "1.0", tmp_path / "efa.ko")
    lines = dict(line.split(":") for line in files["modules.dep"].decode().splitlines())
    # modprobe begins at a line's end: what the others stand on is last.
    assert lines["ib_uverbs.ko"].split() == ["ib_uverbs_support.ko", "ib_core.ko"]
    assert lines["virtio_net.ko"].split() == []
    (base / "rdma-ucm.ko").unlink()
    with pytest.raises(VmError, match="kernel module rdma_ucm is not in"):
        collect(tmp_path, "1.0", tmp_path / "efa.ko")


@pytest.mark.skipif(not Path("/usr/bin/cpio").exists(), reason="needs the program cpio")
def test_cpio_reads_what_we_write(tmp_path: Path) -> None:
    with (tmp_path / "archive").open("wb") as out:
        archive = CpioWriter(out)
        archive.file("a/b/file", b"hello", 0o755)
        archive.link("a/link", "b/file")
        archive.close()
    (tmp_path / "out").mkdir()
    command = ["cpio", "-i", "--quiet", "-F", str(tmp_path / "archive")]
    subprocess.run(command, cwd=tmp_path / "out", check=True, timeout=20)
    assert (tmp_path / "out/a/link").read_bytes() == b"hello"
    assert os.access(tmp_path / "out/a/b/file", os.X_OK)


@pytest.fixture
def archive_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Archive]:
    """An archive whose apt-cache lists the given versions of a package called tool."""

    def make(*versions: str) -> Archive:
        rows = "".join(f"tool | {version} | mirror sid/main amd64 Packages\\n" for version in versions)
        (tmp_path / "apt-cache").write_text(f"#!/bin/sh\nprintf '{rows}'\n")
        (tmp_path / "apt-cache").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr("efa_vm.archive.find_mirror", lambda: Mirror("a mirror", "a key"))
        return Archive(tmp_path, ("sid",))

    return make


def test_a_version_that_left_the_archive_is_replaced_within_bounds_and_said(
    archive_with: Callable[..., Archive], capsys: pytest.CaptureFixture[str]
) -> None:
    pin = Pin("tool", "65.0-1", "65.")
    group = Group("guest", ("sid",), (pin,), None, (), (), ())
    assert archive_with("65.0-2", "65.0-1").choose(group, pin, False) == "65.0-1"
    assert capsys.readouterr().err == ""
    assert archive_with("66.0-1", "65.1-1").choose(group, pin, False) == "65.1-1"
    assert "warning: tool 65.0-1 is gone from sid: going on with 65.1-1" in capsys.readouterr().err
    with pytest.raises(VmError, match=r"tool: version 65.0-1 is pinned, the archive has 66.0-1 in sid") as error:
        archive_with("66.0-1").choose(group, pin, False)
    assert error.value.exit_code == EXIT_MISSING and "[guest]" in error.value.hint
    with pytest.raises(VmError, match="the archive has none in sid"):
        archive_with().choose(group, pin, False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "deb [signed-by={key}] http://mirror.example/debian stable main\n"),
        ("sources.list.d/a.sources", "Types: deb\nURIs: http://mirror.example/debian\nSuites: stable\n"
         "Components: main\nSigned-By: {key}\n"),
    ],
)  # fmt: skip
def test_the_mirror_is_the_systems_own(tmp_path: Path, name: str, text: str) -> None:
    key = tmp_path / "key.gpg"
    key.touch()
    (tmp_path / "sources.list.d").mkdir()
    other = "deb [signed-by={key}] http://mirror.example/other stable main\n"
    (tmp_path / "sources.list.d" / "0.list").write_text(other.format(key=key))
    (tmp_path / name).write_text(text.format(key=key))
    assert find_mirror(tmp_path) == Mirror("http://mirror.example/debian", str(key))
    (tmp_path / name).unlink()
    with pytest.raises(VmError, match="no source of Debian packages"):
        find_mirror(tmp_path)
