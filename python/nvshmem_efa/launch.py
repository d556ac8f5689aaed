# SPDX-License-Identifier: Apache-2.0
"""Starts a program that knows nothing of us, with the switch in place."""

from __future__ import annotations

import os
from typing import NoReturn

from nvshmem_efa import installed
from nvshmem_efa.errors import MissingError


def launch_environment(env: dict[str, str], mode: str | None, profile: str | None) -> dict[str, str]:
    """`env` with the shim preloaded and the transport chosen; what else it says is kept."""
    preload = [str(installed.shim()), *filter(None, env.get("LD_PRELOAD", "").split(":"))]
    chosen = {**env, "NVSHMEM_REMOTE_TRANSPORT": "efa", "LD_PRELOAD": ":".join(dict.fromkeys(preload))}
    if mode:
        chosen["NVSHMEM_EFA_MODE"] = mode
    if profile:
        chosen["NVSHMEM_EFA_SOFT_PROFILE"] = profile
    return chosen


def launch(command: list[str], mode: str | None, profile: str | None) -> NoReturn:
    """Becomes `command`."""
    env = launch_environment(dict(os.environ), mode, profile)
    try:
        os.execvpe(command[0], command, env)
    except OSError as error:
        raise MissingError(f"{command[0]} cannot be started: {error.strerror}", "check the name and PATH") from error
