# SPDX-License-Identifier: Apache-2.0
"""The command nvshmem-efa. What a command needs is imported when it runs, so that --help is quick."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

import click

import nvshmem_efa
from nvshmem_efa.bench_cli import bench_ep, bench_transport
from nvshmem_efa.errors import EfaError, ExitCode

PROFILES = ("efa2", "efa3", "efa4")
MODES = ("auto", "proxy", "direct", "relay", "soft", "fallback")
EPILOG = (
    "Exit codes: 0 good, 1 a check or data check failed, 2 usage, 3 needed hardware or software is missing, "
    "4 timed out or a peer died."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@click.group(epilog=EPILOG, context_settings={"max_content_width": 100})
@click.version_option(package_name="nvshmem-efa", prog_name="nvshmem-efa")
def cli() -> None:
    """NVSHMEM over AWS EFA, and a software EFA device for machines that have none."""


@cli.command()
@click.option("--pes", default=4, show_default=True, help="Processes (PEs) to start; 2 to 16.")
@click.option("--seed", default=1, show_default=True, help="Every byte, route and reordering follows from it.")
@click.option("--profile", type=click.Choice(PROFILES), default="efa3", show_default=True,
              help="Generation that the software device plays.")  # fmt: skip
@click.option("--abi", type=click.Choice(["3", "4", "5", "6", "7"]), default="6", show_default=True,
              help="NVSHMEM plugin ABI to drive the plugin through.")  # fmt: skip
@click.option("--deadline", default=60.0, show_default=True, help="Seconds after which everything is killed.")
@click.option("--gpu", is_flag=True, help="Run on this machine's GPUs with the real NVSHMEM library.")
@click.option("--device", is_flag=True, help="Use this machine's EFA devices instead of software ones.")
@click.option("--moe/--no-moe", default=True, show_default=True,
              help="Also run a MoE layer on deep_ep; needs torch. Not with --gpu or --device.")  # fmt: skip
@json_option
def demo(
    pes: int, seed: int, profile: str, abi: str, deadline: float, gpu: bool, device: bool, moe: bool, as_json: bool
) -> int:
    """Exchange tokens between processes through software EFA devices, and check every byte."""
    from nvshmem_efa.demo import DemoOptions, run_demo, with_moe
    from nvshmem_efa.screen import progress_bar, show_demo

    if gpu and device:
        raise click.UsageError("--gpu and --device exclude each other; with --gpu, NVSHMEM_EFA_MODE chooses the device")
    options = DemoOptions(pes, seed, profile, int(abi), deadline, on_devices=device)
    with progress_bar("demo") as (step, log):
        if gpu:
            from nvshmem_efa.gpu_demo import run_gpu_demo

            result = run_gpu_demo(options, step, log)
        else:
            result = run_demo(options, step, log)
            if moe and not device:
                result = with_moe(result, step)
    if as_json:
        click.echo(result.to_json())
    else:
        show_demo(result)
    return int(result.exit_code)


@cli.command()
@json_option
def info(as_json: bool) -> int:
    """Say what is installed here: version, plugins, NVSHMEM, GPUs, EFA devices."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps({"schema": "nvshmem-efa-info/1", **facts}))
    else:
        for name, value in facts.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{name.replace('_', ' '):<20} {'none' if text in (None, '') else text}")
    return ExitCode.GOOD


def _facts() -> dict[str, Any]:
    from nvshmem_efa import installed
    from nvshmem_efa.machine import Machine
    from nvshmem_efa.nvshmem import find_nvshmem

    machine = Machine()
    found = find_nvshmem()
    return {
        "version": nvshmem_efa.__version__,
        "installed_in": str(installed.library().parent.parent),
        "plugin_abis": list(installed.PLUGIN_ABIS),
        "python": sys.version.split()[0],
        "machine": machine.describe(),
        "nvshmem": f"{found.version or 'unknown version'} at {found.home}" if found else None,
        "nvshmem_abis": list(found.plugin_abis) if found else [],
        "gpus": machine.gpu_count() or 0,
        "efa_devices": [nic.name for nic in machine.nics() if nic.driver == "efa"],
        "remote_transport": os.environ.get("NVSHMEM_REMOTE_TRANSPORT"),
        "mode": os.environ.get("NVSHMEM_EFA_MODE", "auto"),
    }


