"""numpy's index algebra for an array of frames: which cells a key touches, and what of them.

The leading axes of an array name **cells**, one frame each (a cell is the C-order flat index over
the leading axes); the last axes are the frame. `select` resolves a key against those two shapes
and returns a `Selection`, which reads or writes through callables that move whole frames. Nothing
here knows how frames are stored.

There are four kinds, by what a key leaves of a frame:

========= ======================================================= =========================
class     keys                                                    moves
========= ======================================================= =========================
`_Whole`  ``a[3]``, ``a[2:9:3, 0]``, ``a[indices]``, ``a[...]``   frames, nothing besides
`_Inside` ``a[:, 0, 4:8, 4:8]``, ``a[i, :, y, x]``                a few frames at a time
`_Masked` ``a[mask]``, where the mask reaches into the frames     the frames that it hits
`_Fields` ``a["x"]``, ``a[["x", "y"]]``, of a structured dtype    a few frames at a time
========= ======================================================= =========================

Keys and values that numpy refuses are handed to numpy itself, with an array of the same shape
that holds a single element, so that its own error comes out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from math import prod
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = ["NO_VALUE", "Block", "Selection", "blocks", "select"]

AnyArray: TypeAlias = NDArray[Any]
Int64Array: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]
Block: TypeAlias = tuple[slice, ...]
FrameMover: TypeAlias = Callable[[Int64Array, AnyArray], None]

NO_VALUE = object()
"""Says that a key is read and not assigned to; None is a value like any other."""

# Cells that are handed over in one call: half a megabyte of them. Their number is bounded because
# a cell takes eight bytes, and a frame may be a single one.
_CELLS_PER_CALL = 1 << 16
# Elements that are picked from inside frames together, so that a frame which several of them
# share is decoded once.
_PICKS_PER_CALL = 1 << 16
# Elements of a mask that are looked at together.
_MASK_PER_CALL = 1 << 20

_INT_TYPES = frozenset(
    (int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
)
_MAX_NDIM = 64  # of numpy's arrays
_MAX_ARRAYS = 63  # that numpy takes in a key

# What an axis of a result walks over: a slice of a leading axis, the index arrays (all of them
# at once, broadcast), a slice of a frame's axis, or nothing.
_LEAD, _POINT, _FRAME, _NEW = range(4)


class _RefusedError(Exception):
    """numpy refuses this, too, and says it better."""


def select(
    key: Any, lead_shape: Shape, frame_shape: Shape, dtype: np.dtype[Any], value: Any = NO_VALUE
) -> Selection:
    """Resolve a key as numpy would for an array of shape ``lead_shape + frame_shape``.

    Parameters
    ----------
    key : object
        What stands between the brackets.
    lead_shape : tuple of int
        The axes that name cells, at least one.
    frame_shape : tuple of int
        The axes of a frame, maybe none.
    dtype : dtype
        Of the array. If it is structured, keys may name its fields.
    value : object, optional
        What is about to be assigned. It decides which error comes first where key and value are
        both wrong, and nothing else.

    Returns
    -------
    Selection
        What to read or write.

    Raises
    ------
    IndexError, TypeError, ValueError, OverflowError
        What numpy raises, in its words.

    Notes
    -----
    Integers, slices and arrays of integers on the first axis cost no more than the cells they
    name, however long that axis is.

    Examples
    --------
    >>> select((slice(2, 4), 0), (10, 3), (84, 84), np.dtype("u1")).shape
    (2, 84, 84)
    >>> select(([0, 5], ..., 7), (10, 3), (84, 84), np.dtype("u1")).shape
    (2, 3, 84)
    >>> select(10, (10, 3), (84, 84), np.dtype("u1"))
    Traceback (most recent call last):
        ...
    IndexError: index 10 is out of bounds for axis 0 with size 10
    """
    if dtype.names is not None and _names_fields(key):
        return _select_fields(key, lead_shape, frame_shape, dtype)
    try:
        rows = _select_rows(key, lead_shape, frame_shape, dtype)
        return _select_any(key, lead_shape, frame_shape, dtype) if rows is None else rows
    except Exception as error:  # an index may be any object, and raise what it likes
        failure = error
    shape = lead_shape + frame_shape
    if value is NO_VALUE:
        # Elements of no bytes: should numpy take the key after all, it copies nothing.
        _one_element(shape, np.dtype("V0"))[key]
    else:
        _one_element(shape, dtype)[key] = value
    if isinstance(failure, _RefusedError):
        # numpy before 2.4 only warns where a wrong index comes to nothing beside an empty slice.
        raise IndexError(f"key {key!r} is out of bounds for shape {shape}")
    raise failure


class Selection:
    """What a key names, to be read or written. `select` makes them.

    Attributes
    ----------
    shape : tuple of int
        The shape of ``dense[key]``.
    dtype : dtype
        Its dtype, which is not the array's where the key names fields.
    is_scalar : bool
        ``dense[key]`` is a numpy scalar, not an array without axes.
    whole_frames : bool
        The key leaves frames whole, so that writing does not read.
    """

    __slots__ = ("_cells", "_origin", "dtype", "is_scalar", "shape")

    whole_frames = False

    def __init__(self, origin: _Origin, shape: Shape, cells: _Cells, is_scalar: bool) -> None:
        self._origin = origin
        self._cells = cells
        self.shape = shape
        self.dtype = origin.dtype
        self.is_scalar = is_scalar

    def read(self, read_frames: FrameMover, max_frames: int) -> Any:
        """Return what the key names.

        Parameters
        ----------
        read_frames : callable
            ``read_frames(cells, out)`` fills `out`, an array of shape ``(n, *frame_shape)`` and
            the array's dtype, with the frames of n cells. Both are C-contiguous; cells are in
            range, in any order, and may repeat.
        max_frames : int
            How many frames may be held beside the result, at least 1. Where frames stay whole,
            none are.

        Returns
        -------
        ndarray or numpy scalar
            Fresh and writable.
        """
        raise NotImplementedError

    def write(
        self, value: Any, read_frames: FrameMover, write_frames: FrameMover, max_frames: int
    ) -> None:
        """Assign to what the key names, casting and broadcasting as numpy does.

        Parameters
        ----------
        value : array_like
            Cast and checked whole before the first frame is written.
        read_frames : callable
            As in `read`. It is called only where the key reaches inside frames.
        write_frames : callable
            ``write_frames(cells, frames)`` stores n frames, C-contiguous and of the array's
            dtype, before it returns; where cells repeat, the last one wins. The frames are a view
            of `value`, maybe a read-only one, or a buffer that is used again.
        max_frames : int
            How many frames may be held at a time, at least 1.

        Raises
        ------
        ValueError, TypeError, OverflowError
            What numpy raises, in its words.

        Notes
        -----
        Where arrays in the key name an element several times, the last value in C order stays.
        numpy goes by the memory layout instead if the arrays in the key and the value all have
        another one than C order, as in ``a[index.T] = value.T``.
        """
        raise NotImplementedError

    def _empty(self, shape: Shape) -> AnyArray:
        """Room for elements. The gaps of structured dtypes must not show what was there before."""
        if not self.dtype.itemsize:
            # np.empty makes room for a character in strings that have none
            nothing: AnyArray = np.ndarray(shape, self.dtype)
            return nothing
        if self.dtype.names is not None:
            return np.zeros(shape, self.dtype)
        return np.empty(shape, self.dtype)

    def _cast(self, value: Any) -> AnyArray:
        """Give a value the dtype and shape of the selection, without copying what has both."""
        if self.is_scalar:
            one = self._empty((1,))
            one[0] = value  # numpy has rules of its own for single elements
            return one.reshape(())
        origin, shape = self._origin, self.shape
        try:
            if isinstance(value, np.ndarray):
                array = value.view(np.ndarray)
            elif isinstance(value, (np.number, np.datetime64)) and origin.is_basic:
                # without arrays in the key an assignment refuses integers that np.asarray wraps
                one = self._empty((1,))
                one[:] = value
                array = one.reshape(())
            else:
                array = np.asarray(value, self.dtype)
            if array.dtype != self.dtype:
                cast = self._empty(array.shape)
                np.copyto(cast, array, casting="unsafe")
                array = cast
            if array.shape == shape:
                return array
            if origin.is_full_mask and array.ndim > 1:
                raise _RefusedError
            if array.ndim > len(shape):
                if origin.is_basic and not isinstance(value, np.ndarray):
                    origin.assign(value)  # numpy takes some of these, and refuses nested lists
                while array.ndim > len(shape) and array.shape[0] == 1:
                    array = array[0, ...]  # an array of the same dtype also without axes
            return np.broadcast_to(array, shape)
        except Exception as error:  # casting runs whatever code the value brings along
            failure = error
        origin.assign(value)
        if prod(shape):
            raise failure
        return np.empty(shape, self.dtype)  # numpy takes some odd shapes where it has nothing to do


class _Whole(Selection):
    """A key that leaves frames whole: cells, in the order of the result."""

    __slots__ = ("_layout",)

    whole_frames = True

    def __init__(
        self,
        origin: _Origin,
        shape: Shape,
        cells: _Cells,
        is_scalar: bool,
        layout: _Layout | None = None,
    ) -> None:
        super().__init__(origin, shape, cells, is_scalar)
        self._layout = layout

    def read(self, read_frames: FrameMover, max_frames: int) -> Any:  # noqa: ARG002
        result = self._empty(self.shape)
        if result.size:
            frames = result.reshape(self._cells.size, *self._origin.frame_shape)
            for start, stop, block in blocks(self._cells.shape, _CELLS_PER_CALL):
                read_frames(self._cells.at(start, stop, block), frames[start:stop])
        return result[()] if self.is_scalar else result

    def write(
        self,
        value: Any,
        read_frames: FrameMover,  # noqa: ARG002
        write_frames: FrameMover,
        max_frames: int,
    ) -> None:
        values, cells, frame_shape = self._cast(value), self._cells, self._origin.frame_shape
        if values.flags.c_contiguous:
            frames = values.reshape(cells.size, *frame_shape)
            for start, stop, block in blocks(cells.shape, _CELLS_PER_CALL):
                write_frames(cells.at(start, stop, block), frames[start:stop])
            return
        if self._layout is not None:
            values = self._layout.from_result(values)
        lead_ndim = len(cells.shape)
        buffer = np.empty((min(max_frames, cells.size), *frame_shape), self.dtype)
        # One frame for all cells is the commonest broadcast: lay it out once.
        is_constant = not any(values.strides[:lead_ndim])
        if is_constant:
            frame = values[(0,) * lead_ndim]
            buffer.reshape(-1, *frame.shape)[...] = frame
        for start, stop, block in blocks(cells.shape, max_frames):
            frames = buffer[: stop - start]
            if not is_constant:
                part = values[block]
                frames.reshape(part.shape)[...] = part
            write_frames(cells.at(start, stop, block), frames)


class _Visit(NamedTuple):
    """Some frames, and where their part of the result is.

    The same elements are ``part_of(result)[points]`` and
    ``frames.reshape(*lead, *frame_shape)[key]``.
    """

    cells: Int64Array
    lead: Shape
    key: tuple[Any, ...]
    block: Block
    points: Any = ...

    def part_of(self, array: AnyArray) -> AnyArray:
        """View the block of a result or value, in the order of the layout, that is concerned."""
        where: Any = (*self.block, ...)  # the Ellipsis, for an array also where no axis is left
        part: AnyArray = array[where]
        return part


class _Partial(Selection):
    """A key that reaches inside frames, a few of which are held at a time."""

    __slots__ = ("_layout",)

    def __init__(
        self, origin: _Origin, shape: Shape, cells: _Cells, is_scalar: bool, layout: _Layout
    ) -> None:
        super().__init__(origin, shape, cells, is_scalar)
        self._layout = layout

    def read(self, read_frames: FrameMover, max_frames: int) -> Any:
        layout = self._layout
        if layout.is_transposed:
            ordered = self._empty(layout.shape)
            result = layout.to_result(ordered).reshape(self.shape)
        else:
            result = self._empty(self.shape)
            ordered = result.reshape(layout.shape)
        if result.size:
            buffer = self._buffer(max_frames)
            for visit in self._visits(max_frames):
                frames = buffer[: visit.cells.size]
                read_frames(visit.cells, frames)
                visit.part_of(ordered)[visit.points] = self._view(frames, visit)[visit.key]
        return result[()] if self.is_scalar else result

    def write(
        self, value: Any, read_frames: FrameMover, write_frames: FrameMover, max_frames: int
    ) -> None:
        values = self._cast(value)
        if not values.size:
            return
        values = self._layout.from_result(values)
        buffer = self._buffer(max_frames)
        for visit in self._visits(max_frames):
            frames = buffer[: visit.cells.size]
            read_frames(visit.cells, frames)
            self._view(frames, visit)[visit.key] = visit.part_of(values)[visit.points]
            write_frames(visit.cells, frames)

    def _buffer(self, max_frames: int) -> AnyArray:
        count = min(max_frames, self._cells.size)
        return np.empty((count, *self._origin.frame_shape), self._origin.dtype)

    def _view(self, frames: AnyArray, visit: _Visit) -> AnyArray:
        return frames.reshape(*visit.lead, *self._origin.frame_shape)

    def _visits(self, max_frames: int) -> Iterator[_Visit]:
        """Cover the selection by visits of `max_frames` frames, what repeats in C order."""
        raise NotImplementedError


class _Inside(_Partial):
    """Slices, integers and arrays on the axes of frames.

    `_items` are the indices of a frame's axes. Arrays among them have as many axes as all of the
    key's arrays broadcast together. Along the first `_n_shared` of these axes cells vary, too;
    along the others, of `_free_shape`, they do not.
    """

    __slots__ = ("_free_shape", "_items", "_n_shared")

    def __init__(
        self,
        origin: _Origin,
        shape: Shape,
        cells: _Cells,
        is_scalar: bool,
        layout: _Layout,
        items: list[Any],
        n_shared: int,
        free_shape: Shape,
    ) -> None:
        super().__init__(origin, shape, cells, is_scalar, layout)
        self._items = items
        self._n_shared = n_shared
        self._free_shape = free_shape

    def _visits(self, max_frames: int) -> Iterator[_Visit]:
        cells = self._cells
        has_arrays = any(isinstance(item, np.ndarray) for item in self._items)
        if not has_arrays:  # cells may repeat: of each frame it is the same part that is moved
            for start, stop, block in blocks(cells.shape, max_frames):
                key = (..., *self._items)
                yield _Visit(cells.at(start, stop, block), _lengths(block), key, block)
            return
        n_points = max_frames
        if not cells.is_distinct:
            n_points = max(max_frames, _PICKS_PER_CALL // prod(self._free_shape))
        for start, stop, block in blocks(cells.shape, n_points):
            named = cells.at(start, stop, block)
            if cells.is_distinct:
                numbers = np.arange(named.size)
            else:
                named, numbers = np.unique(named, return_inverse=True)
            yield from self._pick(named, numbers.reshape(_lengths(block)), block, max_frames)

    def _pick(
        self, cells: Int64Array, numbers: NDArray[np.intp], block: Block, max_frames: int
    ) -> Iterator[_Visit]:
        """Visit the cells of a block, each once; `numbers` says for its points which one it is."""
        lead_ndim = numbers.ndim - self._n_shared  # axes of slices, before those of arrays
        items = [
            _part(item, block[lead_ndim:]) if isinstance(item, np.ndarray) else item
            for item in self._items
        ]
        free = (1,) * len(self._free_shape)
        if cells.size <= max_frames:
            key = (numbers.reshape(numbers.shape + free), *items)
            yield _Visit(cells, (cells.size,), key, block)
            return
        shared_shape = numbers.shape[lead_ndim:]
        for i, item in enumerate(items):
            if isinstance(item, np.ndarray):
                items[i] = np.broadcast_to(item, shared_shape + item.shape[self._n_shared :])
        for first in range(0, cells.size, max_frames):
            some = cells[first : first + max_frames]
            points = np.nonzero((numbers >= first) & (numbers < first + max_frames))
            here: Any = (*points[lead_ndim:], ...)
            picked = [item[here] if isinstance(item, np.ndarray) else item for item in items]
            key = ((numbers[points] - first).reshape(-1, *free), *picked)
            yield _Visit(some, (some.size,), key, block, points)


class _Masked(_Partial):
    """One mask over all leading axes and the first ones of a frame.

    Its coordinates are never there all at once: ``mask.nonzero()`` takes eight bytes an axis for
    every element.
    """

    __slots__ = ("_items", "_mask")

    def __init__(
        self,
        origin: _Origin,
        shape: Shape,
        cells: _Cells,
        layout: _Layout,
        items: list[Any],
        mask: NDArray[np.bool_],
    ) -> None:
        super().__init__(origin, shape, cells, False, layout)
        self._items = items
        self._mask = mask.reshape(cells.size, *mask.shape[len(origin.lead_shape) :])

    def _visits(self, max_frames: int) -> Iterator[_Visit]:
        inner_axes = tuple(range(1, self._mask.ndim))
        n_cells = max(max_frames, _MASK_PER_CALL // prod(self._mask.shape[1:]))
        start = 0
        for first in range(0, len(self._mask), n_cells):
            mask = self._mask[first : first + n_cells]
            hit = np.flatnonzero(mask.any(axis=inner_axes))
            for i in range(0, hit.size, max_frames):
                some = hit[i : i + max_frames]
                inside = mask[some]
                stop = start + int(np.count_nonzero(inside))
                key = (inside, *self._items)
                yield _Visit(first + some, (some.size,), key, (slice(start, stop),))
                start = stop


class _Fields(_Partial):
    """Fields of every element."""

    __slots__ = ("_names",)

    def __init__(
        self, origin: _Origin, shape: Shape, cells: _Cells, dtype: np.dtype[Any], names: Any
    ) -> None:
        super().__init__(origin, shape, cells, False, _Layout(list(range(len(shape))), [], shape))
        self.dtype = dtype
        self._names = names

    def _view(self, frames: AnyArray, visit: _Visit) -> AnyArray:
        view: AnyArray = super()._view(frames, visit)[self._names]
        return view

    def _visits(self, max_frames: int) -> Iterator[_Visit]:
        for start, stop, block in blocks(self._cells.shape, max_frames):
            yield _Visit(self._cells.at(start, stop, block), _lengths(block), (...,), block)


class _Origin(NamedTuple):
    """The key, and the array that it was given to."""

    key: Any
    lead_shape: Shape
    frame_shape: Shape
    dtype: np.dtype[Any]
    is_basic: bool  # there are no arrays in the key
    is_full_mask: bool = False  # it is a mask of the array's shape, which numpy treats apart

    def assign(self, value: Any) -> None:
        """Let numpy judge a value."""
        _one_element(self.lead_shape + self.frame_shape, self.dtype)[self.key] = value


class _Cells:
    """Cells on a grid.

    Parameters
    ----------
    shape : tuple of int
        The grid.
    first : int
        The cell at its origin.
    steps : list of (int, int), optional
        Axes of the grid, and how many cells a step along each of them goes. Without, cells follow
        each other in C order.
    points : ndarray of int64, optional
        Added to that: of as many axes as the grid, and broadcast to it.
    """

    __slots__ = ("_first", "_points", "_steps", "shape", "size")

    def __init__(
        self,
        shape: Shape,
        first: int,
        steps: list[tuple[int, int]] | None = None,
        points: Int64Array | None = None,
    ) -> None:
        self.shape = shape
        self.size = prod(shape)
        self._first = first
        self._steps = steps
        self._points = points

    @property
    def is_distinct(self) -> bool:
        """No cell is there twice."""
        return self._points is None

    def at(self, start: int, stop: int, block: Block) -> Int64Array:
        """Flat cells of a block of the grid, its points `start` to `stop` in C order."""
        if self._steps is None:
            return np.arange(self._first + start, self._first + stop, dtype=np.int64)
        cells = np.full((1,) * len(block), self._first, np.int64)
        for axis, step in self._steps:
            along = np.arange(block[axis].start, block[axis].stop, dtype=np.int64) * step
            cells = cells + along.reshape(-1, *(1,) * (len(block) - 1 - axis))
        if self._points is not None:
            cells = cells + _part(self._points, block)
        return np.broadcast_to(cells, _lengths(block)).reshape(-1)


class _Layout:
    """The axes of a result, in the order in which they are walked over.

    Parameters
    ----------
    axes : list of int
        Axes of the result, in that order.
    new_axes : list of int
        Its other axes, each of length 1.
    result_shape : tuple of int
        Its shape.
    """

    __slots__ = ("_axes", "_new_axes", "is_transposed", "shape")

    def __init__(self, axes: list[int], new_axes: list[int], result_shape: Shape) -> None:
        self._axes = axes
        self._new_axes = new_axes
        self.shape = tuple(result_shape[axis] for axis in axes)
        self.is_transposed = axes != sorted(axes)

    def to_result(self, array: AnyArray) -> AnyArray:
        """View an array in this order as the result has it, but for the new axes."""
        view: AnyArray = array.transpose(np.argsort(self._axes).tolist())
        return view

    def from_result(self, array: AnyArray) -> AnyArray:
        """View an array of the result's shape in this order."""
        first_of_new: Any = (..., *[0] * len(self._new_axes))
        view: AnyArray = array.transpose(self._axes + self._new_axes)[first_of_new]
        return view


