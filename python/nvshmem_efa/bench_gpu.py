# SPDX-License-Identifier: Apache-2.0
"""The steps of `nvshmem-efa bench transport` on a GPU: by kernels that post, and by NVSHMEM's calls on a stream.

What kernels do is in transport_efa/kernels/bench_bodies.h.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from ctypes import c_int32, c_uint32, c_uint64
from dataclasses import dataclass, field
from typing import Protocol

from nvshmem_efa import installed
from nvshmem_efa.bench_plan import Step
from nvshmem_efa.errors import EfaError, MissingError, TimedOutError

RECORD_WORDS = 8
FAILED_ROUND, BEGIN_NS, END_NS, BEGIN_TICKS, END_TICKS, WRONG_BYTES = range(6)
FILL_THREADS = 1024
BLOCK_THREADS = 128  # of the rate kernel
WARP = 32
CALLS = {"put": 0, "issue": 0, "get": 1, "p": 2, "amo_add": 3, "amo_fetch": 4}
KERNELS = {"put_signal": "bench_put_signal", "alltoall": "bench_alltoall", "quiet": "bench_quiet", "rate": "bench_rate"}
STREAM_BATCH = 20  # rounds between two waits of the host for the stream: starting and waiting cost more than a round
STREAM_PUTS_MAX = 2000  # of a round of the rate: each is a kernel that NVSHMEM launches

_ON_STREAM = "NVSHMEM's calls without nvcc are those on a stream, and "
PROXY_MISSING = {
    "issue": _ON_STREAM + "what one costs the GPU is the launch of a kernel",
    "p": _ON_STREAM + "its p passes the address of its own parameter (docs/gpu-tests.md)",
    "amo_fetch": _ON_STREAM + "none is an atomic that fetches",
    "quiet": _ON_STREAM + "a wait among them cannot be timed alone",
}
ALONE = "needs another PE"
PROXY_ALONE = "NVSHMEM does not go to itself through a transport"


class Args(ctypes.Structure):
    """bench::Args of bench_bodies.h; addresses are the GPU's."""

    _fields_ = [
        ("out", c_uint64), ("dest", c_uint64), ("source", c_uint64), ("words", c_uint64), ("bytes", c_uint64),
        ("base", c_uint64), ("peer", c_int32), ("call", c_uint32), ("rounds", c_uint32), ("warm_up", c_uint32),
        ("in_flight", c_uint32), ("is_issue", c_uint32), ("side", c_uint32), ("n_slots", c_uint32),
    ]  # fmt: skip


assert ctypes.sizeof(Args) == 80


class Launch(ctypes.Structure):
    """nvshmem_efa_bench_launch."""

    _fields_ = [("kernel", ctypes.c_char_p), ("args", ctypes.c_void_p), ("blocks", c_uint32), ("threads", c_uint32),
                ("deadline_ms", c_uint32), ("reserved", c_uint32)]  # fmt: skip


class Kernels(Protocol):
    """Runs kernels one by one."""

    @property
    def out(self) -> int:
        """Where kernels report to."""

    def run(self, kernel: str, args: Args, blocks: int, threads: int, words: int) -> Sequence[int]:
        """To its end; the first `words` words of the report."""


