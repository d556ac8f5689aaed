# SPDX-License-Identifier: Apache-2.0
"""The wheel that was installed, and how it is built: one for every Python, from a compiler alone, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from nvshmem_efa import installed

ROOT = Path(__file__).resolve().parent.parent.parent
HEADERS = {path.name for path in (ROOT / "transport_efa" / "include" / "nvshmem_efa").glob("*.*h")}
PACKAGES = ROOT / "deep_ep_patched"
DEEP_EP = {str(path.relative_to(PACKAGES)) for path in PACKAGES.glob("deep_ep/**/*.py")}
KERNELS = {path.name for path in (ROOT / "transport_efa" / "kernels").glob("*.cu")}
EP_SOURCES = [*(ROOT / "deep_ep_patched" / "csrc" / "kernels").glob("*.cu"),
              *(ROOT / "deep_ep_patched" / "csrc").glob("*.*h")]  # fmt: skip


def contents() -> set[str]:
    return {str(path) for path in metadata.files("nvshmem-efa") or []}


def is_editable() -> bool:
    return not any(name.startswith("nvshmem_efa/lib/") for name in contents())


pytestmark = pytest.mark.skipif(is_editable(), reason="an editable install has no wheel contents; pip install . first")


def test_one_wheel_serves_every_python_3() -> None:
    wheel = metadata.distribution("nvshmem-efa").read_text("WHEEL") or ""
    tags = re.findall(r"^Tag: (\S+)$", wheel, flags=re.MULTILINE)
    assert tags
    assert all(re.fullmatch(r"py3-none-(many)?linux\w+", tag) for tag in tags), tags


def test_the_wheel_holds_plugins_programs_headers_kernels_and_types() -> None:
    expected = {f"nvshmem_efa/lib/nvshmem_transport_efa_abi{abi}.so" for abi in installed.PLUGIN_ABIS}
    expected |= {"nvshmem_efa/lib/libnvshmem_efa.so", "nvshmem_efa/lib/libnvshmem_efa_shim.so"}
    expected |= {"nvshmem_efa/bin/nvshmem-efa-pe", "nvshmem_efa/bin/nvshmem-efa-bench-host", "nvshmem_efa/py.typed"}
    expected |= {"nvshmem_efa/bin/nvshmem-efa-bench-transport", "nvshmem_efa/lib/libnvshmem_efa_bench.so"}
    expected |= {"nvshmem_efa/kernels/bench_bodies.h"}
    expected |= {f"nvshmem_efa/include/nvshmem_efa/{name}" for name in HEADERS}
    expected |= {f"nvshmem_efa/kernels/{name}" for name in KERNELS}
    expected |= {f"nvshmem_efa/kernels/deep_ep/{path.name}" for path in EP_SOURCES}
    expected |= {"nvshmem_efa/lib/libnvshmem_efa_ep.so", "deep_ep/py.typed", *DEEP_EP}
    assert expected <= contents()


def test_the_wheel_holds_nothing_of_the_build() -> None:
    odd = [name for name in contents() if re.search(r"\.(o|a|cmake|ninja)$|CMakeFiles|(^|/)tests/|/fake", name)]
    assert odd == []
    tops = {name.split("/")[0] for name in contents() if not name.startswith("..")}
    assert tops <= {"nvshmem_efa", "deep_ep", f"nvshmem_efa-{metadata.version('nvshmem-efa')}.dist-info"}


def test_the_programs_can_be_started() -> None:
    program = installed.find("bin", "nvshmem-efa-pe")
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert metadata.version("nvshmem-efa") in done.stdout


def test_the_libraries_need_nothing_but_the_c_and_c_plus_plus_runtime() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not there")
    ours = {path.name for path in installed.library().parent.iterdir()}
    system = re.compile(r"(libc|libm|libdl|libpthread|librt|libstdc\+\+|libgcc_s|ld-linux[\w-]*)\.so\.\d+")
    for path in installed.library().parent.glob("*.so"):
        dynamic = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
        foreign = [name for name in needed if name not in ours and not system.fullmatch(name)]
        assert foreign == [], path.name


@pytest.mark.parametrize("abi", installed.PLUGIN_ABIS)
def test_a_plugin_has_the_soname_that_nvshmem_asks_for(abi: int) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not there")
    dynamic = subprocess.run(["readelf", "-d", str(installed.plugin(abi))], capture_output=True, text=True).stdout
    assert f"[nvshmem_transport_libfabric.so.{abi}]" in dynamic


def test_the_runtime_dependencies_are_few_and_the_extras_are_there() -> None:
    requires = metadata.requires("nvshmem-efa") or []
    plain = {re.split(r"[<>=!; ]", entry)[0] for entry in requires if "extra ==" not in entry}
    assert plain == {"click", "rich"}
    extras = set(metadata.metadata("nvshmem-efa").get_all("Provides-Extra") or [])
    assert {"cu12", "cu13", "gpu", "test", "dev"} <= extras
    assert any(re.match(r"torch\b.*extra == .deep.ep", entry) for entry in requires)


def test_the_build_downloads_nothing() -> None:
    files = [ROOT / "CMakeLists.txt", *ROOT.glob("*/**/CMakeLists.txt"), *ROOT.glob("*/**/*.cmake")]
    files = [path for path in files if path.relative_to(ROOT).parts[0] not in ("build", ".venv")]
    words = re.compile(r"FetchContent|ExternalProject|file\s*\(\s*DOWNLOAD|https?://", flags=re.IGNORECASE)
    assert [str(path) for path in files if words.search(path.read_text())] == []


def test_the_project_configures_without_a_network(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cmake = shutil.which("cmake", path=f"{Path(request.config.invocation_params.dir)}") or shutil.which("cmake")
    isolated = ["unshare", "--user", "--map-root-user", "--net"]
    if cmake is None or shutil.which("unshare") is None or subprocess.run([*isolated, "true"]).returncode != 0:
        pytest.skip("no way to cut off the network here (unshare), or no cmake on PATH")
    done = subprocess.run([*isolated, cmake, "-S", str(ROOT), "-B", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
