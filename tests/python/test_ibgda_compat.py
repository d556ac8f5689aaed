# SPDX-License-Identifier: Apache-2.0
"""The stand-in for DeepEP's device header compiles as its kernels use it, and refuses what it cannot keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvrtc_library import Library

from nvshmem_efa.nvrtc import CompileError

ROOT = Path(__file__).resolve().parent.parent.parent
COMPAT = ROOT / "deep_ep_patched" / "compat"
SOURCE = (ROOT / "tests" / "gpu" / "ibgda_compat_compile.cu").read_text()
# DeepEP builds its extension as C++17.
OPTIONS = ["--std=c++17", f"--include-path={ROOT / 'transport_efa' / 'include'}", f"--include-path={COMPAT}"]
PLAIN_WRITE = "nvshmemi_ibgda_rma_p(sync + me, -1, pe, 0);"


@pytest.mark.parametrize("major", (12, 13))
@pytest.mark.parametrize("arch", ("sm_90a", "sm_100a"))
def test_kernels_in_deepeps_shape_compile(arch: str, major: int) -> None:
    image = Library(major).compile(SOURCE, "ibgda_compat_compile.cu", [f"--gpu-architecture={arch}", *OPTIONS])
    assert image[:4] == b"\x7fELF"


def test_a_write_with_an_immediate_is_refused_when_it_is_compiled() -> None:
    assert PLAIN_WRITE in SOURCE
    with_immediate = SOURCE.replace(PLAIN_WRITE, PLAIN_WRITE.replace("pe, 0", "pe, 0, 7u"))
    with pytest.raises(CompileError, match="deleted"):
        Library(12).compile(with_immediate, "with_immediate.cu", ["--gpu-architecture=compute_90a", *OPTIONS])