class _Index(NamedTuple):
    """One part of a key, resolved against the axis that it takes.

    `item` is a range for a slice, an integer, an int64 array, None for a new axis, or an Ellipsis
    for what takes no axis but stands between others. Masks are taken apart into int64 arrays, but
    for a single one that reaches from the first axis into the frame.
    """

    item: range | int | AnyArray | EllipsisType | None
    axis: int = -1  # new axes and masks without axes have none
    length: int = 0
    is_checked: bool = True  # an array is in range, and counts from the start

    def keeps_all(self) -> bool:
        """Tell whether nothing of the axis is left out or moved."""
        if isinstance(self.item, range):
            return self.item == range(self.length)
        return isinstance(self.item, int) and self.length == 1

    def of_frame(self, n_points: int) -> Any:
        """Return it as an index of decoded frames; arrays get `n_points` axes."""
        item = self.item
        if isinstance(item, range):
            # A range that runs down to 0 ends below it, which means something else in a slice.
            return slice(item.start, item.stop if item.stop >= 0 else None, item.step)
        return _pad(item, n_points) if isinstance(item, np.ndarray) else item


def _select_rows(
    key: Any, lead_shape: Shape, frame_shape: Shape, dtype: np.dtype[Any]
) -> _Whole | None:
    """Resolve the commonest keys without the detours of `_select_any`, or leave them to it.

    They are integers for some of the leading axes, and a slice or an array of integers for the
    first.
    """
    if type(key) is slice:
        start, stop, step = key.indices(lead_shape[0])
        if step != 1:
            return None
        shape: Shape = (max(0, stop - start), *lead_shape[1:])
        cells = _Cells(shape, start * prod(lead_shape[1:]))
    elif type(key) is np.ndarray:
        if key.dtype.kind not in "iu" or not key.ndim:
            return None
        index = _as_index(key)
        _wrap(index, lead_shape[0])
        rest = lead_shape[1:]
        shape = index.shape + rest
        steps = [(index.ndim + axis, prod(rest[axis + 1 :])) for axis in range(len(rest))]
        points = index.reshape(index.shape + (1,) * len(rest)) * prod(rest)
        cells = _Cells(shape, 0, steps, points)
    else:
        indices = key if type(key) is tuple else (key,)
        if len(indices) > len(lead_shape):
            return None
        first = 0
        for item, length in zip(indices, lead_shape, strict=False):
            if type(item) not in _INT_TYPES or not -length <= item < length:
                return None
            first = first * length + int(item) + (length if item < 0 else 0)
        shape = lead_shape[len(indices) :]
        cells = _Cells(shape, first * prod(shape))
    origin = _Origin(key, lead_shape, frame_shape, dtype, cells.is_distinct)
    shape += frame_shape
    return _Whole(origin, shape, cells, not shape)


