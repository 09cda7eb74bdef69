"""numpy's functions and ufuncs, with an array of frames among their arguments.

Some go a block of frames at a time. All others are given dense copies, by one rule for everything
that numpy could write into: the copies are read-only. A function that writes into one of them
fails, is called again with copies that can be written, and what it changed in them is stored. So
a write reaches the array or raises, whatever function it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import reductions
from compressarray.array.blockwise import (
    Blocked,
    as_operand,
    change,
    compute,
    dense,
    fill,
    is_plain,
    store_changes,
)
from compressarray.array.leads import strided

__all__ = ["array_function", "array_ufunc", "on_dense"]

AnyArray = npt.NDArray[Any]


# -- dense copies ----------------------------------------------------------------------------


class _Copies:
    """Dense copies of the arrays among some arguments, one of each, read-only at first."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Blocked, AnyArray]] = {}

    def of(self, value: Any) -> Any:
        """Replace arrays in nested lists, tuples and dictionaries."""
        return _replaced(value, self._copy)

    def originals_of(self, result: Any) -> Any:
        """Replace copies by what they were made of, as numpy returns what it was given."""
        by_copy = {id(copy): array for array, copy in self._held.values()}
        return _replaced(result, lambda x: by_copy.get(id(x), x))

    def open_for_writing(self, value: Any = None) -> None:
        """Let the copies of arrays in a nested value be written; without one, all of them."""
        chosen = list(self._held) if value is None else []
        _replaced(value, lambda x: chosen.append(id(x)))
        for copy in (self._held[i][1] for i in chosen if i in self._held):
            copy.flags.writeable = True

    def store(self) -> None:
        """Write what was changed."""
        for array, copy in self._held.values():
            if copy.flags.writeable:
                store_changes(array, copy)

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Blocked):
            return value
        if id(value) not in self._held:
            copy = value[...]
            copy.flags.writeable = False
            self._held[id(value)] = value, copy
        return self._held[id(value)][1]


def _replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, replace) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        # a namedtuple takes its items one by one
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, dict):
        return {name: _replaced(item, replace) for name, item in value.items()}
    return replace(value)


def on_dense(
    function: Callable[..., Any], args: Any, kwargs: dict[str, Any], target: Any = ()
) -> Any:
    """Call a function of ndarrays with dense copies, and store what it writes into them.

    Parameters
    ----------
    function : callable
    args, kwargs
        Its arguments, arrays of ours among them, in nested lists, tuples and dictionaries, too.
    target : object, optional
        The argument that it is known to write into, besides ``out``.

    Returns
    -------
    object
        What the function returns. A view of a copy is read-only, for writing into it would change
        no array.
    """
    copies = _Copies()
    dense_args, dense_kwargs = copies.of(tuple(args)), copies.of(kwargs)
    copies.open_for_writing((kwargs.get("out", ()), target))
    try:
        result = function(*dense_args, **dense_kwargs)
    except Exception:  # it may be one that writes; nothing was changed so far, so try again
        copies.open_for_writing()
        result = function(*dense_args, **dense_kwargs)
    copies.store()
    return copies.originals_of(result)


