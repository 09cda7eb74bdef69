"""The face of an ndarray: what follows from a shape, a dtype, ``a[key]`` and ``a[key] = value``."""

from __future__ import annotations

import inspect
import operator
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from math import prod
from types import GenericAlias
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from compressarray.array import reductions
from compressarray.array.blockwise import (
    Blocked,
    any_block,
    as_operand,
    change,
    compute,
    dense,
    is_plain,
    store_changes,
)
from compressarray.array.dispatch import array_function, array_ufunc, on_dense
from compressarray.array.flat import FlatIterator

__all__ = ["NDArrayFace"]

AnyArray = npt.NDArray[Any]
Operator = Callable[..., Any]

_NO_VALUE: Any = np._NoValue


def _comparison(name: str) -> Operator:
    """Make ``__name__``."""
    return _arithmetic(name)[0]


def _arithmetic(name: str) -> tuple[Operator, Operator, Operator]:
    """Make ``__name__``, ``__rname__`` and ``__iname__``.

    Whoever else has a say in the result (a subclass of ndarray, a class with a higher priority)
    meets an ndarray: its own operator decides who answers.
    """
    op = divmod if name == "divmod" else getattr(operator, f"__{name}__")
    in_place = getattr(operator, f"__i{name}__", None)
    by_blocks = name != "matmul"

    def forward(self: Any, other: Any) -> Any:
        other = as_operand(other)
        if by_blocks and is_plain(other):
            return compute(op, (self, other))
        return getattr(dense(self), f"__{name}__")(dense(other))

    def reflected(self: Any, other: Any) -> Any:
        other = as_operand(other)
        if by_blocks and is_plain(other):
            return compute(op, (other, self))
        return getattr(dense(self), f"__r{name}__")(dense(other))

    def changing(self: Any, other: Any) -> Any:
        other = as_operand(other)
        if by_blocks and is_plain(other) and in_place is not None:
            change(in_place, self, (other,))
            return self
        values = dense(self)
        result = getattr(values, f"__i{name}__")(dense(other))
        if result is not values:
            return result
        store_changes(self, values)
        return self

    return forward, reflected, changing


def _unary(op: Operator) -> Operator:
    def function(self: Any) -> Any:
        return compute(op, (self,))

    return function


