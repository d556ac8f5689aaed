# SPDX-License-Identifier: Apache-2.0
"""Modules without host code, from Python. What the library does with them: tests/cpp/test_module_registry.cpp."""

from __future__ import annotations

import ctypes

import pytest

from nvshmem_efa import modules
from nvshmem_efa.errors import EfaError, MissingError


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_nothing_is_registered_in_a_process_without_modules() -> None:
    assert modules.listed() == []


@pytest.mark.skipif(has_driver(), reason="there is a driver here, which takes a made-up handle for a module")
def test_a_module_on_a_machine_without_a_gpu_is_refused_with_a_hint() -> None:
    with pytest.raises(MissingError, match="libcuda") as missing:
        modules.add(0x1000)
    assert missing.value.hint
    assert modules.listed() == []


def test_a_module_that_was_not_added_cannot_be_removed() -> None:
    with pytest.raises(EfaError, match="no module 0x1000 was added"):
        modules.remove(0x1000)