def _select_any(key: Any, lead_shape: Shape, frame_shape: Shape, dtype: np.dtype[Any]) -> Selection:
    """Resolve any key but names of fields."""
    array_shape, n_lead = lead_shape + frame_shape, len(lead_shape)
    given = [_as_index(item) for item in (key if isinstance(key, tuple) else (key,))]
    if sum(isinstance(item, np.ndarray) for item in given) > _MAX_ARRAYS:
        raise _RefusedError
    indices = _resolve(given, array_shape, n_lead)
    points_shape = _points_shape(indices)
    groups, shape = _result_axes(indices, points_shape, n_lead)
    if len(shape) > _MAX_NDIM:
        raise _RefusedError
    origin = _Origin(
        key,
        lead_shape,
        frame_shape,
        dtype,
        is_basic=not any(isinstance(item, np.ndarray) for item in given),
        is_full_mask=len(given) == 1 and _is_mask(given[0]) and given[0].shape == array_shape,
    )
    is_scalar = not shape and not any(item is Ellipsis for item in given)

    mask = next((index.item for index in indices if _is_mask(index.item)), None)
    in_frame = [index for index in indices if index.axis >= n_lead]
    is_whole = mask is None and all(index.keeps_all() for index in in_frame)
    # Whole frames come in the order of the result; else the axes that cells vary along are first.
    walked = [axis for axis, group in enumerate(groups) if group != _NEW]
    walked.sort(key=lambda axis: groups[axis] == _FRAME if is_whole else groups[axis])
    new = [axis for axis, group in enumerate(groups) if group == _NEW]
    layout = _Layout(walked, new, shape)
    items = [index.of_frame(len(points_shape)) for index in in_frame]
    if _is_mask(mask):
        return _Masked(origin, shape, _Cells(lead_shape, 0), layout, items, mask)

    first, steps, points = _lead_terms(indices, lead_shape, len(points_shape))
    n_shared = len(points_shape)  # axes of the arrays, up to the last one that cells vary along
    if any(isinstance(item, np.ndarray) for item in items):
        while n_shared and (points is None or points.shape[n_shared - 1] == 1):
            n_shared -= 1
    n_grid = len(steps) + n_shared
    kinds = [groups[axis] for axis in walked[:n_grid]]
    if points is not None:
        before = kinds.index(_POINT) if n_shared else 0
        after = n_grid - before - n_shared
        points = points.reshape((1,) * before + points.shape[:n_shared] + (1,) * after)
    lead_axes = [axis for axis, kind in enumerate(kinds) if kind == _LEAD]
    strides = list(zip(lead_axes, steps, strict=True))
    cells = _Cells(layout.shape[:n_grid], first, strides, points)
    if is_whole:
        return _Whole(origin, shape, cells, is_scalar, layout)
    return _Inside(
        origin, shape, cells, is_scalar, layout, items, n_shared, points_shape[n_shared:]
    )