def _of_dense(name: str, says: str) -> Any:
    """Make a method that is ndarray's own, of a dense copy; what it writes is stored."""
    own = getattr(np.ndarray, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return on_dense(own, (self, *args), kwargs)

    method.__name__ = name
    method.__qualname__ = f"NDArrayFace.{name}"
    method.__doc__ = (
        f"{says}\n\nAs `numpy.ndarray.{name}`, which it calls on a dense copy of the whole array."
    )
    with suppress(ValueError):  # numpy before 2.4 tells no signatures of its methods
        method.__signature__ = inspect.signature(own)  # type: ignore[attr-defined]
    return method


def _in_memory(name: str) -> property:
    """Make an attribute that only what lies in memory as it is can have."""

    def refuse(_: Any) -> NoReturn:
        raise AttributeError(
            f"a DiffFrameArray has no {name}: its frames are compressed. np.asarray(a).{name} is "
            "that of a dense copy"
        )

    refuse.__doc__ = "Refused: frames are compressed, so there is no memory to describe."
    return property(refuse)


class NDArrayFace(Blocked):
    """Methods and operators of an ndarray.

    `sum`, `prod`, `min`, `max`, `any`, `all`, `mean`, `std`, `var`, `argmin` and `argmax`, and
    whatever holds for each element by itself, go a few frames at a time. What has to decode the
    whole array at once says so.
    """

    __slots__ = ()

    # -- attributes --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent, as in numpy."""
        return self.size * self.itemsize

    @property
    def device(self) -> str:
        """Where results are: always "cpu"."""
        return "cpu"

    @property
    def real(self) -> Any:
        """The real part: the array itself, or a dense copy of it if the dtype is complex."""
        return compute(np.real, (self,)) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value: Any) -> None:
        _set_part("real", self, value)

    @property
    def imag(self) -> AnyArray:
        """The imaginary part, a dense copy."""
        part: AnyArray = compute(np.imag, (self,))
        return part

    @imag.setter
    def imag(self, value: Any) -> None:
        _set_part("imag", self, value)

    @property
    def flat(self) -> FlatIterator:
        """The elements in C order, to iterate over, to index and to assign to."""
        return FlatIterator(self)

    @flat.setter
    def flat(self, value: Any) -> None:
        self.flat[:] = value

    strides = _in_memory("strides")
    data = _in_memory("data")
    ctypes = _in_memory("ctypes")
    flags = _in_memory("flags")

    # -- what makes no sense -----------------------------------------------------------------

    def setflags(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: there are no flags to set."""
        raise TypeError("a DiffFrameArray has no flags; those of np.asarray(a) can be set")

    def resize(self, *new_shape: Any, **_: Any) -> NoReturn:
        """Refuse: the number of slots is fixed."""
        raise ValueError(
            f"cannot resize a DiffFrameArray of shape {self.shape} to {new_shape} in place; make "
            "one of the new shape, or take np.resize(a, shape), a dense copy"
        )

    def __delitem__(self, key: Any) -> NoReturn:
        raise ValueError("cannot delete array elements")

    def __buffer__(self, flags: int) -> NoReturn:
        raise BufferError(
            "a DiffFrameArray has no buffer: its frames are compressed; use memoryview("
            "np.asarray(a)), a dense copy"
        )

    # -- conversion --------------------------------------------------------------------------

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError(
                "a DiffFrameArray cannot be seen as an ndarray without a copy: decoding makes one"
            )
        return self.to_numpy() if dtype is None else np.asarray(self.astype(dtype))

    def to_numpy(self) -> AnyArray:
        """Return a dense copy, as pandas' method of that name does."""
        values: AnyArray = self[...]
        return values

    def astype(
        self,
        dtype: npt.DTypeLike,
        order: Any = "K",
        casting: Any = "unsafe",
        subok: bool = True,  # noqa: ARG002
        copy: bool = True,
    ) -> Any:
        """Return a dense copy of another dtype.

        With ``copy=False`` and the array's own dtype it is the array itself.
        """
        wanted = np.dtype(dtype)
        if not copy and wanted == self.dtype and order != "F":
            return self
        result = compute(lambda part: part.astype(wanted, casting=casting), (self,))
        return np.asarray(result, order=order)

    def tobytes(self, order: Any = "C") -> bytes:
        """Return the bytes of all elements."""
        if order in ("C", None, "A", "K"):
            return b"".join(self[block].tobytes() for _, block in self._blocks())
        return self.to_numpy().tobytes(order)

    __bytes__ = tobytes

    def tofile(self, file: Any, sep: str = "", format: str = "%s") -> None:  # noqa: A002
        """Write the elements to a file, as `numpy.ndarray.tofile` does."""
        if sep:
            self.to_numpy().tofile(file, sep, format)
        elif hasattr(file, "write"):
            for _, block in self._blocks():
                self[block].tofile(file)
        else:
            with open(file, "wb") as opened:
                self.tofile(opened)

    def dump(self, file: Any) -> None:
        """Pickle the array, compressed as it is, into a path or a file."""
        if hasattr(file, "write"):
            pickle.dump(self, file)
            return
        with open(file, "wb") as opened:
            pickle.dump(self, opened)

    def dumps(self) -> bytes:
        """Pickle the array, compressed as it is, into bytes."""
        return pickle.dumps(self)

    def item(self, *args: Any) -> Any:
        """Return one element as a Python scalar.

        Parameters
        ----------
        *args : int, or one tuple of int
            An index for each axis, or one that counts all elements; none if there is just one.
        """
        if not args:
            if self.size != 1:
                raise ValueError("can only convert an array of size 1 to a Python scalar")
            return self[...].item()
        place = args[0] if len(args) == 1 and isinstance(args[0], tuple) else args
        if len(place) == 1:
            return self.flat[operator.index(place[0])].item()
        if len(place) != self.ndim:
            raise ValueError("incorrect number of indices for array")
        return self[tuple(map(operator.index, place))].item()

    def to_device(self, device: Literal["cpu"], /, *, stream: Any = None) -> NDArrayFace:
        """Return the array itself: it is on the CPU, where it has to be asked to be."""
        np.empty(0).to_device(device, stream=stream)
        return self

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: bool | None = None,
    ) -> Any:
        if copy is False:
            raise BufferError(
                "a DiffFrameArray cannot be exported without a copy: decoding makes one. Leave "
                "copy at None"
            )
        return self.to_numpy().__dlpack__(
            stream=stream, max_version=max_version, dl_device=dl_device
        )

    def __dlpack_device__(self) -> Any:
        return np.empty(0).__dlpack_device__()

    def __array_namespace__(self, *, api_version: Any = None) -> Any:
        return np.empty(0).__array_namespace__(api_version=api_version)

    __class_getitem__: Any = classmethod(GenericAlias)

    def __bool__(self) -> bool:
        return bool(self[...] if self.size <= 1 else np.empty(2))

    def __int__(self) -> int:
        return int(self._of_one_element())

    def __float__(self) -> float:
        return float(self._of_one_element())

    def __complex__(self) -> complex:
        return complex(self._of_one_element())

    def _of_one_element(self) -> AnyArray:
        # numpy refuses any two as it does all
        values: AnyArray = self[...] if self.size <= 1 else np.zeros(2, self.dtype)
        return values

    # -- sequence ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        value = as_operand(value)
        shape = np.broadcast_shapes(self.shape, getattr(value, "shape", ()))
        if not is_plain(value) or shape != self.shape:
            return value in self[...]
        return any_block(lambda part, other: bool(np.any(part == other)), self, (self, value))

    # -- numpy's protocols -------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return array_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return array_function(func, args, kwargs)

    # -- operators ---------------------------------------------------------------------------

    __lt__ = _comparison("lt")
    __le__ = _comparison("le")
    __eq__ = _comparison("eq")
    __ne__ = _comparison("ne")
    __gt__ = _comparison("gt")
    __ge__ = _comparison("ge")
    __hash__ = None  # type: ignore[assignment] # as of every ndarray

    __add__, __radd__, __iadd__ = _arithmetic("add")
    __sub__, __rsub__, __isub__ = _arithmetic("sub")
    __mul__, __rmul__, __imul__ = _arithmetic("mul")
    __matmul__, __rmatmul__, __imatmul__ = _arithmetic("matmul")
    __truediv__, __rtruediv__, __itruediv__ = _arithmetic("truediv")
    __floordiv__, __rfloordiv__, __ifloordiv__ = _arithmetic("floordiv")
    __mod__, __rmod__, __imod__ = _arithmetic("mod")
    __divmod__, __rdivmod__, _ = _arithmetic("divmod")
    __pow__, __rpow__, __ipow__ = _arithmetic("pow")
    __lshift__, __rlshift__, __ilshift__ = _arithmetic("lshift")
    __rshift__, __rrshift__, __irshift__ = _arithmetic("rshift")
    __and__, __rand__, __iand__ = _arithmetic("and")
    __or__, __ror__, __ior__ = _arithmetic("or")
    __xor__, __rxor__, __ixor__ = _arithmetic("xor")
    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __abs__ = _unary(operator.abs)
    __invert__ = _unary(operator.invert)

    # -- reductions, a few frames at a time --------------------------------------------------

    def sum(
        self,
        axis: Any = None,
        dtype: npt.DTypeLike | None = None,
        out: Any = None,
        keepdims: bool = False,
        initial: Any = _NO_VALUE,
        where: Any = True,
    ) -> Any:
        """Return the sum of elements, as `numpy.sum`."""
        return reductions.reduce(self, np.add, axis, dtype, out, keepdims, initial, where)

    def prod(
        self,
        axis: Any = None,
        dtype: npt.DTypeLike | None = None,
        out: Any = None,
        keepdims: bool = False,
        initial: Any = _NO_VALUE,
        where: Any = True,
    ) -> Any:
        """Return the product of elements, as `numpy.prod`."""
        return reductions.reduce(self, np.multiply, axis, dtype, out, keepdims, initial, where)

    def max(
        self,
        axis: Any = None,
        out: Any = None,
        keepdims: bool = False,
        initial: Any = _NO_VALUE,
        where: Any = True,
    ) -> Any:
        """Return the largest element, as `numpy.max`."""
        return reductions.reduce(self, np.maximum, axis, None, out, keepdims, initial, where)

    def min(
        self,
        axis: Any = None,
        out: Any = None,
        keepdims: bool = False,
        initial: Any = _NO_VALUE,
        where: Any = True,
    ) -> Any:
        """Return the smallest element, as `numpy.min`."""
        return reductions.reduce(self, np.minimum, axis, None, out, keepdims, initial, where)

    def any(
        self, axis: Any = None, out: Any = None, keepdims: bool = False, *, where: Any = True
    ) -> Any:
        """Whether any element is true, as `numpy.any`."""
        return reductions.reduce(self, np.logical_or, axis, None, out, keepdims, where=where)

    def all(
        self, axis: Any = None, out: Any = None, keepdims: bool = False, *, where: Any = True
    ) -> Any:
        """Whether all elements are true, as `numpy.all`."""
        return reductions.reduce(self, np.logical_and, axis, None, out, keepdims, where=where)

    def mean(
        self,
        axis: Any = None,
        dtype: npt.DTypeLike | None = None,
        out: Any = None,
        keepdims: bool = False,
        *,
        where: Any = True,
    ) -> Any:
        """Return the mean, as `numpy.mean`."""
        return reductions.mean(self, axis, dtype, out, keepdims, where=where)

    def std(
        self,
        axis: Any = None,
        dtype: npt.DTypeLike | None = None,
        out: Any = None,
        ddof: Any = 0,
        keepdims: bool = False,
        **options: Any,
    ) -> Any:
        """Return the standard deviation, as `numpy.std`; the array is read twice."""
        return reductions.std(self, axis, dtype, out, ddof, keepdims, **options)

    def var(
        self,
        axis: Any = None,
        dtype: npt.DTypeLike | None = None,
        out: Any = None,
        ddof: Any = 0,
        keepdims: bool = False,
        **options: Any,
    ) -> Any:
        """Return the variance, as `numpy.var`; the array is read twice."""
        return reductions.var(self, axis, dtype, out, ddof, keepdims, **options)

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Return where the first largest element is, as `numpy.argmax`."""
        if out is not None:
            return on_dense(np.argmax, (self, axis), {"out": out, "keepdims": keepdims})
        return reductions.arg_extremum(self, np.argmax, axis, keepdims)

    def argmin(self, axis: Any = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Return where the first smallest element is, as `numpy.argmin`."""
        if out is not None:
            return on_dense(np.argmin, (self, axis), {"out": out, "keepdims": keepdims})
        return reductions.arg_extremum(self, np.argmin, axis, keepdims)

    # -- element by element ------------------------------------------------------------------

    def clip(self, min: Any = None, max: Any = None, out: Any = None, **kwargs: Any) -> Any:  # noqa: A002
        """Return a dense copy with values limited to an interval, as `numpy.clip`."""
        low, high = as_operand(min), as_operand(max)
        limits = [x for x in (low, high) if x is not None]
        if out is not None or not all(map(is_plain, limits)):
            return on_dense(np.ndarray.clip, (self, min, max, out), kwargs)
        if len(limits) == 2:
            return compute(partial(_clipped, kwargs), (self, low, high))
        name = "min" if high is None else "max"
        clipped = {name: limits[0]} if limits else {}
        if not clipped or kwargs:
            return on_dense(np.ndarray.clip, (self, min, max), kwargs)
        return compute(lambda part, limit: part.clip(**{name: limit}), (self, limits[0]))

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        """Return a dense copy rounded to a number of decimals, as `numpy.round`."""
        if out is not None:
            return on_dense(np.ndarray.round, (self, decimals, out), {})
        return compute(lambda part: part.round(decimals), (self,))

    def conjugate(self, *args: Any, **kwargs: Any) -> Any:
        """Return the complex conjugate, dense; of other dtypes the array itself."""
        if args or kwargs or self.dtype.kind == "c":
            return np.conjugate(self, *args, **kwargs)
        np.empty(0, self.dtype).conjugate()  # numpy refuses what is no number
        return self

    conj = conjugate

    def nonzero(self) -> tuple[npt.NDArray[np.intp], ...]:
        """Return the indices of the elements that are not zero, as `numpy.nonzero`."""
        found = []
        for _, block in self._blocks():
            indices = self[block].nonzero()
            for axis, index in zip(block, indices, strict=False):
                index += axis.start
            found.append(indices)
        if not found:
            return np.empty(self.shape, self.dtype).nonzero()
        return tuple(map(np.concatenate, zip(*found, strict=True)))

    # -- writing -----------------------------------------------------------------------------

    def fill(self, value: Any) -> None:
        """Write one value into all elements."""
        one = np.empty((), self.dtype)
        one.fill(value)
        self[...] = one

    def put(self, indices: Any, values: Any, mode: Any = "raise") -> None:
        """Write values at indices that count all elements, as `numpy.put`."""
        places = _flat_indices(indices, self.size, mode)
        given = np.asarray(values, self.dtype).reshape(-1)
        if places.size and given.size:
            self[np.unravel_index(places.reshape(-1), self.shape)] = np.resize(given, places.size)

    # -- selecting ---------------------------------------------------------------------------

    def take(self, indices: Any, axis: Any = None, out: Any = None, mode: Any = "raise") -> Any:
        """Return elements or slices along an axis, dense, as `numpy.take`; no others are read."""
        if out is not None:
            return on_dense(np.take, (self, indices, axis), {"out": out, "mode": mode})
        if axis is None:
            places = _flat_indices(indices, self.size, mode)
            found = self[np.unravel_index(places, self.shape)]
        else:
            (along,) = reductions.normalized(operator.index(axis), self.ndim)
            places = _flat_indices(indices, self.shape[along], mode)
            found = self[(slice(None),) * along + (places,)]
        return found

    # -- whole arrays at once ----------------------------------------------------------------

    argpartition = _of_dense("argpartition", "Return indices that would partition an axis.")
    argsort = _of_dense("argsort", "Return indices that would sort an axis.")
    byteswap = _of_dense("byteswap", "Swap the bytes of each element.")
    choose = _of_dense("choose", "Pick from several arrays by the elements of this one.")
    compress = _of_dense("compress", "Return slices along an axis by a condition.")
    cumprod = _of_dense("cumprod", "Return running products.")
    cumsum = _of_dense("cumsum", "Return running sums.")
    diagonal = _of_dense("diagonal", "Return diagonals, read-only.")
    dot = _of_dense("dot", "Return the dot product.")
    getfield = _of_dense("getfield", "Return the bytes of each element as another dtype.")
    partition = _of_dense("partition", "Partition along an axis, in place.")
    repeat = _of_dense("repeat", "Repeat elements.")
    searchsorted = _of_dense("searchsorted", "Find where values belong in a sorted array.")
    setfield = _of_dense("setfield", "Write into some of the bytes of each element, in place.")
    sort = _of_dense("sort", "Sort along an axis, in place.")
    tolist = _of_dense("tolist", "Return nested lists of Python scalars.")
    trace = _of_dense("trace", "Return sums along diagonals.")

    def flatten(self, order: Any = "C") -> AnyArray:
        """Return a dense copy of the whole array with one axis."""
        return self.to_numpy().reshape(-1) if order == "C" else self.to_numpy().flatten(order)