@cli.command()
@click.option("--markdown", is_flag=True, help="Print the page docs/env.md.")
@json_option
def env(markdown: bool, as_json: bool) -> int:
    """List all settings, with the values that they have here."""
    from nvshmem_efa import settings

    rows = settings.table()
    if markdown:
        click.echo(settings.to_markdown(), nl=False)
        return ExitCode.GOOD
    warnings = settings.check()
    given = {row.name: os.environ[row.name] for row in rows if os.environ.get(row.name)}
    if as_json:
        listed = [{**asdict(row), "value": given.get(row.name)} for row in rows]
        click.echo(json.dumps({"schema": "nvshmem-efa-env/1", "settings": listed, "warnings": warnings}))
    else:
        from nvshmem_efa.screen import show_settings

        show_settings(rows, given, warnings)
    return ExitCode.GOOD


@cli.command()
@click.option("--for", "purpose", type=click.Choice(["demo", "gpu", "efa"]), default="demo", show_default=True,
              help="What the machine is to be used for; decides which checks count.")  # fmt: skip
@json_option
def doctor(purpose: str, as_json: bool) -> int:
    """Check this machine step by step: what was seen, the verdict, and what to do."""
    from nvshmem_efa.doctor import Purpose, run_doctor
    from nvshmem_efa.machine import Machine

    report = run_doctor(Machine(), Purpose(purpose))
    if as_json:
        click.echo(report.to_json())
    else:
        from nvshmem_efa.screen import show_report

        show_report(report)
    return report.exit_code


@cli.group()
def bench() -> None:
    """Measure on this machine."""


@bench.command(name="host")
@json_option
def bench_host(as_json: bool) -> int:
    """CPU cost of building and posting work requests, and what the software device moves."""
    from nvshmem_efa.bench import run_host_bench

    result = run_host_bench()
    if as_json:
        click.echo(json.dumps(result))
    else:
        from nvshmem_efa.screen import show_bench

        show_bench(result)
    return ExitCode.GOOD


bench.add_command(bench_transport)
bench.add_command(bench_ep)


@cli.command()
@click.option("--arch", "archs", multiple=True, metavar="NAME",
              help="Compile for this one, such as sm_90a; may be repeated. Default: the GPUs here.")  # fmt: skip
@json_option
def warmup(archs: tuple[str, ...], as_json: bool) -> int:
    """Compile all kernels ahead, into the cache that programs will find them in."""
    from nvshmem_efa.kernels import build_all

    built = build_all(list(archs))
    if as_json:
        kernels = [{**asdict(kernel), "path": str(kernel.path)} for kernel in built]
        click.echo(json.dumps({"schema": "nvshmem-efa-warmup/1", "kernels": kernels}))
    else:
        for kernel in built:
            done = "in the cache" if kernel.was_cached else f"compiled in {kernel.seconds:.2f} s"
            click.echo(f"{kernel.name:<24} {kernel.arch:<8} {kernel.size:>8} bytes  {done}")
        click.echo(f"in {built[0].path.parent}")
    return ExitCode.GOOD


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--mode", type=click.Choice(MODES), help="Sets NVSHMEM_EFA_MODE.")
@click.option("--profile", type=click.Choice(PROFILES), help="Sets NVSHMEM_EFA_SOFT_PROFILE.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(mode: str | None, profile: str | None, command: tuple[str, ...]) -> int:
    """Start COMMAND with NVSHMEM told to use this transport (put -- before it)."""
    from nvshmem_efa.launch import launch

    launch(list(command), mode=mode, profile=profile)
    return ExitCode.GOOD


def main() -> None:
    """Entry point: turns outcomes and errors into exit codes."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that clean-up runs
    try:
        code = cli.main(standalone_mode=False)
    except EfaError as error:
        click.echo(f"error: {error}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes
        code = ExitCode.FAILED
    sys.exit(int(code or 0))
