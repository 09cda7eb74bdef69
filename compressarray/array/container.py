"""`DiffFrameArray`: a compressed container of frames with the face of an ndarray."""

from __future__ import annotations

import copy as copying
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from compressarray.array import files
from compressarray.array.blockwise import Blocked, dense
from compressarray.array.dispatch import on_dense
from compressarray.array.elsewhere import Located
from compressarray.array.frames import _Frames, _Stream, as_bytes
from compressarray.array.leads import Leads
from compressarray.array.ndarray import NDArrayFace
from compressarray.checks import (
    check_out_there,
    checked_fill,
    checked_indices,
    checked_lanes,
    checked_out,
    checked_shape,
    checked_stack_axis,
    is_here,
    is_int,
)
from compressarray.codecs import Codec, resolve
from compressarray.errors import CorruptFrameError, FrameEvictedError, StaleStreamError
from compressarray.format import container
from compressarray.format.messages import Items, Message
from compressarray.indexing import Block, blocks, select
from compressarray.ring import FIRST_PIN
from compressarray.sharing import SharedHandle, share
from compressarray.snapshots import Snapshot, part_of, whole
from compressarray.store import MAX_STACK, Int64s
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
# Frames that are held beside a result, while keys reach inside frames: one group of pictures.
_FRAMES_AT_ONCE = 16
# Where frames are so small that sixteen of them cost more to ask for than to decode.
_BYTES_AT_ONCE = 1 << 16


def _refuse_stale(stream: int | None, now: int) -> None:
    if stream is not None and stream != now:
        raise StaleStreamError(
            f"stream {stream} has ended; the array is in stream {now}. Indices of "
            "an earlier stream name other frames now: drop them"
        )


def _refuse_evicted(now: Any, flat: Int64s, bad: int) -> None:
    """Raise for the index at a position that `Ring.places` found fault with, below 0 for none."""
    if bad >= 0:
        reason = now.ring.explain(int(flat[bad]), now.store.n_pins)
        raise FrameEvictedError(f"{reason} (position {bad} of {flat.size})")


