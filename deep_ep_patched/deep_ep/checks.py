# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments. Each error names the argument, says what it is and what it must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

Shape: TypeAlias = Sequence[int | str]  # a string names a size that may be anything: ("T", 4096)


def integer(name: str, value: object, at_least: int | None = None, at_most: int | None = None) -> int:
    """`value` as an int; TypeError when it is none, ValueError out of range."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is {_kind(value)}, must be an int")
    number = int(value.__index__())
    if (at_least is not None and number < at_least) or (at_most is not None and number > at_most):
        low = f"at least {at_least}" if at_least is not None else ""
        high = f"at most {at_most}" if at_most is not None else ""
        raise ValueError(f"{name} is {number}, must be {' and '.join(filter(None, (low, high)))}")
    return number


def multiple(name: str, value: int, of: int) -> None:
    if value % of:
        raise ValueError(f"{name} is {value}, must be a multiple of {of}")


def divides(name: str, value: int, by_name: str, by: int) -> None:
    if value % by:
        raise ValueError(f"{name} is {value}, must be a multiple of {by_name} ({by})")


def tensor(
    name: str,
    value: object,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: Shape,
    device: torch.device,
    contiguous: bool = True,
) -> torch.Tensor:
    """`value` as a tensor of one of `dtypes`, of `shape` and on `device`; TypeError and ValueError name it."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {_kind(value)}, must be a torch.Tensor")
    allowed = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if value.dtype not in allowed:
        raise TypeError(f"{name} is {value.dtype}, must be {' or '.join(map(str, allowed))}")
    if value.device.type != device.type:
        hint = "; hint: DEEP_EP_EXECUTOR says where the exchange runs" if device.type == "cpu" else ""
        raise ValueError(f"{name} lies on {value.device}, must lie on {device}{hint}")
    actual = tuple(value.shape)
    wanted = tuple(shape)
    fits = len(actual) == len(wanted) and all(
        isinstance(want, str) or size == want for size, want in zip(actual, wanted, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {_shape(actual)}, must have {_shape(wanted)}")
    if contiguous and not value.is_contiguous():
        raise ValueError(f"{name} has strides {tuple(value.stride())}, must be contiguous; hint: {name}.contiguous()")
    return value


def absent(value: object, name: str, why: str) -> None:
    if value is not None:
        raise ValueError(f"{name} is {_kind(value)}, must be None {why}")


def present(value: object, name: str, why: str) -> None:
    if value is None:
        raise ValueError(f"{name} is None, must be given {why}")


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {_kind(value)}, must be a bool")
    return value


def _shape(sizes: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
