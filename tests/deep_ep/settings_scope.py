# SPDX-License-Identifier: Apache-2.0
"""Blocks in which an error is expected, or settings are others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """An error of this kind, whose text has the words."""
    try:
        yield
    except kind as error:
        lacking = [word for word in words if word not in str(error)]
        assert not lacking, f"{lacking} is not in {str(error)!r}"
        return
    raise AssertionError(f"no {kind.__name__} that says {words}")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
