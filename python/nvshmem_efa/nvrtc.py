# SPDX-License-Identifier: Apache-2.0
"""NVRTC, NVIDIA's compiler for kernels at run time, through cuda-python. It needs no GPU and no driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nvshmem_efa.errors import EfaError, MissingError

HINT = "pip install 'nvshmem-efa[cu13]' (or [cu12]) brings cuda-python and NVRTC"
TEXT_BYTES_MAX = 1 << 26  # an image or log larger than this is no kernel of ours


class CompileError(EfaError):
    """NVRTC refused a source; the message holds its log."""


class Compiler(Protocol):
    """One version of NVRTC."""

    @property
    def version(self) -> tuple[int, int]:
        """For instance (12, 9)."""

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        """The cubin; a CompileError where the compiler finds fault. `name` appears in its messages."""


class CudaPython:
    """NVRTC as cuda-python finds it: in a wheel, beside torch, or in the system's CUDA."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import nvrtc
        except ImportError as error:
            raise MissingError(f"kernels cannot be compiled without cuda-python: {error}", HINT) from None
        self._nvrtc: Any = nvrtc
        major, minor = self._call(nvrtc.nvrtcVersion)
        self.version: tuple[int, int] = (major, minor)

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        api = self._nvrtc
        (program,) = self._call(api.nvrtcCreateProgram, source.encode(), name.encode(), 0, [], [])
        try:
            (code,) = api.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
            if code != api.nvrtcResult.NVRTC_SUCCESS:
                log = self._text(program, api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog)
                raise compile_error(
                    name, options, self.version, log.rstrip(b"\0").decode(errors="replace") or code.name
                )
            return self._text(program, api.nvrtcGetCUBINSize, api.nvrtcGetCUBIN)
        finally:
            api.nvrtcDestroyProgram(program)

    def _text(self, program: object, size_of: Callable[..., Any], get: Callable[..., Any]) -> bytes:
        (size,) = self._call(size_of, program)
        if not 0 <= size <= TEXT_BYTES_MAX:
            raise EfaError(f"NVRTC gives {size} bytes for one kernel", "another version of NVRTC")
        buffer = bytes(size + 2)  # NVRTC writes into it: never one of Python's shared one-byte objects
        self._call(get, program, buffer)
        return buffer[:size]

    def _call(self, function: Callable[..., Any], *args: object) -> list[Any]:
        """What the call gives back beside its status."""
        try:
            code, *values = function(*args)
        except RuntimeError as error:  # cuda-python looks for the library at the first call
            raise MissingError(f"NVRTC cannot be loaded: {_first_line(error)}", HINT) from None
        if code != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise EfaError(f"{function.__name__} failed with {code.name}", "another version of NVRTC")
        return list(values)


def compile_error(name: str, options: Sequence[str], version: tuple[int, int], log: str) -> CompileError:
    """The same words whichever way NVRTC was called."""
    hint = "the log names the line; report it if the source is this package's own"
    if "invalid value for --gpu-architecture" in log:
        hint = "a GPU newer than this NVRTC needs a newer one"
    return CompileError(
        f"{name} does not compile with NVRTC {version[0]}.{version[1]} and {' '.join(options)}:\n{log.strip()}", hint
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