class Launcher:
    """libnvshmem_efa_bench.so with one cubin, on this thread's current context, which has NVSHMEM already."""

    def __init__(self, image: bytes, words_max: int, deadline_s: float) -> None:
        path = installed.find("lib", "libnvshmem_efa_bench.so")
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise MissingError(f"the launcher cannot be loaded: {error}", "reinstall the package here") from None
        self._library.nvshmem_efa_bench_out.restype = c_uint64
        self._library.nvshmem_efa_bench_error.restype = ctypes.c_char_p
        self._deadline_ms = int(deadline_s * 1000)
        self._image = image  # must stay
        self._bench = ctypes.c_void_p()
        self._check(self._library.nvshmem_efa_bench_open(image, c_uint64(8 * words_max), ctypes.byref(self._bench)))
        self.out = int(self._library.nvshmem_efa_bench_out(self._bench))

    def run(self, kernel: str, args: Args, blocks: int, threads: int, words: int) -> Sequence[int]:
        report = (c_uint64 * words)()
        launch = Launch(kernel.encode(), ctypes.addressof(args), blocks, threads, self._deadline_ms, 0)
        self._check(
            self._library.nvshmem_efa_bench_run(
                self._bench, ctypes.byref(launch), report, c_uint64(ctypes.sizeof(report))
            )
        )
        return list(report)

    def close(self) -> None:
        """Before NVSHMEM's finalize."""
        bench, self._bench = self._bench, ctypes.c_void_p()
        if bench:
            self._check(self._library.nvshmem_efa_bench_close(bench))

    def _check(self, code: int) -> None:
        if code != 0:
            text = self._library.nvshmem_efa_bench_error().decode(errors="replace")
            message, _, hint = text.partition("; hint: ")
            raise (TimedOutError if code == 9 else EfaError)(message, hint)


class Host(Protocol):
    """What is asked of NVSHMEM's host library: nvshmem_efa.gpu_calls.NvshmemHost."""

    pe: int
    pes: int

    def malloc(self, size: int) -> int: ...
    def barrier_all(self) -> None: ...
    def put_nbi(self, target: int, source: int, size: int, pe: int) -> None: ...
    def get_nbi(self, target: int, source: int, size: int, pe: int) -> None: ...
    def putmem_signal(self, target: int, source: int, size: int, signal: int, value: int, pe: int) -> None: ...
    def signal_add(self, target: int, value: int, pe: int) -> None: ...
    def wait_signal(self, signal: int, value: int) -> None: ...
    def quiet_on_stream(self) -> None: ...


class Memory(Protocol):
    """What is asked of CUDA: nvshmem_efa.gpu_calls.Cuda."""

    def fill(self, target: int, value: int, size: int) -> None: ...
    def read_word(self, source: int) -> int: ...
    def synchronize(self) -> None: ...


@dataclass
class Measured:
    """One step on one path, as this PE saw it."""

    samples_ns: list[float] = field(default_factory=list)
    missing: str = ""  # why there is nothing to measure
    checked: int = 0
    wrong: str = ""


def report_words(steps: Sequence[Step]) -> int:
    """Room that the reports of these steps need."""
    return max(max(2 * (RECORD_WORDS + step.rounds), RECORD_WORDS * _rate_shape(step)[0]) for step in steps)


