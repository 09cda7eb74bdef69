"""`DiffFrameArray`: a compressed container of frames with the face of an ndarray."""

from __future__ import annotations

import copy as copying
import operator
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from compressarray.checks import (
    checked_fill,
    checked_indices,
    checked_lanes,
    checked_out,
    checked_shape,
    checked_stack_axis,
    is_int,
)
from compressarray.codecs import Codec, resolve
from compressarray.codecs.words import MAX_PIXEL_BYTES
from compressarray.errors import CorruptFrameError, FrameEvictedError, StaleStreamError
from compressarray.indexing import select
from compressarray.ring import FIRST_PIN, Ring
from compressarray.snapshots import Snapshot, array_of, int_of, part_of
from compressarray.store import MAX_STACK, Int64s, Store, UInt8s, check_size, make_store
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
# Frames that are held beside a result, while keys reach inside frames: one group of pictures.
_FRAMES_AT_ONCE = 16


class _Stream(NamedTuple):
    """What `clear` replaces, in one piece: who reads beside it sees the one or the other."""

    number: int
    ring: Ring
    store: Store


class _Frames:
    """What an array and its views share: the store, the ring, and how a frame looks."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        frame_ndim: int,
        stack_axis: int | None,
        codec: Codec,
        fill_value: Any,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.dtype = dtype
        self.frame_shape = shape[len(shape) - frame_ndim :]
        self.codec = codec
        self.fill_value = fill_value
        self.frame_bytes = prod(self.frame_shape) * dtype.itemsize
        self.is_empty = prod(shape) == 0 or dtype.itemsize == 0
        self.writer = Writer(rank=1)
        if snapshot is not None:
            self._restore(shape, stack_axis, snapshot)
            return
        stack = 1 if stack_axis is None else shape[stack_axis]
        check_size(prod(shape[: len(shape) - frame_ndim]), stack, self.frame_bytes, codec)
        self._take_shape(shape, stack_axis)
        self._now = self._begin(0)

    def _take_shape(self, shape: tuple[int, ...], stack_axis: int | None) -> None:
        self.shape = shape
        self.lead_shape = shape[: len(shape) - len(self.frame_shape)]
        self.stack_axis = stack_axis
        between = range(1, len(self.lead_shape))
        self.lane_shape = tuple(shape[axis] for axis in between if axis != stack_axis)
        self.stack_shape = () if stack_axis is None else (shape[stack_axis],)
        self.n_lanes = prod(self.lane_shape)
        self.all_lanes = np.arange(self.n_lanes)
        self.stack = prod(self.stack_shape)

    def copied(self, shape: tuple[int, ...] | None = None) -> _Frames:
        """Copy these frames; of another shape into an array without frame indices.

        The store keeps the layout that it has.
        """
        twin = copying.copy(self)
        twin.codec = copying.deepcopy(self.codec)
        twin.all_lanes = self.all_lanes.copy()
        twin.writer = Writer(rank=1)
        with self.writer.lock:
            number, ring, store = self.now
            if shape is None:
                twin._now = _Stream(number, copying.deepcopy(ring), copying.deepcopy(store))
            else:
                twin._take_shape(shape, None)
                twin.is_native = False
                twin._now = _Stream(0, Ring(shape[0], twin.n_lanes), copying.deepcopy(store))
        return twin

    def snapshot(self, shape: tuple[int, ...] | None = None) -> Snapshot:
        """What it takes to build these frames again; see `copied`."""
        with self.writer.lock:
            return self._snapshot(shape)

    def _snapshot(self, shape: tuple[int, ...] | None) -> Snapshot:
        number, ring, store = self.now
        native = self.is_native and shape is None
        if shape is not None:
            number, ring = 0, Ring(shape[0], prod(shape[1 : len(shape) - len(self.frame_shape)]))
        return {
            "shape": self.shape if shape is None else shape,
            "dtype": self.dtype,
            "frame_ndim": len(self.frame_shape),
            "stack_axis": self.stack_axis if shape is None else None,
            "codec": self.codec,
            "fill_value": self.fill_value,
            "stream": number,
            "layout": None if native else (self._store_lead, self._store_axis),
            "ring": ring.snapshot(),
            "frames": store.snapshot(),
        }

    def _restore(self, shape: tuple[int, ...], stack_axis: int | None, snapshot: Snapshot) -> None:
        """Take what a snapshot holds; nothing is allocated that is larger than what came."""
        lead = shape[: len(shape) - len(self.frame_shape)]
        lanes = prod(n for axis, n in enumerate(lead) if axis not in (0, stack_axis))
        ring = Ring.from_snapshot(lead[0], lanes, part_of(snapshot, "ring"))
        frames = part_of(snapshot, "frames")
        fill = array_of(frames, "fill", np.uint8, (max(self.frame_bytes, 1),))
        self._take_shape(shape, stack_axis)
        given = part_of(snapshot, "layout")
        self.is_native = given is None
        if given is None:
            self._store_lead, self._store_axis = self.lead_shape, stack_axis
        else:
            store_lead, axis = given
            self._store_lead = checked_shape(store_lead)
            self._store_axis = checked_stack_axis(
                axis, self._store_lead, len(self._store_lead), MAX_STACK
            )
            if prod(self._store_lead) != prod(lead):
                raise CorruptFrameError(f"pickled frames of {store_lead} are not those of {lead}")
        number = int_of(snapshot, "stream", 0)
        self._now = _Stream(number, ring, self._make_store(fill, frames))

    @property
    def now(self) -> _Stream:
        """The stream, as it was left by the last write that was done."""
        self.writer.settle()
        return self._now

    @property
    def stream(self) -> int:
        """Number of the stream that frame indices belong to."""
        return self.now.number

    @property
    def ring(self) -> Ring:
        """Which index lives where."""
        return self.now.ring

    @property
    def store(self) -> Store:
        """Where the frames lie."""
        return self.now.store

    def _begin(self, number: int) -> _Stream:
        self._store_lead, self._store_axis = self.lead_shape, self.stack_axis
        # Whether rows, lanes and stacks are the store's own.
        self.is_native = True
        # not np.full: it leaves the gaps of aligned dtypes as memory was
        fill = np.zeros(self.frame_shape, self.dtype)
        np.copyto(fill, self.fill_value, casting="unsafe")
        flat = np.frombuffer(fill.tobytes() or bytes(1), np.uint8)
        return _Stream(number, Ring(self.shape[0], self.n_lanes), self._make_store(flat, None))

    def _make_store(self, fill: UInt8s, snapshot: Snapshot | None) -> Store:
        lead, axis = self._store_lead, self._store_axis
        lanes = prod(n for i, n in enumerate(lead) if i not in (0, axis))
        row = self.frame_shape[-1] if len(self.frame_shape) == 2 else prod(self.frame_shape[1:])
        pixel = prod(self.frame_shape[2:]) * self.dtype.itemsize
        if pixel > MAX_PIXEL_BYTES:  # channels come first, or pixels are wide
            pixel = min(self.dtype.itemsize, MAX_PIXEL_BYTES)
        return make_store(
            0 if self.is_empty else lead[0],
            max(lanes, 1),
            1 if axis is None else max(lead[axis], 1),
            max(self.frame_bytes, 1),
            row * self.dtype.itemsize,
            pixel,
            fill,
            self.codec,
            snapshot,
        )

    def clear(self) -> None:
        """Forget every frame but the pinned ones."""
        self.writer.run(self._clear)

    def _clear(self) -> None:
        fresh = self._begin(self._now.number + 1)
        fresh.store.take_pins(self._now.store)
        self.writer.steps.append(_Cleared(self, self._now))
        self._now = fresh

    # Cells of a key count in C order over the leading axes; the store wants the stack axis last.

    def to_store(self, cells: Int64s) -> Int64s:
        """Translate C-order cells to the store's; those of pins stay."""
        lead, axis = self._store_lead, self._store_axis
        if axis is None or axis == len(lead) - 1:
            return cells
        inner = prod(lead[axis + 1 :])
        outer, rest = np.divmod(cells, inner)
        outer, k = np.divmod(outer, lead[axis])
        return np.where(cells < 0, cells, (outer * inner + rest) * lead[axis] + k)

    def read(self, cells: Int64s, out: AnyArray) -> None:
        """Fill ``out`` with the frames of C-order cells."""
        self.store.read(self.to_store(cells), out)

    def write(self, cells: Int64s, frames: AnyArray) -> None:
        """Store frames in C-order cells, and retire the indices that lived there."""
        self.writer.run(self._write, cells, frames)

    def _write(self, cells: Int64s, frames: AnyArray) -> None:
        in_store = self.to_store(cells)
        store = self._store_to_write()
        places = (in_store if self.is_native else cells) // self.stack
        self._now.ring.retire(places, self.writer.steps)
        store.write(in_store, as_bytes(frames, self.frame_bytes))

    def append(self, lanes: Int64s, n_rows: int, entries: AnyArray) -> Int64s:
        """Store entries, ``(rows, lanes, ...)`` or of one row; return their indices."""
        return self.writer.run(self._append, lanes, n_rows, entries)

    def _append(self, lanes: Int64s, n_rows: int, entries: AnyArray) -> Int64s:
        ring = self._now.ring
        indices, slots = ring.advance(lanes, n_rows, self.writer.steps)
        if not self.is_empty:
            self._put(lanes, slots, np.ascontiguousarray(entries).reshape(-1).view(np.uint8))
        ring.publish(lanes, n_rows)
        return indices

    def _put(self, lanes: Int64s, slots: Int64s, flat: UInt8s) -> None:
        store = self._store_to_write()
        if self.is_native:
            each = lanes if len(slots) == 1 else np.tile(lanes, len(slots))
            store.append(each, slots.ravel(), flat)
        else:
            cells = self.to_store((slots * self.n_lanes + lanes).ravel())
            store.write(cells, flat.reshape(-1, self.frame_bytes))

    def discard(self, before: Int64s) -> None:
        """End the indices of counts below ``before``, and give their memory back."""
        self.writer.run(self._discard, before)

    def _discard(self, before: Int64s) -> None:
        _, ring, store = self._now
        first = ring.discard(before, self.writer.steps)
        if (
            self.is_native
            and self.stack == 1
            and not self.is_empty
            and not ring.was_assigned
            and store.may_forget(first, ring.oldest)
        ):
            self._store_to_write().forget(first, ring.oldest, ring.counts)

    def pin(self, entries: UInt8s) -> list[int]:
        """Pin entries of bytes; return their numbers."""
        return self.writer.run(lambda: [self._now.store.pin(entry) for entry in entries])

    def _store_to_write(self) -> Store:
        """The store, as a step of the write that runs."""
        store, writer = self._now.store, self.writer
        if store not in writer.steps:
            writer.steps.append(store)
            writer.untidy.append(store)
        return store

    def gather(self, store: Store, places: Int64s, out: AnyArray) -> None:
        """Fill ``out`` with the entries at `Ring.places`."""
        cells = places
        if self.stack > 1:
            k = np.arange(self.stack)
            first = places[:, None] * self.stack
            # entry -1 - i is pinned: its cells count downwards from -1 - i * stack
            cells = np.where(first < 0, first + self.stack - 1 - k, first + k).ravel()
        elif not self.is_native:
            cells = self.to_store(places)
        store.read(cells, out)