def _select_fields(
    key: str | list[str], lead_shape: Shape, frame_shape: Shape, dtype: np.dtype[Any]
) -> Selection:
    """Resolve names of fields, which numpy takes only by themselves."""
    fields = _one_element(lead_shape + frame_shape, dtype)[key]
    origin = _Origin(key, lead_shape, frame_shape, dtype, is_basic=True)
    return _Fields(origin, fields.shape, _Cells(lead_shape, 0), fields.dtype, key)


def _names_fields(key: Any) -> bool:
    return isinstance(key, str) or (
        isinstance(key, list) and bool(key) and all(isinstance(name, str) for name in key)
    )


def _is_mask(item: Any) -> TypeGuard[NDArray[np.bool_]]:
    return isinstance(item, np.ndarray) and item.dtype == np.bool_


def _as_index(item: Any) -> Any:
    """Turn a part of a key into None, Ellipsis, a slice, an int, or an int64 or boolean array.

    Arrays of integers are copied, so that nobody changes them once they are checked.
    """
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, np.ndarray):
        array = np.asarray(item)
    else:
        if not isinstance(item, bool):
            try:
                return operator.index(item)
            except Exception:  # numpy, too, goes on to see an array in it
                pass
        array = np.asarray(item)
        if not array.size:
            array = array.astype(np.int64)  # an empty list makes an array of floats
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iu":
        raise _RefusedError
    return array.astype(np.int64, order="C") if array.ndim else int(array)


