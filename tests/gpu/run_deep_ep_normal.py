#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The CPU's cases of deep_ep's normal mode, on GPUs: four ranks, a process each, which share the GPUs there are.

One line a case; exit code 0 when all are good. On fewer GPUs than ranks they take turns, and their times mean nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "deep_ep")]

from rank_processes import RankProcesses, case_names  # noqa: E402

RANKS = 4
# What they look at is the CPU's: its memory, its tensors' addresses, errors about CPU tensors.
ONLY_CPU = {
    "each_wrong_argument_of_dispatch_is_named",
    "each_wrong_argument_of_layout_and_combine_is_named",
    "memory_goes_back_with_the_last_tensor",
    "results_outlive_their_buffer",
    "the_example_of_the_documentation_runs",
    "nothing_works_after_destroy",
    "a_buffer_that_nobody_destroys_ends_with_its_last_reference",
    "a_process_that_ends_with_results_leaves_no_shared_memory_behind",
    "the_raw_buffer_and_the_stand_in_stream",
    "the_end",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--timeout-s", default="20", help="DEEP_EP_TIMEOUT_S of the ranks")
    options = parser.parse_args()
    names = [case.partition(".")[2] for case in case_names("cases_normal", "cases_normal_limits")]
    names += re.findall(r"^def case_(\w+)\(", (HERE / "cases_on_gpu.py").read_text(), re.MULTILINE)
    wanted = [name for name in names if name not in ONLY_CPU and options.only in name]
    ranks = RankProcesses(RANKS, {"DEEP_EP_TIMEOUT_S": options.timeout_s, "DEEP_EP_EXECUTOR": "gpu"})
    failed = 0
    for name in wanted:
        started = time.monotonic()
        verdict = "good"
        try:
            ranks.run(f"cases_on_gpu.{name}")
        except AssertionError as error:
            failed += 1
            verdict = f"WRONG\n{error}"
        print(f"{time.monotonic() - started:6.1f} s  {name}: {verdict}", flush=True)
    try:
        ranks.stop()
    except AssertionError as error:
        failed += 1
        print(error)
    print(f"{len(wanted) - failed} of {len(wanted)} good", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
