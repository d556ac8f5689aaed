# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""Cases of what needs no second rank: names, configurations, events, settings, checks, helpers."""

from __future__ import annotations

import ctypes
import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from oracle import same
from rank_processes import Job
from settings_scope import environment, raises

import deep_ep
from deep_ep import native, settings
from deep_ep.utils import math as ep_math

HEADER = Path(__file__).resolve().parents[2] / "deep_ep_patched" / "csrc" / "ep_api.h"


class Communicator:
    """A communicator whose other ranks never come."""

    def __init__(self, size: int = 4) -> None:
        self._size = size

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return self._size

    def allgather(self, sendobj: bytes) -> list[bytes]:
        raise ConnectionError("nobody is there")


def case_the_package_has_the_names_that_programs_import(job: Job) -> None:
    import deep_ep.utils.envs
    import deep_ep.utils.event
    import deep_ep.utils.math
    import deep_ep.utils.testing

    for name in ("Buffer", "Config", "EventOverlap", "EventHandle", "topk_idx_t", "__version__"):
        assert hasattr(deep_ep, name), name
    assert not hasattr(deep_ep, "ElasticBuffer"), "vLLM takes its presence for V2"
    assert deep_ep.topk_idx_t is torch.int64
    assert deep_ep.utils.EventOverlap is deep_ep.EventOverlap
    assert deep_ep.utils.EventHandle is deep_ep.EventHandle
    assert deep_ep.utils.event.EventOverlap is deep_ep.EventOverlap
    for module, names in {
        deep_ep.utils.envs: ("init_dist", "init_seed", "dist_print"),
        deep_ep.utils.math: ("calc_diff", "per_token_cast_to_fp8", "per_token_cast_back", "align"),
        deep_ep.utils.testing: ("bench", "bench_kineto"),
    }.items():
        for name in names:
            assert callable(getattr(module, name)), name


def case_signatures_are_those_of_the_interface(job: Job) -> None:
    expected = {
        "__init__": "group num_nvl_bytes=0 num_rdma_bytes=0 low_latency_mode=False num_qps_per_rank=24 "
        "allow_nvlink_for_low_latency_mode=True allow_mnnvl=False explicitly_destroy=False enable_shrink=False "
        "comm=None",
        "get_local_buffer_tensor": "dtype size=None offset=0 use_rdma_buffer=False",
        "get_dispatch_layout": "topk_idx num_experts previous_event=None async_finish=False "
        "allocate_on_comm_stream=False",
        "dispatch": "x handle=None num_tokens_per_rank=None num_tokens_per_rdma_rank=None is_token_in_rank=None "
        "num_tokens_per_expert=None topk_idx=None topk_weights=None expert_alignment=1 num_worst_tokens=0 config=None "
        "previous_event=None async_finish=False allocate_on_comm_stream=False",
        "combine": "x handle topk_weights=None bias=None config=None previous_event=None async_finish=False "
        "allocate_on_comm_stream=False",
        "clean_low_latency_buffer": "num_max_dispatch_tokens_per_rank hidden num_experts",
        "low_latency_dispatch": "x topk_idx num_max_dispatch_tokens_per_rank num_experts "
        "cumulative_local_expert_recv_stats=None dispatch_wait_recv_cost_stats=None use_fp8=True round_scale=False "
        "use_ue8m0=False async_finish=False return_recv_hook=False",
        "low_latency_combine": "x topk_idx topk_weights handle use_logfmt=False zero_copy=False async_finish=False "
        "return_recv_hook=False out=None combine_wait_recv_cost_stats=None",
        "get_next_low_latency_combine_buffer": "handle",
        "low_latency_update_mask_buffer": "rank_to_mask mask=False",
        "low_latency_query_mask_buffer": "mask_status",
        "low_latency_clean_mask_buffer": "",
        "get_low_latency_rdma_size_hint": "num_max_dispatch_tokens_per_rank hidden num_ranks num_experts",
        "destroy": "", "get_comm_stream": "",
    }  # fmt: skip
    for name, text in expected.items():
        parameters = [
            p for p in inspect.signature(getattr(deep_ep.Buffer, name)).parameters.values() if p.name != "self"
        ]
        shown = " ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters)
        assert shown == text, f"{name}: {shown}"


def case_arguments_of_forks_are_refused_by_name(job: Job) -> None:
    for method, name in (("low_latency_dispatch", "use_nvfp4"), ("low_latency_dispatch", "x_global_scale"),
                         ("low_latency_combine", "overlap"), ("low_latency_combine", "src_signals")):  # fmt: skip
        with raises(TypeError, name):
            getattr(deep_ep.Buffer, method)(None, **{name: True})


