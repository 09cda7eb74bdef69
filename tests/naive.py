"""The oracle: a dense ndarray with the interface of ``DiffFrameArray``.

Written for reading, not for speed, and importing nothing from the library: whatever the library
does in kernels, GOPs and arenas, it has to give what this gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

NOBODY = -1  # no frame index lives in this slot
FIRST_PINNED = 2**63 - 2  # one below the top of int64; further pinned frames count downwards


class NaiveEvictedError(IndexError):
    """The oracle's ``FrameEvictedError``: overwritten, retired, never written or not pinned."""


class NaiveStaleStreamError(IndexError):
    """The oracle's ``StaleStreamError``: the indices are older than the last ``clear``."""


class NaiveFrameArray(NDArrayOperatorsMixin):
    """A dense array that keeps count of which frame index lives where.

    The array is `_data`. Beside it stands `_living`: for each slot and lane the index that
    ``append`` put there last, or `NOBODY` once something was assigned over it.

    An *entry* is what one lane gets in one ``append``: a frame, or a stack of them where there is
    a stack axis.

    Parameters
    ----------
    shape : sequence of int
        Time, then lanes and perhaps a stack axis, then the `frame_ndim` axes of a frame.
    dtype, frame_ndim, codec, fill_value, stack_axis, gop_length
        As for ``DiffFrameArray``; `codec` and `gop_length` change nothing here.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any = np.uint8,
        *,
        frame_ndim: int = 2,
        codec: Any = "delta",
        fill_value: Any = 0,
        stack_axis: int | str | None = "auto",
        gop_length: int | None = None,
    ) -> None:
        del gop_length
        if np.dtype(dtype).hasobject:
            raise TypeError(f"dtype={dtype} holds Python objects")
        if not 0 <= frame_ndim < len(shape):
            raise ValueError(f"frame_ndim={frame_ndim} leaves no time axis in shape {shape}")
        self._data = np.full(tuple(shape), fill_value, dtype)  # numpy refuses negative lengths
        self._base: NaiveFrameArray | None = None  # the array that a view belongs to
        self.frame_ndim = frame_ndim
        self.fill_value = fill_value
        self.codec = codec
        between = range(1, self.ndim - frame_ndim)
        if stack_axis == "auto":
            self.stack_axis = between[-1] if len(between) >= 2 else None
        elif stack_axis is None:
            self.stack_axis = None
        else:
            self.stack_axis = int(stack_axis) + (self.ndim if int(stack_axis) < 0 else 0)
            if self.stack_axis not in between:
                raise ValueError(f"stack_axis={stack_axis} is not between time and frame")
        self._forget()
        self.stream = 0
        self._pinned: dict[int, np.ndarray] = {}

    # ------------------------------------------------------------------ shape

    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: self._data.size)
    itemsize = property(lambda self: self._data.itemsize)
    nbytes = property(lambda self: self._data.nbytes)
    frame_shape = property(lambda self: self.shape[self.ndim - self.frame_ndim :])
    n_lanes = property(lambda self: math.prod(self.lane_shape))

    @property
    def lane_shape(self) -> tuple[int, ...]:
        between = range(1, self.ndim - self.frame_ndim)
        return tuple(self.shape[axis] for axis in between if axis != self.stack_axis)

    @property
    def entry_shape(self) -> tuple[int, ...]:
        """Shape of what one lane gets in one append: ``(stack, *frame)`` or ``frame``."""
        stack = () if self.stack_axis is None else (self.shape[self.stack_axis],)
        return (*stack, *self.frame_shape)

    # ------------------------------------------------------------------ numpy's face

    def __getitem__(self, key: Any) -> Any:
        found = self._data[_plain(key)]
        return found.copy() if isinstance(found, np.ndarray) else found

    def __setitem__(self, key: Any, value: Any) -> None:
        key = _plain(key)
        changed = self._data.copy()
        changed[key] = value  # where numpy raises half-way, nothing has happened yet
        touched = np.zeros(self.shape, bool)
        touched[key] = True
        self._data[...] = changed
        owner = self if self._base is None else self._base
        owner._retire(touched.reshape(owner.shape))

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        return (self[slot] for slot in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self._data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("decoding always copies")
        return self._data.astype(self.dtype if dtype is None else dtype)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple[Any, ...] = (), **kwargs: Any
    ) -> Any:
        dense_out = tuple(_plain(target) for target in out)
        if out:
            kwargs["out"] = dense_out
        result = getattr(ufunc, method)(*(_plain(value) for value in inputs), **kwargs)
        for target, dense in zip(out, dense_out, strict=True):
            if isinstance(target, NaiveFrameArray):
                target[...] = dense
        return out[0] if len(out) == 1 else (out or result)

    def reshape(self, *shape: Any) -> NaiveFrameArray:
        """Give the same frames other leading axes, in a view that writes through."""
        data = self._data.reshape(*shape)
        lead = data.ndim - self.frame_ndim
        if lead < 1 or data.shape[lead:] != self.frame_shape:
            raise ValueError(f"{shape} does not end in the frame's axes {self.frame_shape}")
        view = NaiveFrameArray(
            data.shape, self.dtype, frame_ndim=self.frame_ndim, codec=self.codec, stack_axis=None
        )
        view.fill_value = self.fill_value
        view.stream = self.stream
        view._data = data
        view._base = self if self._base is None else self._base
        return view

    def copy(self) -> NaiveFrameArray:
        """Copy everything; a view's copy has the frames, and no frame indices."""
        twin = NaiveFrameArray.__new__(NaiveFrameArray)
        twin.__dict__.update(self.__dict__, _data=self._data.copy(), _base=None)
        if self._base is None:
            twin._living, twin._counts = self._living.copy(), self._counts.copy()
            twin._pinned = dict(self._pinned)
        else:
            twin._forget()
            twin._pinned = {}
            twin.stream = 0
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return (self if self._base is None else self.copy()).__dict__

    def __repr__(self) -> str:
        return f"NaiveFrameArray(shape={self.shape}, dtype={self.dtype}, stream={self.stream})"

    # ------------------------------------------------------------------ the ring

    @property
    def lane_counts(self) -> np.ndarray:
        return self._counts.copy()

    def append(self, frames: Any, lanes: Sequence[int] | None = None) -> np.ndarray:
        """Add a row, or several rows in time order, and return their frame indices."""
        self._refuse_view("append")
        frames = self._checked(frames)
        if lanes is None:
            lane_numbers = list(range(self.n_lanes))
            row_shape, index_shape = self.shape[1:], self.lane_shape
        else:
            lane_numbers = self._checked_lanes(lanes)
            row_shape = (len(lane_numbers), *self.entry_shape)
            index_shape = (len(lane_numbers),)
        several = frames.ndim == len(row_shape) + 1
        rows = frames if several else frames[np.newaxis]
        if rows.shape[1:] != row_shape:
            raise ValueError(f"frames of shape {frames.shape} are not rows of shape {row_shape}")
        if len(rows) and self.shape[0] == 0:
            raise ValueError("an array without slots keeps no frame")

        indices = np.empty((len(rows), len(lane_numbers)), np.int64)
        for row in range(len(rows)):
            for column, lane in enumerate(lane_numbers):
                entry = rows[row][self._lane_key(lane) if lanes is None else column]
                indices[row, column] = self._append_entry(lane, entry)
        indices = indices.reshape(len(rows), *index_shape)
        return indices if several else indices[0]

    def _append_entry(self, lane: int, entry: np.ndarray) -> int:
        count = int(self._counts[lane])
        slot = count % self.shape[0]
        index = count * self.n_lanes + lane
        self._data[(slot, *self._lane_key(lane))] = entry
        self._living[slot, lane] = index
        self._counts[lane] = count + 1
        return index

    def gather(self, indices: Any, out: Any = None, *, stream: int | None = None) -> Any:
        """Return the entries that `indices` name, in an array of ``indices.shape + entry``."""
        owner = self if self._base is None else self._base
        if stream is not None and stream != owner.stream:
            raise NaiveStaleStreamError(f"stream {stream} has ended; this is {owner.stream}")
        if not isinstance(indices, np.ndarray) and np.size(indices) == 0:
            indices = np.empty(np.shape(indices), np.int64)  # as numpy takes a[[]]
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu":
            raise IndexError(f"frame indices are integers, not {indices.dtype}")
        found = np.empty(indices.shape + owner.entry_shape, owner.dtype)
        for place in np.ndindex(indices.shape):
            found[place] = owner._entry(int(indices[place]))
        if out is None:
            return found
        target = np.asarray(out)
        if target.dtype != owner.dtype:
            raise TypeError(f"out holds {target.dtype}, the array {owner.dtype}")
        if target.shape != found.shape:
            raise ValueError(f"out has shape {target.shape}, the frames {found.shape}")
        target[...] = found
        return out

    def _entry(self, index: int) -> np.ndarray:
        if index in self._pinned:
            return self._pinned[index]
        if index >= 0 and self.n_lanes and self.shape[0]:
            count, lane = divmod(index, self.n_lanes)
            slot = count % self.shape[0]
            if self._living[slot, lane] == index:
                return self._data[(slot, *self._lane_key(lane))]
        raise NaiveEvictedError(f"frame {index} is not held")

    def pin(self, frames: Any) -> np.ndarray:
        """Keep entries for good; equal ones share one of the indices at the top of int64."""
        self._refuse_view("pin")
        frames = self._checked(frames)
        lead = frames.ndim - len(self.entry_shape)
        if lead < 0 or frames.shape[lead:] != self.entry_shape:
            raise ValueError(f"{frames.shape} does not end in an entry's {self.entry_shape}")
        indices = np.empty(frames.shape[:lead], np.int64)
        for place in np.ndindex(indices.shape):
            indices[place] = self._pin_entry(frames[place])
        return indices

    def _pin_entry(self, entry: np.ndarray) -> int:
        for index, pinned in self._pinned.items():
            if pinned.tobytes() == entry.tobytes():
                return index
        index = FIRST_PINNED - len(self._pinned)
        self._pinned[index] = np.array(entry)
        return index

    def clear(self) -> None:
        """Forget every frame but the pinned ones, and start numbering over."""
        self._refuse_view("clear")
        self._data[...] = self.fill_value
        self._forget()
        self.stream += 1

    # ------------------------------------------------------------------ helpers

    def _forget(self) -> None:
        self._living = np.full((self.shape[0], self.n_lanes), NOBODY, np.int64)
        self._counts = np.zeros(self.n_lanes, np.int64)

    def _lane_key(self, lane: int) -> tuple[Any, ...]:
        """Return the key of one lane's entry in one row."""
        key: list[Any] = list(np.unravel_index(lane, self.lane_shape)) if self.lane_shape else []
        if self.stack_axis is not None:
            key.insert(self.stack_axis - 1, slice(None))
        return tuple(key)

    def _retire(self, touched: np.ndarray) -> None:
        """Forget the indices of all entries of which at least one element was assigned."""
        for slot, lane in np.ndindex(self._living.shape):
            if touched[(slot, *self._lane_key(lane))].any():
                self._living[slot, lane] = NOBODY

    def _refuse_view(self, what: str) -> None:
        if self._base is not None:
            raise TypeError(f"a view has no {what}")

    def _checked(self, frames: Any) -> np.ndarray:
        frames = np.asarray(frames)
        if frames.dtype != self.dtype:
            raise TypeError(f"frames are {frames.dtype}, the array holds {self.dtype}")
        return frames

    def _checked_lanes(self, lanes: Sequence[int]) -> list[int]:
        numbers = np.asarray(lanes)
        if numbers.ndim != 1:
            raise ValueError(f"lanes has {numbers.ndim} axes, not 1")
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(f"lanes are integers, not {numbers.dtype}")
        found = [int(lane) for lane in numbers]
        if any(not 0 <= lane < self.n_lanes for lane in found):
            raise IndexError(f"lanes {found} reach outside 0 to {self.n_lanes - 1}")
        if len(set(found)) != len(found):
            raise ValueError(f"lanes {found} names a lane twice")
        return found


