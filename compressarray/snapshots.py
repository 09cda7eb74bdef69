"""Taking apart what a pickle brought: every number and every array is looked at before use.

A snapshot is a dictionary of numbers, arrays and more snapshots. It holds what cannot be worked
out from the rest, so that there is little to check and nothing that could contradict itself.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError

Snapshot = dict[str, Any]
MOST = 1 << 60  # of what is only counted


def part_of(snapshot: Any, name: str) -> Any:
    """One part of a snapshot."""
    if not isinstance(snapshot, dict) or name not in snapshot:
        raise CorruptFrameError(f"the pickled state lacks {name!r}")
    return snapshot[name]


def int_of(snapshot: Any, name: str, least: int, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``."""
    value = part_of(snapshot, name)
    try:
        number = operator.index(value)
    except TypeError:
        raise CorruptFrameError(f"pickled {name} is {value!r}, no whole number") from None
    if not least <= number <= most:
        raise CorruptFrameError(f"pickled {name} is {number}, not from {least} to {most}")
    return number


def array_of(
    snapshot: Any,
    name: str,
    dtype: npt.DTypeLike,
    shape: tuple[int | None, ...],
    least: int | None = None,
    most: int | None = None,
    *,
    copy: bool = True,
) -> npt.NDArray[Any]:
    """An array of a dtype and shape (None: any length) with values in bounds.

    A copy, unless the caller copies what it takes: what a pickle brought may be another's memory.
    """
    value = part_of(snapshot, name)
    wanted = np.dtype(dtype)
    if not isinstance(value, np.ndarray):
        raise CorruptFrameError(f"pickled {name} is a {type(value).__name__}, no array")
    if (
        value.dtype != wanted
        or value.ndim != len(shape)
        or any(
            length not in (None, given) for length, given in zip(shape, value.shape, strict=True)
        )
    ):
        raise CorruptFrameError(
            f"pickled {name} is {value.dtype} of shape {value.shape}, not {wanted} of {shape}"
        )
    array = np.array(value, copy=True if copy else None, order="C", subok=False)
    if least is not None and array.size and array.min() < least:
        raise CorruptFrameError(f"pickled {name} holds {array.min()}, less than {least}")
    if most is not None and array.size and array.max() > most:
        raise CorruptFrameError(f"pickled {name} holds {array.max()}, more than {most}")
    return array
