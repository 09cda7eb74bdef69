"""What users give to arrays, checked: the value, or an error that says what would do."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import FrameEvictedError
from compressarray.ring import FIRST_PIN

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]


def is_int(value: Any) -> bool:
    """Whether a value is an integer, as indexing takes it."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def checked_shape(shape: Any) -> tuple[int, ...]:
    """An array's lengths; TypeError or ValueError for others than whole numbers from 0."""
    lengths = (shape,) if is_int(shape) else tuple(shape)
    try:
        numbers = tuple(operator.index(length) for length in lengths)
    except TypeError:
        raise TypeError(f"shape={shape!r} must hold whole numbers") from None
    if not numbers:
        raise ValueError("shape=() has no axis for time; give at least one")
    if min(numbers) < 0:
        raise ValueError(f"shape={numbers} has a negative length; lengths count from 0")
    return numbers


def checked_fill(fill_value: Any, dtype: np.dtype[Any]) -> Any:
    """A scalar of the dtype, as it was given; ValueError for anything else."""
    try:
        with np.errstate(invalid="raise"):
            if np.ndim(fill_value):
                raise ValueError("it has axes")
            if fill_value is None:
                raise TypeError("it is None")
            np.full((), fill_value, dtype)
            if isinstance(fill_value, float) and dtype.kind in "iu" and not np.isfinite(fill_value):
                raise ValueError("it is not finite")
    except (TypeError, ValueError, OverflowError, FloatingPointError) as error:
        raise ValueError(
            f"fill_value={fill_value!r} is no value of dtype {dtype} ({error}); give a scalar that "
            "is"
        ) from None
    return fill_value


def checked_stack_axis(
    stack_axis: Any, shape: tuple[int, ...], n_lead: int, longest: int
) -> int | None:
    """The axis that holds stacks, from 0; TypeError or ValueError for one that cannot."""
    ndim = len(shape)
    if isinstance(stack_axis, str) and stack_axis == "auto":
        return n_lead - 1 if n_lead >= 3 and shape[n_lead - 1] <= longest else None
    if stack_axis is None:
        return None
    try:
        axis = operator.index(stack_axis)
    except TypeError:
        raise TypeError(f"stack_axis={stack_axis!r} must be an axis, None or 'auto'") from None
    axis += ndim if axis < 0 else 0
    if not 1 <= axis < n_lead:
        raise ValueError(
            f"stack_axis={stack_axis} must be one of the axes between time and frame, "
            f"{list(range(1, n_lead))}, or None"
        )
    if shape[axis] > longest:
        raise ValueError(
            f"stack_axis={stack_axis} has {shape[axis]} frames, and stacks have at most {longest}; "
            "use stack_axis=None, which makes lanes of them"
        )
    return axis


def checked_lanes(lanes: npt.ArrayLike, n_lanes: int) -> Int64s:
    """Different lane numbers; TypeError, ValueError or IndexError for others."""
    given = np.asarray(lanes)
    if given.ndim != 1:
        raise ValueError(f"lanes={lanes!r} must be one sequence of lane numbers")
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"lanes={lanes!r} must be integers, not {given.dtype}")
    numbers = given.astype(np.int64)
    outside = numbers[(numbers < 0) | (numbers >= n_lanes)]
    if len(outside):
        raise IndexError(f"lane {outside[0]} does not exist; lanes are 0 to {n_lanes - 1}")
    if len(np.unique(numbers)) < len(numbers):
        raise ValueError(f"lanes={lanes!r} names a lane twice; give several rows instead")
    return numbers


def checked_indices(indices: npt.ArrayLike) -> Int64s:
    """Frame indices, contiguous, a view where they are; IndexError for what is no integer."""
    given = np.asarray(indices)
    if given.dtype == np.int64 and given.flags.c_contiguous:
        return given
    if given.size == 0 and not isinstance(indices, np.ndarray):
        given = given.astype(np.int64)  # as numpy takes a[[]]
    if given.dtype.kind not in "iu":
        raise IndexError(f"frame indices must be integers, not {given.dtype}")
    if given.dtype == np.uint64 and given.size and given.max() > FIRST_PIN:
        raise FrameEvictedError(f"frame {given.max()} is above every index, {FIRST_PIN}")
    return np.ascontiguousarray(given, np.int64).reshape(given.shape)


def checked_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """A view of an output that can be filled; TypeError or ValueError for others."""
    target = out if isinstance(out, np.ndarray) else as_ndarray(out)
    if target.dtype != dtype:
        raise TypeError(f"out holds {target.dtype}; it must hold the array's dtype {dtype}")
    if target.shape != shape:
        raise ValueError(f"out has shape {target.shape}; these indices need {shape}")
    if not target.flags.c_contiguous:
        raise ValueError("out must be C-contiguous; gather into a contiguous one and copy")
    if not target.flags.writeable:
        raise ValueError("out is read-only")
    return target


def is_here(out: Any) -> bool:
    """Whether something that is to be filled is in the CPU's memory, or says nothing of it."""
    device = getattr(out, "device", None)
    return getattr(device, "type", device) in (None, "cpu")


def check_out_there(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], has: Any) -> None:
    """TypeError or ValueError for a device's tensor that cannot be filled; it ``has`` a dtype."""
    if has != dtype:
        raise TypeError(f"out holds {has}; it must hold the array's dtype {dtype}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; these indices need {shape}")
    if not out.is_contiguous():
        raise ValueError("out is not C-contiguous; give a contiguous tensor")


def as_ndarray(out: Any) -> AnyArray:
    """A view of a CPU tensor; TypeError for anything else."""
    if hasattr(out, "numpy") and hasattr(out, "device"):
        return np.asarray(out.detach().numpy())
    raise TypeError(f"out={type(out).__name__} must be an ndarray or a CPU tensor")
