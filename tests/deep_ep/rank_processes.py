# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401
"""Ranks as processes: one set of them runs every case of a file, so that torch is imported once and not once a case."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CASE_TIMEOUT_S = 60
EXIT_TIMEOUT_S = 20


def case_names(*modules: str) -> list[str]:
    """The functions case_* of files as "module.name", in their order; without an import, which would import torch."""
    found = re.compile(r"^def case_(\w+)\(", re.MULTILINE)
    return [f"{module}.{name}" for module in modules for name in found.findall((FOLDER / f"{module}.py").read_text())]


@dataclass
class Job:
    """What a case gets on each rank."""

    rank: int
    size: int
    group: Any
    kept: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Something that several cases use, such as a Buffer: made by the first, on all ranks."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


class RankProcesses:
    """`size` processes with a gloo group. A case that fails ends them all, and the next one starts new ones."""

    def __init__(self, size: int, environment: Mapping[str, str] | None = None) -> None:
        self._size = size
        self._environment = dict(environment or {})
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["torch", "torch.distributed", "deep_ep"])
        self._folder = tempfile.TemporaryDirectory()
        self._starts = 0
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, case: str) -> None:
        """Runs a case ("module.name") on all ranks; AssertionError with what each rank said that failed."""
        if not self._processes:
            self._start()
        failures: dict[int, str] = {}
        try:
            for pipe in self._pipes:
                pipe.send(case)
        except OSError as error:
            failures[-1] = f"a rank had gone before: {error}"
        for rank, pipe in enumerate(self._pipes):
            try:
                said = pipe.recv() if pipe.poll(CASE_TIMEOUT_S) else f"no answer in {CASE_TIMEOUT_S} s"
            except EOFError:
                self._processes[rank].join(EXIT_TIMEOUT_S)
                said = f"the process ended with {self._processes[rank].exitcode}"
            if said:
                failures[rank] = said
        if failures:
            self._kill()
            raise AssertionError("\n".join(f"rank {rank}: {said}" for rank, said in sorted(failures.items())))

    def stop(self) -> None:
        """Ends the processes; AssertionError when one of them fails to end well."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(EXIT_TIMEOUT_S)
        codes = [process.exitcode for process in self._processes]
        self._kill()
        self._folder.cleanup()
        assert all(code == 0 for code in codes), f"the ranks ended with {codes}"

    def _start(self) -> None:
        self._starts += 1
        store = f"file://{self._folder.name}/store-{self._starts}"
        for rank in range(self._size):
            ours, theirs = self._context.Pipe()
            arguments = (theirs, rank, self._size, store, self._environment)
            process = self._context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(EXIT_TIMEOUT_S)
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


def _serve(pipe: Connection, rank: int, size: int, store: str, environment: Mapping[str, str]) -> None:
    """A rank: runs the cases it is told of, until it is told to end."""
    library = os.environ.get("DEEP_EP_LIBRARY")
    for name in [name for name in os.environ if name.startswith(("NVSHMEM", "DEEP_EP_"))]:
        del os.environ[name]
    os.environ.update(environment)
    if library:
        os.environ["DEEP_EP_LIBRARY"] = library
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, world_size=size, rank=rank)
    job = Job(rank, size, dist.group.WORLD)
    while (case := pipe.recv()) is not None:
        try:
            module, _, name = case.partition(".")
            getattr(importlib.import_module(module), f"case_{name}")(job)
            pipe.send("")
        except BaseException:
            pipe.send(traceback.format_exc())
    job.kept.clear()
    dist.destroy_process_group()