class _Cleared:
    """What `_Frames.clear` has changed."""

    def __init__(self, frames: _Frames, before: _Stream) -> None:
        self._frames = frames
        self._before = before

    def finish(self) -> None:
        """Do nothing."""

    def roll_back(self) -> None:
        """Have the stream that was."""
        self._frames._now = self._before


def as_bytes(frames: AnyArray, frame_bytes: int) -> UInt8s:
    """View C-contiguous frames as rows of bytes, ``(n, frame_bytes)``."""
    flat: UInt8s = frames.reshape(-1).view(np.uint8)
    return flat.reshape(-1, frame_bytes) if frame_bytes else flat.reshape(0, 0)


class DiffFrameArray(NDArrayOperatorsMixin):
    """An array of frames that stores what is new, once, without loss.

    It indexes, assigns, compares and computes like the ndarray of the same shape, and holds a
    hundredth of its memory where frames resemble the ones before them.

    Parameters
    ----------
    shape : sequence of int
        Time first; last the ``frame_ndim`` axes of one frame; in between lanes (one stream of
        frames each) and, where observations are stacks, the stack axis.
    dtype : dtype, default uint8
        Any of fixed size; stored bit for bit.
    frame_ndim : int, default 2
        Axes of one frame, from 0.
    codec : str or object, default "delta"
        ``"raw"``, ``"sparse"``, ``"delta"``, ``"delta-huffman"``, or a numcodecs codec, its
        configuration or its id: those code each frame alone.
    fill_value : scalar, default 0
        What never written elements hold.
    stack_axis : int, None or "auto", default "auto"
        Which axis between time and frame holds stacks, of which each repeats all but one frame of
        the one before. "auto" takes the last where there are two or more (unless it is longer than
        256, as stacks may be), so that
        ``(128, 8, 4, 84, 84)`` is 128 steps of 8 environments with stacks of 4. It changes how
        small and how fast the array is, and which axes are lanes; never what it holds.
    gop_length : int, optional
        Frames from one keyframe to the next. Longer is smaller and slower to read.

    Raises
    ------
    ValueError
        For negative lengths, more frame axes than axes, an unknown codec or stack axis, or frames
        that the codec cannot hold.
    TypeError
        For a dtype that holds Python objects, or a codec that is none.
    MemoryError
        If the system refuses the address space.

    Notes
    -----
    Reading returns fresh ndarrays, so ``a[0][1] = x`` changes nothing in ``a``; ``a[0, 1] = x``
    does, and so does ``a += 1``. Reading decodes the groups of pictures that a key names and no
    others; writing encodes anew those that it touches.

    Many threads may read while one writes: each frame comes wholly old or wholly new. What
    one call decodes into 4 MiB or more, with "sparse", "delta" or "delta-huffman", is shared out to
    several threads: as many as the environment variable ``NUMBA_NUM_THREADS`` said when numba was
    imported, by default as there are cores, and at most eight.

    Examples
    --------
    >>> import numpy as np
    >>> from compressarray import DiffFrameArray
    >>> rollout = DiffFrameArray((128, 8, 4, 84, 84))
    >>> rollout[0] = np.zeros((8, 4, 84, 84), np.uint8)
    >>> rollout.reshape(-1, 4, 84, 84)[[3, 1, 2]].shape
    (3, 4, 84, 84)
    >>> ring = DiffFrameArray((1000, 2, 84, 84))
    >>> ring.append(np.zeros((2, 84, 84), np.uint8))
    array([0, 1])
    >>> ring.gather([[1, 0]]).shape
    (1, 2, 84, 84)
    """

    def __init__(
        self,
        shape: Sequence[SupportsIndex] | SupportsIndex,
        dtype: npt.DTypeLike = np.uint8,
        *,
        frame_ndim: int = 2,
        codec: object = "delta",
        fill_value: Any = 0,
        stack_axis: int | Literal["auto"] | None = "auto",
        gop_length: int | None = None,
    ) -> None:
        chosen = resolve(codec, gop_length)
        self._open(shape, dtype, frame_ndim, chosen, fill_value, stack_axis, None)

    def _open(
        self,
        shape: Any,
        dtype: Any,
        frame_ndim: Any,
        chosen: Codec,
        fill_value: Any,
        stack_axis: Any,
        snapshot: Snapshot | None,
    ) -> None:
        """Check the arguments, and begin with them; ``snapshot`` is what to restore."""
        lengths = checked_shape(shape)
        plain_dtype = np.dtype(dtype)
        if plain_dtype.hasobject:
            raise TypeError(
                f"dtype={plain_dtype} holds Python objects, which cannot be stored as bytes; "
                "use a dtype of fixed size"
            )
        if plain_dtype.itemsize == 0 and plain_dtype.kind in "SU":
            # as numpy makes empty strings room for one character
            plain_dtype = np.empty((), plain_dtype).dtype
        if not is_int(frame_ndim):
            raise TypeError(f"frame_ndim={frame_ndim!r} must be a whole number")
        ndim = operator.index(frame_ndim)
        if not 0 <= ndim < len(lengths):
            raise ValueError(
                f"frame_ndim={frame_ndim} must be from 0 to {len(lengths) - 1} in shape "
                f"{lengths}: the first axis is time"
            )
        if plain_dtype.kind == "V" and plain_dtype.names is None and is_int(fill_value):
            fill_value = np.zeros((), plain_dtype)[()] if fill_value == 0 else fill_value
        fill_value = checked_fill(fill_value, plain_dtype)
        if chosen.name == "sparse" and (plain_dtype != np.uint8 or ndim != 2):
            raise ValueError(
                f"codec='sparse' codes uint8 frames of two axes, not {plain_dtype} frames of "
                f"{ndim}; use codec='delta'"
            )
        axis = checked_stack_axis(stack_axis, lengths, len(lengths) - ndim, MAX_STACK)
        self._be(_Frames(lengths, plain_dtype, ndim, axis, chosen, fill_value, snapshot))

    # -- attributes --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""
        return self._lead_shape + self._frames.frame_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        return self._frames.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

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
    def nbytes_stored(self) -> int:
        """Bytes truly held: frames, tables, indices, caches and slack; a view's are its base's.

        Not what all arrays of a process share: compiled kernels, threads, and up to 1 MiB of
        scratch.
        """
        return sum(self._bytes_by_part().values())

    @property
    def compression_ratio(self) -> float:
        """``nbytes / nbytes_stored``, of the base where this is a view."""
        base = prod(self._frames.shape) * self.itemsize
        return base / self.nbytes_stored

    @property
    def frame_ndim(self) -> int:
        """Number of axes of one frame."""
        return len(self._frames.frame_shape)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame."""
        return self._frames.frame_shape

    @property
    def stack_axis(self) -> int | None:
        """The axis that holds stacks, if there is one; views have none."""
        return None if self._is_view else self._frames.stack_axis

    @property
    def lane_shape(self) -> tuple[int, ...]:
        """Lengths of the lane axes."""
        return self._frames.lane_shape

    @property
    def n_lanes(self) -> int:
        """Number of lanes: the product of the axes between time and frame, the stack's apart."""
        return self._frames.n_lanes

    @property
    def codec(self) -> str:
        """Name of the codec."""
        return self._frames.codec.name

    @property
    def fill_value(self) -> Any:
        """What never written elements hold."""
        return self._frames.fill_value

    @property
    def stream(self) -> int:
        """Number of the stream that frame indices belong to; `clear` begins the next one."""
        return self._frames.stream

    @property
    def lane_counts(self) -> Int64s:
        """Frames appended to each lane in this stream, ``(n_lanes,)``, a copy."""
        counts: Int64s = self._frames.ring.counts.copy()
        return counts

    def stats(self) -> dict[str, Any]:
        """Report counts since construction, and bytes by part.

        Returns
        -------
        dict
            ``frames_decoded``, ``gops_decoded``, ``frames_encoded``, ``gops_closed`` (encoded and
            put away), ``gops_evicted`` (those replaced), ``frames_held`` (indices that can be
            gathered), ``nbytes``, ``nbytes_stored``, ``compression_ratio``, and
            ``nbytes_by_part``. The codec "sparse" adds ``nbytes_equation_3``, what the paper
            counts for the same frames.
        """
        report: dict[str, Any] = dict(self._frames.store.report)
        report["gops_encoded"] = report["gops_closed"]
        report["frames_held"] = self._frames.ring.n_held
        report["nbytes"] = self.nbytes
        report["nbytes_stored"] = self.nbytes_stored
        report["compression_ratio"] = self.compression_ratio
        report["nbytes_by_part"] = self._bytes_by_part()
        return report

    def _bytes_by_part(self) -> dict[str, int]:
        # The objects themselves: the array, store, ring, arena and their locks.
        parts = {**self._frames.store.nbytes_by_part, "ring": self._frames.ring.nbytes}
        return {**parts, "objects": 4096}

    # -- reading and writing -----------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        frames = self._frames
        selection = select(_plain_key(key), self._lead_shape, frames.frame_shape, frames.dtype)
        return selection.read(self._read, _FRAMES_AT_ONCE)

    def __setitem__(self, key: Any, value: Any) -> None:
        frames = self._frames
        plain = _plain_key(key)
        if isinstance(value, DiffFrameArray):
            value = np.asarray(value)
        selection = select(plain, self._lead_shape, frames.frame_shape, frames.dtype, value)
        frames.writer.run(selection.write, value, self._read, self._write, _FRAMES_AT_ONCE)

    def _read(self, cells: Int64s, out: AnyArray) -> None:
        if not self._frames.is_empty:
            self._frames.read(cells, out)

    def _write(self, cells: Int64s, values: AnyArray) -> None:
        if not self._frames.is_empty:
            self._frames.write(cells, values)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(np.asarray(self)) if self.size <= 1 else bool(np.empty(2))

    def __contains__(self, value: Any) -> bool:
        if np.ndim(value) < self.ndim:  # the same for each row
            return any(bool(np.any(row == value)) for row in self)
        return bool(np.any(np.asarray(self) == value))

    def __eq__(self, other: object) -> Any:
        return np.asarray(self) == _dense(other)

    def __ne__(self, other: object) -> Any:
        return np.asarray(self) != _dense(other)

    __hash__ = None  # type: ignore[assignment] # as of every ndarray

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> AnyArray:
        if copy is False:
            raise ValueError(
                "a DiffFrameArray cannot be seen as an ndarray without a copy: decoding makes one"
            )
        dense: AnyArray = self[...]
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        targets = kwargs.get("out", ())
        if method == "__call__" and len(targets) == 1 and kwargs.keys() == {"out"}:
            target = targets[0]
            if isinstance(target, DiffFrameArray) and ufunc.signature is None:
                others = [x for x in inputs if isinstance(x, DiffFrameArray)]
                if all(x is target or x._frames is not target._frames for x in others):
                    return target._fill_by_rows(ufunc, inputs)
        if targets:
            kwargs["out"] = tuple(_dense(target) for target in targets)
        result = getattr(ufunc, method)(*map(_dense, inputs), **kwargs)
        for target, dense in zip(targets, kwargs.get("out", ()), strict=True):
            if isinstance(target, DiffFrameArray):
                target[...] = dense
        if len(targets) == 1:
            return targets[0]
        return targets or result

    def _fill_by_rows(self, ufunc: np.ufunc, inputs: tuple[Any, ...]) -> DiffFrameArray:
        """Compute an elementwise function into this array, a few rows at a time."""
        # Python's numbers stay what they are: numpy gives them the array's dtype.
        inputs = tuple(
            x if hasattr(x, "shape") or np.isscalar(x) else np.asarray(x) for x in inputs
        )
        # numpy's own checks of types, on arrays without rows
        empty = tuple(np.empty((0,) * np.ndim(x), x.dtype) if np.ndim(x) else x for x in inputs)
        ufunc(*empty, out=np.empty((0,) * self.ndim, self.dtype))
        shape = np.broadcast_shapes(*map(_shape_of, inputs), self.shape)
        if shape != self.shape:
            raise ValueError(
                f"non-broadcastable output operand with shape {self.shape} doesn't match the "
                f"broadcast shape {shape}"
            )
        self._frames.writer.run(self._fill_each, ufunc, inputs)
        return self

    def _fill_each(self, ufunc: np.ufunc, inputs: tuple[Any, ...]) -> None:
        rows_at_once = max(1, _FRAMES_AT_ONCE // max(prod(self._lead_shape[1:]), 1))
        for start in range(0, len(self), rows_at_once):
            rows = slice(start, start + rows_at_once)
            parts = [
                x[rows] if np.ndim(x) == self.ndim and len(x) > 1 else _dense(x) for x in inputs
            ]
            out = self[rows]
            ufunc(*parts, out=out)
            self[rows] = out

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in _KEPT_LAZY:
            return _KEPT_LAZY[func](*args, **kwargs)
        return func(*_dense_tree(args), **_dense_tree(kwargs))

    def __repr__(self) -> str:
        kind = "view" if self._is_view else f"codec={self.codec!r}"
        return (
            f"DiffFrameArray(shape={self.shape}, dtype={self.dtype}, {kind}, "
            f"{self.nbytes_stored:,} bytes for {self.nbytes:,})"
        )

    def astype(self, dtype: npt.DTypeLike) -> AnyArray:
        """Return a dense copy of another dtype."""
        return np.asarray(self).astype(dtype)

    # -- views and copies --------------------------------------------------------------------

    def reshape(self, *shape: Any) -> DiffFrameArray:
        """Give the leading axes another shape, in a view that shares storage and writes through.

        Parameters
        ----------
        *shape : int, or one sequence of int
            Must end with the frame's axes; one length may be -1.

        Returns
        -------
        DiffFrameArray
            A view. It has no `append`, `discard`, `pin` or `clear`; `gather` asks its base.

        Raises
        ------
        ValueError
            If the sizes differ, or the frame's axes would change.
        """
        lengths = shape[0] if len(shape) == 1 and not is_int(shape[0]) else shape
        frame_shape = self._frames.frame_shape
        # numpy works out -1 and refuses what does not fit, on an array of no bytes
        wanted = np.broadcast_to(np.empty((), "V0"), self.shape)
        new_shape = _reshaped(wanted, tuple(operator.index(n) for n in lengths))
        n_lead = len(new_shape) - len(frame_shape)
        if n_lead < 1 or new_shape[n_lead:] != frame_shape:
            raise ValueError(
                f"reshape to {new_shape} would change the frames: the last axes must stay "
                f"{frame_shape}; use np.asarray(a).reshape(...) for a dense copy"
            )
        view = object.__new__(DiffFrameArray)
        view._frames = self._frames
        view._lead_shape = new_shape[:n_lead]
        view._is_view = True
        return view

    def copy(self) -> DiffFrameArray:
        """Return an array of its own with the same content; of a view, without frame indices."""
        return copying.deepcopy(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffFrameArray:
        twin = object.__new__(DiffFrameArray)
        twin._be(self._frames.copied(self.shape if self._is_view else None))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return self._frames.snapshot(self.shape if self._is_view else None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        codec = part_of(state, "codec")
        if not isinstance(codec, Codec):
            raise CorruptFrameError(f"pickled codec is {codec!r}")
        if codec.foreign is None:
            codec = resolve(codec.name, codec.gop_length)
        else:
            codec = resolve(codec.foreign, None)
        self._open(
            part_of(state, "shape"),
            part_of(state, "dtype"),
            part_of(state, "frame_ndim"),
            codec,
            part_of(state, "fill_value"),
            part_of(state, "stack_axis"),
            state,
        )

    def _be(self, frames: _Frames) -> None:
        self._frames = frames
        self._lead_shape = frames.lead_shape
        self._is_view = False

    # -- the ring ----------------------------------------------------------------------------

    def append(self, frames: npt.ArrayLike, lanes: npt.ArrayLike | None = None) -> Int64s:
        """Add a row: one frame (or stack) to each lane.

        Parameters
        ----------
        frames : ndarray of the array's dtype
            One row, ``a.shape[1:]``; with `lanes`, ``(len(lanes), *a frame or stack)``. One more
            leading axis gives several rows in time order. Any memory layout; copied.
        lanes : sequence of int, optional
            The lanes to append to, each once.

        Returns
        -------
        ndarray of int64
            Frame indices, ``count * n_lanes + lane`` where count is how many frames the lane had:
            of shape ``lane_shape`` or ``(len(lanes),)``, after the axis of rows if there is one.

        Raises
        ------
        TypeError
            If the dtype is not the array's, lanes are no integers, or this is a view.
        ValueError
            If the shape is wrong, a lane is named twice, or the array has no slots.
        IndexError
            If a lane does not exist.
        """
        self._refuse_view("append")
        shared = self._frames
        values = self._checked_frames(frames, "append")
        if lanes is None:
            numbers = shared.all_lanes
            index_shape = shared.lane_shape
            row_shape = shared.shape[1:]
        else:
            numbers = checked_lanes(lanes, shared.n_lanes)
            index_shape = (len(numbers),)
            row_shape = index_shape + shared.stack_shape + shared.frame_shape
        several = values.ndim == len(row_shape) + 1
        if values.shape[several:] != row_shape:
            raise ValueError(
                f"frames of shape {values.shape} are neither one row, {row_shape}, nor several, "
                f"(n, {', '.join(map(str, row_shape))})"
            )
        if lanes is None and shared.stack_axis not in (None, len(shared.lead_shape) - 1):
            values = np.moveaxis(
                values, shared.stack_axis - 1 + several, len(index_shape) + several
            )
        n_rows = len(values) if several else 1
        if n_rows and not shared.shape[0]:
            raise ValueError("an array whose first axis is 0 has no slot to append to")
        indices = shared.append(numbers, n_rows, values)
        return indices.reshape((n_rows, *index_shape) if several else index_shape)

    def gather(self, indices: npt.ArrayLike, out: Any = None, *, stream: int | None = None) -> Any:
        """Return the frames (or stacks) that frame indices name.

        Parameters
        ----------
        indices : array_like of int
            Of any shape.
        out : ndarray or CPU tensor, optional
            C-contiguous, writable, of the array's dtype and shape ``indices.shape + frame_shape``
            (stacks: the stack axis before the frame's). It is filled and returned.
        stream : int, optional
            The stream that the indices belong to.

        Returns
        -------
        ndarray
            `out`, or a fresh array.

        Raises
        ------
        FrameEvictedError
            An IndexError: a frame was overwritten, retired, or never appended.
        StaleStreamError
            An IndexError: numbering has started over since.
        IndexError
            If the indices are no integers.
        TypeError, ValueError
            If `out` has another dtype, shape or layout.
        """
        shared = self._frames
        now = shared.now
        if stream is not None and stream != now.number:
            raise StaleStreamError(
                f"stream {stream} has ended; the array is in stream {now.number}. Indices of "
                "an earlier stream name other frames now: drop them"
            )
        wanted = checked_indices(indices)
        entry_shape = shared.stack_shape + shared.frame_shape
        shape = wanted.shape + entry_shape
        result = (
            np.empty(shape, shared.dtype) if out is None else checked_out(out, shape, self.dtype)
        )
        flat = wanted.reshape(-1)
        n_changes = now.ring.n_changes
        places, bad = now.ring.places(flat, now.store.n_pins)
        if bad < 0 and result.nbytes:  # without cells there may be pinned frames
            shared.gather(now.store, places, result)
            if now.ring.n_changes != n_changes:
                # A frame that was evicted while it was read may be the next one by now.
                _, bad = now.ring.places(flat, now.store.n_pins)
        if bad >= 0:
            reason = now.ring.explain(int(flat[bad]), now.store.n_pins)
            raise FrameEvictedError(f"{reason} (position {bad} of {flat.size})")
        return result if out is None else out

    def discard(self, before: npt.ArrayLike) -> None:
        """Let go of old frames, before newer ones replace them.

        Parameters
        ----------
        before : array_like of int, (n_lanes,)
            Of each lane, the frames before this count (the first frame has count 0, and index
            ``count * n_lanes + lane``) are not needed any more.

        Raises
        ------
        TypeError
            If counts are no integers, or this is a view.
        ValueError
            If there is not one count for each lane.

        Notes
        -----
        Their indices are evicted at once. Their memory is given back as soon as nothing else is
        in the same group of pictures; their slots then hold `fill_value`. Arrays of stacks, and
        those of which slots were assigned, keep the memory until it is written again.
        """
        self._refuse_view("discard")
        shared = self._frames
        shared.discard(self._checked_counts(before, "before"))

    def pin(self, frames: npt.ArrayLike) -> Int64s:
        """Store frames for good, under reserved indices that `gather` takes.

        Parameters
        ----------
        frames : ndarray of the array's dtype
            ``(..., *frame_shape)``; of stack arrays ``(..., stack, *frame_shape)``. Copied.

        Returns
        -------
        ndarray of int64
            Indices, from ``2**63 - 2`` downwards; equal frames share one. They outlive `clear`.

        Raises
        ------
        TypeError
            If the dtype is not the array's, or this is a view.
        ValueError
            If the shape does not end with the frame's.
        """
        self._refuse_view("pin")
        shared = self._frames
        values = self._checked_frames(frames, "pin")
        entry_shape = shared.stack_shape + shared.frame_shape
        n_lead = values.ndim - len(entry_shape)
        if n_lead < 0 or values.shape[n_lead:] != entry_shape:
            raise ValueError(
                f"frames of shape {values.shape} do not end with the axes {entry_shape} of an entry"
            )
        lead = values.shape[:n_lead]
        entry_bytes = prod(entry_shape) * self.itemsize
        flat = np.ascontiguousarray(values)
        if entry_bytes:
            entries = as_bytes(flat, entry_bytes)
        else:  # the store keeps at least a byte, and one frame of a stack of none
            entry_bytes = max(shared.stack, 1) * max(shared.frame_bytes, 1)
            entries = np.zeros((prod(lead), entry_bytes), np.uint8)
        numbers = np.array(shared.pin(entries), np.int64)
        return (FIRST_PIN - numbers).reshape(lead)

    def clear(self) -> None:
        """Forget every frame but the pinned ones and begin a new stream, numbered from 0."""
        self._refuse_view("clear")
        self._frames.clear()

    def _write_with(self, writer: Writer) -> None:
        """Make every write a part of another one's; whoever calls this has the array alone."""
        self._frames.writer.settle()
        self._frames.writer = writer

    def _refuse_view(self, what: str) -> None:
        if self._is_view:
            raise TypeError(f"a view has no {what}; call it on the array that it was made from")

    def _checked_counts(self, counts: npt.ArrayLike, name: str) -> Int64s:
        values = np.asarray(counts)
        if values.dtype.kind not in "iu":
            raise TypeError(f"{name} holds {values.dtype}; counts must be integers")
        if values.shape != (self.n_lanes,):
            raise ValueError(
                f"{name} has shape {values.shape}; it must hold one count for each lane, "
                f"({self.n_lanes},)"
            )
        return values.astype(np.int64)

    def _checked_frames(self, frames: npt.ArrayLike, what: str) -> AnyArray:
        values = np.asarray(frames)
        if values.dtype != self.dtype:
            raise TypeError(
                f"{what} takes frames of the array's dtype {self.dtype}, not {values.dtype}; "
                "convert them first (nothing is cast silently here)"
            )
        return values


# -- what numpy asks for ---------------------------------------------------------------------


def _shape_of(a: Any) -> tuple[int, ...]:
    return tuple(a.shape) if isinstance(a, DiffFrameArray) else np.shape(a)


def _reshape(a: DiffFrameArray, shape: Any, **_: Any) -> DiffFrameArray:
    return a.reshape(shape)


def _size_of(a: Any, axis: int | None = None) -> int:
    return prod(a.shape) if axis is None else int(a.shape[axis])


_KEPT_LAZY: dict[Any, Any] = {
    np.shape: _shape_of,
    np.ndim: lambda a: a.ndim,
    np.size: _size_of,
    np.reshape: _reshape,
    np.copy: lambda a, **_: np.asarray(a),
    np.shares_memory: lambda a, b, **_: _base_of(a) is _base_of(b),
    np.may_share_memory: lambda a, b, **_: _base_of(a) is _base_of(b),
}


def _base_of(a: Any) -> Any:
    return a._frames if isinstance(a, DiffFrameArray) else a


def _dense(value: Any) -> Any:
    return np.asarray(value) if isinstance(value, DiffFrameArray) else value


def _dense_tree(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_dense_tree, value))
    if isinstance(value, dict):
        return {name: _dense_tree(item) for name, item in value.items()}
    return _dense(value)


def _plain_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_dense, key))
    return _dense(key)


def _reshaped(dummy: AnyArray, shape: tuple[int, ...]) -> tuple[int, ...]:
    known = prod(n for n in shape if n != -1)
    if shape.count(-1) == 1 and known and dummy.size % known == 0:
        shape = tuple(dummy.size // known if n == -1 else n for n in shape)
    if min(shape, default=0) < 0 or prod(shape) != dummy.size:
        raise ValueError(f"cannot reshape array of shape {dummy.shape} into shape {shape}")
    return shape