def _rate_shape(step: Step) -> tuple[int, int]:
    """Blocks and threads for so many posters."""
    threads = min(BLOCK_THREADS, step.posters)
    return -(-step.posters // threads), threads


class StepRunner:
    """One PE's part in all steps. All PEs call the same in the same order."""

    def __init__(self, nvshmem: Host, memory: Memory, kernels: Kernels, steps: Sequence[Step]) -> None:
        self.nvshmem, self.memory, self.kernels = nvshmem, memory, kernels
        self.pe, self.pes = nvshmem.pe, nvshmem.pes
        self.peer = 1 - self.pe % 2 if self.pes > 1 else 0
        room = max(self._dest_bytes(step) for step in steps)
        self.dest, self.source = nvshmem.malloc(room), nvshmem.malloc(room)
        self.words_bytes = 8 * (self.pes + 2)
        self.words = nvshmem.malloc(self.words_bytes)

    def run(self, step: Step, path: str) -> Measured:
        """Collective. Samples are PE 0's; `wrong` names the first byte or word that is not as it must be."""
        measured = Measured(missing=self._why_missing(step, path))
        if measured.missing:
            return measured
        fill = self._args(step)
        fill.bytes, fill.peer = self._dest_bytes(step), self.pe
        self.kernels.run("bench_fill", fill, 1, FILL_THREADS, RECORD_WORDS)
        self.memory.fill(self.words, 0, self.words_bytes)
        self.nvshmem.barrier_all()
        takes_part = step.call == "alltoall" or self.pe == 0 or (step.call == "put_signal" and self.pe == 1)
        if takes_part:
            samples = self._post(step) if path == "posted" else self._ask(step)
            measured.samples_ns = samples if self.pe == 0 else []
        self.nvshmem.barrier_all()
        self._check(step, path, measured)
        self.nvshmem.barrier_all()
        return measured

    def _why_missing(self, step: Step, path: str) -> str:
        if self.pes == 1 and step.call == "alltoall":
            return ALONE
        if path == "posted":
            return ""
        return PROXY_ALONE if self.pes == 1 else PROXY_MISSING.get(step.call, "")

    def _dest_bytes(self, step: Step) -> int:
        if step.call == "put_signal":
            return 2 * step.bytes
        if step.call == "alltoall":
            return self.pes * step.bytes
        if step.call == "rate":
            return 8 * step.posters * step.in_flight
        return step.bytes * max(step.in_flight, 1)

    def _args(self, step: Step) -> Args:
        return Args(
            out=self.kernels.out, dest=self.dest, source=self.source, words=self.words, bytes=step.bytes, base=0,
            peer=self.peer, call=CALLS.get(step.call, 0), rounds=step.rounds, warm_up=step.warm_up,
            in_flight=step.in_flight, is_issue=int(step.call == "issue"), side=0, n_slots=self.pes,
        )  # fmt: skip

    # ---- by kernels ----

    def _post(self, step: Step) -> list[float]:
        if step.call == "rate":
            return self._post_rate(step)
        args, blocks, threads = self._args(step), 1, 1
        words = RECORD_WORDS + step.rounds
        if step.call == "quiet":
            threads = WARP * max(step.in_flight, 1)
        elif step.call == "put_signal":
            blocks, args.side = (2, 2) if self.pes == 1 else (1, self.pe)
        report = self.kernels.run(KERNELS.get(step.call, "bench_calls"), args, blocks, threads, words * blocks)
        for block in range(blocks):
            self._must(step, report[block * words + FAILED_ROUND])
        ticks = report[END_TICKS] - report[BEGIN_TICKS]
        ns_per_tick = (report[END_NS] - report[BEGIN_NS]) / ticks if ticks > 0 else 0.0
        return [sample * ns_per_tick for sample in report[RECORD_WORDS:words]]

    def _post_rate(self, step: Step) -> list[float]:
        blocks, threads = _rate_shape(step)
        samples = []
        for round_ in range(step.warm_up + step.rounds):
            report = self.kernels.run("bench_rate", self._args(step), blocks, threads, RECORD_WORDS * blocks)
            for failed in report[FAILED_ROUND::RECORD_WORDS]:
                self._must(step, failed)
            if round_ >= step.warm_up:
                samples.append(float(max(report[END_NS::RECORD_WORDS]) - min(report[BEGIN_NS::RECORD_WORDS])))
        return samples

    @staticmethod
    def _must(step: Step, failed: int) -> None:
        if failed:
            raise EfaError(
                f"{step.call} of {step.bytes} bytes: a call of the device API failed in round {failed - 1}",
                "NVSHMEM's next call names the reason on standard error",
            )

    # ---- by NVSHMEM's proxy ----

    def _ask(self, step: Step) -> list[float]:
        if step.call == "rate":
            return self._ask_rate(step)
        batch = min(STREAM_BATCH, step.rounds)
        rounds: dict[str, Callable[[Step, int], None]] = {
            "put_signal": self._ask_ping_pong,
            "alltoall": self._ask_all_to_all,
        }
        one_round = rounds.get(step.call, self._ask_calls)
        samples = []
        for number in range(1 + max(3, step.rounds // batch)):  # the first is not kept
            begin = time.perf_counter_ns()
            for i in range(batch):
                one_round(step, number * batch + i + 1)
            self.memory.synchronize()
            if number:
                samples.append((time.perf_counter_ns() - begin) / batch)
        return samples

    def _ask_calls(self, step: Step, value: int) -> None:
        for i in range(step.in_flight):
            at = i * step.bytes
            if step.call == "amo_add":
                self.nvshmem.signal_add(self.words, 1, self.peer)
            elif step.call == "get":
                self.nvshmem.get_nbi(self.dest + at, self.source + at, step.bytes, self.peer)
            else:
                self.nvshmem.put_nbi(self.dest + at, self.source + at, step.bytes, self.peer)
        self.nvshmem.quiet_on_stream()

    def _ask_ping_pong(self, step: Step, value: int) -> None:
        for turn in range(2):
            word = self.words + 8 * turn
            if turn == self.pe:
                self.nvshmem.putmem_signal(
                    self.dest + turn * step.bytes, self.source, step.bytes, word, value, self.peer
                )
            else:
                self.nvshmem.wait_signal(word, value)

    def _ask_all_to_all(self, step: Step, value: int) -> None:
        mine = self.words + 8 * self.pe
        for hop in range(1, self.pes):
            to = (self.pe + hop) % self.pes
            self.nvshmem.putmem_signal(self.dest + self.pe * step.bytes, self.source, step.bytes, mine, value, to)
        for other in range(self.pes):
            if other != self.pe:
                self.nvshmem.wait_signal(self.words + 8 * other, value)

    def _ask_rate(self, step: Step) -> list[float]:
        """Scaled to as many puts as the posters make."""
        wanted = step.posters * step.in_flight
        puts = min(wanted, STREAM_PUTS_MAX)
        samples = []
        for round_ in range(1 + step.rounds):
            begin = time.perf_counter_ns()
            for i in range(puts):
                self.nvshmem.put_nbi(self.dest + 8 * i, self.source + 8 * i, 8, self.peer)
            self.nvshmem.quiet_on_stream()
            self.memory.synchronize()
            if round_:
                samples.append((time.perf_counter_ns() - begin) * wanted / puts)
        return samples

    # ---- what must be there afterwards ----

    def _regions(self, step: Step, path: str) -> list[tuple[int, int, int]]:
        """(offset in `dest`, bytes, whose source) of all that this PE must hold."""
        is_target = self.pe == (1 if self.pes > 1 else 0)
        if step.call == "alltoall":
            return [(pe * step.bytes, step.bytes, pe) for pe in range(self.pes) if pe != self.pe]
        if step.call == "put_signal":
            answers = [(step.bytes, step.bytes, self.peer)] if self.pe == 0 else []
            return [*([(0, step.bytes, 0)] if is_target else []), *answers]
        if step.call == "get":
            return [(0, self._dest_bytes(step), self.peer)] if self.pe == 0 else []
        if step.call in ("put", "issue", "rate", "quiet") and is_target:
            size = 8 * step.in_flight if step.call == "quiet" else self._dest_bytes(step)
            if step.call == "rate" and path == "proxy":
                size = min(size, 8 * STREAM_PUTS_MAX)
            return [(0, size, 0)]
        return []

    def _check(self, step: Step, path: str, measured: Measured) -> None:
        for at, size, owner in self._regions(step, path):
            args = self._args(step)
            args.dest, args.bytes, args.peer = self.dest + at, size, owner
            wrong = self.kernels.run("bench_check", args, 1, FILL_THREADS, RECORD_WORDS)[WRONG_BYTES]
            measured.checked += size
            if wrong and not measured.wrong:
                measured.wrong = f"{step.call}, {path}: {wrong} of {size} bytes from PE {owner}"
        if step.call in ("p", "amo_add", "amo_fetch") and self.pe == (1 if self.pes > 1 else 0):
            wanted = self._word_wanted(step, path)
            seen = self.memory.read_word(self.words)
            measured.checked += 8
            if seen != wanted and not measured.wrong:
                measured.wrong = f"{step.call}, {path}: the word is {seen}, not {wanted}"

    @staticmethod
    def _word_wanted(step: Step, path: str) -> int:
        if path == "proxy":
            batch = min(STREAM_BATCH, step.rounds)
            return (1 + max(3, step.rounds // batch)) * batch * step.in_flight
        rounds = step.warm_up + step.rounds
        return rounds if step.call == "p" else rounds * step.in_flight
