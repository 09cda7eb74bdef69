"""The elements of an array of frames in C order, as `numpy.ndarray.flat` gives them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array.blockwise import Blocked, dense

__all__ = ["FlatIterator"]


_ALLOWED = (
    "only integers, slices (`:`), ellipsis (`...`) and integer or boolean arrays are valid indices"
)


class FlatIterator:
    """An iterator over the elements, which can be indexed and assigned to.

    It reads and writes the frames that a key names.
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
        if isinstance(key, tuple) and not key:
            raise IndexError("Assigning to a flat iterator with a 0-D index is not supported")
        place = self._place(key)
        values = np.asarray(dense(value), self._array.dtype)
        if isinstance(place[0], np.ndarray):  # numpy repeats what is too short
            if place[0].size and values.size:
                self._array[place] = np.resize(values, place[0].shape)
        else:
            self._array[place] = values.flat[0]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.asarray(self._array, dtype, copy=copy).reshape(-1)

    def copy(self) -> npt.NDArray[Any]:
        """Return a dense copy with one axis."""
        return np.asarray(self)

    def _place(self, key: Any) -> tuple[Any, ...]:
        """Turn a key of one axis into one of the array's."""
        size = len(self)
        if isinstance(key, tuple) and len(key) == 1:
            key = key[0]
        if key is Ellipsis or (isinstance(key, tuple) and not key):
            key = slice(None)
        if isinstance(key, (Blocked, FlatIterator)):
            key = np.asarray(key)
        flat: Any
        if isinstance(key, slice):
            flat = np.arange(*key.indices(size))
        elif isinstance(key, (list, np.ndarray)) and np.ndim(key):
            flat = np.asarray(key)
            if not flat.size:
                flat = flat.astype(np.intp)
            if flat.dtype == bool:
                if isinstance(key, list):
                    raise IndexError("boolean indices for iterators are not supported")
                if flat.shape != (size,):
                    raise IndexError(
                        "boolean index did not match indexed flat iterator: its shape is "
                        f"{flat.shape}, that of the elements ({size},)"
                    )
                flat = np.flatnonzero(flat)
            elif flat.dtype.kind not in "iu":
                raise IndexError(f"{_ALLOWED}, not arrays of {flat.dtype}")
        elif isinstance(key, tuple):
            raise IndexError(
                "too many indices for flat iterator: flat iterator is 1-dimensional, but "
                f"{len(key)} were indexed"
            )
        else:
            try:
                if isinstance(key, (bool, np.bool_)):  # numpy took it once, and wants it no more
                    raise TypeError
                flat = operator.index(key)
            except TypeError:
                raise IndexError(f"{_ALLOWED}, not {key!r}") from None
        wrong = np.asarray(flat)[np.asarray((flat < -size) | (flat >= size))]
        if wrong.size:
            raise IndexError(f"index {wrong.flat[0]} is out of bounds for size {size}")
        flat = np.where(np.less(flat, 0), np.add(flat, size), flat)
        place = np.unravel_index(flat, self._array.shape)
        return place if flat.ndim else tuple(int(i) for i in place)
