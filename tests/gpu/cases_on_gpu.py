# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""The CPU's cases of deep_ep on GPUs: a Buffer that takes CPU tensors, works on its GPU, and hands copies back."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

import deep_ep

_Buffer = deep_ep.Buffer


def device_of(rank: int) -> torch.device:
    """Ranks share the GPUs there are."""
    return torch.device("cuda", rank % torch.cuda.device_count())


def moved(thing: Any, device: torch.device | str) -> Any:
    """Tensors on another device, with their strides; tuples, lists and dicts of them."""
    if isinstance(thing, torch.Tensor):
        made = torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=device)
        return made.copy_(thing)
    if isinstance(thing, (tuple, list)):
        return type(thing)(moved(part, device) for part in thing)
    if isinstance(thing, dict):
        return {name: moved(part, device) for name, part in thing.items()}
    return thing


class OnGpu(_Buffer):
    """As deep_ep.Buffer in normal mode, for programs that know CPU tensors only."""

    def __init__(self, group: Any, *args: Any, **options: Any) -> None:
        os.environ["DEEP_EP_EXECUTOR"] = "gpu"
        comm = options.get("comm")
        torch.cuda.set_device(device_of(comm.Get_rank() if group is None else dist.get_rank()))
        super().__init__(group, *args, **options)

    def get_dispatch_layout(self, topk_idx: Any, *args: Any, **options: Any) -> Any:
        *tensors, event = super().get_dispatch_layout(moved(topk_idx, self.device), *args, **options)
        return (*self._back(tensors, event), event)

    def dispatch(self, x: Any, handle: Any = None, **options: Any) -> Any:
        on_gpu = None if handle is None else handle[0].on_gpu
        there = {name: moved(value, self.device) for name, value in options.items()}
        *results, made, event = super().dispatch(moved(x, self.device), handle=on_gpu, **there)
        back = self._back(results, event)
        copies = None
        if made is not None:
            copies = moved(made, "cpu")
            copies[0].on_gpu = made
        return (*back, copies, event)

    def combine(self, x: Any, handle: Any, topk_weights: Any = None, bias: Any = None, **options: Any) -> Any:
        there = [moved(value, self.device) for value in (x, topk_weights, bias)]
        *results, event = super().combine(there[0], handle[0].on_gpu, there[1], there[2], **options)
        return (*self._back(results, event), event)

    def _back(self, results: Any, event: Any) -> Any:
        if event.event is not None:
            event.event.current_stream_wait()
        return moved(results, "cpu")


deep_ep.Buffer = OnGpu  # type: ignore[misc]
import oracle  # noqa: E402
from cases_normal import *  # noqa: E402, F403
from cases_normal import CONFIG, HIDDEN  # noqa: E402
from cases_normal_limits import *  # noqa: E402, F403
from oracle import World, make_world, same  # noqa: E402
from rank_processes import Job  # noqa: E402

SLOW_CYCLES = 40_000_000  # some 20 ms


class Direct:
    """A Buffer without the stand-in, and one world's tensors on its GPU."""

    def __init__(self, job: Job, **options: Any) -> None:
        os.environ["DEEP_EP_EXECUTOR"] = "gpu"
        torch.cuda.set_device(device_of(job.rank))
        self.job = job
        self.buffer = _Buffer(job.group, 1 << 20, explicitly_destroy=True, **options)

    def dispatch(self, world: World, **options: Any) -> Any:
        batch = moved(world.batches[self.job.rank].__dict__, self.buffer.device)
        names = ("num_tokens_per_rank", "num_tokens_per_rdma_rank", "num_tokens_per_expert", "is_token_in_rank")
        layout = self.buffer.get_dispatch_layout(batch["topk_idx"], world.n_experts)
        topk = {name: batch[name] for name in ("topk_idx", "topk_weights")}
        more = dict(zip(names, layout, strict=False))
        return self.buffer.dispatch(batch["x"], **topk, **more, config=CONFIG, **options)

    def expected(self, world: World) -> torch.Tensor:
        rows = oracle.received(world, self.job.rank)
        return oracle.gathered(world, rows, [batch.x for batch in world.batches])