# -- ufuncs ----------------------------------------------------------------------------------


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: Any) -> Any:
    """Answer `__array_ufunc__`."""
    kwargs = dict(kwargs)
    out = kwargs.pop("out", None)
    if out is not None and all(target is None for target in out):
        out = None
    first = inputs[0]
    if method == "reduce":
        if isinstance(first, Blocked):
            if ufunc in reductions.REDUCIBLE and not kwargs.keys() - _REDUCE:
                return reductions.reduce(first, ufunc, out=out, **{"axis": 0, **kwargs})
        elif out is not None and isinstance(out[0], Blocked):
            # ndarray.mean adds up into `out` and divides an ndarray only: half of it would be done
            raise TypeError(
                "an ndarray cannot be reduced into a DiffFrameArray by its own method; use the "
                "function, as in np.mean(x, axis=0, out=a), or assign: a[...] = x.mean(axis=0)"
            )
    elif method == "__call__" and ufunc.signature is None:
        operands = [as_operand(x) for x in inputs]
        where = kwargs.pop("where", True)
        has_mask = where is not True
        if has_mask:
            operands.append(as_operand(where))
        order = kwargs.get("order", "K")
        if all(map(is_plain, operands)) and order in ("K", "C", "A") and "signature" not in kwargs:
            if out is None:
                return compute(partial(_call, ufunc, kwargs, has_mask), operands)
            if len(out) == 1 and is_plain(out[0]):
                into = partial(_call_into, ufunc, kwargs, has_mask)
                if isinstance(out[0], Blocked):
                    change(into, out[0], operands)
                    return out[0]
                if fill(into, out[0], operands):
                    return out[0]
        if has_mask:
            kwargs["where"] = where
    if out is not None:
        kwargs["out"] = out
    # `at` does not always look whether what it writes into is read-only
    return on_dense(getattr(ufunc, method), inputs, kwargs, first if method == "at" else ())


_REDUCE = {"axis", "dtype", "keepdims", "initial", "where"}


def _call(ufunc: np.ufunc, kwargs: dict[str, Any], has_mask: bool, *parts: Any) -> Any:
    if has_mask:
        return ufunc(*parts[:-1], where=parts[-1], **kwargs)
    return ufunc(*parts, **kwargs)


def _call_into(
    ufunc: np.ufunc, kwargs: dict[str, Any], has_mask: bool, out: AnyArray, *parts: Any
) -> None:
    _call(ufunc, {**kwargs, "out": out}, has_mask, *parts)


# -- functions -------------------------------------------------------------------------------