def case_structs_are_those_of_the_header(job: Job) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    kinds = {"uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
    structs = dict(re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, re.DOTALL))
    assert structs.keys() == native.STRUCTS.keys()
    for name, body in structs.items():
        found: list[tuple[str, Any]] = []
        for declaration in filter(None, (line.strip() for line in body.split(";"))):
            kind, names = re.fullmatch(r"(?:const )?(\w+)\s*(.*)", declaration, re.DOTALL).groups()  # type: ignore[union-attr]
            for one in names.split(","):
                is_pointer = "*" in one
                found.append((one.strip(" *"), ctypes.c_void_p if is_pointer else kinds[kind]))
        bound = [field[:2] for field in native.STRUCTS[name]._fields_]
        found = [(mine[0], kind) if mine[0] == "reserved" else (field, kind)
                 for (field, kind), mine in zip(found, bound, strict=True)]  # fmt: skip
        assert found == bound, name


def case_every_function_that_is_bound_is_in_the_header(job: Job) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    functions = dict(re.findall(r"^EP_API [\w* ]*?(ep_\w+)\((.*?)\);", text, re.MULTILINE | re.DOTALL))
    assert native.SIGNATURES.keys() <= functions.keys()
    for name in native.SIGNATURES:
        arguments = functions[name]
        n_arguments = len([one for one in arguments.split(",") if one.strip() != "void"])
        assert n_arguments == len(native.SIGNATURES[name][1]), name
        assert getattr(native.library(), name)


def case_a_config_checks_its_numbers(job: Job) -> None:
    config = deep_ep.Config(num_sms=24, num_max_nvl_chunked_send_tokens=8, num_max_nvl_chunked_recv_tokens=256)
    assert config.num_channels == 12
    assert deep_ep.Config().num_sms == 20
    for arguments, words in (
        ((-2,), ("num_sms", "-2", "at least 0")),
        ((20, 0), ("num_max_nvl_chunked_send_tokens", "0")),
        ((20, 6, 6), ("num_max_nvl_chunked_send_tokens is 6", "below", "recv")),
        ((20, 6, 256, 0), ("num_max_rdma_chunked_send_tokens",)),
        ((20, 6, 256, 6, 6), ("num_max_rdma_chunked_send_tokens is 6", "half")),
    ):
        with raises(ValueError, *words):
            deep_ep.Config(*arguments)
    deep_ep.Config(20, 6, 256, 6, 11)  # 11 is rounded up to 12, of which 6 is half
    with raises(TypeError, "num_sms", "float"):
        deep_ep.Config(2.5)  # type: ignore[arg-type]
    with raises(ValueError, "num_sms is 23", "even"):
        _ = deep_ep.Config(23).num_channels


def case_buffer_sizes_are_multiples_of_128_and_grow(job: Job) -> None:
    config = deep_ep.Config(24, 8, 256)
    for n_ranks in (2, 4, 8, 16, 64):
        sizes = [config.get_nvl_buffer_size_hint(hidden * 2, n_ranks) for hidden in (2048, 7168)]
        assert all(size % 128 == 0 for size in sizes)
        assert sizes[1] > sizes[0] > min(n_ranks, 8) * 12 * 256 * 4096
    assert config.get_rdma_buffer_size_hint(14336, 8) == 0
    assert config.get_rdma_buffer_size_hint(14336, 16) % 128 == 0
    assert config.get_rdma_buffer_size_hint(14336, 32) > config.get_rdma_buffer_size_hint(14336, 16) > 0
    with raises(ValueError, "num_ranks is 12"):
        config.get_nvl_buffer_size_hint(14336, 12)


def case_default_configs_are_there_for_the_known_sizes(job: Job) -> None:
    for n_ranks in (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160):
        for config in (deep_ep.Buffer.get_dispatch_config(n_ranks), deep_ep.Buffer.get_combine_config(n_ranks)):
            assert config.num_sms == deep_ep.Buffer.num_sms
            slots = config.num_max_nvl_chunked_recv_tokens // max(1, n_ranks // 8)
            assert n_ranks <= 8 or slots > max(
                config.num_max_nvl_chunked_send_tokens, config.num_max_rdma_chunked_send_tokens
            )
    config = deep_ep.Buffer.get_dispatch_config(2)
    assert (config.num_max_nvl_chunked_send_tokens, config.num_max_nvl_chunked_recv_tokens) == (24, 256)
    for wrong in (1, 3, 12, 161):
        with raises(AssertionError, f"{wrong} ranks", "hint: pass config"):
            deep_ep.Buffer.get_dispatch_config(wrong)
    deep_ep.Buffer.set_num_sms(8)
    assert deep_ep.Buffer.get_combine_config(4).num_sms == 8
    deep_ep.Buffer.set_num_sms(20)
    with raises(AssertionError, "new_num_sms is 3", "even"):
        deep_ep.Buffer.set_num_sms(3)


