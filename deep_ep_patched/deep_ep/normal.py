# SPDX-License-Identifier: Apache-2.0
"""Normal mode: dispatch and combine of whole batches, each token written once, straight to its final row."""

from __future__ import annotations

from ctypes import byref
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeAlias

import torch

from deep_ep import checks, config, native
from deep_ep.config import Config
from deep_ep.events import EventOverlap
from deep_ep.exchange import Memory
from deep_ep.modes import Mode
from deep_ep.native import pointer

TOPK_MAX = 32
ROW_ALIGNMENT = 16
Data: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
Handle: TypeAlias = tuple[torch.Tensor, ...]
# (Data, indices, weights, list[int], Handle, event); what is there depends on what was given, and callers know that.
Dispatched: TypeAlias = tuple[Any, Any, Any, Any, Any, EventOverlap]


@dataclass(frozen=True)
class _Route:
    """Which token goes to whom, as the handle of a dispatch keeps it."""

    rank_prefix_matrix: torch.Tensor  # int32 [R, R]
    host_matrix: torch.Tensor  # the same in the CPU's memory
    channel_prefix_matrix: torch.Tensor  # int32 [R, C]
    is_token_in_rank: torch.Tensor  # bool [T, R]
    send_head: torch.Tensor  # int32 [T, R]
    n_recv: int

    @property
    def n_tokens(self) -> int:
        return int(self.is_token_in_rank.shape[0])


