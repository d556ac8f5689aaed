# SPDX-License-Identifier: Apache-2.0
"""One PE of the GPU demo: NVSHMEM's public host API by ctypes, and the bytes checked on the host.

Started by nvshmem_efa.gpu_demo with the shim preloaded; its record is that of docs/pe-runtime.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvshmem_efa.gpu_calls import Cuda, NvshmemHost, share_file, transport_stats

SCHEMA = "nvshmem-efa-pe/1"
SIZES = (1, 3, 8, 255, 4096, 7168, 65537, 1 << 20)
ROUNDS = 8
WORDS = 8
DEADLINE_S = 30.0
OCTAVE_BUCKETS = 16


class WrongData(Exception):
    """A check of the data failed; the text says where."""


class Recorder:
    """Counts, bytes and times of every operation, in the shape of the record."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.checked_bytes = 0
        self.checked_words = 0

    def timed(self, op: str, lane: str, size: int, call: Callable[[], None]) -> None:
        started = time.perf_counter_ns()
        call()
        bucket = lower_bound(time.perf_counter_ns() - started)
        row = self.rows.setdefault((op, lane), {"count": 0, "bytes": 0, "histogram": {}})
        row["count"] += 1
        row["bytes"] += size
        row["histogram"][bucket] = row["histogram"].get(bucket, 0) + 1

    def operations(self) -> list[dict[str, Any]]:
        return [
            {"op": op, "lane": lane, "count": row["count"], "bytes": row["bytes"],
             "histogram": sorted([list(pair) for pair in row["histogram"].items()])}
            for (op, lane), row in self.rows.items()
        ]  # fmt: skip


def lower_bound(ns: int) -> int:
    """The bucket of docs/pe-runtime.md: 16 an octave."""
    if ns < OCTAVE_BUCKETS:
        return ns
    shift = ns.bit_length() - OCTAVE_BUCKETS.bit_length()
    return (ns >> shift) << shift


def content(seed: int, source: int, target: int, step: int, size: int) -> bytes:
    """What `source` sends to `target` in one step; the receiver knows it without being told."""
    return random.Random(f"{seed}/{source}/{target}/{step}").randbytes(size)