def _resolve(given: list[Any], shape: Shape, n_lead: int) -> list[_Index]:
    """Give each part of a key its axes."""
    used = sum(item.ndim if _is_mask(item) else not _takes_none(item) for item in given)
    n_ellipses = sum(item is Ellipsis for item in given)
    if used > len(shape) or n_ellipses > 1:
        raise _RefusedError
    items: list[Any] = []
    for item in given if n_ellipses else [*given, Ellipsis]:
        items.append(item)
        if item is Ellipsis:
            items.extend([slice(None)] * (len(shape) - used))

    arrays = [item for item in items if isinstance(item, np.ndarray)]
    first = next((item for item in items if not _takes_none(item)), None)
    spans = len(arrays) == 1 and arrays[0] is first and _is_mask(first) and first.ndim > n_lead
    indices: list[_Index] = []
    axis = 0
    for item in items:
        if _takes_none(item):
            indices.append(_Index(item))
        elif isinstance(item, slice):
            indices.append(_Index(_as_range(item, shape[axis]), axis, shape[axis]))
            axis += 1
        elif isinstance(item, int):
            length = shape[axis]
            if not -length <= item < length:
                raise _RefusedError
            indices.append(_Index(item + length if item < 0 else item, axis, length))
            axis += 1
        elif not _is_mask(item):
            indices.append(_Index(item, axis, shape[axis], is_checked=False))
            axis += 1
        elif not item.ndim:  # True keeps all and False nothing, along an axis of its own
            indices.append(_Index(np.zeros(int(item), np.int64)))
        elif any(  # where a mask's length is 0, numpy does not compare it
            own not in (0, length) for own, length in zip(item.shape, shape[axis:], strict=False)
        ):
            raise _RefusedError
        elif spans and item.shape == shape[axis : axis + item.ndim]:
            indices.append(_Index(item, axis))
            axis += item.ndim
        else:
            for index in item.nonzero():
                indices.append(_Index(index, axis, shape[axis]))
                axis += 1
    return indices


