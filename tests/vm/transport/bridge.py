#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Joins the PE runtime's bootstrap of several guests: PE 0 serves an abstract unix socket, which ends at its guest.

bridge.py JOB: guest 0 takes TCP connections of the guests' own network to that socket; in the others, the socket of
that name is a way to guest 0. It runs until it is killed.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

PORT = 4791
GUEST_0 = "10.99.0.1"
PATIENCE_S = 30.0


def unix_name(job: str) -> str:
    return "\0nvshmem-efa-pe." + job


def patient(connect: object) -> socket.socket:
    """The other side may not be there yet."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connect()  # type: ignore[operator]
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def to_tcp() -> socket.socket:
    return socket.create_connection((GUEST_0, PORT), timeout=PATIENCE_S)


def to_unix(job: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.connect(unix_name(job))
    except OSError:
        made.close()
        raise
    return made


def pump(source: socket.socket, sink: socket.socket) -> None:
    """One direction, to its end."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            end.close()


def serve(listener: socket.socket, connect: object) -> None:
    while True:
        near, _ = listener.accept()
        far = patient(connect)
        far.settimeout(None)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def main() -> None:
    job = sys.argv[1]
    if os.environ["EFA_VM_GUEST"] == "0":
        serve(socket.create_server((GUEST_0, PORT)), lambda: to_unix(job))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(unix_name(job))
    listener.listen()
    serve(listener, to_tcp)


if __name__ == "__main__":
    main()
