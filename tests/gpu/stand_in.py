#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for nvshmem_ops where there is no GPU: cases that pass, fail, hang, crash and die, to test the launcher."""

import json
import os
import signal
import sys
import time

CASES = ("smoke", "differs", "fails", "hangs", "crashes", "last")


def event(kind: str, **fields: object) -> None:
    print("@@ " + json.dumps({"event": kind, **fields}), flush=True)


def value(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def run(case: str, pe: int, npes: int, p2p: bool) -> None:
    event("begin", case=case)
    if case == "hangs":
        if pe == 1:
            event("watchdog", case=case, stage="waits for what never comes")
        time.sleep(100)
    if case == "crashes":
        if pe == 0:
            os.kill(os.getpid(), signal.SIGABRT)
        time.sleep(100)
    if case == "dead_peer":
        if pe == npes - 1:
            event("suicide")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3)
        named = "no answer from PE" if os.environ.get("STAND_IN_SILENT") else f"PE {npes - 1} does not answer"
        print(f"host:1 [{pe}] ERROR rma  {named}; hint: look at its log", flush=True)
        sys.exit(255)
    digest = f"{pe:x}{'' if p2p else 'f'}" if case == "differs" else f"{pe:x}"
    failed = case == "fails" and pe == 1
    event("case", case=case, pe=pe, status="fail" if failed else "pass", seconds=0.01, digest=digest,
          detail="byte 3 is wrong" if failed else "")  # fmt: skip


def main() -> None:
    if "--list" in sys.argv:
        print("\n".join(f"{case} group 5" for case in CASES) + "\ndead_peer death 5")
        return
    pe, npes = int(value("--pe")), int(value("--npes"))
    if "NVSHMEM_EFA_MODE" in os.environ:
        print(f"host:1 [{pe}] INFO start  nvshmem-efa 0.1.0: mode soft, stand-in", flush=True)
    event("started", pe=pe)
    for case in value("--cases").split(","):
        run(case, pe, npes, "--p2p" in sys.argv)
    event("stats", counters={"soft_work_requests": 20000, "soft_packets_received": 9, "soft_duplicates": 3,
                             "soft_out_of_order": 0 if os.environ.get("STAND_IN_ORDERED") else 7})  # fmt: skip
    event("finished", cycle=0)


main()