def _as_range(item: slice, length: int) -> range:
    """Return the indices of a slice; of one or none of them, without a step of any size."""
    found = range(*item.indices(length))
    if len(found) > 1:
        return found
    return range(found[0], found[0] + 1) if found else range(0)


def _takes_none(item: Any) -> bool:
    return item is None or item is Ellipsis


def _points_shape(indices: list[_Index]) -> Shape:
    """Broadcast the arrays of a key, and check them; there are no axes without arrays."""
    arrays = [index.item for index in indices if isinstance(index.item, np.ndarray)]
    if not arrays:
        return ()
    if _is_mask(arrays[0]):
        return (int(np.count_nonzero(arrays[0])),)
    shape = np.broadcast(*arrays).shape
    if prod(shape):  # numpy does not look at indices that come to nothing
        for index in indices:
            if isinstance(index.item, np.ndarray) and not index.is_checked:
                _wrap(index.item, index.length)
    return shape


def _result_axes(
    indices: list[_Index], points_shape: Shape, n_lead: int
) -> tuple[list[int], Shape]:
    """Say of each axis of the result what it walks over, and how long it is.

    The axes of arrays are where the first of them is in the key, or in front of all others where
    something stands between two of them. Integers count as arrays beside arrays.
    """
    groups: list[int] = []
    lengths: list[int] = []
    place: int | None = None
    is_left = is_separated = False
    for index in indices:
        item = index.item
        if isinstance(item, int | np.ndarray):
            is_separated |= is_left
            place = len(groups) if place is None else place
            continue
        is_left = place is not None
        if item is None:
            groups.append(_NEW)
            lengths.append(1)
        elif isinstance(item, range):
            groups.append(_LEAD if index.axis < n_lead else _FRAME)
            lengths.append(len(item))
    if points_shape:
        place = 0 if is_separated else place
        groups[place:place] = [_POINT] * len(points_shape)
        lengths[place:place] = points_shape
    return groups, tuple(lengths)


