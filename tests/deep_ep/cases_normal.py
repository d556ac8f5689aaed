# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""Cases of normal mode; each runs on all ranks. Expected values come from oracle.py, and are met bit by bit."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import oracle
import torch
import torch.distributed as dist
from oracle import World, make_world, same
from rank_processes import Job

import deep_ep
from deep_ep.utils import calc_diff

HIDDEN = 512
CONFIG = deep_ep.Config(24, 8, 256)


def buffer_of(job: Job) -> deep_ep.Buffer:
    return job.keep("buffer", lambda: deep_ep.Buffer(job.group, 1 << 20, explicitly_destroy=True))


def layout_of(buffer: deep_ep.Buffer, world: World, **options: Any) -> dict[str, Any]:
    """The layout as keyword arguments of dispatch."""
    batch = world.batches[buffer.rank]
    names = ("num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank")
    return dict(zip(names, buffer.get_dispatch_layout(batch.topk_idx, world.n_experts, **options), strict=False))


def dispatched(buffer: deep_ep.Buffer, world: World, x: Any = None, has_topk: bool = True, **options: Any) -> Any:
    batch = world.batches[buffer.rank]
    arguments = layout_of(buffer, world) | {"config": CONFIG} | options
    if has_topk:
        arguments |= {"topk_idx": batch.topk_idx, "topk_weights": batch.topk_weights}
    return buffer.dispatch(batch.x if x is None else x, **arguments)


def check_received(
    rank: int, world: World, result: Any, sources: list[Any] | None = None, has_topk: bool = True
) -> None:
    """All that a dispatch returns, against the oracle. `sources`: what each rank sent, if not its bf16."""
    data, idx, weights, per_expert, handle, _ = result
    rows = oracle.received(world, rank)
    parts = data if isinstance(data, tuple) else (data,)
    sent = sources or [batch.x for batch in world.batches]
    for index, part in enumerate(parts):
        of = [one[index] if isinstance(one, tuple) else one for one in sent]
        same(part, oracle.gathered(world, rows, of), f"part {index} of recv_x")
        assert part.is_contiguous()
    if has_topk:
        expected_idx, expected_weights = oracle.recv_topk(world, rank, rows)
        same(idx, expected_idx, "recv_topk_idx")
        same(weights, expected_weights, "recv_topk_weights")
        counts = [int((expected_idx == expert).sum()) for expert in range(world.n_local)]
        assert per_expert == counts
    else:
        assert idx is None
        assert weights is None
    check_handle(rank, world, handle, rows)


