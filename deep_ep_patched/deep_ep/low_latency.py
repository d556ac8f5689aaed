# SPDX-License-Identifier: Apache-2.0
"""Low-latency mode: small batches, each call in two halves (send, receive) if the caller wants."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref, c_int64, c_void_p
from typing import Any, TypeAlias

import torch

from deep_ep import checks, events, native
from deep_ep.events import EventOverlap
from deep_ep.modes import Mode
from deep_ep.native import pointer

HIDDEN_SIZES = (2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192)
TOPK_MAX = 11
SCALE_BLOCK = 128  # values that share one scale
BF16, FP8, FP8_ROUND, FP8_UE8M0 = range(4)  # enum ep_ll_format
Handle: TypeAlias = tuple[torch.Tensor, torch.Tensor, int, int, int]
Hook: TypeAlias = Callable[[], None]
Args: TypeAlias = native.LowLatencyDispatchArgs | native.LowLatencyCombineArgs


def size_hint(max_tokens: int, hidden: int, num_ranks: int, num_experts: int) -> int:
    """Bytes of `num_rdma_bytes` that low-latency mode needs: never less than upstream's figure, a multiple of 128.

    M tokens at most a rank, `hidden` values a token.
    """
    for name, value in (("num_max_dispatch_tokens_per_rank", max_tokens), ("hidden", hidden),
                        ("num_ranks", num_ranks), ("num_experts", num_experts)):  # fmt: skip
        checks.integer(name, value, at_least=1)
    checks.divides("num_experts", num_experts, "num_ranks", num_ranks)
    dispatch_message = 16 + max(2 * hidden, hidden + 4 * (hidden // SCALE_BLOCK))
    combine_message = 4 * (hidden // SCALE_BLOCK) + 2 * hidden
    slots = num_experts * max_tokens
    send = max(max_tokens * dispatch_message, slots * combine_message)
    receive = slots * max(dispatch_message, combine_message)
    signals = -(-4 * num_experts // 128) * 128
    upstream = (2 * (send + receive + signals) // 128 + 1) * 128  # strictly up
    needed = int(native.library().ep_ll_bytes(max_tokens, hidden, num_ranks, num_experts))
    return max(upstream, -(-needed // 128) * 128)


class LowLatencyMode(Mode):
    """The calls of a Buffer in low-latency mode."""

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Makes the buffer ready for low-latency calls after others have used it. Collective."""
        self._low_latency("clean_low_latency_buffer")
        self._sizes(num_max_dispatch_tokens_per_rank, hidden, num_experts)
        self._exchange.call("ep_ll_clean", num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, torch.Tensor, Handle, EventOverlap, Any]:
        """Sends tokens to the experts' ranks. Collective. x bf16 [T, H], topk_idx int64 [T, K], T <= M; -1: no expert.

        Returns (recv_x [El, R*M, H], packed for each local expert; bf16, or (fp8, scales); recv_count int32 [El];
        handle; event; hook). Scales are float32 [El, R*M, H/128], or with `use_ue8m0` four exponents to an int32
        [El, R*M, H/512], and lie column-major. With `return_recv_hook` only the sending half has run; `hook()`
        receives, and results are valid after it. The statistics are added to: int32 [El] tokens, int64 [R] nanoseconds
        waited for each source.
        """
        self._low_latency("low_latency_dispatch")
        max_tokens = num_max_dispatch_tokens_per_rank
        x = self._tensor("x", x, torch.bfloat16, ("T", "H"))
        n_tokens, hidden = x.shape
        local = self._sizes(max_tokens, hidden, num_experts)
        checks.integer("T, the rows of x", n_tokens, at_most=max_tokens)
        topk_idx = self._low_latency_topk(topk_idx, n_tokens)
        kind = _format(use_fp8, round_scale, use_ue8m0)
        hook_wanted = _hook_wanted(async_finish, return_recv_hook)
        stats = self._stats(
            "cumulative_local_expert_recv_stats", cumulative_local_expert_recv_stats, torch.int32, local
        )
        waits = self._stats(
            "dispatch_wait_recv_cost_stats", dispatch_wait_recv_cost_stats, torch.int64, self.group_size
        )

        rows = self.group_size * max_tokens
        recv_x = self._empty((local, rows, hidden), torch.float8_e4m3fn if kind else torch.bfloat16)
        scales = self._scales(kind, local, rows, hidden)
        source_info = self._empty((2, local, rows), torch.int32)
        layout_range = self._empty((local, self.group_size), torch.int64)
        recv_count = self._empty((local,), torch.int32)
        arguments = native.LowLatencyDispatchArgs(
            format=kind, n_tokens=n_tokens, hidden=hidden, n_topk=topk_idx.shape[1], max_tokens=max_tokens,
            n_experts=num_experts, x=pointer(x), topk_idx=pointer(topk_idx), recv_x=pointer(recv_x),
            recv_scales=pointer(scales), recv_src_info=pointer(source_info), recv_layout_range=pointer(layout_range),
            recv_count=pointer(recv_count), cumulative_stats=pointer(stats), wait_stats=pointer(waits),
        )  # fmt: skip
        keep = (x, topk_idx, recv_x, scales, source_info, layout_range, recv_count, stats, waits)
        hook = self._run("ep_ll_dispatch", arguments, keep, hook_wanted)
        handle: Handle = (source_info[0], layout_range, max_tokens, hidden, num_experts)
        data = recv_x if scales is None else (recv_x, scales.transpose(1, 2))
        return data, recv_count, handle, events.finish(async_finish, keep), hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Handle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Any]:
        """Brings the experts' rows back and adds them up by weight. Collective.

        x bf16 [El, R*M, H], rows as recv_x had them (`zero_copy`: they were written to the tensor of
        get_next_low_latency_combine_buffer, and x is only looked at for its shape); topk_idx int64 and topk_weights
        float32 [T, K] of the tokens that were dispatched. Returns (bf16 [T, H], which is `out` if given: the float32
        sum of weight times row over the choices in order, rounded once; event; hook). `use_logfmt` sends bf16, which
        loses less.
        """
        self._low_latency("low_latency_combine")
        source_info, layout_range, max_tokens, hidden, n_experts = self._handle(handle)
        if checks.flag("use_logfmt", use_logfmt) and checks.flag("zero_copy", zero_copy):
            raise ValueError("use_logfmt and zero_copy are True, at most one of them may be")
        local = n_experts // self.group_size
        rows = (local, self.group_size * max_tokens, hidden)
        x = checks.tensor("x", x, torch.bfloat16, rows, self.device, contiguous=not zero_copy)
        topk_idx = self._low_latency_topk(topk_idx, "T")
        n_tokens, n_topk = topk_idx.shape
        checks.integer("T, the rows of topk_idx", n_tokens, at_most=max_tokens)
        topk_weights = self._tensor("topk_weights", topk_weights, torch.float32, (n_tokens, n_topk))
        hook_wanted = _hook_wanted(async_finish, return_recv_hook)
        waits = self._stats("combine_wait_recv_cost_stats", combine_wait_recv_cost_stats, torch.int64, self.group_size)
        shape = (n_tokens, hidden)
        combined = (
            self._empty(shape, torch.bfloat16) if out is None else self._tensor("out", out, torch.bfloat16, shape)
        )
        arguments = native.LowLatencyCombineArgs(
            n_tokens=n_tokens, hidden=hidden, n_topk=n_topk, max_tokens=max_tokens, n_experts=n_experts,
            zero_copy=int(zero_copy), x=pointer(x), topk_idx=pointer(topk_idx), topk_weights=pointer(topk_weights),
            recv_src_info=pointer(source_info), recv_layout_range=pointer(layout_range), combined_x=pointer(combined),
            wait_stats=pointer(waits),
        )  # fmt: skip
        keep = (x, topk_idx, topk_weights, source_info, layout_range, combined, waits)
        hook = self._run("ep_ll_combine", arguments, keep, hook_wanted)
        return combined, events.finish(async_finish, keep), hook

    def get_next_low_latency_combine_buffer(self, handle: Handle) -> torch.Tensor:
        """bf16 [El, R*M, H], with gaps between rows: where to write the rows of a combine that then has zero_copy.

        Call it between the dispatch and its combine.
        """
        self._low_latency("get_next_low_latency_combine_buffer")
        _, _, max_tokens, hidden, n_experts = self._handle(handle)
        base, of_expert, of_row = c_void_p(), c_int64(), c_int64()
        self._exchange.call(
            "ep_ll_combine_buffer", max_tokens, hidden, n_experts, byref(base), byref(of_expert), byref(of_row)
        )
        shape = (n_experts // self.group_size, self.group_size * max_tokens, hidden)
        n_values = (shape[0] - 1) * of_expert.value + (shape[1] - 1) * of_row.value + hidden
        memory = self._exchange.window(int(base.value or 0), n_values * torch.bfloat16.itemsize)
        flat = memory.tensor(memory.address, torch.bfloat16, (n_values,))
        return flat.as_strided(shape, (of_expert.value, of_row.value, 1))

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Leaves a rank out of what follows (`mask` True), or takes it in again. Needs enable_shrink."""
        self._shrinkable("low_latency_update_mask_buffer")
        rank = checks.integer("rank_to_mask", rank_to_mask, 0, self.group_size - 1)
        self._exchange.call("ep_ll_mask", rank, int(checks.flag("mask", mask)))

    def low_latency_query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """Fills int32 [R]: 1 for each rank that is left out. Needs enable_shrink."""
        self._shrinkable("low_latency_query_mask_buffer")
        status = self._tensor("mask_status", mask_status, torch.int32, (self.group_size,))
        self._exchange.call("ep_ll_masked", pointer(status))

    def low_latency_clean_mask_buffer(self) -> None:
        """Takes all ranks in again. Needs enable_shrink."""
        self._shrinkable("low_latency_clean_mask_buffer")
        self._exchange.call("ep_ll_unmask_all")

    def _run(self, name: str, arguments: Args, keep: tuple[object, ...], hook_wanted: bool) -> Hook | None:
        """Both halves at once, or the sending one now and the receiving one by the hook. `keep` lives as long."""
        exchange = self._exchange
        arguments.phases = native.SEND if hook_wanted else native.SEND | native.RECV
        exchange.call(name, byref(arguments))
        if not hook_wanted:
            return None
        pending = [(arguments, keep)]

        def hook() -> None:
            """Receives. May be called once."""
            if not pending:
                raise RuntimeError(f"the hook of this {name.replace('ep_ll_', 'low_latency_')} was called before")
            received, _ = pending[0]
            received.phases = native.RECV
            exchange.call(name, byref(received))
            pending.clear()

        return hook

    def _low_latency(self, name: str) -> None:
        if not self.low_latency_mode:
            raise RuntimeError(f"{name} needs low_latency_mode, which this Buffer was made without")

    def _shrinkable(self, name: str) -> None:
        self._low_latency(name)
        if not self.enable_shrink:
            raise RuntimeError(f"{name} needs enable_shrink, which this Buffer was made without")

    def _sizes(self, max_tokens: object, hidden: int, num_experts: object) -> int:
        """Experts of this rank, when the sizes are such that the buffer can hold them."""
        most = checks.integer("num_max_dispatch_tokens_per_rank", max_tokens, at_least=1)
        local = self._local_experts("num_experts", num_experts)
        if hidden not in HIDDEN_SIZES:
            raise ValueError(f"hidden (H) is {hidden}, must be one of {', '.join(map(str, HIDDEN_SIZES))}")
        if self.group_size * most % 4:
            raise ValueError(
                f"num_max_dispatch_tokens_per_rank is {most}, must be a multiple of 4 when multiplied by the ranks,"
                f" of which there are {self.group_size}"
            )
        needed = int(native.library().ep_ll_bytes(most, hidden, self.group_size, local * self.group_size))
        if needed > self.num_rdma_bytes:
            raise ValueError(
                f"num_rdma_bytes is {self.num_rdma_bytes}, must be at least {needed} for {most} tokens of {hidden}"
                f" values and {num_experts} experts; hint: Buffer.get_low_latency_rdma_size_hint"
            )
        return local

    def _low_latency_topk(self, topk_idx: object, n_tokens: int | str) -> torch.Tensor:
        found = self._tensor("topk_idx", topk_idx, torch.int64, (n_tokens, "K"))
        checks.integer("K of topk_idx", found.shape[1], 1, TOPK_MAX)
        return found

    def _stats(self, name: str, value: object, dtype: torch.dtype, length: int) -> torch.Tensor | None:
        return None if value is None else self._tensor(name, value, dtype, (length,))

    def _scales(self, kind: int, local: int, rows: int, hidden: int) -> torch.Tensor | None:
        """Row-major with the rows innermost, so that the view which the caller gets is column-major."""
        if kind == BF16:
            return None
        if kind == FP8_UE8M0:
            return self._empty((local, hidden // (4 * SCALE_BLOCK), rows), torch.int32)
        return self._empty((local, hidden // SCALE_BLOCK, rows), torch.float32)

    def _handle(self, handle: object) -> Handle:
        """The five parts of a handle; the first with both of its planes."""
        if not isinstance(handle, (tuple, list)) or len(handle) != 5:
            kind = f"a {type(handle).__name__}" + (f" of {len(handle)}" if isinstance(handle, (tuple, list)) else "")
            raise TypeError(f"handle is {kind}, must be the handle that low_latency_dispatch returned")
        max_tokens, hidden, n_experts = (
            checks.integer(f"handle[{index}]", handle[index], at_least=1) for index in (2, 3, 4)
        )
        local = self._sizes(max_tokens, hidden, n_experts)
        plane = (local, self.group_size * max_tokens)
        first = self._tensor("handle[0]", handle[0], torch.int32, plane)
        layout_range = self._tensor("handle[1]", handle[1], torch.int64, (local, self.group_size))
        planes = (2, *plane)
        if first.storage_offset() or first.untyped_storage().nbytes() < 2 * first.numel() * first.element_size():
            raise ValueError("handle[0] is a copy, must be the tensor that low_latency_dispatch returned")
        both = first.as_strided(planes, (first.numel(), plane[1], 1))
        return both, layout_range, max_tokens, hidden, n_experts


def _format(use_fp8: object, round_scale: object, use_ue8m0: object) -> int:
    fp8, rounds, exponents = (
        checks.flag(name, value)
        for name, value in (("use_fp8", use_fp8), ("round_scale", round_scale), ("use_ue8m0", use_ue8m0))
    )
    if exponents and not rounds:
        raise ValueError("use_ue8m0 is True, must be False without round_scale")
    if not fp8:
        if exponents:
            raise ValueError("use_ue8m0 is True, must be False without use_fp8")
        return BF16
    return FP8_UE8M0 if exponents else FP8_ROUND if rounds else FP8


def _hook_wanted(async_finish: object, return_recv_hook: object) -> bool:
    wanted = checks.flag("return_recv_hook", return_recv_hook)
    if checks.flag("async_finish", async_finish) and wanted:
        raise ValueError("async_finish and return_recv_hook are True, at most one of them may be")
    return wanted
