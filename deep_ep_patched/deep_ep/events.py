# SPDX-License-Identifier: Apache-2.0
"""Events: what a caller holds to wait for a call that was made with async_finish."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch


class EventHandle:
    """A point in the current stream's work. The CPU executor has no streams: its events are complete when made."""

    def __init__(self) -> None:
        self._event: torch.cuda.Event | None = None
        if torch.cuda.is_available():
            self._event = torch.cuda.Event()
            self._event.record()

    def current_stream_wait(self) -> None:
        """What is put into the current stream from now on runs after the event. Does not block the caller."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)

    def stream_wait(self, stream: torch.cuda.Stream) -> None:
        """As current_stream_wait(), of any stream."""
        if self._event is not None:
            stream.wait_event(self._event)

    def synchronize(self) -> None:
        """Blocks the caller until the event is complete."""
        if self._event is not None:
            self._event.synchronize()


class EventOverlap:
    """An event, or None where the call was not made with async_finish, and tensors that must live until it.

    As a context manager it waits when the block ends: what is inside overlaps with the exchange.

        recv_x, ..., event = buffer.dispatch(..., async_finish=True)
        with event:
            shared_expert(x)
    """

    def __init__(self, event: EventHandle | None = None, extra_tensors: object = None) -> None:
        self.event = event
        self.extra_tensors = extra_tensors
        self._hooks: list[Callable[[], object]] = []
        self._release_on_exit = False

    def current_stream_wait(self, release_handle: bool = False) -> None:
        """The current stream waits for the event, then the hooks run, once. `release_handle` drops event and tensors.

        AssertionError when there is no event.
        """
        if self.event is None:
            raise AssertionError(
                "this EventOverlap has no event to wait for; hint: only calls with async_finish=True return one"
            )
        self.event.current_stream_wait()
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook()
        if release_handle:
            self.event = None
            self.extra_tensors = None

    def register_hook_after_wait(self, fn: Callable[[], object]) -> None:
        """`fn` runs after the next wait."""
        if not callable(fn):
            raise TypeError(f"fn is a {type(fn).__name__}, must be callable")
        self._hooks.append(fn)

    def __call__(self, release_handle: bool = False) -> EventOverlap:
        """For `with event(release_handle=True):`, which drops event and tensors after the wait."""
        self._release_on_exit = release_handle
        return self

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        release, self._release_on_exit = self._release_on_exit, False
        if self.event is not None:
            self.current_stream_wait(release)


def previous(event: object) -> EventHandle | None:
    """The event of a `previous_event` argument: None, or anything with an attribute `event`."""
    found = getattr(event, "event", None)
    if found is not None and not isinstance(found, EventHandle):
        raise TypeError(f"previous_event.event is a {type(found).__name__}, must be an EventHandle")
    return found


def finish(async_finish: bool, *tensors: object) -> EventOverlap:
    """What a call returns: with an event if asked for one, which keeps its tensors."""
    return EventOverlap(EventHandle(), tensors) if async_finish else EventOverlap()
