# SPDX-License-Identifier: Apache-2.0
"""EventOverlap and EventHandle, where main has them."""

from __future__ import annotations

from deep_ep.events import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap"]