def _lead_terms(
    indices: list[_Index], lead_shape: Shape, n_points: int
) -> tuple[int, list[int], Int64Array | None]:
    """Split cells into a constant, a step per slice, and what arrays of `n_points` axes add."""
    first = 0
    steps: list[int] = []
    points: Int64Array | None = None
    for index in indices:
        if not 0 <= index.axis < len(lead_shape):
            continue
        item, stride = index.item, prod(lead_shape[index.axis + 1 :])
        if isinstance(item, range):
            first += item.start * stride
            steps.append(item.step * stride)
        elif isinstance(item, int):
            first += item * stride
        elif isinstance(item, np.ndarray):
            points = item * stride if points is None else points + item * stride
    return first, steps, None if points is None else _pad(points, n_points)


def _wrap(index: Int64Array, length: int) -> None:
    """Check an array of indices, and let negative ones count from the start, in place."""
    if not index.size:
        return
    lowest = np.minimum.reduce(index, axis=None)
    if lowest < -length or np.maximum.reduce(index, axis=None) >= length:
        raise _RefusedError
    if lowest < 0:
        index[index < 0] += length


def _pad(array: AnyArray, ndim: int) -> AnyArray:
    """Put axes of length 1 in front."""
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


def _part(array: AnyArray, block: Block) -> AnyArray:
    """View a block of an array that is broadcast along its axes of length 1."""
    where = zip(block, array.shape, strict=False)
    part: AnyArray = array[tuple(axis if length != 1 else slice(None) for axis, length in where)]
    return part


