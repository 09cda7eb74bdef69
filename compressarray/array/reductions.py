"""numpy's reductions of an array of frames, a block of frames at a time.

Each gives what numpy gives for the dense array; sums of floats are added up in another order, so
that their last bits may differ. Besides the result, one block is held.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from compressarray.array.blockwise import (
    Blocked,
    any_block,
    as_operand,
    check_broadcast,
    part_of,
    shape_of,
)
from compressarray.indexing import Block

__all__ = [
    "REDUCIBLE",
    "all_close",
    "all_equal",
    "arg_extremum",
    "count_nonzero",
    "mean",
    "ptp",
    "reduce",
    "std",
    "var",
]

AnyArray = npt.NDArray[Any]
Reader = Callable[[Block], AnyArray]

REDUCIBLE = frozenset(
    (
        np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin, np.logical_and,
        np.logical_or, np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor,
    )
)  # fmt: skip
"""Functions that may be applied to parts first, and then to their results."""

_NO_VALUE: Any = np._NoValue


def reduce(
    a: Blocked,
    ufunc: np.ufunc,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    initial: Any = _NO_VALUE,
    where: Any = True,
) -> Any:
    """Reduce an array as ``ufunc.reduce`` does, for one of `REDUCIBLE`.

    Parameters
    ----------
    a : Blocked
    ufunc : ufunc
    axis : None, int or tuple of int
        None stands for all of them.
    dtype, out, keepdims, initial, where
        As `numpy.ufunc.reduce` has them; `where` may be an array of ours.

    Returns
    -------
    ndarray or numpy scalar
        `out` if it was given.
    """
    out = _single(out)
    axes = normalized(axis, a.ndim)
    found = _reduce(a, a.__getitem__, a.dtype, ufunc, axes, dtype, out, initial, where)
    return _finish(found, axes, keepdims, out)


def normalized(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` names, from 0."""
    if axis is None:
        return tuple(range(ndim))
    axes: tuple[int, ...] = normalize_axis_tuple(axis, ndim)
    return axes


def _reduce(
    a: Blocked,
    read: Reader,
    read_dtype: Any,
    ufunc: np.ufunc,
    axes: tuple[int, ...],
    dtype: Any = None,
    out: Any = None,
    initial: Any = _NO_VALUE,
    where: Any = True,
) -> AnyArray:
    """Reduce what `read` gives for each block; the axes stay, with length 1."""
    options: dict[str, Any] = {"axis": axes, "dtype": dtype, "keepdims": True}
    first = options if initial is _NO_VALUE else {**options, "initial": initial}
    has_mask = where is not True
    if has_mask:
        where = where if isinstance(where, Blocked) else np.asarray(where)
        check_broadcast(a.shape, (where,))
    shape = tuple(1 if axis in axes else length for axis, length in enumerate(a.shape))
    if 0 in a.shape:
        room = None if out is None else np.empty(shape, out.dtype)
        mask = where[...] if isinstance(where, Blocked) else where
        nothing: AnyArray = ufunc.reduce(
            np.empty(a.shape, read_dtype), **first, where=mask, out=room
        )
        return nothing
    # one element is enough for numpy's own checks, and shows the dtype of the result
    mask = np.ones((1,) * a.ndim, bool) if has_mask else True
    one = ufunc.reduce(_one_element(a, read), **first, where=mask)
    result = np.empty(shape, one.dtype if out is None else out.dtype)
    # beside a mask a part may come to nothing, and what has no identity needs a beginning then
    later = first if has_mask and ufunc.identity is None else options
    ends_early = ufunc in (np.logical_or, np.logical_and) and result.size == 1
    for _, block in a._blocks():
        region, is_first = _region(block, axes)
        mask = part_of(where, block, a.ndim) if has_mask else True
        if is_first:
            ufunc.reduce(read(block), **first, where=mask, out=result[region])
        else:
            part = np.empty_like(result[region])
            ufunc.reduce(read(block), **later, where=mask, out=part)
            ufunc(result[region], part, out=result[region])
        if ends_early and bool(result.ravel()[0]) is (ufunc is np.logical_or):
            break
    return result


def _one_element(a: Blocked, read: Reader) -> AnyArray:
    """Return the first element with all axes, to see what numpy makes of its kind."""
    _, block = next(a._blocks())
    frame = read(tuple(slice(0, 1) for _ in block))
    return frame[(slice(0, 1),) * a.ndim]


def _region(block: Block, axes: tuple[int, ...]) -> tuple[Block, bool]:
    """Return where a block goes in a result, and whether it is the first one to go there."""
    region = tuple(slice(0, 1) if i in axes else part for i, part in enumerate(block))
    return region, all(part.start == 0 for i, part in enumerate(block) if i in axes)


