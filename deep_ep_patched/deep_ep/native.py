# SPDX-License-Identifier: Apache-2.0
"""csrc/ep_api.h by ctypes: the structs, the functions, and their errors as exceptions."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from deep_ep.errors import ExchangeError

LIBRARY_NAME = "libnvshmem_efa_ep.so"
SEND, RECV = 1, 2

AllGather = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, c_void_p, c_void_p, c_int64)


class Sized(ctypes.Structure):
    """A struct of the API: its first field is its own size, which the library checks."""

    def __init__(self, **fields: object) -> None:
        names = {name for name, *_ in self._fields_}
        unknown = fields.keys() - names
        if unknown:
            raise AttributeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        super().__init__(bytes=ctypes.sizeof(self), **fields)


def _fields(text: str) -> Sequence[tuple[str, Any]]:
    """Fields as the header lists them: "i32 a b; ptr c" after the size."""
    kinds = {"i32": c_int32, "i64": c_int64, "ptr": c_void_p}
    found: list[tuple[str, Any]] = [("bytes", c_uint32)]
    for group in text.split(";"):
        kind, *names = group.split()
        found += [(name, kinds[kind]) for name in names]
    return found


class Options(Sized):
    _fields_ = _fields(
        "i32 rank n_ranks nvlink_ranks low_latency nvlink_for_ll arrivals workers;"
        "i64 nvl_bytes rdma_bytes timeout_ms; i32 enable_shrink executor"
    )


class LayoutArgs(Sized):
    _fields_ = _fields(
        "i32 n_tokens n_topk n_experts n_ranks; ptr topk_idx tokens_per_rank tokens_per_expert is_token_in_rank"
    )


class NotifyArgs(Sized):
    _fields_ = _fields(
        "i32 n_tokens n_experts n_channels expert_alignment;"
        "ptr tokens_per_rank tokens_per_expert is_token_in_rank rank_prefix_matrix channel_prefix_matrix send_head"
        " recv_tokens_per_expert; i32 n_recv"
    )


class DispatchArgs(Sized):
    _fields_ = _fields(
        "i32 n_tokens n_recv row_bytes n_scales scale_bytes; i64 scale_stride_token scale_stride_value;"
        "i32 n_topk n_experts n_channels n_worst n_ranks;"
        "ptr x scales topk_idx topk_weights is_token_in_rank send_head rank_prefix_matrix channel_prefix_matrix"
        " recv_block recv_x recv_scales recv_topk_idx recv_topk_weights recv_src_idx recv_channel_prefix_matrix"
        " rank_prefix_matrix_out"
    )


class CombineArgs(Sized):
    _fields_ = _fields(
        "i32 n_tokens n_recv hidden n_topk n_sms;"
        "ptr x topk_weights bias_0 bias_1 is_token_in_rank send_head rank_prefix_matrix combined_x combined_weights"
    )


class LowLatencyDispatchArgs(Sized):
    _fields_ = _fields(
        "i32 phases format n_tokens hidden n_topk max_tokens n_experts;"
        "ptr x topk_idx recv_x recv_scales recv_src_info recv_layout_range recv_count cumulative_stats wait_stats"
    )


class LowLatencyCombineArgs(Sized):
    _fields_ = _fields(
        "i32 phases n_tokens hidden n_topk max_tokens n_experts zero_copy;"
        "ptr x topk_idx topk_weights recv_src_info recv_layout_range combined_x wait_stats"
    )


STRUCTS = {  # as ep_api.h names them
    "ep_options": Options,
    "ep_layout_args": LayoutArgs,
    "ep_notify_args": NotifyArgs,
    "ep_dispatch_args": DispatchArgs,
    "ep_combine_args": CombineArgs,
    "ep_ll_dispatch_args": LowLatencyDispatchArgs,
    "ep_ll_combine_args": LowLatencyCombineArgs,
}

_I32, _I64 = c_int32, c_int64
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ep_last_error": (c_char_p, (POINTER(ctypes.c_int),)),
    "ep_open": (c_int32, (POINTER(Options), AllGather, c_void_p, POINTER(c_void_p))),
    "ep_close": (c_int32, (c_void_p,)),
    "ep_abandon": (None, (c_void_p,)),
    "ep_barrier": (c_int32, (c_void_p,)),
    "ep_load_kernels": (c_int32, (c_void_p, c_char_p, _I64)),
    "ep_use_stream": (c_int32, (c_void_p, c_void_p)),
    "ep_wait": (c_int32, (c_void_p,)),
    "ep_buffer": (c_int32, (c_void_p, _I32, POINTER(c_void_p), POINTER(_I64))),
    "ep_describe": (c_char_p, (c_void_p,)),
    "ep_stats_json": (c_char_p, (c_void_p,)),
    "ep_place": (c_void_p, (c_void_p, _I64)),
    "ep_unplace": (None, (c_void_p, c_void_p)),
    "ep_layout": (c_int32, (POINTER(LayoutArgs),)),
    "ep_gpu_layout": (c_int32, (c_void_p, POINTER(LayoutArgs))),
    "ep_notify": (c_int32, (c_void_p, POINTER(NotifyArgs))),
    "ep_dispatch_place": (_I64, (POINTER(DispatchArgs),)),
    "ep_dispatch": (c_int32, (c_void_p, POINTER(DispatchArgs))),
    "ep_combine": (c_int32, (c_void_p, POINTER(CombineArgs))),
    "ep_ll_bytes": (_I64, (_I32, _I32, _I32, _I32)),
    "ep_ll_dispatch": (c_int32, (c_void_p, POINTER(LowLatencyDispatchArgs))),
    "ep_ll_combine": (c_int32, (c_void_p, POINTER(LowLatencyCombineArgs))),
    "ep_ll_combine_buffer": (c_int32, (c_void_p, _I32, _I32, _I32, POINTER(c_void_p), POINTER(_I64), POINTER(_I64))),
    "ep_ll_clean": (c_int32, (c_void_p, _I32, _I32, _I32)),
    "ep_ll_mask": (c_int32, (c_void_p, _I32, _I32)),
    "ep_ll_masked": (c_int32, (c_void_p, c_void_p)),
    "ep_ll_unmask_all": (c_int32, (c_void_p,)),
}


def library_path() -> Path:
    """The library beside the installed nvshmem_efa, or DEEP_EP_LIBRARY. FileNotFoundError says where it was sought."""
    named = os.environ.get("DEEP_EP_LIBRARY")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("nvshmem_efa")  # found, not imported: its import may switch NVSHMEM's transport
    folders = [Path(folder) / "lib" for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / LIBRARY_NAME).exists():
            return folder / LIBRARY_NAME
    looked = ", ".join(map(str, folders)) or "no installed nvshmem_efa"
    raise FileNotFoundError(
        f"{LIBRARY_NAME} is not there (looked in {looked})"
        "; hint: pip install the package, or set DEEP_EP_LIBRARY to the file of a build"
    )


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once. Its functions release the GIL while they run."""
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise ExchangeError(f"{path} cannot be loaded: {error}; hint: reinstall the package on this machine") from None
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name, None)
        if function is None:
            raise ExchangeError(f"{path} has no {name}; hint: the package and the library are of different versions")
        function.restype = result
        function.argtypes = arguments
    return loaded


def last_error() -> ExchangeError:
    """What this thread's last call said."""
    code = ctypes.c_int(0)
    text = library().ep_last_error(ctypes.byref(code)) or b""
    return ExchangeError(text.decode(errors="replace") or "the library gave no reason", code.value)


def call(name: str, *arguments: object) -> None:
    """Calls a function that returns 0 or an error; ExchangeError has its text."""
    if getattr(library(), name)(*arguments) != 0:
        raise last_error()


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Where a tensor's first element lies; None for no tensor."""
    return None if tensor is None else int(tensor.data_ptr())
