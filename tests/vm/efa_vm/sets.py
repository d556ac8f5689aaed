# SPDX-License-Identifier: Apache-2.0
"""Sets of steps for a guest (tests/vm/run --set NAME): other projects' tests; and the table of what they said."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

DID_NOT_RUN, LEFT_OUT = -1, -2  # beside exit codes
# perftest posts RDMA by the ibv_wr calls only on devices whose PCI number it knows; by the older call EFA has none.
UNKNOWN_TO_PERFTEST = {"efa4": "perftest 25.01 knows the PCI numbers efa0 to efa3 only"}
UNITTEST = r"^(Ran \d+ tests?|OK.*|FAILED.*)"


@dataclass(frozen=True)
class Step:
    name: str
    command: str  # for the guest's sh
    timeout_s: int = 60
    summary: str = ""  # lines of its log that go into the table
    explained: str = ""  # why it may fail: reported, but no failure of the set
    left_out: dict[str, str] = field(default_factory=dict)  # profile -> why it does not run there


@dataclass(frozen=True)
class GuestSet:
    about: str
    steps: tuple[Step, ...]
    devices: int = 2
    guests: int = 1
    timeout_s: float = 300.0
    rdma_core: str = ""  # the only version that it is for
    device_arguments: tuple[str, ...] = ()
    takes_package: bool = False  # our own package and scripts go into the guest
    takes_rdma_core_tests: bool = False


@dataclass(frozen=True)
class Outcome:
    step: Step
    code: int
    seconds: float
    told: str

    @property
    def word(self) -> str:
        if self.code == LEFT_OUT:
            return "left out"
        if self.code == 0:
            return "passed"
        if self.code == DID_NOT_RUN:
            return "FAILED (did not run)"
        reason = "over its time" if self.code in (124, 143) else f"exit code {self.code}"
        return f"explained ({reason})" if self.step.explained else f"FAILED ({reason})"


def _perftest(name: str, *options: str) -> Step:
    # Through two devices: server and client have an address handle of each other, as two machines have.
    words = f"{name} --connection=SRD -x 0 -F {' '.join(options)}"
    return Step(
        name.replace("_", "-") + ("-" + options[0].lstrip("-") if options and options[0] == "-e" else ""),
        f"pair '{words} -d efa_1' '{words} -d efa_0 127.0.0.1'",
        left_out={} if "send" in name else UNKNOWN_TO_PERFTEST,
    )


def _rdma_core(name: str, *modules: str, timeout_s: int = 120, explained: str = "") -> Step:
    tests = " ".join(f"tests.{module}" for module in modules)
    return Step(
        name,
        f"cd rdma-core-tests && python3 -W ignore tests/run_tests.py --dev efa_0 -v --durations 4 {tests}",
        timeout_s,
        UNITTEST,
        explained,
    )


def _pingpong(kind: str, domain: str, *options: str) -> Step:
    # Without the switch, libfabric would go through shared memory: both ends are on one machine.
    words = f"FI_EFA_ENABLE_SHM_TRANSFER=0 fi_pingpong -p efa -e {kind} {' '.join(options)}".strip()
    return Step(f"fi-pingpong-{kind}", f"pair '{words} -d efa_1-{domain}' '{words} -d efa_0-{domain} 127.0.0.1'", 60)


SMOKE = (
    Step(
        "devices",
        "ibv_devices && ibv_devinfo -d efa_0 -v | grep -E 'state|fw_ver|max_qp:|max_mr_size|GID' && rdma link",
    ),
    Step("libefa", "fi_info -p efa -t FI_EP_RDM | grep -m 3 -E 'provider|domain|protocol'"),
)
RDMA_CORE = (
    _rdma_core("rdma-core-efadv", "test_efadv"),
    _rdma_core("rdma-core-efa-srd", "test_efa_srd"),
    _rdma_core("rdma-core-device", "test_device"),
    _rdma_core("rdma-core-objects", "test_pd", "test_mr", "test_cq", "test_qp", "test_addr"),
    _rdma_core("rdma-core-events", "test_cq_events", "test_cqex", "test_parent_domain", "test_shared_pd"),
)
PERFTEST = (
    _perftest("ib_write_bw", "-n 200", "-s 65536"),
    # -I 0: libefa refuses an inline write on slots of 64 bytes, and perftest, which asks for one, then waits for ever.
    _perftest("ib_write_lat", "-n 200", "-I 0"),
    _perftest("ib_read_bw", "-n 200", "-s 65536"),
    _perftest("ib_read_lat", "-n 200"),
    _perftest("ib_send_bw", "-n 200", "-s 4096"),
    _perftest("ib_send_lat", "-n 200"),
)
LIBFABRIC = (
    Step("fi-info", "fi_info -p efa", summary=r"^provider.*"),
    _pingpong("rdm", "rdm"),
    _pingpong("dgram", "dgrm", "-S 1024"),
)
PAGE_HEAD = """# What other projects' tests say of the device model