def check_handle(rank: int, world: World, handle: Any, rows: list[tuple[int, int]]) -> None:
    """The six tensors that programs look into."""
    matrix, channels, recv_channels, src_idx, in_rank, head = handle
    inside = [oracle.in_rank(world, source) for source in range(world.size)]
    expected = torch.stack([one.sum(dim=0) for one in inside]).cumsum(dim=0).to(torch.int32)
    same(matrix, expected, "rank_prefix_matrix")
    same(in_rank, inside[rank], "is_token_in_rank")
    same(src_idx, torch.tensor([token for _, token in rows], dtype=torch.int32), "recv_src_idx")
    n_channels = channels.shape[1]
    for mine, theirs, prefix in ((inside[rank], None, channels), (None, inside, recv_channels)):
        for other in range(world.size):
            sent = mine[:, other] if mine is not None else theirs[other][:, rank]
            width = -(-len(sent) // n_channels)
            ends = [int(sent[: (channel + 1) * width].sum()) for channel in range(n_channels)]
            expected_row = ends if mine is not None else [0, *ends[:-1]]
            assert prefix[other].tolist() == expected_row, f"channel prefixes of rank {other}"
    ordinals = torch.where(inside[rank], inside[rank].cumsum(dim=0) - 1, -1)
    assert torch.equal(head.clamp(min=-1), ordinals.to(torch.int32)), "send_head"


def check_combine(
    buffer: deep_ep.Buffer, world: World, result: Any, x: torch.Tensor | None = None, **options: Any
) -> None:
    """Combines what this rank makes of its rows; `x`: the values of this rank's tokens as they were received."""
    data, _, weights, _, handle, _ = result
    rows = data if x is None else x
    biases = options.get("bias")
    more = {} if weights is None else {"topk_weights": weights * (buffer.rank + 1)}
    out, out_weights, event = buffer.combine(
        oracle.processed(rows, buffer.rank), handle, config=CONFIG, **more, **options
    )
    given = () if biases is None else biases if isinstance(biases, tuple) else (biases,)
    same(out, oracle.combined(world, buffer.rank, given), "combined_x")
    if weights is None:
        assert out_weights is None
    else:
        same(out_weights, oracle.combined_weights(world, buffer.rank), "combined_topk_weights")
    assert (event.event is not None) == options.get("async_finish", False)


def case_layout_equals_a_count_by_hand(job: Job) -> None:
    buffer = buffer_of(job)
    for seed, (route, n_topk) in enumerate(itertools.product(("random", "one", "none", "last"), (1, 4, 8))):
        world = make_world(job.size, [50, 0, 1, 7], HIDDEN, n_topk, 16, seed, route)
        per_rank, per_node, per_expert, in_rank, event = buffer.get_dispatch_layout(
            world.batches[job.rank].topk_idx, world.n_experts
        )
        for name, actual, expected in zip(
            ("per rank", "per expert", "in rank"), (per_rank, per_expert, in_rank),
            oracle.layout(world, job.rank), strict=True,
        ):  # fmt: skip
            same(actual, expected, f"{route}, top {n_topk}: tokens {name}")
        assert per_node is None
        assert event.event is None


def case_dispatch_and_combine_by_every_combination_of_events_and_inputs(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [40], HIDDEN, 4, 16, seed=1)
    kinds = {
        "bf16": [batch.x for batch in world.batches],
        "fp8": [oracle.fp8(batch.x) for batch in world.batches],
        "fp8 with int32 scales": [oracle.fp8(batch.x, is_int=True) for batch in world.batches],
    }
    for (kind, sources), has_topk, is_async, has_previous in itertools.product(
        kinds.items(), (False, True), (False, True), (False, True)
    ):
        options: dict[str, Any] = {"async_finish": is_async}
        if has_previous:
            options["previous_event"] = buffer.capture()
            options["allocate_on_comm_stream"] = is_async
        result = dispatched(buffer, world, sources[job.rank], has_topk, **options)
        event = result[-1]
        assert (event.event is not None) == is_async, kind
        if is_async:
            event.current_stream_wait()
        check_received(job.rank, world, result, sources, has_topk)
        x = None
        if kind != "bf16":
            x = oracle.gathered(world, oracle.received(world, job.rank), [batch.x for batch in world.batches])
        if kind == "bf16" or has_topk:
            check_combine(buffer, world, result, x, **options)


def case_constant_rows_lie_in_the_block_of_their_source(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [64], HIDDEN, 4, 16, seed=2)
    for rank, batch in enumerate(world.batches):
        batch.x.fill_(rank)
    data, *_, handle, _ = dispatched(buffer, world)
    ends = handle[0][:, job.rank].tolist()
    begin = 0
    for rank, end in enumerate(ends):
        assert bool((data[begin:end] == rank).all()), f"rows {begin} to {end} are not all of rank {rank}"
        begin = end
    assert begin == len(data)


def case_tokens_come_back_as_they_went(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [64], HIDDEN, 4, 16, seed=3)
    batch = world.batches[job.rank]
    data, _, weights, _, handle, _ = dispatched(buffer, world)
    out, out_weights, _ = buffer.combine(data, handle, topk_weights=weights, config=CONFIG)
    times = oracle.in_rank(world, job.rank).sum(dim=1, keepdim=True)
    assert bool((times > 0).all())
    assert calc_diff(out.float() / times, batch.x) < 5e-6
    assert calc_diff(out_weights, batch.topk_weights * (batch.topk_idx >= 0)) < 1e-9


def case_worst_case_results_equal_the_others_bit_by_bit(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [40, 3, 0, 17], HIDDEN, 4, 16, seed=4)
    n_worst = 60 * job.size
    for sources in ([batch.x for batch in world.batches], [oracle.fp8(batch.x) for batch in world.batches]):
        plain = dispatched(buffer, world, sources[job.rank])
        worst = dispatched(buffer, world, sources[job.rank], num_worst_tokens=n_worst)
        n = len(oracle.received(world, job.rank))
        parts = [one[0] if isinstance(one[0], tuple) else (one[0],) for one in (plain, worst)]
        for before, after in zip(*parts, strict=True):
            assert len(after) == n_worst
            same(after[:n], before, "recv_x")
        same(worst[1][:n], plain[1], "recv_topk_idx")
        same(worst[2][:n], plain[2], "recv_topk_weights")
        assert bool((worst[1][n:] == -1).all())
        assert worst[3] == []
        if not isinstance(sources[0], tuple):
            check_combine(buffer, world, worst)


def case_a_handle_sends_other_tokens_the_same_way(job: Job) -> None:
    buffer = buffer_of(job)
    first = make_world(job.size, [40, 3, 0, 17], HIDDEN, 4, 16, seed=5)
    *_, handle, _ = dispatched(buffer, first)
    second = make_world(job.size, [40, 3, 0, 17], HIDDEN, 4, 16, seed=6)
    for batch, other in zip(second.batches, first.batches, strict=True):
        batch.topk_idx, batch.topk_weights = other.topk_idx, other.topk_weights
    rows = oracle.received(second, job.rank)
    for sources in ([batch.x for batch in second.batches], [oracle.fp8(batch.x) for batch in second.batches]):
        data, idx, weights, per_expert, again, event = buffer.dispatch(sources[job.rank], handle=handle, config=CONFIG)
        for index, part in enumerate(data if isinstance(data, tuple) else (data,)):
            of = [one[index] if isinstance(one, tuple) else one for one in sources]
            same(part, oracle.gathered(second, rows, of), "recv_x by a handle")
        assert (idx, weights, per_expert, again, event.event) == (None, None, None, None, None)
    values = oracle.gathered(second, rows, [batch.x for batch in second.batches])
    check_combine(buffer, second, (values, None, None, None, handle, None))


def case_shapes_at_edges(job: Job) -> None:
    buffer = buffer_of(job)
    shapes = [  # tokens of the ranks, H, K, E, route
        ([0], 256, 2, 8, "random"),
        ([5, 0, 0, 0], 256, 2, 8, "random"),
        ([1], 8, 1, 4, "random"),
        ([13, 1, 0, 30], 2048, 1, 4, "random"),
        ([20], 256, 4, 8, "one"),
        ([20], 256, 4, 8, "none"),
        ([20], 256, 4, 8, "last"),
        ([11, 12, 13, 14], 7168, 8, 256, "random"),
        ([9], 256, 32, 64, "random"),
    ]
    for seed, (tokens, hidden, n_topk, n_experts, route) in enumerate(shapes):
        world = make_world(job.size, tokens, hidden, n_topk, n_experts, seed, route)
        result = dispatched(buffer, world)
        check_received(job.rank, world, result)
        check_combine(buffer, world, result)


def case_counts_are_rounded_up_to_the_alignment(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [40], HIDDEN, 4, 16, seed=7)
    exact = dispatched(buffer, world)[3]
    for alignment in (8, 128):
        data, _, _, counts, *_ = dispatched(buffer, world, expert_alignment=alignment)
        assert counts == [-(-count // alignment) * alignment for count in exact]
        assert len(data) == len(oracle.received(world, job.rank))


def case_biases_are_added_last_and_rounded_once(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [33], HIDDEN, 4, 16, seed=8)
    result = dispatched(buffer, world)
    one, two = (torch.randn(33, HIDDEN).to(torch.bfloat16) for _ in range(2))
    for bias in (None, one, (one, two)):
        check_combine(buffer, world, result, bias=bias)


def case_results_that_are_kept_are_never_written_again(job: Job) -> None:
    buffer = buffer_of(job)
    worlds = [make_world(job.size, [40, 10], HIDDEN, 4, 16, seed) for seed in range(20, 24)]
    results = [dispatched(buffer, world) for world in worlds]
    for world, result in zip(worlds, results, strict=True):
        check_received(job.rank, world, result)
    for _ in range(3):
        dispatched(buffer, make_world(job.size, [40], HIDDEN, 4, 16, 30))
    for world, result in zip(worlds, results, strict=True):
        check_received(job.rank, world, result)


def case_memory_goes_back_with_the_last_tensor(job: Job) -> None:
    buffer = buffer_of(job)
    world = make_world(job.size, [40], HIDDEN, 4, 16, seed=9)
    runtime = buffer.runtime
    assert runtime is not None
    before = runtime.n_lent
    data, idx, weights, _, handle, _ = dispatched(buffer, world)
    assert runtime.n_lent == before + 1
    del data, weights
    view = idx[3:5]
    del idx
    assert runtime.n_lent == before + 1
    del view
    assert runtime.n_lent == before, "a handle must not keep the rows"
    assert len(handle) == 6
    places = {dispatched(buffer, world)[0].data_ptr() for _ in range(20)}
    assert len(places) <= 2, "memory that was given back is used again"


def case_a_hundred_exchanges_back_to_back_with_random_delays(job: Job) -> None:
    buffer = buffer_of(job)
    delays = random.Random(job.rank)
    for seed in range(100):
        world = make_world(job.size, [6, 3, 0, 9], 64, 2, 8, seed=100 + seed)
        if delays.random() < 0.2:
            time.sleep(delays.random() * 0.003)
        result = dispatched(buffer, world)
        rows = oracle.received(world, job.rank)
        same(result[0], oracle.gathered(world, rows, [batch.x for batch in world.batches]), f"call {seed}")
        check_combine(buffer, world, result)


def case_three_ranks_of_the_four(job: Job) -> None:
    group = dist.new_group([0, 1, 2])
    if job.rank == 3:
        return
    buffer = deep_ep.Buffer(group, explicitly_destroy=True)
    world = make_world(3, [20, 0, 8], HIDDEN, 2, 6, seed=11)
    result = dispatched(buffer, world)
    check_received(job.rank, world, result)
    check_combine(buffer, world, result)
    buffer.destroy()
    dist.destroy_process_group(group)


def case_two_buffers_at_once(job: Job) -> None:
    first, second = buffer_of(job), deep_ep.Buffer(job.group, 128, explicitly_destroy=True)
    worlds = [make_world(job.size, [30], HIDDEN, 4, 16, seed) for seed in (12, 13)]
    results = [dispatched(buffer, world) for buffer, world in zip((first, second), worlds, strict=True)]
    for buffer, world, result in zip((first, second), worlds, results, strict=True):
        check_received(job.rank, world, result)
        check_combine(buffer, world, result)
    second.destroy()


def case_a_message_passing_communicator_in_place_of_a_group(job: Job) -> None:
    class Communicator:
        """As mpi4py's, over the gloo group."""

        def Get_rank(self) -> int:
            return job.rank

        def Get_size(self) -> int:
            return job.size

        def allgather(self, sendobj: bytes) -> list[bytes]:
            mine = torch.frombuffer(bytearray(sendobj), dtype=torch.uint8)
            all_of_them = [torch.empty_like(mine) for _ in range(job.size)]
            dist.all_gather(all_of_them, mine)
            return [bytes(one.tolist()) for one in all_of_them]

    buffer = deep_ep.Buffer(None, explicitly_destroy=True, comm=Communicator())
    assert (buffer.rank, buffer.group_size, buffer.group) == (job.rank, job.size, None)
    world = make_world(job.size, [10], HIDDEN, 2, 8, seed=14)
    check_received(job.rank, world, dispatched(buffer, world))
    buffer.destroy()