def case_events_wait_once_and_run_their_hooks(job: Job) -> None:
    event = deep_ep.Buffer.capture()
    calls: list[int] = []
    event.register_hook_after_wait(lambda: calls.append(1))
    with event as inside:
        assert inside is event
        assert calls == []
    assert calls == [1]
    event.current_stream_wait()
    assert calls == [1]
    event.extra_tensors = (torch.ones(1),)
    with event(release_handle=True):
        assert event.event is not None
    assert event.event is None
    assert event.extra_tensors is None
    with event:
        pass  # without an event there is nothing to wait for
    with raises(AssertionError, "no event", "async_finish"):
        event.current_stream_wait()
    with raises(TypeError, "fn is a int"):
        event.register_hook_after_wait(3)  # type: ignore[arg-type]


def case_settings_come_from_the_environment(job: Job) -> None:
    assert settings.read({}) == settings.Settings()
    read = settings.read({"DEEP_EP_NVLINK_RANKS": "2", "DEEP_EP_TIMEOUT_S": "0.5", "DEEP_EP_ARRIVALS": "Lines",
                          "DEEP_EP_WORKERS": "3", "DEEP_EP_EXECUTOR": ""})  # fmt: skip
    assert read == settings.Settings("auto", 2, 500, "lines", 3)
    assert settings.Settings().domain_of(16) == 8
    assert settings.Settings().domain_of(3) == 3
    for name, value, words in (
        ("EXECUTOR", "tpu", "one of auto, cpu, gpu"), ("ARRIVALS", "luck", "one of auto"),
        ("NVLINK_RANKS", "9", "1 to 8"), ("NVLINK_RANKS", "two", "whole"), ("TIMEOUT_S", "0", "0.01"),
        ("TIMEOUT_S", "nan", "a number"), ("WORKERS", "17", "1 to 16"),
    ):  # fmt: skip
        with raises(ValueError, f"DEEP_EP_{name}", value, words):
            settings.read({f"DEEP_EP_{name}": value})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        settings.read({"DEEP_EP_TIMEOUT": "3"})
    assert "did you mean DEEP_EP_TIMEOUT_S" in str(said[0].message)
    with raises(ValueError, "12 ranks", "domains of 8", "DEEP_EP_NVLINK_RANKS"):
        settings.Settings().domain_of(12)


