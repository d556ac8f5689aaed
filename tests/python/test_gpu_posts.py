# SPDX-License-Identifier: Apache-2.0
"""nvshmem_efa.device_state(): what a caller gets, from a C API that a test can put in its place."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

import nvshmem_efa
from nvshmem_efa import errors, gpu_posts, installed


class MadeUpLibrary:
    """Answers as nvshmem_efa_device_state() and nvshmem_efa_last_error() do."""

    def __init__(self, code: int, text: str = "") -> None:
        self.code = code

        class LastError:
            restype: object = None

            def __call__(self, _: None) -> bytes:
                assert self.restype is ctypes.c_char_p, "a C string"
                return text.encode()

        self.nvshmem_efa_last_error = LastError()

    def nvshmem_efa_device_state(self, address: object, version: object, size: object) -> int:
        address._obj.value = 0x7F0000001000 if self.code == 0 else None  # type: ignore[attr-defined]
        version._obj.value, size._obj.value = 1, 200  # type: ignore[attr-defined]
        return self.code


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[MadeUpLibrary], None]:
    def put(library: MadeUpLibrary) -> None:
        monkeypatch.setattr(installed, "library", lambda: Path("/nowhere/libnvshmem_efa.so"))
        monkeypatch.setattr(gpu_posts.ctypes, "CDLL", lambda _: library)

    return put


def test_the_state_is_an_address_with_version_and_size(made_up: Callable[[MadeUpLibrary], None]) -> None:
    made_up(MadeUpLibrary(0))
    assert nvshmem_efa.device_state() == gpu_posts.DeviceState(0x7F0000001000, 1, 200)


@pytest.mark.parametrize(
    ("code", "kind"), [(2, errors.ConfigError), (3, errors.MissingError), (5, errors.ConfigError), (14, errors.EfaError)]
)
def test_a_failure_is_an_error_of_its_kind_with_its_hint(
    made_up: Callable[[MadeUpLibrary], None], code: int, kind: type
) -> None:
    made_up(MadeUpLibrary(code, "there is no device state; hint: set NVSHMEM_EFA_GPU_QUEUES"))
    with pytest.raises(errors.EfaError) as caught:
        nvshmem_efa.device_state()
    assert type(caught.value) is kind
    assert str(caught.value) == "there is no device state"
    assert caught.value.hint == "set NVSHMEM_EFA_GPU_QUEUES"