def _finish(found: AnyArray, axes: tuple[int, ...], keepdims: Any, out: Any) -> Any:
    """Give a result, in which the reduced axes are still there, the form that was asked for."""
    if keepdims is _NO_VALUE or not keepdims:
        found = found.reshape([n for axis, n in enumerate(found.shape) if axis not in axes])
    if out is None:
        return found if found.ndim else found[()]
    if out.shape != found.shape:
        raise ValueError(f"out has shape {out.shape}; this reduction gives {found.shape}")
    out[...] = found
    return out


def _single(out: Any) -> Any:
    """Unpack the tuple of one output that ufuncs take."""
    return out[0] if isinstance(out, tuple) and len(out) == 1 else out


def _counts(a: Blocked, axes: tuple[int, ...], where: Any) -> Any:
    """Return how many elements each result is made of: a number, or an array that keeps axes."""
    if where is True:
        return np.intp(prod(a.shape[axis] for axis in axes))
    where = where if isinstance(where, Blocked) else np.asarray(where)
    return _reduce(
        a, lambda block: np.ones(_block_shape(a, block), bool), bool, np.add, axes, np.intp,
        None, _NO_VALUE, where,
    )  # fmt: skip


def _block_shape(a: Blocked, block: Block) -> tuple[int, ...]:
    return tuple(axis.stop - axis.start for axis in block) + a.shape[len(block) :]


def mean(
    a: Blocked,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    keepdims: Any = False,
    *,
    where: Any = True,
) -> Any:
    """Return the mean as `numpy.mean` does."""
    where = True if where is _NO_VALUE else where
    out = _single(out)
    axes = normalized(axis, a.ndim)
    count = _counts(a, axes, where)
    if np.any(count == 0):
        warnings.warn("Mean of empty slice.", RuntimeWarning, stacklevel=3)
    narrow = dtype is None and a.dtype == np.float16
    dtype = _mean_dtype(a, dtype)
    found = _reduce(a, a.__getitem__, a.dtype, np.add, axes, dtype, out, where=where)
    found = np.true_divide(found, count, out=found, casting="unsafe")
    if narrow and out is None:
        found = found.astype(np.float16)
    return _finish(found, axes, keepdims, out)


def _mean_dtype(a: Blocked, dtype: Any) -> Any:
    if dtype is None and a.dtype.kind in "iub":
        return np.dtype("f8")
    return np.dtype("f4") if dtype is None and a.dtype == np.float16 else dtype


def var(
    a: Blocked,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: Any = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = _NO_VALUE,
    correction: Any = _NO_VALUE,
) -> Any:
    """Return the variance as `numpy.var` does; the array is read twice."""
    out = _single(out)
    axes, found = _var(a, axis, dtype, out, ddof, where, mean, correction)
    return _finish(found, axes, keepdims, out)


def std(
    a: Blocked,
    axis: Any = None,
    dtype: Any = None,
    out: Any = None,
    ddof: Any = 0,
    keepdims: Any = False,
    *,
    where: Any = True,
    mean: Any = _NO_VALUE,
    correction: Any = _NO_VALUE,
) -> Any:
    """Return the standard deviation as `numpy.std` does; the array is read twice."""
    out = _single(out)
    axes, found = _var(a, axis, dtype, out, ddof, where, mean, correction)
    if out is None and not keepdims and len(axes) == a.ndim:
        # numpy casts a scalar where it refuses to cast an array
        return _finish(np.sqrt(found).astype(found.dtype), axes, keepdims, out)
    return _finish(np.sqrt(found, out=found), axes, keepdims, out)


def _var(
    a: Blocked, axis: Any, dtype: Any, out: Any, ddof: Any, where: Any, mean: Any, correction: Any
) -> tuple[tuple[int, ...], AnyArray]:
    if correction is not _NO_VALUE:
        if ddof != 0:
            raise ValueError("ddof and correction can't be provided simultaneously.")
        ddof = correction
    where = True if where is _NO_VALUE else where
    axes = normalized(axis, a.ndim)
    count = _counts(a, axes, where)
    if np.any(ddof >= count):
        warnings.warn("Degrees of freedom <= 0 for slice.", RuntimeWarning, stacklevel=4)
    if dtype is None and a.dtype.kind in "iub":
        dtype = np.dtype("f8")
    if mean is _NO_VALUE:
        mean = _reduce(a, a.__getitem__, a.dtype, np.add, axes, dtype, where=where)
        mean = np.true_divide(mean, count, out=mean, casting="unsafe")
    mean = as_operand(mean)
    check_broadcast(a.shape, (mean,))

    def squares(block: Block) -> AnyArray:
        away = np.asarray(a[block] - part_of(mean, block, a.ndim))
        if away.dtype.kind == "c":
            square: AnyArray = np.multiply(away, np.conjugate(away)).real
            return square
        away *= away
        return away

    like = np.zeros(1, a.dtype) - (np.zeros(1, mean.dtype) if shape_of(mean) else mean)
    found = _reduce(a, squares, like.real.dtype, np.add, axes, dtype, out, where=where)
    left = np.maximum(count - ddof, 0)
    return axes, np.true_divide(found, left, out=found, casting="unsafe")