def _plain(value: Any) -> Any:
    """Replace oracles in a key, an operand or an output by their dense arrays."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    return np.asarray(value) if isinstance(value, NaiveFrameArray) else value


def assert_same(actual: Any, dense: Any) -> None:
    """Assert that a result is what numpy gives: its type, its shape, its dtype, every byte.

    Bytes are compared, so a NaN equals a NaN with the same payload only, and -0.0 is not 0.0.

    Parameters
    ----------
    actual : object
        What the library returned. An array must be a plain, writable ndarray.
    dense : ndarray or numpy scalar
        What numpy returned for the dense array.
    """
    assert type(actual) is type(dense), f"got a {type(actual)}, numpy gives a {type(dense)}"
    if not isinstance(dense, np.ndarray | np.generic):
        raise TypeError(f"{type(dense)} is no array and no numpy scalar: compare with ==")
    assert actual.dtype == dense.dtype, f"dtype {actual.dtype}, numpy's is {dense.dtype}"
    assert actual.shape == dense.shape, f"shape {actual.shape}, numpy's is {dense.shape}"
    if isinstance(actual, np.ndarray):
        assert actual.flags.writeable, "the array is read-only"
    if actual.tobytes() == dense.tobytes():
        return
    got, want = (_elements_as_bytes(each) for each in (actual, dense))
    wrong = np.flatnonzero((got != want).any(axis=1))
    first = tuple(int(i) for i in np.unravel_index(wrong[0], dense.shape)) if dense.shape else ()
    raise AssertionError(
        f"{len(wrong)} of {len(want)} elements differ, the first at {first}: "
        f"bytes {got[wrong[0]].tolist()}, numpy's are {want[wrong[0]].tolist()}"
    )


def _elements_as_bytes(values: np.ndarray | np.generic) -> np.ndarray:
    flat = np.frombuffer(values.tobytes(), np.uint8)
    return flat.reshape(values.size, values.dtype.itemsize)
