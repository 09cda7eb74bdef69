"""The elements of an array of frames in C order, as `numpy.ndarray.flat` gives them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array.blockwise import Blocked

__all__ = ["FlatIterator"]


class FlatIterator:
    """An iterator over the elements, which can be indexed and assigned to.

    It reads the frames that a key names. Unlike numpy's it takes no masks.
    """

    def __init__(self, array: Blocked) -> None:
        self._array = array
        self._index = 0
        self._elements = self._each()

    @property
    def base(self) -> Any:
        """The array."""
        return self._array

    @property
    def index(self) -> int:
        """How many elements were taken."""
        return self._index

    @property
    def coords(self) -> tuple[int, ...]:
        """Where the next element is in the array."""
        return tuple(int(i) for i in np.unravel_index(self._index, self._array.shape))

    def _each(self) -> Iterator[Any]:
        for _, block in self._array._blocks():
            for element in self._array[block].flat:
                self._index += 1
                yield element

    def __iter__(self) -> FlatIterator:
        return self

    def __next__(self) -> Any:
        return next(self._elements)

    def __len__(self) -> int:
        return prod(self._array.shape)

    def __getitem__(self, key: Any) -> Any:
        return self._array[self._place(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        place = self._place(key)
        array = self._array
        if isinstance(place[0], np.ndarray):  # numpy repeats what is too short
            with array._writing():
                array[place] = np.resize(np.asarray(value, array.dtype), place[0].shape)
        else:
            array[place] = np.asarray(value, array.dtype).flat[0]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.asarray(self._array, dtype, copy=copy).reshape(-1)

    def copy(self) -> npt.NDArray[Any]:
        """Return a dense copy with one axis."""
        return np.asarray(self)

    def _place(self, key: Any) -> tuple[Any, ...]:
        size = len(self)
        if isinstance(key, tuple) and len(key) == 1:
            key = key[0]
        if key is Ellipsis or (isinstance(key, tuple) and not key):
            key = slice(None)
        if isinstance(key, slice):
            flat: Any = np.arange(*key.indices(size))
        elif isinstance(key, (list, np.ndarray)) and np.ndim(key):
            flat = np.asarray(key)
            if not flat.size:
                flat = flat.astype(np.intp)
            if flat.dtype == bool or flat.dtype.kind not in "iu":
                raise IndexError(
                    f"flat takes integers and slices, not {flat.dtype}; for others index a dense "
                    "copy: np.asarray(a).flat[key]"
                )
        else:
            try:
                flat = operator.index(key)
            except TypeError:
                raise IndexError(f"unsupported iterator index {key!r}") from None
        out = np.asarray((flat < -size) | (flat >= size))
        if out.any():
            wrong = np.asarray(flat)[out].flat[0]
            raise IndexError(f"index {wrong} is out of bounds for size {size}")
        flat = np.where(np.less(flat, 0), np.add(flat, size), flat)
        place = np.unravel_index(flat, self._array.shape)
        return place if flat.ndim else tuple(int(i) for i in place)