def ptp(a: Blocked, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Return the range of values as `numpy.ptp` does; the array is read twice."""
    out = _single(out)
    axes = normalized(axis, a.ndim)
    high = _reduce(a, a.__getitem__, a.dtype, np.maximum, axes)
    low = _reduce(a, a.__getitem__, a.dtype, np.minimum, axes)
    found = np.subtract(high, low) if out is None else np.subtract(high, low, dtype=out.dtype)
    return _finish(found, axes, keepdims, out)


def count_nonzero(a: Blocked, axis: Any = None, *, keepdims: Any = False) -> Any:
    """Return how many elements are not zero, as `numpy.count_nonzero` does."""
    if axis is None and not keepdims:
        none = np.count_nonzero(np.empty(0, a.dtype))
        return sum((np.count_nonzero(a[block]) for _, block in a._blocks()), none)
    axes = normalized(axis, a.ndim)
    found = _reduce(a, lambda block: a[block].astype(bool), bool, np.add, axes, np.intp)
    return _finish(found, axes, keepdims, None)


def arg_extremum(
    a: Blocked, find: Callable[..., Any], axis: Any = None, keepdims: Any = False
) -> Any:
    """Return where the first largest or smallest element is.

    Parameters
    ----------
    a : Blocked
    find : callable
        `numpy.argmax` or `numpy.argmin`, which decides between parts, too.
    axis : int, optional
        Without, the index counts over all elements.
    keepdims : bool, default False
    """
    if 0 in a.shape:
        return find(np.empty(a.shape, a.dtype), axis=axis, keepdims=keepdims)
    find(_one_element(a, a.__getitem__), axis=axis)  # numpy's own checks
    if axis is None:
        index = _arg_of_all(a, find)
        return np.full((1,) * a.ndim, index) if keepdims else index
    (along,) = normalized(axis, a.ndim)
    shape = tuple(1 if i == along else n for i, n in enumerate(a.shape))
    indices, values = np.empty(shape, np.intp), np.empty(shape, a.dtype)
    for _, block in a._blocks():
        part = a[block]
        region, is_first = _region(block, (along,))
        index = find(part, axis=along, keepdims=True)
        value = np.take_along_axis(part, index, along)
        if not is_first:
            held = values[region]
            is_better = find(np.concatenate([held, value], along), axis=along, keepdims=True) == 1
            index = np.where(is_better, index + block[along].start, indices[region])
            value = np.where(is_better, value, held)
        indices[region], values[region] = index, value
    return _finish(indices, (along,), keepdims, None)


def _arg_of_all(a: Blocked, find: Callable[..., Any]) -> Any:
    best: AnyArray | None = None
    index = np.intp(0)
    for start, block in a._blocks():
        flat = a[block].reshape(-1)
        i = find(flat)
        value = flat[i : i + 1]
        if best is None or find(np.concatenate([best, value])) == 1:
            index, best = np.intp(start + i), value.copy()
    return index


def all_equal(a1: Any, a2: Any, equal_nan: bool = False) -> bool:
    """Whether two arrays have the same shape and elements, as `numpy.array_equal` says."""
    try:
        a1, a2 = (x if isinstance(x, Blocked) else np.asarray(x) for x in (a1, a2))
    except Exception:  # whatever is no array equals none
        return False
    if a1.shape != a2.shape:
        return False
    lead = a1 if isinstance(a1, Blocked) else a2
    return not any_block(lambda x, y: not np.array_equal(x, y, equal_nan=equal_nan), lead, (a1, a2))


def all_close(
    a: Any, b: Any, rtol: Any = 1.0e-5, atol: Any = 1.0e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements of two arrays are close to each other, as `numpy.allclose` says."""
    a, b = (x if isinstance(x, Blocked) else np.asarray(x) for x in (a, b))
    shape = np.broadcast_shapes(a.shape, b.shape)
    lead = next((x for x in (a, b) if isinstance(x, Blocked) and x.shape == shape), None)
    if lead is None or np.ndim(rtol) or np.ndim(atol):
        return bool(np.allclose(a[...], b[...], rtol, atol, equal_nan))

    return not any_block(lambda x, y: not np.allclose(x, y, rtol, atol, equal_nan), lead, (a, b))
