# SPDX-License-Identifier: Apache-2.0
"""The command line of tests/vm/run."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

from . import driver, initramfs
from .cache import Cache, default_folder
from .errors import EXIT_MISSING, EXIT_USAGE, VmError, say
from .job import Job, quoted
from .pins import read_groups
from .session import Images, Options, Session
from .sets import PAGE_HEAD, SETS, GuestSet, Step, outcomes, script, steps_around, table
from .transport_sets import TRANSPORT_PAGE_HEAD, TRANSPORT_SETS, package_files

ROOT = Path(__file__).resolve().parents[3]
DEVICE_PROGRAM = "nvshmem-efa-pci"
PROFILES = ("efa2", "efa3", "efa4")
RDMA_CORES = ("65", "56")
GUESTS_MAX = 8
DEVICES_MAX = 8
ALL_SETS: dict[str, GuestSet] = {**SETS, **TRANSPORT_SETS}
SHELL_TIMEOUT_S = 8 * 3600
EPILOG = """
The command runs as root in the guest, in a folder that holds --files, and may leave files in /results. What it prints
goes to stdout; its exit code is returned. The runner's own failures: 1 (also when the guest's kernel warns), 2 usage,
3 something is missing, 4 the deadline passed; each with a line "vm: ..." on stderr.
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tests/vm/run",
        usage="tests/vm/run [options] -- COMMAND [ARGUMENT...]",
        description="Runs a command in a guest with the kernel's own EFA driver and the real rdma-core.",
        epilog=EPILOG,
    )
    add = made.add_argument
    add("--set", choices=sorted(ALL_SETS), help="a named set of tests in place of a command (--list-sets)")
    add("--list-sets", action="store_true", help="say what the sets are")
    add("--report", type=Path, metavar="FILE", help="with --set: a page to add its table to, in Markdown")
    add("--devices", type=int, default=None, metavar="N", help="EFA devices of each guest (default 0)")
    add("--profile", choices=PROFILES, default="efa3", help="the device generation (default efa3)")
    add("--guests", type=int, default=1, metavar="N", help="guests at once, on one fabric and one network (guest0...)")
    add("--rdma-core", choices=RDMA_CORES, default="65", help="the guest's rdma-core (default 65)")
    add("--files", nargs="+", type=Path, default=[], metavar="PATH", help="files and folders to have in the guest")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable of the command's environment")
    add("--results", type=Path, metavar="DIR", help="where what the command left in /results goes")
    add("--log", type=Path, metavar="FILE", help="also write the guests' consoles there")
    add("--device-logs", type=Path, metavar="DIR", help="where the device processes' logs go")
    add("--timeout", type=float, metavar="S", help="for devices and guests together (default 300, or the set's own)")
    add("--mem", type=int, default=1024, metavar="MB", help="memory of a guest (default 1024)")
    add("--cpus", type=int, default=2, metavar="N", help="processors of a guest (default 2)")
    add("--seed", type=int, default=1, metavar="N", help="of the first device; the others count on (default 1)")
    add("--device-program", type=Path, metavar="PATH", help=f"default: {DEVICE_PROGRAM} of the newest build folder")
    add(
        "--device-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of the device program; INDEX:ARG for one device of each guest only",
    )
    add("--no-driver", action="store_true", help="do not load efa.ko before the command")
    add("--shell", action="store_true", help="a shell on this terminal in place of a command")
    add("--prepare", action="store_true", help="only fill the cache, for both versions of rdma-core")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def _check(options: argparse.Namespace) -> None:
    if options.set:
        _check_set(options, ALL_SETS[options.set])
    options.devices = options.devices or 0
    if options.timeout is None:
        options.timeout = ALL_SETS[options.set].timeout_s if options.set else 300.0
    if options.report and not options.set:
        raise VmError("--report goes with --set", "", EXIT_USAGE)
    for name, least, most in (("devices", 0, DEVICES_MAX), ("guests", 1, GUESTS_MAX), ("cpus", 1, 16)):
        if not least <= getattr(options, name) <= most:
            raise VmError(f"--{name} {getattr(options, name)}: from {least} to {most}", "", EXIT_USAGE)
    if options.mem < 512 or options.timeout <= 0:
        raise VmError("--mem is at least 512 MB, --timeout more than 0", "", EXIT_USAGE)
    if options.shell and (options.command or options.guests > 1 or not sys.stdin.isatty()):
        raise VmError("--shell takes no command, one guest and a terminal", "", EXIT_USAGE)
    if not (options.command or options.shell or options.prepare or options.set):
        raise VmError("no command", "tests/vm/run [options] -- COMMAND [ARGUMENT...]", EXIT_USAGE)
    for pair in options.env:
        if not pair.partition("=")[0].isidentifier() or "=" not in pair:
            raise VmError(f"--env {pair}: expected NAME=VALUE", "", EXIT_USAGE)
    for path in options.files:
        if not path.exists():
            raise VmError(f"--files {path}: not there", "", EXIT_USAGE)