def _lengths(block: Block) -> Shape:
    return tuple(axis.stop - axis.start for axis in block)


def blocks(shape: Shape, limit: int) -> Iterator[tuple[int, int, Block]]:
    """Cut a grid into blocks of at most `limit` points, each a run in C order.

    Examples
    --------
    >>> [(start, stop) for start, stop, _ in blocks((2, 3, 4), 8)]
    [(0, 8), (8, 12), (12, 20), (20, 24)]
    """
    size = prod(shape)
    if size <= limit:
        if size:
            yield 0, size, tuple(slice(0, length) for length in shape)
        return
    axis, inner = 0, size // shape[0]
    while inner > limit:
        axis += 1
        inner //= shape[axis]
    whole = tuple(slice(0, length) for length in shape[axis + 1 :])
    n_rows = limit // inner
    for outer in range(prod(shape[:axis])):
        at: list[slice] = []
        rest = outer
        for length in reversed(shape[:axis]):
            rest, i = divmod(rest, length)
            at.insert(0, slice(i, i + 1))
        for row in range(0, shape[axis], n_rows):
            end = min(row + n_rows, shape[axis])
            start = (outer * shape[axis] + row) * inner
            yield start, start + (end - row) * inner, (*at, slice(row, end), *whole)


def _one_element(shape: Shape, dtype: np.dtype[Any]) -> AnyArray:
    """Return an array of any shape in the memory of one element, to see what numpy does."""
    return as_strided(np.empty((), dtype), shape, (0,) * len(shape))
