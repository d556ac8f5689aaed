# SPDX-License-Identifier: Apache-2.0
"""The GPU executor's kernels compile for the GPUs we serve, with both versions of NVRTC, and are found by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nvrtc_library import Library

ROOT = Path(__file__).resolve().parent.parent.parent
CSRC = ROOT / "deep_ep_patched" / "csrc"
SOURCES = sorted((CSRC / "kernels").glob("*.cu"))
INCLUDES = [f"--include-path={folder}" for folder in (ROOT / "transport_efa" / "include", CSRC)]
# To PTX: the rest is the assembler's time, which `nvshmem-efa warmup` spends where the kernels run.
TARGETS = [(12, "compute_90a"), (13, "compute_100a")]


def symbols() -> dict[str, str]:
    """Kernel source to the name that the host looks up."""
    text = (CSRC / "ep_gpu_launch.h").read_text() + (CSRC / "ep_normal_gpu.h").read_text()
    found = re.findall(r'k(Normal)?(\w+)Symbol = "(\w+)"', text)
    return {f"{'normal' if mode else 'll'}_{kind.lower()}": name for mode, kind, name in found}


@pytest.mark.parametrize(("major", "target"), TARGETS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_kernel_compiles_and_has_the_name_that_the_host_looks_up(source: Path, major: int, target: str) -> None:
    options = [f"--gpu-architecture={target}", "--std=c++20", *INCLUDES]
    image = Library(major).compile(source.read_text(), source.name, options)
    assert f".visible .entry {symbols()[source.stem]}(".encode() in image


def test_profilers_find_one_kernel_of_each_kind() -> None:
    # DeepEP's tests look for "::dispatch" and "::combine" among the first characters of demangled names; another kernel
    # with one of these words in its name would be taken for it.
    names = symbols()
    assert names["ll_dispatch"].startswith("_ZN11nvshmem_efa2ep8dispatchE")
    assert names["ll_combine"].startswith("_ZN11nvshmem_efa2ep7combineE")
    assert not re.search("dispatch|combine", names["ll_reset"], re.IGNORECASE)