def _check_set(options: argparse.Namespace, chosen: GuestSet) -> None:
    """A set brings its own devices, guests and rdma-core."""
    if options.command or options.shell or options.guests > 1 or options.devices is not None:
        raise VmError("--set takes no command, --shell, --guests and --devices", "it has its own", EXIT_USAGE)
    options.devices, options.guests = chosen.devices, chosen.guests
    options.rdma_core = chosen.rdma_core or options.rdma_core
    options.device_arg = [*chosen.device_arguments, *options.device_arg]


def find_device_program(named: Path | None) -> Path:
    if named is not None:
        if not os.access(named, os.X_OK):
            raise VmError(f"--device-program {named}: not a program", f"build it: ninja {DEVICE_PROGRAM}", EXIT_MISSING)
        return named.resolve()
    built = [path for path in (ROOT / "build").glob(f"**/{DEVICE_PROGRAM}") if os.access(path, os.X_OK)]
    if not built:
        raise VmError(
            f"--devices needs {DEVICE_PROGRAM}, which is in no folder below {ROOT / 'build'}",
            f"build it (cmake --build build/... --target {DEVICE_PROGRAM}) or name it by --device-program",
            EXIT_MISSING,
        )
    return max(built, key=lambda path: path.stat().st_mtime)


def images(cache: Cache, rdma_core: str) -> Images:
    """What guests start from, made or fetched when it is not in the cache."""
    started = time.monotonic()
    kernel = cache.root("kernel")
    release = driver.kernel_release(kernel)
    made = Images(
        qemu=cache.root("qemu"),
        kernel=kernel / "usr/lib/modules" / release / "vmlinuz",
        initramfs=initramfs.initramfs(cache, f"guest-{rdma_core}"),
    )
    if time.monotonic() - started > 1:
        say(f"the cache {cache.folder} is ready after {time.monotonic() - started:.0f} s")
    return made


def _run(options: argparse.Namespace) -> int:
    if options.list_sets:
        print("\n".join(f"{name:<16} {chosen.about}" for name, chosen in ALL_SETS.items()))
        return 0
    _check(options)
    cache = Cache(default_folder(), read_groups())
    device_program = find_device_program(options.device_program) if options.devices else None
    if options.prepare:
        for version in RDMA_CORES:
            images(cache, version)
            cache.root(f"rdma-core-source-{version}")
        return 0
    chosen = ALL_SETS[options.set] if options.set else None
    steps = steps_around(chosen) if chosen else ()
    job = Job(
        command=script(steps, options.profile) if steps else f"exec {quoted(options.command)}",
        files=(*((path.name, path) for path in options.files), *_set_files(cache, options, chosen, device_program)),
        environment=dict(pair.split("=", 1) for pair in options.env),
        has_driver=not options.no_driver,
        is_shell=options.shell,
    )
    images_made = images(cache, options.rdma_core)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if steps and options.results is None:
            options.results = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nvshmem-efa-set-")))
        log = stack.enter_context(options.log.open("wb")) if options.log else None
        code = Session(images_made, _session_options(options, job, device_program), log).run()
        say(f"exit code {code} after {time.monotonic() - started:.1f} s")
        if steps:
            _report(options, steps)
    return code


def _set_files(
    cache: Cache, options: argparse.Namespace, chosen: GuestSet | None, device_program: Path | None
) -> list[tuple[str, Path]]:
    files = []
    if chosen and chosen.takes_rdma_core_tests:
        files.append(("rdma-core-tests", cache.root(f"rdma-core-source-{options.rdma_core}")))
    if chosen and chosen.takes_package and device_program:
        files += package_files(device_program)
    return files


def _session_options(options: argparse.Namespace, job: Job, device_program: Path | None) -> Options:
    return Options(
        job=job,
        guests=options.guests,
        devices=options.devices,
        profile=options.profile,
        device_program=device_program,
        device_arguments=tuple(options.device_arg),
        seed=options.seed,
        memory_mb=options.mem,
        cpus=options.cpus,
        timeout_s=SHELL_TIMEOUT_S if options.shell else options.timeout,
        results=options.results,
        device_logs=options.device_logs,
    )


def _report(options: argparse.Namespace, steps: tuple[Step, ...]) -> None:
    results = options.results / "guest0" if options.guests > 1 else options.results
    found = outcomes(steps, options.profile, results)
    pins = read_groups()
    kernel = pins["kernel"].packages[0].version
    user_space = pins[f"rdma-core-source-{options.rdma_core}"].source
    version = user_space.version if user_space else options.rdma_core
    head = TRANSPORT_PAGE_HEAD if options.set in TRANSPORT_SETS else PAGE_HEAD
    day = time.strftime("%Y-%m-%d")
    title = f"## Set {options.set}: {options.profile}, rdma-core {version}, kernel {kernel} ({day})"
    text = table(found, title)
    print(text)
    if options.report is not None:
        text = ("\n" if options.report.exists() else head + "\n") + text
        with options.report.open("a") as page:
            page.write(text)


def main(arguments: list[str]) -> int:
    made = parser()
    before, _, command = _split(arguments)
    options = made.parse_args(before)
    options.command = command or options.command
    try:
        return _run(options)
    except VmError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _split(arguments: list[str]) -> tuple[list[str], str, list[str]]:
    """At the first `--`: what follows is the guest's, whatever it looks like."""
    if "--" not in arguments:
        return arguments, "", []
    at = arguments.index("--")
    return arguments[:at], "--", arguments[at + 1 :]
