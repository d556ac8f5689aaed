# SPDX-License-Identifier: Apache-2.0
"""A given libnvrtc, by ctypes: cuda-python takes one version a process, and the tests compile with two."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

from nvshmem_efa.nvrtc import compile_error

# CUDA's major version: where its wheel puts NVRTC, below a folder of sys.path.
LIBRARIES = {12: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", 13: "nvidia/cu13/lib/libnvrtc.so.13"}


def library_of(major: int) -> Path:
    for folder in sys.path:
        path = Path(folder or ".") / LIBRARIES[major]
        if path.exists():
            return path
    raise FileNotFoundError(f"no NVRTC {major} in site-packages; hint: pip install '.[test]' brings it")


class Library:
    """nvshmem_efa.nvrtc.Compiler on one library. The architecture is the first option; compute_<N> gives PTX."""

    def __init__(self, major: int) -> None:
        self._library = ctypes.CDLL(str(library_of(major)))
        numbers = ctypes.c_int(0), ctypes.c_int(0)
        self._call("nvrtcVersion", *(ctypes.byref(number) for number in numbers))
        self.version = (numbers[0].value, numbers[1].value)

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        program = ctypes.c_void_p()
        self._call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
        try:
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), array) != 0
            log = self._text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if failed or log:  # warnings are errors in our own tests
                raise compile_error(name, options, self.version, log)
            return self._text(program, "PTX" if "=compute_" in options[0] else "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t(0)
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, name: str, *args: object) -> None:
        code = getattr(self._library, name)(*args)
        assert code == 0, f"{name} failed with {code}"