def case_senders_and_readers_may_be_late(job: Job) -> None:
    # By a handle, so that hosts run ahead of their GPUs.
    direct = Direct(job)
    world = make_world(job.size, [64], HIDDEN, 4, 16, seed=60)
    handle = direct.dispatch(world)[4]
    rows = oracle.received(world, job.rank)
    for has_previous in (False, True):
        sent = [
            [torch.full_like(batch.x, 8 * call + rank) for rank, batch in enumerate(world.batches)] for call in range(8)
        ]
        own = [moved(xs[job.rank], direct.buffer.device) for xs in sent]
        torch.cuda.current_stream().synchronize()
        dist.barrier()
        late, places = [], []
        for x in own:
            if job.rank == 1:  # its rows are not there when the others' kernels are through with theirs
                torch.cuda._sleep(SLOW_CYCLES)  # type: ignore[no-untyped-call]
            options = {"previous_event": direct.buffer.capture(), "async_finish": True} if has_previous else {}
            data, *_, event = direct.buffer.dispatch(x, handle=handle, config=CONFIG, **options)
            if has_previous:
                event.current_stream_wait()
            if job.rank == 0:
                torch.cuda._sleep(SLOW_CYCLES)  # type: ignore[no-untyped-call]
            late.append(data.clone())
            places.append(data.data_ptr())
            del data, event  # given back by the host, and not yet read by the GPU
        assert len(set(places)) < len(places), "memory must be used again, or this shows nothing"
        for xs, copy in zip(sent, late, strict=True):
            same(copy.cpu(), oracle.gathered(world, rows, xs), "rows read late")
    direct.buffer.destroy()


def case_a_call_does_not_wait_for_what_comes_after_its_event(job: Job) -> None:
    direct = Direct(job)
    world = make_world(job.size, [64], HIDDEN, 4, 16, seed=70)
    handle = direct.dispatch(world)[4]
    x = moved(world.batches[job.rank].x, direct.buffer.device)
    previous = direct.buffer.capture()
    torch.cuda._sleep(50 * SLOW_CYCLES)  # type: ignore[no-untyped-call]
    busy = torch.cuda.Event()
    busy.record()
    data, *_, done = direct.buffer.dispatch(
        x, handle=handle, config=CONFIG, previous_event=previous, async_finish=True, allocate_on_comm_stream=True
    )
    done.event.synchronize()
    assert not busy.query(), "the current stream should be busy yet"
    done.current_stream_wait()
    same(data.cpu(), direct.expected(world), "rows of an overlapped call")
    direct.buffer.destroy()


def case_both_modes_of_one_buffer_take_turns(job: Job) -> None:
    os.environ["NVSHMEM_EFA_MODE"] = "soft"
    tokens, hidden, n_experts = 16, 2048, 8
    size = deep_ep.Buffer.get_low_latency_rdma_size_hint(tokens, hidden, job.size, n_experts)
    direct = Direct(job, num_rdma_bytes=size, low_latency_mode=True)
    device = direct.buffer.device
    for seed in range(80, 84):
        world = make_world(job.size, [tokens], hidden, 2, n_experts, seed)
        own = world.batches[job.rank]
        x, idx, weights = (moved(part, device) for part in (own.x, own.topk_idx, own.topk_weights))
        received = direct.dispatch(world)
        rows, count, handle, *_ = direct.buffer.low_latency_dispatch(x, idx, tokens, n_experts, use_fp8=False)
        out, *_ = direct.buffer.combine(received[0], received[4], config=CONFIG)
        low, *_ = direct.buffer.low_latency_combine(rows, idx, weights, handle)
        torch.cuda.current_stream().synchronize()
        same(received[0].cpu(), direct.expected(world), "normal dispatch")
        times = oracle.in_rank(world, job.rank).sum(dim=1, keepdim=True)
        expected = torch.where(times > 0, own.x.float() * times, 0.0)
        same(out.cpu(), expected.to(torch.bfloat16), "normal combine")
        total = torch.zeros(own.x.shape)
        for choice in range(own.topk_idx.shape[1]):
            of = own.topk_weights[:, choice : choice + 1] * own.x.float()
            total = torch.where(own.topk_idx[:, choice : choice + 1] >= 0, total + of, total)
        same(low.cpu(), total.to(torch.bfloat16), "low-latency combine")
        del received, rows, count
    direct.buffer.destroy()