class NormalMode(Mode):
    """The calls of a Buffer in normal mode."""

    num_sms: ClassVar[int]

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """Counts what a dispatch will send. topk_idx int64 [T, K]; -1: no expert.

        Returns tokens for each rank int32 [R], for each node int32 [N] (None with one node), for each expert int32 [E],
        which token goes to which rank bool [T, R], and the event. A token counts once for a rank and once for a node.
        """
        self._begin(previous_event, async_finish, allocate_on_comm_stream)
        self._local_experts("num_experts", num_experts)
        topk_idx = self._topk_idx(topk_idx, "T")
        n_tokens, n_topk = topk_idx.shape
        per_rank, per_expert = self._zeros(self.group_size), self._zeros(num_experts)
        in_rank = self._exchange.result((n_tokens, self.group_size), torch.bool)
        arguments = native.LayoutArgs(
            n_tokens=n_tokens, n_topk=n_topk, n_experts=num_experts, n_ranks=self.group_size,
            topk_idx=pointer(topk_idx), tokens_per_rank=pointer(per_rank), tokens_per_expert=pointer(per_expert),
            is_token_in_rank=pointer(in_rank),
        )  # fmt: skip
        self._exchange.layout(arguments)
        per_node = None
        if self._n_nodes > 1:
            per_node = self._exchange.result((self._n_nodes,), torch.int32)
            with self._exchange.work():
                by_node = in_rank.view(n_tokens, self._n_nodes, self.group_size // self._n_nodes)
                per_node.copy_(by_node.any(dim=2).sum(dim=0, dtype=torch.int32))
        event = self._exchange.finish(async_finish, topk_idx, per_rank, per_node, per_expert, in_rank)
        return per_rank, per_node, per_expert, in_rank, event

    def dispatch(
        self,
        x: Data,
        handle: Handle | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Dispatched:
        """Sends each token to the ranks that have one of its experts. Collective.

        x: bf16 [T, H], or (fp8 e4m3 [T, H], scales float32 or int32 [T, S] of any strides); a row is a multiple of 16
        bytes. Either the results of get_dispatch_layout, with topk_idx int64 [T, K] and topk_weights float32 [T, K] or
        without both; or the `handle` of an earlier dispatch, whose routes are used again (no topk then).

        Returns (recv_x [n, H] or (recv_x, scales [n, S]), recv_topk_idx [n, K] with the experts of this rank from 0 and
        -1 for others', recv_topk_weights [n, K], tokens for each expert of this rank rounded up to `expert_alignment`,
        handle, event). Rows are ordered by source rank, then by token. With `num_worst_tokens` results have that many
        rows, recv_topk_idx is -1 beyond the last token, and the list is empty. With `handle`: (recv_x, None, None,
        None, None, event).
        """
        self._begin(previous_event, async_finish, allocate_on_comm_stream)
        self._one_domain("dispatch")
        channels = self._config("dispatch", config).num_channels
        rows, scales = self._data(x)
        n_worst = checks.integer("num_worst_tokens", num_worst_tokens, at_least=0)
        if handle is not None:
            for name, value in (("topk_idx", topk_idx), ("topk_weights", topk_weights)):
                checks.absent(value, name, "with a handle")
            if n_worst:
                raise ValueError(f"num_worst_tokens is {n_worst}, must be 0 with a handle")
            route, _ = self._route_of(handle, rows.shape[0], channels)
            sent = _Sent(rows, scales, None, None, 0, channels, 0)
            recv_x, recv_scales, *_ = self._send(sent, route, is_cached=True)
            data = recv_x if recv_scales is None else (recv_x, recv_scales)
            event = self._exchange.finish(async_finish, data, rows, scales, handle)
            return data, None, None, None, None, event
        topk_idx, topk_weights = self._topk(topk_idx, topk_weights, rows.shape[0])
        if n_worst and topk_idx is None:
            raise ValueError(f"num_worst_tokens is {n_worst}, must be 0 without topk_idx and topk_weights")
        counts = self._counts(num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert, rows.shape[0])
        route, per_expert = self._notify(counts, channels, checks.integer("expert_alignment", expert_alignment, 1))
        sent = _Sent(rows, scales, topk_idx, topk_weights, counts[2].numel(), channels, n_worst)
        recv_x, recv_scales, recv_idx, recv_weights, src_idx, recv_channels = self._send(sent, route)
        made: Handle = (route.rank_prefix_matrix, route.channel_prefix_matrix, recv_channels, src_idx,
                        route.is_token_in_rank, route.send_head)  # fmt: skip
        data = recv_x if recv_scales is None else (recv_x, recv_scales)
        used = (rows, scales, topk_idx, topk_weights, counts)
        event = self._exchange.finish(async_finish, data, recv_idx, recv_weights, made, used)
        return data, recv_idx, recv_weights, [] if n_worst else per_expert.tolist(), made, event

    def combine(
        self,
        x: torch.Tensor,
        handle: Handle,
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Brings the rows of a dispatch back to their tokens and adds them up. Collective.

        x bf16 [n, H], rows as recv_x had them; topk_weights float32 [n, K]; bias: one or two bf16 [T, H]. Returns
        (bf16 [T, H]: the float32 sum over the ranks that got the token, in their order, plus the biases, rounded once;
        float32 [T, K]: the sums of topk_weights, or None; event). Weights are not applied to x.
        """
        self._begin(previous_event, async_finish, allocate_on_comm_stream)
        self._one_domain("combine")
        chosen = self._config("combine", config)
        route, n_rows = self._route_of(handle)
        x = self._tensor("x", x, torch.bfloat16, (n_rows, "H"))
        hidden = x.shape[1]
        checks.multiple("the bytes of a row of x", hidden * x.element_size(), ROW_ALIGNMENT)
        n_topk = 0
        if topk_weights is not None:
            n_topk = self._tensor("topk_weights", topk_weights, torch.float32, (n_rows, "K")).shape[1]
            checks.integer("K of topk_weights", n_topk, 1, TOPK_MAX)
        biases = self._biases(bias, (route.n_tokens, hidden))
        combined = self._exchange.result((route.n_tokens, hidden), torch.bfloat16)
        weights = None if topk_weights is None else self._exchange.result((route.n_tokens, n_topk), torch.float32)
        arguments = native.CombineArgs(
            n_tokens=route.n_tokens, n_recv=route.n_recv, hidden=hidden, n_topk=n_topk,
            n_sms=2 * chosen.num_channels,
            x=pointer(x), topk_weights=pointer(topk_weights), bias_0=pointer(biases[0]), bias_1=pointer(biases[1]),
            is_token_in_rank=pointer(route.is_token_in_rank), send_head=pointer(route.send_head),
            rank_prefix_matrix=pointer(route.host_matrix), combined_x=pointer(combined),
            combined_weights=pointer(weights),
        )  # fmt: skip
        self._exchange.call("ep_combine", byref(arguments))
        event = self._exchange.finish(async_finish, x, topk_weights, tuple(biases), combined, weights, tuple(handle))
        return combined, weights, event

    def internode_dispatch(self, *args: object, **kwargs: object) -> NoReturn:
        """Dispatch among several nodes: not there yet."""
        raise _internode("internode_dispatch")

    def internode_combine(self, *args: object, **kwargs: object) -> NoReturn:
        """Combine among several nodes: not there yet."""
        raise _internode("internode_combine")

    @property
    def _n_nodes(self) -> int:
        return self._exchange.get_num_rdma_ranks()

    def _one_domain(self, name: str) -> None:
        if self._n_nodes > 1:
            raise _internode(name)
        if self.group_size < 2:
            raise ValueError(f"{name} needs a group of 2 ranks or more, this one has {self.group_size}")

    def _config(self, kind: str, given: Config | None) -> Config:
        if given is None:
            return config.default(kind, self.group_size, self.num_sms)
        if not isinstance(given, Config):
            raise TypeError(f"config is a {type(given).__name__}, must be a deep_ep.Config")
        return given

    def _data(self, x: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows and their scales; errors name x, x[0] or x[1]."""
        scales = None
        if isinstance(x, (tuple, list)):
            if len(x) != 2:
                raise ValueError(f"x is a tuple of {len(x)}, must be a tensor or (tensor, scales)")
            rows = self._tensor("x[0]", x[0], torch.float8_e4m3fn, ("T", "H"))
            scales = checks.tensor(
                "x[1]", x[1], (torch.float32, torch.int32), (rows.shape[0], "S"), self.device, contiguous=False
            )
            checks.integer("S of x[1]", scales.shape[1], at_least=1)
        else:
            rows = self._tensor("x", x, torch.bfloat16, ("T", "H"))
        checks.integer("H of x", rows.shape[1], at_least=1)
        checks.multiple("the bytes of a row of x", rows.shape[1] * rows.element_size(), ROW_ALIGNMENT)
        return rows, scales

    def _topk_idx(self, topk_idx: object, n_tokens: int | str) -> torch.Tensor:
        found = self._tensor("topk_idx", topk_idx, torch.int64, (n_tokens, "K"))
        checks.integer("K of topk_idx", found.shape[1], 1, TOPK_MAX)
        return found

    def _topk(
        self, topk_idx: torch.Tensor | None, topk_weights: torch.Tensor | None, n_tokens: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if topk_idx is None:
            checks.absent(topk_weights, "topk_weights", "without topk_idx")
            return None, None
        checks.present(topk_weights, "topk_weights", "with topk_idx")
        topk_idx = self._topk_idx(topk_idx, n_tokens)
        return topk_idx, self._tensor("topk_weights", topk_weights, torch.float32, tuple(topk_idx.shape))

    def _counts(
        self,
        per_rank: torch.Tensor | None,
        in_rank: torch.Tensor | None,
        per_expert: torch.Tensor | None,
        n_tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        for name, value in (("num_tokens_per_rank", per_rank), ("is_token_in_rank", in_rank),
                            ("num_tokens_per_expert", per_expert)):  # fmt: skip
            checks.present(value, name, "without a handle; hint: get_dispatch_layout makes it")
        rank = self._tensor("num_tokens_per_rank", per_rank, torch.int32, (self.group_size,))
        inside = self._tensor("is_token_in_rank", in_rank, torch.bool, (n_tokens, self.group_size))
        expert = self._tensor("num_tokens_per_expert", per_expert, torch.int32, ("E",))
        self._local_experts("the length of num_tokens_per_expert", expert.numel())
        return rank, inside, expert

    def _notify(
        self, counts: tuple[torch.Tensor, torch.Tensor, torch.Tensor], channels: int, alignment: int
    ) -> tuple[_Route, torch.Tensor]:
        """All ranks tell each other their counts; with the route come the tokens for each expert of this rank."""
        per_rank, in_rank, per_expert = counts
        n_ranks, n_tokens = self.group_size, in_rank.shape[0]
        matrix = torch.empty((n_ranks, n_ranks), dtype=torch.int32, device="cpu")
        channel_matrix = self._exchange.result((n_ranks, channels), torch.int32)
        send_head = self._exchange.result((n_tokens, n_ranks), torch.int32)
        received = torch.empty((per_expert.numel() // n_ranks,), dtype=torch.int32, device="cpu")
        arguments = native.NotifyArgs(
            n_tokens=n_tokens, n_experts=per_expert.numel(), n_channels=channels, expert_alignment=alignment,
            tokens_per_rank=pointer(per_rank), tokens_per_expert=pointer(per_expert), is_token_in_rank=pointer(in_rank),
            rank_prefix_matrix=pointer(matrix), channel_prefix_matrix=pointer(channel_matrix),
            send_head=pointer(send_head), recv_tokens_per_expert=pointer(received),
        )  # fmt: skip
        self._exchange.call("ep_notify", byref(arguments))
        on_device = matrix
        if self.device.type != "cpu":
            on_device = self._exchange.result((n_ranks, n_ranks), torch.int32)  # the dispatch fills it
            on_device.deep_ep_host = matrix  # type: ignore[attr-defined]
        return _Route(on_device, matrix, channel_matrix, in_rank, send_head, int(arguments.n_recv)), received

    def _route_of(self, handle: object, n_tokens: int | str = "T", channels: int | str = "C") -> tuple[_Route, int]:
        """The route that a handle keeps, and the rows of the dispatch that made it."""
        if not isinstance(handle, (tuple, list)) or len(handle) != 6:
            kind = f"a {type(handle).__name__}" + (f" of {len(handle)}" if isinstance(handle, (tuple, list)) else "")
            raise TypeError(f"handle is {kind}, must be the handle that dispatch returned")
        n_ranks = self.group_size
        matrix = self._tensor("handle[0]", handle[0], torch.int32, (n_ranks, n_ranks))
        kept = self._tensor("handle[1]", handle[1], torch.int32, (n_ranks, "C"))
        if channels not in ("C", kept.shape[1]):
            raise ValueError(
                f"config.num_sms makes {channels} channels, the handle's dispatch had {kept.shape[1]}"
                "; hint: dispatch again with the num_sms of the first time"
            )
        src_idx = self._tensor("handle[3]", handle[3], torch.int32, ("n",))
        in_rank = self._tensor("handle[4]", handle[4], torch.bool, ("T", n_ranks))
        if n_tokens not in ("T", in_rank.shape[0]):
            raise ValueError(f"x has {n_tokens} tokens, the handle's dispatch had {in_rank.shape[0]}")
        send_head = self._tensor("handle[5]", handle[5], torch.int32, tuple(in_rank.shape))
        host = getattr(matrix, "deep_ep_host", None)
        if host is None:  # on a GPU: a copy of a handle, for which all work so far is waited for
            host = matrix.cpu()
        n_recv = int(host[n_ranks - 1, self.rank])
        return _Route(matrix, host, kept, in_rank, send_head, n_recv), int(src_idx.numel())

    def _send(self, sent: _Sent, route: _Route, is_cached: bool = False) -> tuple[Any, ...]:
        """The exchange itself: (recv_x, scales, topk_idx, topk_weights, source indices, channel prefixes).

        By a handle nothing is new but the first two.
        """
        x, scales = sent.x, sent.scales
        n_topk = 0 if sent.topk_idx is None else sent.topk_idx.shape[1]
        n_scales = 0 if scales is None else scales.shape[1]
        is_new_on_gpu = self.device.type != "cpu" and not is_cached
        arguments = native.DispatchArgs(
            n_tokens=x.shape[0], n_recv=route.n_recv, row_bytes=x.shape[1] * x.element_size(),
            n_scales=n_scales, scale_bytes=0 if scales is None else scales.element_size(),
            scale_stride_token=0 if scales is None else scales.stride(0),
            scale_stride_value=0 if scales is None else scales.stride(1),
            n_topk=n_topk, n_experts=sent.n_experts, n_channels=sent.n_channels, n_worst=sent.n_worst,
            n_ranks=self.group_size, x=pointer(x), scales=pointer(scales), topk_idx=pointer(sent.topk_idx),
            topk_weights=pointer(sent.topk_weights), is_token_in_rank=pointer(route.is_token_in_rank),
            send_head=pointer(route.send_head), rank_prefix_matrix=pointer(route.host_matrix),
            channel_prefix_matrix=pointer(route.channel_prefix_matrix),
            rank_prefix_matrix_out=pointer(route.rank_prefix_matrix) if is_new_on_gpu else None,
        )  # fmt: skip
        block = self._place(arguments)
        self._exchange.call("ep_dispatch", byref(arguments))
        rows = sent.n_worst or route.n_recv
        recv_x = block.tensor(arguments.recv_x, x.dtype, (rows, x.shape[1]))
        recv_scales = None if scales is None else block.tensor(arguments.recv_scales, scales.dtype, (rows, n_scales))
        if is_cached:
            return recv_x, recv_scales
        recv_idx = block.tensor(arguments.recv_topk_idx, torch.int64, (rows, n_topk)) if n_topk else None
        weights = block.tensor(arguments.recv_topk_weights, torch.float32, (rows, n_topk)) if n_topk else None
        # Copies: a handle, which lives until the backward pass, must not keep the block of all rows.
        src_idx = self._copy(block.tensor(arguments.recv_src_idx, torch.int32, (rows,)))
        channels = (self.group_size, sent.n_channels)
        recv_channels = self._copy(block.tensor(arguments.recv_channel_prefix_matrix, torch.int32, channels))
        return recv_x, recv_scales, recv_idx, weights, src_idx, recv_channels

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        made = self._exchange.result(tuple(tensor.shape), tensor.dtype)
        with self._exchange.work():
            return made.copy_(tensor)

    def _zeros(self, n: int) -> torch.Tensor:
        made = self._exchange.result((n,), torch.int32)
        with self._exchange.work():
            return made.zero_()

    def _place(self, arguments: native.DispatchArgs) -> Memory:
        """Room for the results, which peers are told of. They wait for this rank by now: a failure is theirs, too."""
        place = native.library().ep_dispatch_place
        try:
            if 0 < arguments.n_worst < arguments.n_recv:
                raise ValueError(
                    f"num_worst_tokens is {arguments.n_worst}, must be at least {arguments.n_recv}: so many came"
                    "; hint: the sum of all ranks' tokens is always enough"
                )
            n_bytes = place(byref(arguments))
            if n_bytes < 0:
                raise native.last_error()
            block = self._exchange.place(n_bytes)
        except Exception:
            self._exchange.break_off()
            raise
        arguments.recv_block = block.address
        place(byref(arguments))
        return block

    def _biases(self, bias: object, shape: tuple[int, int]) -> list[torch.Tensor | None]:
        given = list(bias) if isinstance(bias, (tuple, list)) else [bias]
        if len(given) > 2:
            raise ValueError(f"bias is a tuple of {len(given)}, must have at most 2 tensors")
        names = ("bias",) if len(given) == 1 else ("bias[0]", "bias[1]")
        found = [
            None if one is None else self._tensor(name, one, torch.bfloat16, shape)
            for name, one in zip(names, given, strict=False)
        ]
        return [*found, None, None][:2]


@dataclass(frozen=True)
class _Sent:
    """What a rank gives to a dispatch."""

    x: torch.Tensor
    scales: torch.Tensor | None
    topk_idx: torch.Tensor | None
    topk_weights: torch.Tensor | None
    n_experts: int
    n_channels: int
    n_worst: int


def _internode(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name} among several NVLink domains (internode) is not there yet"
        "; hint: low-latency mode serves any group; DEEP_EP_NVLINK_RANKS sets the ranks of a domain"
    )
