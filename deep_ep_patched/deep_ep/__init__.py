# SPDX-License-Identifier: Apache-2.0
"""Expert parallelism over nvshmem-efa with DeepEP's interface. docs/deep-ep.md says what is there and what is not."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

from deep_ep.buffer import Buffer
from deep_ep.config import Config
from deep_ep.errors import ExchangeError
from deep_ep.events import EventHandle, EventOverlap

topk_idx_t = torch.int64

try:
    __version__ = version("nvshmem-efa")
except PackageNotFoundError:  # a folder that was copied, not installed: pip knows nothing of it
    __version__ = "0+copied"

__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap", "ExchangeError", "__version__", "topk_idx_t"]
