# SPDX-License-Identifier: Apache-2.0
"""PEs in one process for tests of the bench's GPU side: memory, NVSHMEM's calls and our kernels, all made up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from nvshmem_efa.bench_gpu import (
    BEGIN_NS,
    BEGIN_TICKS,
    END_NS,
    END_TICKS,
    FAILED_ROUND,
    RECORD_WORDS,
    WRONG_BYTES,
    Args,
)
from nvshmem_efa.bench_plan import Step, from_text

HEAP_BYTES = 1 << 16
TICK_NS = 3


def pattern(owner: int, size: int) -> bytes:
    return bytes((at * 7 + owner * 31 + 1) & 0xFF for at in range(size))


class Pe:
    """One PE; stands for NVSHMEM's host library and for CUDA."""

    def __init__(self, world: World, pe: int) -> None:
        self.world, self.pe, self.pes = world, pe, len(world.heaps)
        self.used = 8
        self.calls: list[str] = []

    def malloc(self, size: int) -> int:
        at = self.used
        self.used += -(-size // 8) * 8
        assert self.used <= HEAP_BYTES
        return at

    def barrier_all(self) -> None:
        self.world.barrier.wait(20)

    def copy(self, to_pe: int, to: int, from_pe: int, source: int, size: int) -> None:
        data = self.world.heaps[from_pe][source : source + size]
        if self.world.spoil:
            data = data[:-1] + b"\xff"
        self.world.heaps[to_pe][to : to + size] = data

    def word(self, pe: int, at: int, change: Callable[[int], int]) -> None:
        heap = self.world.heaps[pe]
        with self.world.lock:
            heap[at : at + 8] = change(int.from_bytes(heap[at : at + 8], "little")).to_bytes(8, "little")

    def put_nbi(self, target: int, source: int, size: int, pe: int) -> None:
        self.calls.append("put_nbi")
        self.copy(pe, target, self.pe, source, size)

    def get_nbi(self, target: int, source: int, size: int, pe: int) -> None:
        self.calls.append("get_nbi")
        self.copy(self.pe, target, pe, source, size)

    def putmem_signal(self, target: int, source: int, size: int, signal: int, value: int, pe: int) -> None:
        self.calls.append(f"put_signal {value} to {pe}")
        self.copy(pe, target, self.pe, source, size)
        self.word(pe, signal, lambda _: value)

    def signal_add(self, target: int, value: int, pe: int) -> None:
        self.word(pe, target, lambda before: before + value)

    def wait_signal(self, signal: int, value: int) -> None:
        self.calls.append(f"wait {value}")

    def quiet_on_stream(self) -> None:
        self.calls.append("quiet")

    def synchronize(self) -> None:
        pass

    def fill(self, target: int, value: int, size: int) -> None:
        self.world.heaps[self.pe][target : target + size] = bytes([value]) * size

    def read_word(self, source: int) -> int:
        return int.from_bytes(self.world.heaps[self.pe][source : source + 8], "little")


class FakeKernels:
    """What the kernels do to memory, without their waits; every round takes as many ticks as its number."""

    out = 0x1000

    def __init__(self, pe: Pe) -> None:
        self.pe = pe
        self.launches: list[tuple[str, int, int]] = []
        self.words_most = 0

    def run(self, kernel: str, args: Args, blocks: int, threads: int, words: int) -> Sequence[int]:
        assert args.out == self.out
        self.launches.append((kernel, blocks, threads))
        self.words_most = max(self.words_most, words)
        report = [0] * words
        report[BEGIN_NS], report[BEGIN_TICKS] = 1000, 500
        report[END_NS], report[END_TICKS] = 1000 + 30_000 * TICK_NS, 500 + 30_000
        getattr(self, kernel)(args, blocks, threads, report)
        if kernel in self.pe.world.failing:
            report[FAILED_ROUND] = 4
        return report

    def samples(self, args: Args, report: list[int], begin: int = RECORD_WORDS) -> None:
        report[begin : begin + args.rounds] = range(1, args.rounds + 1)

    def bench_fill(self, args: Args, *_: object) -> None:
        heap = self.pe.world.heaps[self.pe.pe]
        heap[args.source : args.source + args.bytes] = pattern(self.pe.pe, args.bytes)
        heap[args.dest : args.dest + args.bytes] = bytes(args.bytes)

    def bench_check(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        seen = self.pe.world.heaps[self.pe.pe][args.dest : args.dest + args.bytes]
        wanted = pattern(args.peer, args.bytes)
        report[WRONG_BYTES] = sum(a != b for a, b in zip(seen, wanted, strict=True))

    def bench_calls(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        assert (blocks, threads) == (1, 1)
        rounds, size = args.rounds + args.warm_up, args.bytes * args.in_flight
        if args.call == 0:
            self.pe.copy(args.peer, args.dest, self.pe.pe, args.source, size)
        elif args.call == 1:
            self.pe.copy(self.pe.pe, args.dest, args.peer, args.source, size)
        elif args.call == 2:
            self.pe.word(args.peer, args.words, lambda _: rounds)
        else:
            self.pe.word(args.peer, args.words, lambda before: before + rounds * args.in_flight)
        self.samples(args, report)

    def bench_put_signal(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        assert (blocks, threads) == (2 if args.side == 2 else 1, 1)
        for side in (0, 1) if args.side == 2 else (args.side,):
            self.pe.copy(args.peer, args.dest + side * args.bytes, self.pe.pe, args.source, args.bytes)
        for block in range(blocks):
            self.samples(args, report, block * (RECORD_WORDS + args.rounds) + RECORD_WORDS)

    def bench_alltoall(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        for to in range(self.pe.pes):
            if to != self.pe.pe:
                self.pe.copy(to, args.dest + self.pe.pe * args.bytes, self.pe.pe, args.source, args.bytes)
        self.samples(args, report)

    def bench_quiet(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        assert threads == 32 * max(1, args.in_flight)
        if args.in_flight:
            self.pe.copy(args.peer, args.dest, self.pe.pe, args.source, 8 * args.in_flight)
        self.samples(args, report)

    def bench_rate(self, args: Args, blocks: int, threads: int, report: list[int]) -> None:
        self.pe.copy(args.peer, args.dest, self.pe.pe, args.source, 8 * blocks * threads * args.in_flight)
        for block in range(blocks):
            report[block * RECORD_WORDS + BEGIN_NS] = 2000 + block
            report[block * RECORD_WORDS + END_NS] = 9000 + block


class World:
    """All PEs."""

    def __init__(self, pes: int) -> None:
        self.heaps = [bytearray(HEAP_BYTES) for _ in range(pes)]
        self.barrier = threading.Barrier(pes)
        self.lock = threading.Lock()
        self.spoil = False  # the last byte of every transfer
        self.failing: set[str] = set()
        self.pes = [Pe(self, pe) for pe in range(pes)]
        self.kernels = [FakeKernels(pe) for pe in self.pes]

    def on_all(self, body: Callable[[int], None]) -> None:
        """On a thread for each PE; the first exception is this call's."""
        errors: list[BaseException] = []

        def guarded(pe: int) -> None:
            try:
                body(pe)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=guarded, args=(pe,)) for pe in range(len(self.heaps))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error


def steps_of(*texts: str) -> list[Step]:
    return from_text(",".join(texts))