Generated, do not edit: each table by `tests/vm/run --set standard --profile P --rdma-core V --report PAGE`; without a
page, a new one is begun. Times are of an emulated machine that other work may have slowed down: no measure of EFA, nor
of the model. Tests of rdma-core that are skipped want what EFA does not have (device memory, memory windows, further
kinds of queue pairs, CQ resizing) or a graphics card's dma-buf. "left out" and "explained" say why.
"""
SETS: dict[str, GuestSet] = {
    "smoke": GuestSet("the devices are there", SMOKE),
    "rdma-core": GuestSet("rdma-core's own tests", RDMA_CORE, takes_rdma_core_tests=True),
    "perftest": GuestSet("perftest over SRD", PERFTEST),
    "libfabric": GuestSet("libfabric's tools", LIBFABRIC),
    "standard": GuestSet(
        "all of these", (*SMOKE, *RDMA_CORE, *PERFTEST, *LIBFABRIC), takes_rdma_core_tests=True
    ),
}
BEFORE = Step("counts-before", "rdma-counts before")
AFTER = (
    Step("counts-after", "rdma-counts after"),
    Step("driver-reload", "rmmod efa && modprobe efa && sleep 0.2 && ibv_devices | grep efa_0"),
)


def steps_around(chosen: GuestSet) -> tuple[Step, ...]:
    """With the kernel's own counts of objects around them, and the driver unloaded and loaded at the end."""
    return (BEFORE, *chosen.steps, *AFTER)


def script(steps: tuple[Step, ...], profile: str) -> str:
    """For the guest: every step whatever the others did; fails when one did that has no explanation."""
    lines = ["failed=0"]
    for step in steps:
        if profile in step.left_out:
            continue
        words = " ".join(shlex.quote(word) for word in (step.name, str(step.timeout_s), step.command))
        lines.append(f"step {words}" + (" || true" if step.explained else " || failed=1"))
    return "\n".join([*lines, "exit $failed"])


def outcomes(steps: tuple[Step, ...], profile: str, results: Path) -> list[Outcome]:
    """What the guest wrote of each step; a step without a line did not run."""
    told = results / "steps"
    rows = [line.split() for line in told.read_text().splitlines()] if told.exists() else []
    ended = {name: (int(code), float(seconds)) for name, code, seconds in rows}
    found = []
    for step in steps:
        if profile in step.left_out:
            found.append(Outcome(step, LEFT_OUT, 0.0, step.left_out[profile]))
            continue
        code, seconds = ended.get(step.name, (DID_NOT_RUN, 0.0))
        log = results / f"{step.name}.log"
        text = log.read_text(errors="replace") if step.summary and log.exists() else ""
        lines = [match.group(0).strip() for match in re.finditer(step.summary, text, re.M)] if step.summary else []
        found.append(Outcome(step, code, seconds, "; ".join(lines[-2:])))
    return found


def table(found: list[Outcome], title: str) -> str:
    """Markdown. Times are of an emulated machine and an emulated device; a speed is never shown."""
    lines = [title, "", "| step | result | s | last words |", "|---|---|---|---|"]
    for outcome in found:
        told = outcome.told.replace("|", "/")
        told = f"{told} {outcome.step.explained}".strip() if outcome.code else told
        lines.append(f"| {outcome.step.name} | {outcome.word} | {outcome.seconds:.1f} | {told} |")
    return "\n".join(lines) + "\n"