def array_function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Answer `__array_function__`."""
    if function in _OF_OUTSIDE:
        return function(*map(_outside, args), **{k: _outside(v) for k, v in kwargs.items()})
    if function in _VIEWS and args and isinstance(args[0], Blocked):
        return args[0]._seen(lambda seen: function(seen, *args[1:], **kwargs))
    if args and isinstance(args[0], Blocked):
        method = _METHODS.get(function)
        if method is not None:
            given = {name: x for name, x in kwargs.items() if x is not np._NoValue}
            return getattr(args[0], method)(*args[1:], **given)
    by_blocks = _BY_BLOCKS.get(function)
    if by_blocks is not None:
        return by_blocks(*args, **kwargs)
    return on_dense(function, args, kwargs)


def _outside(value: Any) -> Any:
    """Make an array of the same shape and dtype in the memory of one element."""
    return strided(value.shape, dtype=value.dtype) if isinstance(value, Blocked) else value


# They look at shapes and dtypes, and at no element.
_OF_OUTSIDE = {
    np.shape, np.ndim, np.size, np.result_type, np.can_cast, np.common_type, np.iscomplexobj,
    np.isrealobj, np.empty_like, np.zeros_like, np.ones_like,
}  # fmt: skip

# They return views of an ndarray, whatever it holds.
_VIEWS = {np.expand_dims, np.moveaxis, np.rollaxis}

# They are methods of the same arguments.
_METHODS = {
    getattr(np, name): name
    for name in (
        "all", "any", "argmax", "argmin", "max", "mean", "min", "nonzero", "prod", "ravel",
        "repeat", "round", "squeeze", "std", "sum", "swapaxes", "take", "var",
    )
}  # fmt: skip
_METHODS.update({np.amax: "max", np.amin: "min", np.around: "round"})


def _count_nonzero(a: Any, axis: Any = None, *, keepdims: Any = False) -> Any:
    return reductions.count_nonzero(a, axis, keepdims=keepdims)


def _ptp(a: Any, axis: Any = None, out: Any = None, keepdims: Any = np._NoValue) -> Any:
    if not isinstance(a, Blocked):
        return on_dense(np.ptp, (a, axis, out, keepdims), {})
    return reductions.ptp(a, axis, out, keepdims)


def _copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = True) -> None:
    operands = [as_operand(src), as_operand(where)]

    def copy(block: AnyArray, new: Any, mask: Any) -> None:
        np.copyto(block, new, casting=casting, where=mask)

    if all(map(is_plain, operands)):
        if isinstance(dst, Blocked):
            change(copy, dst, operands)
            return
        if type(dst) is np.ndarray and fill(copy, dst, operands):
            return
    on_dense(np.copyto, (dst, src, casting, where), {})


def _where(condition: Any, *choices: Any) -> Any:
    operands = [as_operand(x) for x in (condition, *choices)]
    if not choices and isinstance(condition, Blocked):
        return array_function(np.nonzero, (condition,), {})
    if len(operands) != 3 or not all(map(is_plain, operands)):
        return on_dense(np.where, (condition, *choices), {})
    return compute(np.where, operands)


def _isclose(a: Any, b: Any, rtol: Any = 1.0e-5, atol: Any = 1.0e-8, equal_nan: Any = False) -> Any:
    operands = [as_operand(x) for x in (a, b)]
    if np.ndim(rtol) or np.ndim(atol) or not all(map(is_plain, operands)):
        return on_dense(np.isclose, (a, b, rtol, atol, equal_nan), {})
    return compute(partial(np.isclose, rtol=rtol, atol=atol, equal_nan=equal_nan), operands)


def _shares_memory(a: Any, b: Any, *_: Any, **__: Any) -> bool:
    both_ours = isinstance(a, Blocked) and isinstance(b, Blocked)
    return both_ours and a._shares_frames(b)


def _reshape(a: Any, /, shape: Any, order: Any = "C", *, copy: Any = None) -> Any:
    return a.reshape(shape, order=order, copy=copy)


def _clip(
    a: Any, a_min: Any = np._NoValue, a_max: Any = np._NoValue, out: Any = None, **kwargs: Any
) -> Any:
    is_ours = isinstance(a, Blocked)
    old_names = [limit is not np._NoValue for limit in (a_min, a_max)]
    if is_ours and not any(old_names):
        return a.clip(kwargs.pop("min", None), kwargs.pop("max", None), out, **kwargs)
    if is_ours and all(old_names) and not kwargs.keys() & {"min", "max"}:
        return a.clip(a_min, a_max, out, **kwargs)
    return on_dense(np.clip, (a, a_min, a_max, out), kwargs)


def _put(a: Any, ind: Any, v: Any, mode: Any = "raise") -> None:
    is_ours = isinstance(a, Blocked)
    if is_ours:
        a.put(ind, v, mode)
    else:
        on_dense(np.put, (a, ind, v, mode), {})


def _transpose(a: Any, axes: Any = None) -> Any:
    return a.transpose(axes)


def _astype(x: Any, dtype: Any, /, *, copy: Any = True, device: Any = None) -> Any:
    if device not in (None, "cpu"):
        raise ValueError(f"device={device!r} must be 'cpu' or None")
    return x.astype(dtype, copy=copy)


def _full_like(a: Any, fill_value: Any, *args: Any, **kwargs: Any) -> Any:
    return np.full_like(_outside(a), dense(fill_value), *args, **kwargs)


def _copy(a: Any, order: Any = "K", **_: Any) -> Any:
    return np.array(a[...], order=order, copy=None)


_BY_BLOCKS: dict[Any, Callable[..., Any]] = {
    np.astype: _astype,
    np.clip: _clip,
    np.copy: _copy,
    np.full_like: _full_like,
    np.imag: lambda val: val.imag,
    np.real: lambda val: val.real,
    np.reshape: _reshape,
    np.allclose: reductions.all_close,
    np.array_equal: reductions.all_equal,
    np.copyto: _copyto,
    np.count_nonzero: _count_nonzero,
    np.isclose: _isclose,
    np.may_share_memory: _shares_memory,
    np.ptp: _ptp,
    np.put: _put,
    np.transpose: _transpose,
    np.shares_memory: _shares_memory,
    np.where: _where,
}
