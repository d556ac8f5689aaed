# SPDX-License-Identifier: Apache-2.0
"""Sets of steps for our own transport on the guest's devices: the verbs provider through the real libefa and efa.ko."""

from __future__ import annotations

from pathlib import Path

from .errors import EXIT_MISSING, VmError
from .sets import GuestSet, Step

ROOT = Path(__file__).resolve().parents[3]
CASES = r"^(FAIL|skip) \w+|^ *\d+ (queue pairs|regions|counters)(?=, then)"
NAMED = r"on efa_\d failed: \w+|PE \d: \w+|^FAILED.*"
VERDICT = r"\"result\": \"[a-z]+\"|^(start|FAILED).*"
HUGE_PAGES = "echo 16 > /proc/sys/vm/nr_hugepages"  # contiguous memory for completion queues
SHORT_CASES = (
    "devices_say_what_they_can writes_of_all_sizes_land_where_they_should_and_nowhere_else "
    "a_write_with_immediate_tells_the_target_once_its_bytes_are_there inline_bytes_travel_in_the_slot "
    "reads_fetch_the_peers_bytes rings_wrap_and_every_id_comes_back_once counters_count_what_they_are_attached_to "
    "a_receiver_that_is_not_ready_is_retried_or_named completions_land_in_the_callers_contiguous_memory "
    "threads_share_a_relay_ring_of_eight_slots_and_all_is_placed threads_share_the_devices_own_ring_and_all_is_placed "
    "a_relayed_request_that_is_refused_is_named a_request_on_the_devices_own_ring_that_is_refused_is_named "
    "a_job_in_mode_relay_carries_what_its_threads_post"
)
MISTAKES = (
    "mistake_wrong_phase_is_caught mistake_doorbell_value_is_caught mistake_missing_address_handle_is_caught "
    "mistake_completion_memory_that_is_not_contiguous_is_caught"
)
# One device of the guest for each: what it lacks, and how the provider shows that.
LACKING = (
    ("rdma_read", "read 0"),
    ("rnr_retry", "rnr_retry 0"),
    ("unsolicited", "unsolicited 0"),
    ("inline_write", "inline_write 0"),
    ("req_id_64", "ids64 0"),
    ("counters", "counters 0"),
)


def _demo(pes: int) -> Step:
    return Step(
        f"demo-{pes}-pes",
        f"python3 -m nvshmem_efa demo --device --pes {pes} --deadline 110 2> /dev/null",
        120,
        r"^(bytes checked|wrong values|result).*",
    )


def _conformance(abi: int) -> Step:
    return Step(f"conformance-abi{abi}", f". transport/common.sh; pe {abi} check --quick --spawn 2", 90, VERDICT)


def _lacking(index: int, capability: str, shown: str) -> Step:
    device = f"efa_{index}"
    # Without RDMA read there are no gets, and so no transport: it says so.
    run = (
        f"refused 'lacks RDMA read' env NVSHMEM_EFA_DEVICES={device} sh transport/short_demo.sh"
        if capability == "rdma_read"
        else f"NVSHMEM_EFA_DEVICES={device} sh transport/short_demo.sh"
    )
    return Step(
        f"without-{capability.replace('_', '-')}",
        f"{HUGE_PAGES}; . transport/common.sh; "
        f"EFA_TEST_DEVICES={device} ./efa-device-tests {SHORT_CASES} > /tmp/cases; code=$?; "
        f"cat /tmp/cases; [ $code = 0 ] && grep -q '{shown}' /tmp/cases && {run}",
        60,
        r"^(FAIL|skip) \w+|^FAILED.*",
    )


KILLED_PEER = Step("killed-peer", "sh transport/killed_peer.sh", 60, NAMED)
TRANSPORT_SETS: dict[str, GuestSet] = {
    "transport": GuestSet(
        "our verbs provider, host path, demo and conformance",
        (
            Step("device-cases", f"{HUGE_PAGES}; modprobe -q udmabuf; ./efa-device-tests", 150, CASES),
            Step("info", "python3 -m nvshmem_efa info | grep 'efa_0, efa_1'", summary="^efa devices.*"),
            # No GPU here, so the doctor does not call the machine ready; of EFA nothing may be missing.
            Step("doctor", "python3 -m nvshmem_efa doctor --for efa > /tmp/doctor; cat /tmp/doctor; "
                 "[ $(grep -cE '^good +(locked memory|verbs libraries|EFA devices|device files)' /tmp/doctor) = 4 ]"),
            _demo(2),
            _demo(4),
            *(_conformance(abi) for abi in (3, 4, 6, 7)),
            KILLED_PEER,
            Step("100-runs", "sh transport/many_runs.sh 100", 90),
        ),
        timeout_s=600.0,
        takes_package=True,
    ),
    "transport-quick": GuestSet(
        "the part of it that CI has time for",
        (
            Step("device-cases", f"{HUGE_PAGES}; ./efa-device-tests {SHORT_CASES} {MISTAKES}", 60, CASES),
            _demo(2),
            KILLED_PEER,
            Step("10-runs", "sh transport/many_runs.sh 10", 30),
        ),
        takes_package=True,
    ),
    "two-guests": GuestSet(
        "four PEs in two guests", (Step("demo-4-pes-2-guests", "sh transport/two_guests.sh", 150, VERDICT),),
        guests=2, takes_package=True,
    ),
    "dead-rail": GuestSet(
        "the second of two devices falls silent",
        (Step("dead-rail", "sh transport/dead_rail.sh", 90, NAMED),),
        device_arguments=("--timeout-ms", "4000", "1:--fault", "1:dead_rail=0@2000"),
        takes_package=True,
    ),
    "capabilities": GuestSet(
        "devices that lack one capability each",
        tuple(_lacking(index, *pair) for index, pair in enumerate(LACKING)),
        devices=len(LACKING),
        device_arguments=tuple(
            argument
            for index, (capability, _) in enumerate(LACKING)
            for argument in (f"{index}:--without", f"{index}:{capability}")
        ),
        takes_package=True,
    ),
    "old-rdma-core": GuestSet(
        "a library that lacks what we need is refused by name",
        (
            Step("refusal", ". transport/common.sh; refused 'rdma-core v59' sh transport/short_demo.sh", 30,
                 r"PE \d: \w+|libefa.so[.\d]+ is too old|^FAILED.*"),
        ),
        rdma_core="56",
        takes_package=True,
    ),
}  # fmt: skip


TRANSPORT_PAGE_HEAD = """# Our transport on the real driver stack

Generated by `tests/vm/report`, do not edit. In a guest with the kernel's own `efa.ko` and the real rdma-core, on the
device model behind its PCI front ([efa-in-a-vm.md](efa-in-a-vm.md)). Times are of an emulated machine: no measure of
EFA, nor of the transport.
"""


def package_files(device_program: Path) -> list[tuple[str, Path]]:
    """The Python package with the libraries and programs of the build that the device program is of."""
    built = device_program.parents[1]
    cases = built.parent / "tests/device/efa-device-tests"
    if not cases.exists():
        raise VmError(
            f"this set needs {cases}, which is not there",
            "configure the build with -DNVSHMEM_EFA_TESTS=ON and build all, or name another by --device-program",
            EXIT_MISSING,
        )
    return [
        ("nvshmem_efa", ROOT / "python/nvshmem_efa"),
        ("nvshmem_efa/lib", built / "lib"),
        ("nvshmem_efa/bin", built / "bin"),
        ("transport", ROOT / "tests/vm/transport"),
        ("efa-device-tests", cases),
    ]