def case_the_page_lists_every_setting(job: Job) -> None:
    page = HEADER.parents[2] / "docs" / "deep-ep.md"
    listed = re.findall(r"^\| `DEEP_EP_(\w+)` \|", page.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(settings.NAMES)


def case_a_buffer_checks_its_arguments(job: Job) -> None:
    def make(size: int = 4, **arguments: Any) -> Callable[[], deep_ep.Buffer]:
        return lambda: deep_ep.Buffer(None, comm=Communicator(size), **arguments)

    wrong: list[tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = [
        (lambda: deep_ep.Buffer(None), ValueError, ("group", "comm")),
        (lambda: deep_ep.Buffer("world"), TypeError, ("group is a str", "ProcessGroup")),  # type: ignore[arg-type]
        (lambda: deep_ep.Buffer(None, comm=3), TypeError, ("comm is a int", "Get_rank")),  # type: ignore[arg-type]
        (make(num_nvl_bytes=100), ValueError, ("num_nvl_bytes is 100", "multiple of 128")),
        (make(num_nvl_bytes=-128), ValueError, ("num_nvl_bytes is -128",)),
        (make(num_nvl_bytes=1.5), TypeError, ("num_nvl_bytes is a float",)),
        (make(num_rdma_bytes=100, low_latency_mode=True), ValueError, ("num_rdma_bytes is 100",)),
        (make(num_rdma_bytes=128), ValueError, ("num_rdma_bytes is 128", "low_latency_mode")),
        (make(num_nvl_bytes=1 << 31, num_rdma_bytes=128, low_latency_mode=True), ValueError,
         ("num_nvl_bytes", "2147483647")),
        (make(16, num_rdma_bytes=1 << 31), ValueError, ("num_rdma_bytes", "2147483647", "low_latency_mode")),
        (make(12), ValueError, ("12 ranks", "DEEP_EP_NVLINK_RANKS")),
        (make(168), ValueError, ("168 ranks", "at most 160")),
        (make(low_latency_mode=1), TypeError, ("low_latency_mode is a int", "bool")),
        (make(num_qps_per_rank=0), ValueError, ("num_qps_per_rank is 0",)),
        (make(allow_mnnvl=None), TypeError, ("allow_mnnvl is None",)),
        (make(allow_nvlink_for_low_latency_mode=0), TypeError, ("allow_nvlink_for_low_latency_mode",)),
        (make(explicitly_destroy="yes"), TypeError, ("explicitly_destroy is a str",)),
        (make(enable_shrink=2), TypeError, ("enable_shrink is a int",)),
    ]  # fmt: skip
    for call, kind, words in wrong:
        with raises(kind, *words):
            call()


def case_a_group_that_cannot_gather_is_the_cause_of_the_error(job: Job) -> None:
    try:
        deep_ep.Buffer(None, comm=Communicator())
    except deep_ep.ExchangeError as error:
        assert isinstance(error.__cause__, ConnectionError)
        assert "allgather" in str(error)
        return
    raise AssertionError("a Buffer was made without its other ranks")


def case_the_gpu_executor_is_refused_by_name(job: Job) -> None:
    has_gpu = torch.cuda.is_available
    with (
        environment(DEEP_EP_EXECUTOR="gpu"),
        raises(deep_ep.errors.ExchangeError, "DEEP_EP_EXECUTOR=cpu", "DEEP_EP_EXECUTOR=gpu"),
    ):
        deep_ep.Buffer(None, comm=Communicator())
    try:
        for sees_one, executor, is_gpu in ((True, "auto", True), (False, "auto", False), (True, "cpu", False)):
            torch.cuda.is_available = lambda of=sees_one: of  # type: ignore[method-assign]
            assert deep_ep.buffer._is_on_gpu(executor) == is_gpu, f"{executor}, and torch sees a GPU: {sees_one}"
    finally:
        torch.cuda.is_available = has_gpu  # type: ignore[method-assign]


def case_a_library_that_is_not_there_is_named(job: Job) -> None:
    with environment(DEEP_EP_LIBRARY="/nowhere/lib.so"):
        assert str(native.library_path()) == "/nowhere/lib.so"
        native.library.cache_clear()
        try:
            with raises(deep_ep.ExchangeError, "/nowhere/lib.so", "hint:"):
                native.library()
        finally:
            native.library.cache_clear()


def case_the_size_hint_is_upstream_s_or_more(job: Job) -> None:
    hint = deep_ep.Buffer.get_low_latency_rdma_size_hint
    assert hint(128, 7168, 4, 288) == 2_146_961_792
    assert hint(num_max_dispatch_tokens_per_rank=16, hidden=2048, num_ranks=2, num_experts=4) % 128 == 0
    for sizes in ((1, 2048, 2, 2), (16, 2048, 4, 4), (128, 7168, 8, 256), (512, 8192, 8, 8)):
        assert hint(*sizes) >= native.library().ep_ll_bytes(*sizes) > 0
    with raises(ValueError, "num_experts is 7", "num_ranks (2)"):
        hint(16, 2048, 2, 7)


def case_casts_keep_what_fp8_can_hold(job: Job) -> None:
    x = torch.randn(7, 1024).to(torch.bfloat16)
    x[0] = 0
    for options in ({}, {"round_scale": True}, {"round_scale": True, "use_ue8m0": True}):
        data, scales = ep_math.per_token_cast_to_fp8(x, **options)
        assert data.dtype == torch.float8_e4m3fn
        assert scales.shape == ((7, 2) if options.get("use_ue8m0") else (7, 8))
        assert ep_math.calc_diff(ep_math.per_token_cast_back(data, scales), x) < 1e-3
    powers = torch.tensor([[1.0, 2.0, 0.25, 2.0**-40]])
    packed = ep_math.pack_ue8m0(powers)
    assert packed.shape == (1, 1)
    assert int(packed) & 0xFFFFFFFF == 127 | 128 << 8 | 125 << 16 | 87 << 24
    same(ep_math.unpack_ue8m0(packed), powers, "exponents")
    assert ep_math.calc_diff(x, x) == 0
    assert ep_math.calc_diff(x, -x) > 0.1
    assert ep_math.align(129, 128) == 256


def case_routing_helpers_do_what_they_say(job: Job) -> None:
    idx = torch.tensor([[3, 3, 1, -1], [2, 0, 1, 7], [-1, -1, -1, -1]])
    ep_math.inplace_unique(idx, 8)
    assert idx.tolist() == [[3, 1, -1, -1], [0, 1, 2, 7], [-1, -1, -1, -1]]
    scores = ep_math.create_grouped_scores(torch.ones(2, 8), torch.tensor([[0], [3]]), 4)
    assert scores.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]
    x = torch.randn(6, 8)
    assert ep_math.hash_tensor(x) == ep_math.hash_tensor(x.flip(0)) != ep_math.hash_tensor(x + 1)


def case_bench_times_on_the_cpu_and_bench_kineto_needs_a_gpu(job: Job) -> None:
    calls: list[int] = []
    average, least, most = deep_ep.utils.bench(lambda: calls.append(1), num_warmups=2, num_tests=5)
    assert len(calls) == 7
    assert 0 <= least <= average <= most
    with raises(RuntimeError, "needs a GPU"):
        deep_ep.utils.bench_kineto(lambda: None, "dispatch")
