# SPDX-License-Identifier: Apache-2.0
"""The switch: makes NVSHMEM of this process take our plugin for NVSHMEM_REMOTE_TRANSPORT=efa."""

from __future__ import annotations

import ctypes

from nvshmem_efa import installed
from nvshmem_efa.errors import ConfigError


def select() -> None:
    """Loads the shim into this process. Loading it is the switch; calling it again changes nothing.

    The shim stays loaded for the life of the process, since NVSHMEM will use the plugin that it has loaded.
    """
    path = installed.shim()
    shim = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    shim.nvshmem_efa_select.restype = ctypes.c_int
    if shim.nvshmem_efa_select() < 0:
        raise ConfigError(
            "NVSHMEM_REMOTE_TRANSPORT=efa could not be set up; the reason is on standard error",
            "run `nvshmem-efa doctor`",
        )