class DiffFrameArray(NDArrayFace):
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

    Functions of numpy may write into the array as they do into an ndarray; what cannot be done
    raises. Two tools of numpy never say that they will write, `numpy.nditer` and
    `numpy.nested_iters`: they walk over a dense copy, and what they write is lost.

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

    # Not only for size: numpy's random generators look for flags in the memory of whatever they are
    # given as `out`, ndarray or not, at 64 bytes. There must be a pointer, of which the lowest bit
    # is 0, so that they refuse (`numpy.random._common.check_output`).
    __slots__ = (
        "__weakref__", "_base", "_frames", "_frames_at_once", "_is_native", "_is_view", "_leads",
        "_shape",
    )  # fmt: skip

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
        if plain_dtype.kind in "SUV" and is_int(fill_value) and fill_value == 0:
            fill_value = np.zeros((), plain_dtype)[()]  # an empty string, and not "0"
        fill_value = checked_fill(fill_value, plain_dtype)
        if chosen.name == "sparse" and (plain_dtype != np.uint8 or ndim != 2):
            raise ValueError(
                f"codec='sparse' codes uint8 frames of two axes, not {plain_dtype} frames of "
                f"{ndim}; use codec='delta'"
            )
        axis = checked_stack_axis(stack_axis, lengths, len(lengths) - ndim, MAX_STACK)
        self._hold(_Frames(lengths, plain_dtype, ndim, axis, chosen, fill_value, snapshot))

    # -- attributes --------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""
        return self._shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        raise AttributeError(f"shape cannot be set to {shape}; use a.reshape({shape}), a view")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the elements."""
        return self._frames.dtype

    @dtype.setter
    def dtype(self, dtype: Any) -> None:
        raise AttributeError(f"dtype cannot be set to {dtype}; use a.astype({dtype!r}), a copy")

    @property
    def base(self) -> DiffFrameArray | None:
        """The array that a view was made from, or None."""
        return self._base

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
            ``nbytes_by_part``.
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
        selection = select(_plain_key(key), self._leads.shape, frames.frame_shape, frames.dtype)
        return selection.read(self._read, _FRAMES_AT_ONCE)

    def __setitem__(self, key: Any, value: Any) -> None:
        frames = self._frames
        value = dense(value)
        selection = select(
            _plain_key(key), self._leads.shape, frames.frame_shape, frames.dtype, value
        )
        self._write_whole(selection.write, value, self._read, self._write, _FRAMES_AT_ONCE)

    def _read(self, cells: Int64s, out: AnyArray) -> None:
        if not self._frames.is_empty:
            self._frames.read(cells if self._is_native else self._leads.to_base(cells), out)

    def _write(self, cells: Int64s, values: AnyArray) -> None:
        if not self._frames.is_empty:
            self._frames.write(cells if self._is_native else self._leads.to_base(cells), values)

    def _write_whole(self, write: Callable[..., None], *args: Any) -> None:
        self._frames.writer.run(write, *args)

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        frame_size = prod(self._frames.frame_shape)
        for start, _, block in blocks(self._leads.shape, self._frames_at_once):
            yield start * frame_size, block

    def _meets_only_itself(self, other: Blocked) -> bool:
        return not self._shares_frames(other) or (
            isinstance(other, DiffFrameArray) and other._leads == self._leads
        )

    def _shares_frames(self, other: Blocked) -> bool:
        return isinstance(other, DiffFrameArray) and other._frames is self._frames

    def __repr__(self) -> str:
        kind = "view" if self._is_view else f"codec={self.codec!r}"
        return (
            f"DiffFrameArray(shape={self.shape}, dtype={self.dtype}, {kind}, "
            f"{self.nbytes_stored:,} bytes for {self.nbytes:,})"
        )

    # -- views and copies --------------------------------------------------------------------

    def reshape(
        self, *shape: Any, order: Literal["C", "F", "A"] = "C", copy: bool | None = None
    ) -> DiffFrameArray:
        """Give the leading axes another shape, in a view that shares storage and writes through.

        Parameters
        ----------
        *shape : int, or one sequence of int
            Must end with the frame's axes; one length may be -1.
        order : {"C", "F", "A"}, default "C"
            As numpy has it; "F" only where frames stay whole and nothing has to be copied.
        copy : bool, optional
            True makes a copy, False an error where numpy would have to copy.

        Returns
        -------
        DiffFrameArray
            A view. It has no `append`, `discard`, `pin` or `clear`; `gather` asks its base. Where
            numpy would have to copy (after leading axes were swapped), a view of a copy, which
            is compressed, too.

        Raises
        ------
        ValueError
            If the sizes differ, or the frame's axes would change.
        """
        lengths = shape[0] if len(shape) == 1 and not is_int(shape[0]) else shape
        wanted = tuple(operator.index(n) for n in lengths)
        frame_shape = self._frames.frame_shape
        if order not in ("C", "A"):
            return self._seen(lambda seen: seen.reshape(wanted, order=order, copy=False))
        anew = self._leads.reshaped(wanted, frame_shape)
        if not copy and self._leads.is_plain:
            return self._view(anew, self._frames, self)
        if not copy:
            try:
                return self._seen(lambda seen: seen.reshape(wanted, copy=False))
            except ValueError as error:
                if copy is False:
                    raise ValueError(
                        f"shape {self.shape} cannot become {wanted} without a copy; leave copy at "
                        "None"
                    ) from error
        frames = self._frames.copied(self._frames.shape)
        return self._view(anew, frames, None)

    def transpose(self, *axes: Any) -> DiffFrameArray:
        """Permute the leading axes, in a view that writes through.

        Parameters
        ----------
        *axes : int, one sequence of int, or None
            As `numpy.ndarray.transpose` takes them; the frame's must stay the last ones.

        Raises
        ------
        ValueError
            If an axis of the frame would move: ``np.asarray(a).transpose(...)`` is a dense copy.
        """
        return self._seen(lambda seen: seen.transpose(*axes))

    def swapaxes(self, axis1: SupportsIndex, axis2: SupportsIndex) -> DiffFrameArray:
        """Swap two leading axes, in a view that writes through.

        Raises
        ------
        ValueError
            If an axis of the frame would move: ``np.asarray(a).swapaxes(...)`` is a dense copy.
        """
        return self._seen(lambda seen: seen.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> DiffFrameArray:
        """Leave out leading axes of length 1, in a view that writes through.

        Raises
        ------
        ValueError
            If an axis is longer, or the frame's or no leading axis would be left out.
        """
        return self._seen(lambda seen: seen.squeeze(axis))

    @property
    def T(self) -> DiffFrameArray:  # noqa: N802
        """The view with all axes reversed; refused where frames have axes, which would move."""
        return self.transpose()

    @property
    def mT(self) -> DiffFrameArray:  # noqa: N802
        """The view with the last two axes swapped; refused where they are the frame's."""
        return self._seen(lambda seen: seen.mT)

    def ravel(self, order: Any = "C") -> Any:
        """Return all elements along one axis.

        Returns
        -------
        DiffFrameArray or ndarray
            A view if frames have no axes; else a dense copy, read-only, since what is written into
            it would not reach the array.
        """
        if not self.frame_ndim and order in ("C", "A", "K"):
            return self.reshape(-1)
        return on_dense(np.ndarray.ravel, (self, order), {})

    def view(self, dtype: Any = None, type: Any = None) -> DiffFrameArray:  # noqa: A002
        """Return a view of the whole array.

        Raises
        ------
        TypeError
            For another dtype or type: ``np.asarray(a).view(...)`` is one of a dense copy.
        """
        if type is not None or (dtype is not None and np.dtype(dtype) != self.dtype):
            raise TypeError(
                f"frames of {self.dtype} are compressed and cannot be seen as {type or dtype}; use "
                "np.asarray(a).view(...), a view of a dense copy"
            )
        return self._view(self._leads, self._frames, self)

    def _seen(self, view: Callable[[AnyArray], AnyArray]) -> DiffFrameArray:
        """View the array as a function of ndarrays does that only moves axes."""
        leads = self._leads.seen(self._frames.frame_shape, view)
        return self._view(leads, self._frames, self)

    def _view(self, leads: Leads, frames: _Frames, of: DiffFrameArray | None) -> DiffFrameArray:
        view = object.__new__(DiffFrameArray)
        view._frames = frames
        view._set_leads(leads)
        view._is_view = True
        view._base = of if of is None or of._base is None else of._base
        return view

    def copy(self, order: Any = "C") -> DiffFrameArray:  # noqa: ARG002
        """Return an array of its own with the same content; of a view, without frame indices.

        The order is numpy's argument and changes nothing here.
        """
        return copying.deepcopy(self)

    def __copy__(self) -> DiffFrameArray:
        return copying.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> DiffFrameArray:
        if not self._is_native:
            return self._encoded_anew()
        twin = object.__new__(DiffFrameArray)
        twin._hold(self._frames.copied(self.shape if self._is_view else None))
        return twin

    def _encoded_anew(self) -> DiffFrameArray:
        frames = self._frames
        twin = object.__new__(DiffFrameArray)
        twin._hold(
            _Frames(
                self.shape, frames.dtype, len(frames.frame_shape), None,
                copying.deepcopy(frames.codec), frames.fill_value,
            )
        )  # fmt: skip
        for _, block in self._blocks():
            twin[block] = self[block]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        with self._frames.writer.lock:
            return whole(self._state_in_pieces())  # type: ignore[no-any-return]

    def _state_in_pieces(self) -> dict[str, Any]:
        """What is stored, for who has the writer's lock until the pieces are taken."""
        if not self._is_native:
            return self._encoded_anew()._state_in_pieces()
        return self._frames.snapshot(self.shape if self._is_view else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a file what `load` brings back; a view as its copy would be.

        The file is there whole or not at all, and what was there before stays until then.
        Takes a few mebibytes beside the array. See ``docs/format.md``.

        Parameters
        ----------
        path : str or path
            Any suffix will do.

        Raises
        ------
        OSError
            If the directory is not there, or the disk is full.
        TypeError
            If the codec is an object that numcodecs could not build again.
        """
        with self._frames.writer.lock:
            container.save(path, files.KIND, self._file_tree())

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], mmap_mode: Literal["r"] | None = None
    ) -> DiffFrameArray:
        """Return the array that was saved; everything is checked, and nothing is run.

        Parameters
        ----------
        path : str or path
        mmap_mode : {None, "r"}
            "r": the compressed frames stay in the file, are read and checked where they are looked
            at, and cannot be written to. The file must not be cut off meanwhile; one that is saved
            over it leaves this array as it was.

        Raises
        ------
        OSError
            If the file cannot be read.
        CorruptFrameError
            A ValueError: if it is damaged, or none that this library saves.
        ValueError
            If it is of a newer version of the format, of something else than an array, or of a
            codec that is not installed.
        """
        lazily = files.is_mapped(mmap_mode)
        return cls._from_tree(container.load(path, files.KIND, lazily=lazily))

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    _kind = files.KIND

    def _begin_feed(self) -> None:
        self._refuse_view("change feed")

    def _held(self) -> AbstractContextManager[Any]:
        """Hold all writes off."""
        return self._frames.writer.lock

    def _mark(self) -> Any:
        return self._frames.mark()

    def _put_changes(self, message: Message, mark: Any) -> bool:
        return self._frames.put_changes(message, mark)

    def _follow(self, position: Any) -> None:
        self._frames.follow(position)

    def _came_to(self) -> Any:
        """How far this has come, as a replica; None if it is none."""
        self._frames.writer.settle()
        return self._frames.followed

    def _take(self, items: Items, position: Any) -> None:
        self._frames.take(items, position)

    def share(self) -> SharedHandle:
        """Let other processes of this machine read this array beside whoever writes to it.

        Returns
        -------
        SharedHandle
            Some hundred bytes, to be pickled and given to `compressarray.attach` there. The same
            one each time.

        Notes
        -----
        A thread of this process answers readers, each of which keeps a compressed copy of its own:
        nothing that happens to a reader can hold up or harm who writes, and nothing is left behind
        when all are killed. Until a reader attaches, it costs nothing.
        """
        return share(self)

    def _file_tree(self) -> Snapshot:
        """What a file holds, for who has the writer's lock until it is written."""
        return files.tree_of(self._state_in_pieces())

    @classmethod
    def _from_tree(cls, tree: Any) -> DiffFrameArray:
        array = object.__new__(cls)
        array.__setstate__(files.state_from(tree))
        return array

    def __setstate__(self, state: dict[str, Any]) -> None:
        codec = part_of(state, "codec")
        if not isinstance(codec, Codec):
            raise CorruptFrameError(f"stored codec is {codec!r}")
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

    def _like_with_rows(self, n_rows: int) -> DiffFrameArray:
        """Return an empty array that differs from this one in the length of its first axis."""
        frames = self._frames
        twin = object.__new__(DiffFrameArray)
        twin._hold(
            _Frames(
                (n_rows, *frames.shape[1:]), frames.dtype, len(frames.frame_shape),
                frames.stack_axis, copying.deepcopy(frames.codec), frames.fill_value,
            )
        )  # fmt: skip
        return twin

    _base: DiffFrameArray | None

    def _hold(self, frames: _Frames) -> None:
        self._frames = frames
        self._set_leads(Leads.of(frames.lead_shape))
        self._is_view = False
        self._base = None

    def _set_leads(self, leads: Leads) -> None:
        self._leads = leads
        self._is_native = leads.is_native
        self._shape = leads.shape + self._frames.frame_shape
        frame_bytes = max(self._frames.frame_bytes, 1)
        self._frames_at_once = max(_FRAMES_AT_ONCE, _BYTES_AT_ONCE // frame_bytes)

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

    def gather(
        self,
        indices: npt.ArrayLike,
        out: Any = None,
        *,
        stream: int | None = None,
        device: Any = None,
    ) -> Any:
        """Return the frames (or stacks) that frame indices name.

        Parameters
        ----------
        indices : array_like of int
            Of any shape.
        out : ndarray or tensor, optional
            C-contiguous, writable, of the array's dtype and shape ``indices.shape + frame_shape``
            (stacks: the stack axis before the frame's). It is filled and returned.
        stream : int, optional
            The stream that the indices belong to.
        device : str or torch.device, optional
            A GPU, such as ``"cuda"``, whose memory the frames are decoded into, from a replica of
            what is stored that lies there and is kept in step.

        Returns
        -------
        ndarray or tensor
            `out`, or a fresh array; with `device` a tensor.

        Raises
        ------
        FrameEvictedError
            An IndexError: a frame was overwritten, retired, or never appended.
        StaleStreamError
            An IndexError: numbering has started over since.
        IndexError
            If the indices are no integers.
        TypeError, ValueError
            If `out` has another dtype, shape or layout, or `device` cannot be used.
        DeviceError
            If the device has too little memory for the replica.
        """
        if device is not None or not is_here(out):
            return self._gather_there(indices, out, stream, device)
        shared = self._frames
        now = shared.now
        _refuse_stale(stream, now.number)
        wanted = checked_indices(indices)
        shape = wanted.shape + shared.stack_shape + shared.frame_shape
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
        _refuse_evicted(now, flat, bad)
        return result if out is None else out

    def _gather_found(
        self, places: Int64s, now: _Stream, n_changes: int, out: npt.NDArray[Any]
    ) -> bool:
        """Fill `out` from places found before; False if any may hold another frame by now."""
        if now.ring.n_changes != n_changes or self._frames.now is not now:
            return False
        self._frames.gather(now.store, places, out)
        return now.ring.n_changes == n_changes

    def _gather_there(
        self, indices: npt.ArrayLike, out: Any, stream: int | None, device: Any
    ) -> Any:
        """Do what `gather` does, on a device."""
        from compressarray.readers.cuda.devices import device_of

        there = device_of(out.device if device is None else device)
        if out is not None and device is not None and not there.holds(out):
            raise ValueError(
                f"out lies on {getattr(out, 'device', 'no device')} and device={device!r}; leave "
                "one of them out"
            )
        wanted = checked_indices(indices)
        shape = wanted.shape + self._frames.stack_shape + self._frames.frame_shape
        if out is not None:
            check_out_there(out, shape, self.dtype, there.dtype_of(out))
        located = self._locate_there(there, wanted, stream)
        if located is None:
            here = self.gather(wanted, stream=stream)
            with there.work():
                result = there.copied(here, out)
        else:
            with there.work():
                result = there.frames(shape, self.dtype, out)
                located.decode(result)
        there.arrive(there.mark(), [result])
        return result

    def _locate_there(
        self, device: Any, indices: npt.ArrayLike, stream: int | None
    ) -> Located | None:
        """Find frames in the replica on a device, which is then in step; None if there is none.

        Raises
        ------
        FrameEvictedError, StaleStreamError, IndexError
            As `gather`.
        DeviceError
            If the device has too little memory for a replica.
        """
        shared = self._frames
        flat = checked_indices(indices).reshape(-1)
        with shared.writer.lock:
            now = shared.now
            _refuse_stale(stream, now.number)
            places, bad = now.ring.places(flat, now.store.n_pins)
            _refuse_evicted(now, flat, bad)
            return self._locate_places(device, places, now)

    def _locate_found(
        self, device: Any, places: Int64s, now: _Stream, n_changes: int
    ) -> Located | None:
        """Find frames at places found before; None, too, if any may hold another one by now."""
        with self._frames.writer.lock:
            if now.ring.n_changes != n_changes or self._frames.now is not now:
                return None
            return self._locate_places(device, places, now)

    def _locate_places(self, device: Any, places: Int64s, now: _Stream) -> Located | None:
        shared = self._frames
        if shared.is_empty:
            return None
        replica = shared.elsewhere.in_step(device, now.store, now.ring, places)
        if replica is None:
            return None
        return Located(shared.elsewhere, replica, shared.cells_at(places))

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

    def _append_row(self, frames: AnyArray) -> None:
        """Append a row of frames that fit to all lanes, as a part of the write that runs."""
        shared = self._frames
        shared.append_within(shared.all_lanes, 1, frames)

    @property
    def _counts(self) -> Int64s:
        """`lane_counts` as they are, for whoever has seen to it that no write was cut off."""
        return self._frames._now.ring.counts

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


def _plain_key(key: Any) -> Any:
    return tuple(map(dense, key)) if isinstance(key, tuple) else dense(key)
