# SPDX-License-Identifier: Apache-2.0
"""The command `nvshmem-efa bench transport`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nvshmem_efa.errors import ConfigError

TESTS = ("issue", "put", "get", "p", "put_signal", "amo", "quiet", "alltoall", "rate")  # bench_plan.TESTS


@click.command(name="transport")
@click.option("--pes", type=int, help="Processes (PEs). Default: a GPU each, at most 4; without GPUs 2.")
@click.option("--only", multiple=True, type=click.Choice(TESTS), help="This test alone; may be repeated.")
@click.option("--quick", is_flag=True, help="Fewer sizes and rounds: shows that it works.")
@click.option("--cpu", is_flag=True, help="CPU threads as posters, also where there are GPUs.")
@click.option("--deadline", default=300.0, show_default=True, help="Seconds after which everything is killed.")
@click.option("--json", "file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE",
              help="Write one JSON object there; - is standard output, in place of the table.")  # fmt: skip
def bench_transport(
    pes: int | None, only: tuple[str, ...], quick: bool, cpu: bool, deadline: float, file: Path | None
) -> int:
    """Time what posters do by themselves beside the proxy, through the same device in the same run."""
    from nvshmem_efa.bench_screen import show_transport_bench
    from nvshmem_efa.bench_transport import BenchOptions, run_transport_bench
    from nvshmem_efa.screen import progress_bar

    if file is not None and str(file) != "-" and not file.absolute().parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.parent}", "make it first")
    with progress_bar("bench") as (step, log):
        result = run_transport_bench(BenchOptions(pes, only, quick, cpu, deadline), step, log)
    text = json.dumps(result.to_dict(), indent=None if str(file) == "-" else 1)
    if file is not None and str(file) != "-":
        file.write_text(text + "\n")
    if str(file) == "-":
        click.echo(text)
    else:
        show_transport_bench(result)
    return int(result.exit_code)
