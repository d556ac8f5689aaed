# SPDX-License-Identifier: Apache-2.0
"""Tuning of one call, and the table of defaults by the number of ranks."""

from __future__ import annotations

from deep_ep import checks

BUFFER_ALIGNMENT = 128
NVLINK_RANKS = 8
TOPK_MAX = 128  # buffers are sized for this many choices a token
SCALES_MAX = 128  # and this many scales
META_BYTES = 8  # source node, and the bitmap of the ranks there


class Config:
    """How many SMs a call uses and how it cuts its transfers.

    Units are SMs and tokens. The CPU executor takes `num_sms // 2` channels from it, which show in the handle's channel
    prefixes, and needs no chunks: it writes each token once. ValueError where the numbers contradict each other.
    """

    def __init__(
        self,
        num_sms: int = 20,
        num_max_nvl_chunked_send_tokens: int = 6,
        num_max_nvl_chunked_recv_tokens: int = 256,
        num_max_rdma_chunked_send_tokens: int = 6,
        num_max_rdma_chunked_recv_tokens: int = 256,
    ) -> None:
        self.num_sms = checks.integer("num_sms", num_sms, at_least=0)
        chunks = {
            "num_max_nvl_chunked_send_tokens": num_max_nvl_chunked_send_tokens,
            "num_max_nvl_chunked_recv_tokens": num_max_nvl_chunked_recv_tokens,
            "num_max_rdma_chunked_send_tokens": num_max_rdma_chunked_send_tokens,
            "num_max_rdma_chunked_recv_tokens": num_max_rdma_chunked_recv_tokens,
        }
        nvl_send, nvl_recv, rdma_send, rdma_recv = (
            checks.integer(name, value, at_least=1) for name, value in chunks.items()
        )
        rdma_recv = -(-rdma_recv // rdma_send) * rdma_send
        if nvl_send >= nvl_recv:
            raise ValueError(
                f"num_max_nvl_chunked_send_tokens is {nvl_send}, must be below "
                f"num_max_nvl_chunked_recv_tokens ({nvl_recv})"
            )
        if rdma_send * 2 > rdma_recv:
            raise ValueError(
                f"num_max_rdma_chunked_send_tokens is {rdma_send}, must be at most half of "
                f"num_max_rdma_chunked_recv_tokens ({rdma_recv} when rounded up to a multiple of it)"
            )
        self.num_max_nvl_chunked_send_tokens = nvl_send
        self.num_max_nvl_chunked_recv_tokens = nvl_recv
        self.num_max_rdma_chunked_send_tokens = rdma_send
        self.num_max_rdma_chunked_recv_tokens = rdma_recv

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @property
    def num_channels(self) -> int:
        """Ranges that the tokens of a rank are cut into; ValueError when num_sms is odd or 0."""
        if self.num_sms < 2 or self.num_sms % 2:
            raise ValueError(f"config.num_sms is {self.num_sms}, must be even and at least 2 to dispatch or combine")
        return self.num_sms // 2

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_nvl_bytes`: rings of whole tokens of `hidden_bytes`, for up to 128 choices and 128 scales.

        Here it is only where the arena begins; the arena grows when results need more. A multiple of 128.
        """
        n_nodes, n_local = _split(num_ranks)
        checks.integer("hidden_bytes", hidden_bytes, at_least=1)
        slots = self._channels() * n_local * self.num_max_nvl_chunked_recv_tokens
        words = self._channels() * n_local * (2 * n_nodes + 3) * 4
        return _aligned(words + slots * _token_bytes(hidden_bytes, 8))

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes for `num_rdma_bytes` in normal mode; 0 for one NVLink domain. A multiple of 128."""
        n_nodes, _ = _split(num_ranks)
        checks.integer("hidden_bytes", hidden_bytes, at_least=1)
        if n_nodes == 1:
            return 0
        pairs = self._channels() * n_nodes * 2  # a ring to send from and one to receive into
        words = pairs * (2 * NVLINK_RANKS + 4) * 8
        return _aligned(words + pairs * self.num_max_rdma_chunked_recv_tokens * _token_bytes(hidden_bytes, 4))

    def _channels(self) -> int:
        return max(1, self.num_sms // 2)


def _split(num_ranks: int) -> tuple[int, int]:
    """Nodes, and ranks of a node."""
    checks.integer("num_ranks", num_ranks, at_least=1)
    if num_ranks > NVLINK_RANKS and num_ranks % NVLINK_RANKS:
        raise ValueError(f"num_ranks is {num_ranks}, must be at most {NVLINK_RANKS} or a multiple of it")
    return max(1, num_ranks // NVLINK_RANKS), min(num_ranks, NVLINK_RANKS)


def _token_bytes(hidden_bytes: int, index_bytes: int) -> int:
    return -(-(hidden_bytes + SCALES_MAX * 4 + TOPK_MAX * (index_bytes + 4) + META_BYTES) // 16) * 16


def _aligned(size: int) -> int:
    return -(-size // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT


# Ranks: chunks as (nvl send, nvl recv, rdma send, rdma recv). Beyond two nodes all follow one rule, _many().
_DISPATCH = {2: (24, 256, 6, 128), 4: (6, 256, 6, 128), 8: (6, 256, 6, 128), 16: (36, 288, 20, 128)}
_COMBINE = {2: (10, 256, 6, 128), 4: (9, 256, 6, 128), 8: (4, 256, 6, 128), 16: (4, 288, 12, 128)}
_MANY_RANKS = (24, 32, 48, 64, 96, 128, 144, 160)


def default(kind: str, num_ranks: int, num_sms: int) -> Config:
    """The default Config of `kind` ("dispatch" or "combine"); AssertionError for a number of ranks without one."""
    table = _DISPATCH if kind == "dispatch" else _COMBINE
    if num_ranks in table:
        return Config(num_sms, *table[num_ranks])
    if num_ranks in _MANY_RANKS:
        return _many(num_sms, 24 if kind == "dispatch" else 4, num_ranks // NVLINK_RANKS)
    known = ", ".join(map(str, (*table, *_MANY_RANKS)))
    raise AssertionError(
        f"there is no default Config to {kind} among {num_ranks} ranks (there is for {known})"
        "; hint: pass config=deep_ep.Config(...)"
    )


def _many(num_sms: int, nvl_send: int, n_nodes: int) -> Config:
    """48 slots a node: more than a chunk of either kind, with room for the warps that forward (at most 8 of a node)."""
    return Config(num_sms, nvl_send, 48 * n_nodes, 8, 128)
