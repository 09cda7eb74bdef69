"""Observations that are no images, in a plain ring with the face of a `DiffFrameArray`."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError, StaleStreamError
from compressarray.format.messages import Items, Message
from compressarray.snapshots import MOST, Snapshot, array_of, int_of
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

_FIRST_ROWS = 64
_GROWTH = 1.25


class _PlainStep:
    """What a write has changed of a `PlainRing`; see `compressarray.writing`.

    Vectors are written where none is held, so that what names them is all there is to take back.
    """

    def __init__(self, ring: PlainRing) -> None:
        self.ring = ring
        self._before = ring._named

    def finish(self) -> None:
        """Do nothing."""

    def roll_back(self) -> None:
        """Name the vectors as before."""
        self.ring._named = self._before


class _Named(NamedTuple):
    """Which vectors are held, and where; replaced as a whole."""

    stream: int
    lane_counts: Int64s  # how many each lane has had
    oldest: Int64s  # the first one that is held
    rows: AnyArray  # (rows, lanes, *shape)


class PlainRing:
    """Vectors by index ``count * n_lanes + lane``, until `discard` drops them.

    It grows where more rows are held than there are, so that it takes as much as is held and not
    what the worst case would.
    """

    def __init__(self, n_lanes: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.n_lanes = n_lanes
        self.shape = shape
        self.dtype = dtype
        self._writer = Writer(rank=1)
        nothing = np.zeros(n_lanes, np.int64)
        rows = np.zeros((_FIRST_ROWS, n_lanes, *shape), dtype)
        self._named = _Named(0, nothing, nothing, rows)

    def _write_with(self, writer: Writer) -> None:
        """Make every write a part of another one's."""
        self._writer = writer

    @property
    def stream(self) -> int:
        """Number of the stream that indices belong to."""
        return self._named.stream

    @property
    def lane_counts(self) -> Int64s:
        """How many vectors each lane has had."""
        return self._named.lane_counts

    @property
    def _counts(self) -> Int64s:
        return self._named.lane_counts

    def _append_row(self, vectors: AnyArray) -> None:
        """Add one vector to each lane, as a part of the write that runs."""
        self._append(vectors, None)

    def append(self, vectors: AnyArray, lanes: Int64s | None = None) -> None:
        """Add one vector to each lane, or to some, ``(len(lanes), *shape)``."""
        self._writer.run(self._append, vectors, lanes)

    def _append(self, vectors: AnyArray, lanes: Int64s | None) -> None:
        self._writer.steps.append(_PlainStep(self))
        lanes = np.arange(self.n_lanes) if lanes is None else lanes
        stream, counts, oldest, rows = self._named
        if len(lanes) and int((counts - oldest)[lanes].max()) >= len(rows):
            rows = self._grown()
        rows[counts[lanes] % len(rows), lanes] = vectors
        counts = counts.copy()
        counts[lanes] += 1
        self._named = _Named(stream, counts, oldest, rows)

    def gather(self, indices: Int64s, out: AnyArray, *, stream: int | None = None) -> None:
        """Fill ``out`` with the vectors of held indices."""
        named = self._named  # once: another thread may replace it
        if stream not in (None, named.stream):
            raise StaleStreamError(f"stream {stream} has ended; this is {named.stream}")
        counts, lanes = np.divmod(indices, self.n_lanes)
        out[...] = named.rows[counts % len(named.rows), lanes]

    def discard(self, before: Int64s) -> None:
        """Drop the vectors whose count is below ``before``, ``(n_lanes,)``."""
        self._writer.run(self._discard, before)

    def _discard(self, before: Int64s) -> None:
        self._writer.steps.append(_PlainStep(self))
        oldest = np.maximum(self._named.oldest, before)
        self._named = self._named._replace(oldest=oldest)

    def clear(self) -> None:
        """Drop all, and begin a new stream."""
        self._writer.run(self._clear)

    def _clear(self) -> None:
        self._writer.steps.append(_PlainStep(self))
        nothing = np.zeros(self.n_lanes, np.int64)
        rows = self._named.rows[:_FIRST_ROWS].copy()
        self._named = _Named(self.stream + 1, nothing, nothing, rows)

    def _grown(self) -> AnyArray:
        _, lane_counts, oldest, held = self._named
        rows = np.zeros((int(len(held) * _GROWTH) + 1, *held.shape[1:]), self.dtype)
        counts, lanes = _each(oldest, lane_counts)
        rows[counts % len(rows), lanes] = held[counts % len(held), lanes]
        return rows

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    def mark(self) -> tuple[int, Int64s]:
        """Remember what a replica has that is filled now."""
        return self._named.stream, self._named.lane_counts

    def put_changes(self, message: Message, mark: tuple[int, Int64s]) -> bool:
        """Add what has changed since a mark; False if a replica has to be filled anew."""
        stream, counts, oldest, rows = self._named
        if mark[0] != stream:
            return False
        message.put_ints(counts - mark[1])
        message.put_ints(counts - oldest)
        new, lanes = _each(np.maximum(mark[1], oldest), counts)
        message.put_bytes(rows[new % len(rows), lanes])
        return True

    def take_within(self, items: Items) -> None:
        """Take what `put_changes` has added, as a part of the write that runs.

        Raises
        ------
        CorruptFrameError
            If it does not go on from the vectors that are held.
        """
        self._writer.steps.append(_PlainStep(self))
        stream, before, held_first, held = self._named
        most = MOST // self.n_lanes
        counts = before + items.ints(self.n_lanes, 0, most)
        oldest = counts - items.ints(self.n_lanes, 0, most)
        if (counts > most).any() or (oldest < held_first).any():
            raise CorruptFrameError("a message does not go on from the vectors that are held")
        new, lanes = _each(np.maximum(before, oldest), counts)
        vectors = items.octets(len(new) * prod(self.shape) * self.dtype.itemsize)
        needed = int((counts - oldest).max(initial=0))
        rows = held
        if needed > len(rows):
            rows = np.zeros((int(needed * _GROWTH) + 1, *held.shape[1:]), self.dtype)
        kept, of = _each(oldest, before)
        rows[kept % len(rows), of] = held[kept % len(held), of]
        rows[new % len(rows), lanes] = vectors.view(self.dtype).reshape(-1, *self.shape)
        self._named = _Named(stream, counts, oldest, rows)

    @property
    def nbytes_stored(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self._named[1:])

    def snapshot(self) -> Snapshot:
        """Show everything, as views."""
        stream, counts, oldest, rows = self._named
        return {
            "stream": stream,
            "counts": counts,
            "oldest": oldest,
            "rows": rows,
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of such a ring.
        """
        lanes = (self.n_lanes,)
        counts = array_of(snapshot, "counts", np.int64, lanes, 0, MOST // self.n_lanes)
        oldest = array_of(snapshot, "oldest", np.int64, lanes, 0)
        rows = array_of(snapshot, "rows", self.dtype, (None, self.n_lanes, *self.shape))
        held = counts - oldest
        if not len(rows) or ((held < 0) | (held > len(rows))).any():
            raise CorruptFrameError(
                f"stored vectors {oldest} to {counts} of the lanes are not in {len(rows)} rows"
            )
        self._named = _Named(int_of(snapshot, "stream", 0), counts, oldest, rows)

    @property
    def oldest(self) -> Int64s:
        """The first vector of each lane that is held."""
        return self._named.oldest


def _each(first: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """Counts from ``first`` to before ``end`` of every lane, and the lanes that they are of."""
    n = np.maximum(end - first, 0)
    lanes = np.repeat(np.arange(len(n)), n)
    within = np.arange(len(lanes)) - np.repeat(np.cumsum(n) - n, n)
    return first[lanes] + within, lanes
