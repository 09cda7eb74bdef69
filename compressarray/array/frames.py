"""What an array and its views share: the store, the ring, and how a frame looks."""

from __future__ import annotations

import copy as copying
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array.elsewhere import Elsewhere
from compressarray.checks import checked_shape, checked_stack_axis
from compressarray.codecs import Codec
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.format.records import MAX_PIXEL_BYTES
from compressarray.ring import Ring
from compressarray.snapshots import Snapshot, array_of, int_of, part_of
from compressarray.store import MAX_STACK, Geometry, Int64s, Store, UInt8s, check_size, make_store
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]


class _Stream(NamedTuple):
    """What `clear` replaces, in one piece: who reads beside it sees the one or the other."""

    number: int
    ring: Ring
    store: Store


class FramesMark(NamedTuple):
    """What a replica has of some frames."""

    stream: int
    both: Int64s  # of the ring
    retired: npt.NDArray[np.bool_]
    store: Any


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
        self.followed: Any = None  # how far this has come, as a replica
        self.elsewhere = Elsewhere()
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
        twin.elsewhere = Elsewhere()
        with self.writer.lock:
            number, ring, store = self.now
            if shape is None:
                twin._now = _Stream(number, copying.deepcopy(ring), copying.deepcopy(store))
            else:
                twin._take_shape(shape, None)
                twin.is_native = False
                twin._now = _Stream(0, Ring(shape[0], twin.n_lanes), copying.deepcopy(store))
        return twin

    def snapshot(self, shape: tuple[int, ...] | None) -> Snapshot:
        """What it takes to build these frames again; see `copied`.

        In pieces: for who has the writer's lock until they are taken.
        """
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
                raise CorruptFrameError(f"stored frames of {store_lead} are not those of {lead}")
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

    def begin_at(self, other: _Frames, counts: Int64s) -> None:
        """Be in another one's stream, with its pinned frames, and no frames before some counts.

        These frames are empty, and nobody else's.
        """
        _, ring, store = self._now
        ring.both[:] = counts
        store.take_pins(other.store)
        self._now = _Stream(other.stream, ring, store)

    def _make_store(self, fill: UInt8s, snapshot: Snapshot | None) -> Store:
        lead, axis = self._store_lead, self._store_axis
        lanes = prod(n for i, n in enumerate(lead) if i not in (0, axis))
        row = self.frame_shape[-1] if len(self.frame_shape) == 2 else prod(self.frame_shape[1:])
        pixel = prod(self.frame_shape[2:]) * self.dtype.itemsize
        if pixel > MAX_PIXEL_BYTES:  # channels come first, or pixels are wide
            pixel = min(self.dtype.itemsize, MAX_PIXEL_BYTES)
        geometry = Geometry(
            0 if self.is_empty else lead[0],
            max(lanes, 1),
            1 if axis is None else max(lead[axis], 1),
            max(self.frame_bytes, 1),
            row * self.dtype.itemsize,
            pixel,
        )
        return make_store(geometry, fill, self.codec, snapshot)

    def clear(self) -> None:
        """Forget every frame but the pinned ones."""
        self.writer.run(self._clear)

    def _clear(self) -> None:
        self._refuse_mapped()
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
        _, ring, store = self._now_to_write()
        places = (in_store if self.is_native else cells) // self.stack
        ring.retire(places, self.writer.steps)
        store.write(in_store, as_bytes(frames, self.frame_bytes))

    def append(self, lanes: Int64s, n_rows: int, entries: AnyArray) -> Int64s:
        """Store entries, ``(rows, lanes, ...)`` or of one row; return their indices."""
        return self.writer.run(self.append_within, lanes, n_rows, entries)

    def append_within(self, lanes: Int64s, n_rows: int, entries: AnyArray) -> Int64s:
        """Do what `append` does, as a part of the write that runs."""
        _, ring, store = self._now_to_write()
        indices, slots = ring.advance(lanes, n_rows, self.writer.steps)
        if not self.is_empty:
            flat = np.ascontiguousarray(entries).reshape(-1).view(np.uint8)
            self._put(store, lanes, slots, flat)
        ring.publish(lanes, n_rows)
        return indices

    def _put(self, store: Store, lanes: Int64s, slots: Int64s, flat: UInt8s) -> None:
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
        _, ring, store = self._now_to_write()
        first = ring.discard(before)
        if (
            self.is_native
            and self.stack == 1
            and not self.is_empty
            and not ring.was_assigned
            and store.may_forget(first, ring.oldest)
        ):
            store.forget(first, ring.oldest, ring.counts)

    def pin(self, entries: UInt8s) -> list[int]:
        """Pin entries of bytes; return their numbers."""
        return self.writer.run(self._pin, entries)

    def _pin(self, entries: UInt8s) -> list[int]:
        store = self._now.store  # pins of a mapped one are in memory, too
        store.follows = False
        return [store.pin(entry) for entry in entries]

    def _now_to_write(self) -> _Stream:
        """The stream, whose ring and store are steps of the write that runs."""
        self._refuse_mapped()
        self._now.store.follows = False
        return self._begin_write()

    def _refuse_mapped(self) -> None:
        if self._now.store.is_mapped:
            raise ValueError(
                "this array is read-only: it was loaded with mmap_mode='r'. Write to a copy of it, "
                "or load it without"
            )

    def _begin_write(self) -> _Stream:
        now, writer = self._now, self.writer
        if now.store not in writer.steps:
            now.ring.save()
            writer.steps += (now.ring, now.store)
            writer.untidy.append(now.store)
        return now

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    def mark(self) -> FramesMark:
        """Remember what a replica has that is filled now."""
        number, ring, store = self.now
        store.watch()
        return FramesMark(number, ring.both.copy(), ring.retired, store.mark())

    def put_changes(self, message: Message, mark: FramesMark) -> bool:
        """Add what has changed since a mark; False if a replica has to be filled anew."""
        number, ring, store = self.now
        if number != mark.stream:
            return False
        ring.put(message, mark.both, mark.retired)
        return store.put_changes(message, mark.store)

    def follow(self, position: Any) -> None:
        """Be a replica that has come so far, until something is written here."""
        self.followed = position
        self.now.store.follows = True

    def take(self, items: Items, position: Any) -> None:
        """Take what `put_changes` has added, and what ends the message.

        ``position``, how far the replica has come, is in `followed` with it or not at all.
        """
        self.writer.run(self._take, items, position)

    def _take(self, items: Items, position: Any) -> None:
        self.take_within(items, position)
        items.end()

    def take_within(self, items: Items, position: Any) -> None:
        """Take what `put_changes` has added, as a part of the write that runs."""
        _, ring, store = self._now
        self.writer.steps.append(_Taken(self, store))
        self.followed = position
        self._begin_write()
        lanes, counts = ring.take(items, self.writer.steps)
        store.take(items)
        ring.have(lanes, counts)

    def gather(self, store: Store, places: Int64s, out: AnyArray) -> None:
        """Fill ``out`` with the entries at `Ring.places`."""
        store.read(self.cells_at(places), out)

    def cells_at(self, places: Int64s) -> Int64s:
        """The cells of the entries at `Ring.places`, one behind the other."""
        cells = places
        if self.stack > 1:
            k = np.arange(self.stack)
            first = places[:, None] * self.stack
            # entry -1 - i is pinned: its cells count downwards from -1 - i * stack
            cells = np.where(first < 0, first + self.stack - 1 - k, first + k).ravel()
        elif not self.is_native:
            cells = self.to_store(places)
        return cells


class _Taken:
    """How far a replica had come, and the frames that were pinned in it."""

    def __init__(self, frames: _Frames, store: Store) -> None:
        self._frames = frames
        self._store = store
        self._before = frames.followed, store.n_pins

    def finish(self) -> None:
        """Do nothing."""

    def roll_back(self) -> None:
        """Have come as far as before."""
        self._frames.followed, n_pins = self._before
        self._store.forget_pins(n_pins)


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