class Program:
    """The steps of the demo. The heap holds one slot a PE, one signal word a PE, and words for atomics."""

    def __init__(self, nvshmem: NvshmemHost, cuda: Cuda, seed: int, recorder: Recorder) -> None:
        self.nvshmem, self.cuda, self.seed, self.recorder = nvshmem, cuda, seed, recorder
        self.pe, self.pes = nvshmem.pe, nvshmem.pes
        self.slot_bytes = max(SIZES)
        self.slots = nvshmem.malloc(self.slot_bytes * self.pes)
        self.source = nvshmem.malloc(self.slot_bytes * self.pes)
        self.signals = nvshmem.malloc(8 * self.pes)
        self.words = nvshmem.malloc(8 * WORDS)
        cuda.fill(self.signals, 0, 8 * self.pes)
        cuda.fill(self.words, 0, 8 * WORDS)
        nvshmem.barrier_all()

    @property
    def peers(self) -> list[int]:
        """All other PEs, each PE beginning with its neighbour."""
        return [(self.pe + step) % self.pes for step in range(1, self.pes)]

    def exchange(self, step: int, size: int) -> None:
        """Every PE puts to every other and signals; each waits for the signals, then checks the bytes."""
        for peer in self.peers:
            source = self.source + peer * self.slot_bytes
            self.cuda.write(source, content(self.seed, self.pe, peer, step, size))
            target = self.slots + self.pe * self.slot_bytes

            def put(source: int = source, target: int = target, peer: int = peer) -> None:
                self.nvshmem.putmem_signal(target, source, size, self.signals + 8 * self.pe, step + 1, peer)
                self.cuda.synchronize()

            self.recorder.timed("put_signal", "proxy", size, put)
        for peer in self.peers:
            self._await_signal(peer, step + 1)
            seen = self.cuda.read(self.slots + peer * self.slot_bytes, size)
            self._check(seen, content(self.seed, peer, self.pe, step, size), f"put_signal of PE {peer}, step {step}")
        self.nvshmem.barrier_all()

    def _await_signal(self, peer: int, value: int) -> None:
        end = time.monotonic() + DEADLINE_S
        while (seen := self.cuda.read_word(self.signals + 8 * peer)) != value:
            if time.monotonic() > end:
                raise TimeoutError(f"signal of PE {peer} is {seen}, not {value}, after {DEADLINE_S:g} s")

    def fetch_back(self, step: int, size: int) -> None:
        """Gets what every other PE had sent last, from that PE's source buffer."""
        # The slot for this PE: at a peer, what it sent to us; here free, since nobody sends to itself.
        slot = self.source + self.pe * self.slot_bytes
        for peer in self.peers:

            def get(peer: int = peer) -> None:
                self.nvshmem.getmem(slot, slot, size, peer)

            self.recorder.timed("get", "host", size, get)
            seen = self.cuda.read(slot, size)
            self._check(seen, content(self.seed, peer, self.pe, step, size), f"get from PE {peer}, step {step}")
        self.nvshmem.barrier_all()

    def atomics(self) -> None:
        """Additions of all PEs, PE 0 included, to the same words of PE 0: the sums are exact."""
        for _ in range(ROUNDS):
            for word in range(WORDS):
                at = self.words + 8 * word

                def add(at: int = at) -> None:
                    self.nvshmem.signal_add(at, 1, 0)
                    self.cuda.synchronize()

                self.recorder.timed("amo", "proxy", 8, add)
        self.nvshmem.quiet_on_stream()
        self.cuda.synchronize()
        self.nvshmem.barrier_all()
        if self.pe == 0:
            for word in range(WORDS):
                seen = self.cuda.read_word(self.words + 8 * word)
                if seen != ROUNDS * self.pes:
                    raise WrongData(f"word {word} is {seen} after {ROUNDS * self.pes} additions of 1")
            self.recorder.checked_words += WORDS
        self.nvshmem.barrier_all()

    def _check(self, seen: bytes, wanted: bytes, what: str) -> None:
        self.recorder.checked_bytes += len(wanted)
        if seen != wanted:
            first = next(i for i in range(len(wanted)) if seen[i] != wanted[i])
            raise WrongData(f"{what}: byte {first} of {len(wanted)} is {seen[first]}, not {wanted[first]}")

    def run(self, progress: Callable[[str, int, int], None]) -> None:
        total = len(SIZES) + 1
        for step, size in enumerate(SIZES):
            self.exchange(step, size)
            self.fetch_back(step, size)
            progress("exchange", step + 1, total)
        self.atomics()
        for _ in range(ROUNDS):
            self.recorder.timed("barrier", "host", 0, self.nvshmem.barrier_all)
            self.recorder.timed("quiet", "host", 0, self.nvshmem.quiet)
        progress("atomics", total, total)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nvshmem_efa.gpu_pe")
    for name in ("--pe", "--pes", "--seed", "--record-fd", "--progress-fd"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--library", "--unique-id"):
        parser.add_argument(name, type=Path, required=True)
    return parser.parse_args()


def main() -> int:
    args = _arguments()
    recorder = Recorder()
    record: dict[str, Any] = {"schema": SCHEMA, "program": "gpu-demo", "pe": args.pe, "n_pes": args.pes,
                              "seed": args.seed, "pid": os.getpid(), "result": "ok", "error": None}  # fmt: skip

    def progress(phase: str, done: int, total: int) -> None:
        line = json.dumps({"pe": args.pe, "phase": phase, "done": done, "total": total})
        os.write(args.progress_fd, line.encode() + b"\n")

    code = 0
    mismatches, first = 0, None
    started = time.monotonic()
    try:
        cuda = Cuda(args.pe)
        nvshmem = NvshmemHost(args.library, cuda)
        nvshmem.init(args.pe, args.pes, lambda make: share_file(args.unique_id, args.pe, make, DEADLINE_S))
        record["nvshmem"] = str(args.library)
        Program(nvshmem, cuda, args.seed, recorder).run(progress)
        record["stats"] = transport_stats()
        nvshmem.finalize()
    except WrongData as error:
        code, mismatches, first = 1, 1, str(error)
        record["result"] = "failed"
    except Exception as error:  # whatever it is, the record has to say it
        traceback.print_exc()
        code = 4 if isinstance(error, TimeoutError) else 1
        record.update(result="error", error={"code": type(error).__name__, "message": str(error), "hint": None})
    record.update(
        exit_code=code,
        elapsed_ms=round((time.monotonic() - started) * 1000, 1),
        operations=recorder.operations(),
        checked={"bytes": recorder.checked_bytes, "words": recorder.checked_words, "mismatches": mismatches,
                 "first_mismatch": first},
    )  # fmt: skip
    os.write(args.record_fd, json.dumps(record).encode() + b"\n")
    sys.stdout.flush()
    if code:
        os._exit(code)  # NVSHMEM's own exit handlers may wait for peers that will not come
    return 0


if __name__ == "__main__":
    sys.exit(main())
