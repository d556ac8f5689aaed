# SPDX-License-Identifier: Apache-2.0
"""The commands `nvshmem-efa bench transport` and `nvshmem-efa bench ep`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from nvshmem_efa.errors import ConfigError

TESTS = ("issue", "put", "get", "p", "put_signal", "amo", "quiet", "alltoall", "rate")  # bench_plan.TESTS
EP_PARTS = ("low_latency", "normal")  # bench_ep.PART_MODULES


@click.command(name="transport")
@click.option("--pes", type=int, help="Processes (PEs). Default: a GPU each, at most 4; without GPUs 2.")
@click.option("--only", multiple=True, type=click.Choice(TESTS), help="This test alone; may be repeated.")
@click.option("--quick", is_flag=True, help="Fewer sizes and rounds: shows that it works.")
@click.option("--cpu", is_flag=True, help="CPU threads as posters, also where there are GPUs.")
@click.option("--share-gpus", is_flag=True, help="More PEs than GPUs, with NVIDIA MPS running.")
@click.option("--deadline", default=300.0, show_default=True, help="Seconds after which everything is killed.")
@click.option("--json", "file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="Write one JSON object there; - is standard output, in place of the table.")  # fmt: skip
def bench_transport(
    pes: int | None, only: tuple[str, ...], quick: bool, cpu: bool, share_gpus: bool, deadline: float, file: Path | None
) -> int:  # fmt: skip
    """Time what posters do by themselves beside the proxy, through the same device in the same run."""
    from nvshmem_efa.bench_screen import show_transport_bench
    from nvshmem_efa.bench_transport import BenchOptions, run_transport_bench
    from nvshmem_efa.screen import progress_bar

    if file is not None and str(file) != "-" and not file.absolute().parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.parent}", "make it first")
    with progress_bar("bench") as (step, log):
        result = run_transport_bench(BenchOptions(pes, only, quick, cpu, share_gpus, deadline), step, log)
    text = json.dumps(result.to_dict(), indent=None if str(file) == "-" else 1)
    if file is not None and str(file) != "-":
        file.write_text(text + "\n")
    if str(file) == "-":
        click.echo(text)
    else:
        show_transport_bench(result)
    return int(result.exit_code)


@click.command(name="ep")
@click.option("--ranks", type=int, help="Processes. Default: one for each GPU; without GPUs 2.")
@click.option("--tokens", default=128, show_default=True, help="Tokens of a rank in low latency.")
@click.option("--hidden", default=7168, show_default=True, help="Values of a token.")
@click.option("--experts", default=288, show_default=True, help="Experts of all ranks in low latency.")
@click.option("--topk", default=8, show_default=True, help="Experts that a token goes to.")
@click.option("--batch-tokens", default=4096, show_default=True, help="Tokens of a rank in normal mode.")
@click.option("--batch-experts", default=256, show_default=True, help="Experts in normal mode.")
@click.option("--only", multiple=True, type=click.Choice(EP_PARTS), help="This part alone; may be repeated.")
@click.option("--quick", is_flag=True, help="Fewer rounds: shows that it works.")
@click.option("--cpu", is_flag=True, help="On CPU tensors, also where there are GPUs.")
@click.option("--seed", default=1, show_default=True, help="All inputs follow from it.")
@click.option("--deadline", default=300.0, show_default=True, help="Seconds after which everything is killed.")
@click.option("--json", "file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="Write one JSON object there; - is standard output, in place of the table.")  # fmt: skip
def bench_ep(only: tuple[str, ...], deadline: float, file: Path | None, **sizes: Any) -> int:  # noqa: ANN401
    """Time deep_ep's calls, checked in the same run, and count what they ask of a network. Needs torch."""
    from nvshmem_efa.bench_ep import EpOptions, run_ep_bench
    from nvshmem_efa.bench_screen import show_ep_bench
    from nvshmem_efa.screen import progress_bar

    if file is not None and str(file) != "-" and not file.absolute().parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.parent}", "make it first")
    with progress_bar("bench") as (step, log):
        result = run_ep_bench(EpOptions(**sizes, parts=only, deadline_s=deadline), step, log)
    text = json.dumps(result.to_dict(), indent=None if str(file) == "-" else 1)
    if file is not None and str(file) != "-":
        file.write_text(text + "\n")
    if str(file) == "-":
        click.echo(text)
    else:
        show_ep_bench(result)
    return int(result.exit_code)
