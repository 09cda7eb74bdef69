"""What users may get wrong in plain arguments."""

from __future__ import annotations

import operator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compressarray.replay.layout import as_kernels_take

Bools = npt.NDArray[np.bool_]
Mode = Literal["same_step", "next_step", "disabled"]

_KERNEL_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_MODES: tuple[Mode, ...] = ("same_step", "next_step", "disabled")


def checked_int(name: str, value: Any, least: int) -> int:
    """Return a whole number that is at least ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number") from None
    if number < least:
        raise ValueError(f"{name}={number} must be at least {least}")
    return number


def checked_number(name: str, value: Any, low: float, high: float = np.inf) -> float:
    """Return a finite number from ``low`` to ``high``."""
    number = float(value)
    if not low <= number <= high or number == np.inf:
        limit = "finite" if high == np.inf else f"at most {high}"
        raise ValueError(f"{name}={value} must be at least {low} and {limit}")
    return number


def checked_mode(mode: Any) -> Mode:
    """Return the name of an autoreset mode, given by name or as Gymnasium's enum."""
    name = str(getattr(mode, "value", mode)).lower()
    for known in _MODES:
        if name.replace("_", "") == known.replace("_", ""):
            return known
    raise ValueError(f"autoreset_mode={mode!r} must be one of {', '.join(map(repr, _MODES))}")


def checked_rewards(reward: Any, n: int) -> npt.NDArray[np.floating[Any]]:
    """Return one reward for each lane in float32 or float64, no copy where they are that already.

    Those that float32 does not hold may be infinite.
    """
    values = np.asarray(reward)
    if values.shape != (n,):
        raise ValueError(f"reward has shape {values.shape}; {n} lanes need {(n,)}")
    if values.dtype in _KERNEL_FLOATS:
        return as_kernels_take(values)
    if values.dtype.kind not in "fiub":
        raise TypeError(f"reward has dtype {values.dtype}; it must be real numbers")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def checked_bools(name: str, flags: Any, n: int) -> Bools:
    """Return one flag for each lane, a copy."""
    values = np.array(flags)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; {n} lanes need {(n,)}")
    if values.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {values.dtype}; it must be bool")
    return values


def checked_lanes(lanes: Any, n: int) -> npt.NDArray[np.int64]:
    """Return numbers of lanes; None stands for all."""
    numbers = np.arange(n) if lanes is None else np.asarray(lanes)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TypeError(f"lanes={lanes!r} must be one sequence of whole numbers")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n:
        raise IndexError(f"lanes={lanes!r} must be from 0 to {n - 1}")
    return numbers.astype(np.int64)


def checked_priorities(
    index: Any, priorities: Any
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return names of transitions and their priorities, flat; a tensor's values come to the CPU."""
    if hasattr(priorities, "detach"):
        priorities = priorities.detach().cpu()
    names, values = np.asarray(index), np.asarray(priorities)
    if names.shape != values.shape:
        raise ValueError(f"index has shape {names.shape}, and priorities have {values.shape}")
    if names.size and names.dtype.kind not in "iu":
        raise TypeError(f"index holds {names.dtype}; it must hold the integers of batch.index")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"priorities hold {values.dtype}; they must be real numbers")
    names, values = names.reshape(-1).astype(np.int64), values.reshape(-1).astype(np.float64)
    wrong = ~((values >= 0) & (values < np.inf))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"priority {values[place]} at position {place} must be finite and not negative; pass "
            "the absolute values of errors"
        )
    return names, values