def _clipped(kwargs: dict[str, Any], part: AnyArray, low: Any, high: Any) -> Any:
    return part.clip(low, high, **kwargs)


def _set_part(name: str, a: Blocked, value: Any) -> None:
    """Write the real or the imaginary part of every element."""
    change(lambda block, part: setattr(block, name, part), a, (np.asarray(dense(value)),))


def _flat_indices(indices: Any, size: int, mode: Any) -> npt.NDArray[np.intp]:
    """Check indices of `take` and `put`, and let them count from 0."""
    places = np.asarray(dense(indices))
    if not places.size and not isinstance(indices, np.ndarray):
        places = places.astype(np.intp)
    places = places.astype(np.intp, casting="same_kind")
    if mode not in ("raise", "wrap", "clip"):
        raise ValueError(f"mode={mode!r} must be 'raise', 'wrap' or 'clip'")
    if places.size and not size:
        raise IndexError("cannot do a non-empty take from an empty axes.")
    if mode == "wrap":
        return places % max(size, 1)
    if mode == "clip":
        return places.clip(0, max(size - 1, 0))
    wrong = places[(places < -size) | (places >= size)]
    if wrong.size:
        raise IndexError(f"index {wrong[0]} is out of bounds for size {size}")
    return np.where(places < 0, places + size, places)
