"""Chunks of bytes in one arena: a log with cleaning, under kernels.

The arena is one range of address space, reserved but not touched, cut into segments. Chunks are
written one after the other at the head; a freed chunk leaves garbage in its segments, an empty
segment is used again or given back to the system, and when garbage passes a bound the emptiest
segments are cleaned by moving what lives in them to the head, or, where chunks are too large for
that, all chunks slide together. So chunks of any size pack without size classes, and memory held
stays within a few per cent of what is live, whatever the order in which chunks come and go
(Rosenblum and Ousterhout, The design and implementation of a log-structured file system, 1992).

A chunk's entry is ten bytes: offset, size and count of references. Offsets are 32-bit numbers of
granules of 8 bytes or, in arenas over 32 GiB, more.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.attaching import Int64Row, UInt8Row, UInt16Row, UInt32Row
from compressarray.kernels.compiling import inlined, kernel, plain
from compressarray.kernels.memory import base_of, copy_bytes, move_bytes, same_bytes
from compressarray.kernels.sorting import order_of
from compressarray.snapshots import Mapped, Pieces, Snapshot, array_of, part_of
from compressarray.store.base import address_of

PAGE_BYTES = mmap.PAGESIZE
# Entries of four bytes on a page of 4 KiB, the smallest there is.
PAGE_SHIFT = 10
# Garbage that is left alone, and free segments that are not given back, as parts of what is live:
# 5 per cent together. Cleaning copies live/garbage bytes for each byte it wins: 25 at this bound,
# a fraction of a microsecond for a GOP of a game.
GARBAGE_PART = 0.04
SPARE_PART = 0.01
# A chunk's size and its entry are kept in 32 bits.
MAX_CHUNK_BYTES = (1 << 32) - 1
MAX_ENTRIES = 1 << 32
MAX_REFERENCES = 65535
# Kernels read whole words, and so bytes up to so far behind a chunk, which they do not use.
GUARD_BYTES = 64
PIECE_BYTES = 1 << 20  # that are copied at once, of a snapshot
# Chunks of a snapshot begin at multiples of this, to be used where they lie in a file.
ALIGNMENT_SHIFT = 3
ALIGNMENT = 1 << ALIGNMENT_SHIFT

# Fields of Arena.meta.
(
    HEAD,
    LIMIT,
    LIVE_BYTES,
    N_USED_SEGMENTS,
    N_FREE_SEGMENTS,  # touched, not given back yet
    HINT,
    SEGMENT_SHIFT,
    N_SEGMENTS,
    GRANULE_SHIFT,
    N_ENTRIES,
    FREE_ENTRY,
    HEAD_UNTOUCHED,
    N_META,
) = range(13)

UNTOUCHED, FREE, USED, VICTIM = range(4)


class ArenaState(NamedTuple):
    """What kernels see of an `Arena`."""

    meta: Int64Row
    memory: UInt8Row
    segment_live: UInt32Row
    segment_use: UInt8Row
    offset: UInt32Row
    size: UInt32Row
    references: UInt16Row


class Table:
    """An array of zeros over a large range of which little may ever be written.

    Attributes
    ----------
    data : ndarray, (n,)
        Takes memory where it is touched.
    touched : ndarray, (pages,) uint8
        Whoever writes ``data[i]`` sets ``touched[i >> PAGE_SHIFT]``.
    noted : ndarray, (n,) uint8
        Whether the write that runs has changed ``data[i]``, and noted what it was.
    """

    def __init__(self, n: int) -> None:
        self.data = reserve(n, np.uint32)
        self.noted = reserve(n, np.uint8)
        self.touched = np.zeros((n >> PAGE_SHIFT) + 1, np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes held: those of touched pages."""
        pages = int(np.count_nonzero(self.touched))
        held = min(len(self.data), pages << PAGE_SHIFT)
        return held * (self.data.itemsize + self.noted.itemsize) + self.touched.nbytes

    def held(self) -> npt.NDArray[np.int64]:
        """Which entries are not 0, in order."""
        found = [
            (page << PAGE_SHIFT) + np.flatnonzero(self.data[_page(page)])
            for page in np.flatnonzero(self.touched).tolist()
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def snapshot(self) -> Snapshot:
        """Copy the touched pages."""
        pages = np.flatnonzero(self.touched)
        parts = [self.data[_page(page)] for page in pages.tolist()]
        return {"pages": pages, "data": np.concatenate([np.zeros(0, np.uint32), *parts])}

    def restore(self, snapshot: Snapshot, most: int) -> npt.NDArray[np.int64]:
        """Take the pages of a snapshot into an empty table; count each value up to ``most``."""
        pages = array_of(snapshot, "pages", np.int64, (None,), 0, len(self.touched) - 1)
        parts = [self.data[_page(page)] for page in pages.tolist()]
        data = array_of(snapshot, "data", np.uint32, (sum(map(len, parts)),), 0, most)
        if (pages[1:] <= pages[:-1]).any():
            raise CorruptFrameError("the pages of a stored index are not in order")
        start = 0
        for part in parts:
            part[:] = data[start : start + len(part)]
            start += len(part)
        self.touched[pages] = 1
        return np.bincount(data, minlength=most + 1)


def _page(page: int) -> slice:
    return slice(page << PAGE_SHIFT, (page + 1) << PAGE_SHIFT)


def reserve(n: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Zeros that take memory only where they are touched, ``(n,)`` of ``dtype``."""
    array, _ = _reserve(n, np.dtype(dtype))
    return array


def _reserve(n: int, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], mmap.mmap | None]:
    n_bytes = max(n, 1) * dtype.itemsize
    if n_bytes > sys.maxsize:
        raise MemoryError(f"{n_bytes} bytes are more than there are addresses; make it smaller")
    if n_bytes < 64 * 1024:
        return np.zeros(n, dtype), None
    if sys.platform == "win32":  # pragma: no cover
        region = mmap.mmap(-1, n_bytes)
    else:
        # MAP_NORESERVE is missing from older Pythons' mmap; its value on Linux is fixed.
        no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
        try:
            region = mmap.mmap(
                -1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
            )
        except OSError as error:
            raise MemoryError(
                f"the system refuses to reserve {n_bytes} bytes of address space ({error}); "
                "make the array smaller or raise the limit (ulimit -v, vm.overcommit_memory)"
            ) from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A huge page would make the first byte of a segment cost 2 MiB.
        region.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(region, dtype=dtype, count=n), region


class Arena:
    """Storage of chunks for one array.

    Parameters
    ----------
    max_bytes : int
        Most bytes that may be live at once, but for the chunk that is being written.
    max_chunks : int
        Most chunks that may be live at once, but for that one.
    max_chunk_bytes : int
        Bytes of the largest chunk.

    Raises
    ------
    MemoryError
        If there are more chunks than can be numbered, or less address space than they may take.
    """

    def __init__(self, max_bytes: int, max_chunks: int, max_chunk_bytes: int) -> None:
        assert max_chunk_bytes <= MAX_CHUNK_BYTES
        if max_chunks + 2 > MAX_ENTRIES:
            raise MemoryError(
                f"{max_chunks:,} pieces are more than the {MAX_ENTRIES - 2:,} that one array can "
                "hold; make it shorter"
            )
        # Whatever the holes between chunks, there is room for one more once all slide together:
        # what lives, the new one, and a segment cut off at either end. The half beside it leaves
        # runs of segments for large chunks, so that this is rarely needed.
        wanted = max_bytes * 3 // 2 + max_chunk_bytes + 16 * max_chunks + 64 * PAGE_BYTES
        granule_shift = 3
        while wanted >> granule_shift >= 1 << 32:
            granule_shift += 1
        segment_bytes = PAGE_BYTES
        while segment_bytes < 1 << 20 and wanted // segment_bytes > 1 << 16:
            segment_bytes *= 2
        n_segments = -(-wanted // segment_bytes) + 2
        memory, self._region = _reserve(n_segments * segment_bytes + GUARD_BYTES, np.dtype("u1"))
        meta = np.zeros(N_META, np.int64)
        meta[SEGMENT_SHIFT] = segment_bytes.bit_length() - 1
        meta[N_SEGMENTS] = n_segments
        meta[GRANULE_SHIFT] = granule_shift
        meta[N_ENTRIES] = 1  # entry 0 means "no chunk"
        self._mapped: Mapped | None = None
        self.state = ArenaState(
            meta,
            memory,
            reserve(n_segments, np.uint32),
            reserve(n_segments, np.uint8),
            reserve(max_chunks + 2, np.uint32),
            reserve(max_chunks + 2, np.uint32),
            reserve(max_chunks + 2, np.uint16),
        )

    @property
    def nbytes(self) -> int:
        """Bytes held: touched segments, and the chunks' entries."""
        meta = self.state.meta
        shift = int(meta[SEGMENT_SHIFT])
        held = int(meta[N_USED_SEGMENTS] + meta[N_FREE_SEGMENTS]) << shift
        if meta[HEAD_UNTOUCHED]:
            head = -(-int(meta[HEAD]) // PAGE_BYTES) * PAGE_BYTES
            held -= max(0, int(meta[LIMIT]) - head)
        touched_segments = int(meta[HINT]) + int(meta[N_USED_SEGMENTS])
        return held + 10 * int(meta[N_ENTRIES]) + 5 * touched_segments

    @property
    def is_untidy(self) -> bool:
        """Whether `tidy` has something to do."""
        meta = self.state.meta
        return self._garbage_bytes > self._garbage_bound or bool(
            meta[N_FREE_SEGMENTS] > SPARE_PART * int(meta[N_USED_SEGMENTS])
        )

    def tidy(self) -> None:
        """Clean where garbage has passed its bound, and give free segments back."""
        meta = self.state.meta
        if self._garbage_bytes > self._garbage_bound:
            clean(self.state)
            if self._garbage_bytes > self._garbage_bound:
                # chunks near the size of a segment leave holes that fit none of them
                compact(self.state)
        if meta[N_FREE_SEGMENTS] > SPARE_PART * int(meta[N_USED_SEGMENTS]):
            self._give_back()

    @property
    def _garbage_bound(self) -> int:
        meta = self.state.meta
        return max(1 << int(meta[SEGMENT_SHIFT]), int(GARBAGE_PART * int(meta[LIVE_BYTES])))

    @property
    def _garbage_bytes(self) -> int:
        # as the kernel has it; calling that takes four times as long
        meta = self.state.meta
        used = int(meta[N_USED_SEGMENTS]) << int(meta[SEGMENT_SHIFT])
        return used - int(meta[LIVE_BYTES]) - int(meta[LIMIT]) + int(meta[HEAD])

    def _give_back(self) -> None:
        state = self.state
        meta = state.meta
        free = np.flatnonzero(state.segment_use == FREE)
        if self._region is not None and hasattr(mmap, "MADV_DONTNEED"):
            shift = int(meta[SEGMENT_SHIFT])
            first = end = -1
            for segment in [*free.tolist(), -1]:
                if segment != end:
                    if end > first:
                        self._region.madvise(
                            mmap.MADV_DONTNEED, first << shift, (end - first) << shift
                        )
                    first = segment
                end = segment + 1
            state.segment_use[free] = UNTOUCHED
            meta[N_FREE_SEGMENTS] = 0

    def add(self, chunk: npt.NDArray[np.uint8]) -> int:
        """Store a copy of ``chunk``; return its entry.

        Raises
        ------
        MemoryError
            If the reservation is full, which only more than the arena was made for can fill.
        """
        entry = int(allocate(self.state, chunk.nbytes))
        if entry < 0:
            raise MemoryError(f"the arena has no room for a chunk of {chunk.nbytes} bytes")
        start = int(plain(chunk_start)(self.state, entry))
        self.state.memory[start : start + chunk.nbytes] = chunk
        return entry

    def snapshot(self, table: Table) -> tuple[Snapshot, npt.NDArray[np.uint32]]:
        """Copy a table of entries, and the chunks that it names, numbered from 1 on.

        The chunks' bytes are `Pieces`: until they are taken, nothing may be written.

        Also return each entry's number, 0 for those that it does not name.
        """
        index = table.snapshot()
        n = int(self.state.meta[N_ENTRIES])
        named = np.bincount(index["data"], minlength=n)
        live = 1 + np.flatnonzero(named[1:])
        numbers = np.zeros(n, np.uint32)
        numbers[live] = np.arange(1, len(live) + 1)
        sizes = self.state.size[live]
        self.verify(live)
        chunks = Pieces(int(_room_of(sizes).sum()), self._pieces(live, _room_of(sizes)))
        return {**index, "data": numbers[index["data"]], "sizes": sizes, "bytes": chunks}, numbers

    def _pieces(
        self, entries: npt.NDArray[np.int64], rooms: npt.NDArray[np.int64]
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Copy chunks, one behind the other, a mebibyte or a chunk at a time."""
        ends = np.cumsum(rooms)
        first = 0
        while first < len(entries):
            begun = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, begun + PIECE_BYTES, "right")))
            piece = np.zeros(int(ends[end - 1]) - begun, np.uint8)
            gather_chunks(self.state, entries[first:end], ALIGNMENT, piece)
            yield piece
            first = end

    def restore(self, snapshot: Snapshot, table: Table) -> None:
        """Take the chunks of a snapshot into an empty arena, and what names them into a table."""
        sizes = array_of(snapshot, "sizes", np.uint32, (None,))
        n = len(sizes)
        references = table.restore(snapshot, n)
        n_bytes = int(_room_of(sizes).sum())
        given = part_of(snapshot, "bytes")
        if isinstance(given, Mapped):
            snapshot = {"bytes": given.data}
        chunks = array_of(snapshot, "bytes", np.uint8, (n_bytes,), copy=False)
        if n and not 1 <= references[1:].min() <= references[1:].max() <= MAX_REFERENCES:
            raise CorruptFrameError("a stored chunk is named by nothing, or too often")
        if n < len(self.state.offset) and isinstance(given, Mapped):
            self._map(given, sizes, references)
        elif n >= len(self.state.offset) or not restore(
            self.state, sizes, references, address_of(chunks)
        ):
            raise CorruptFrameError(f"{n} stored chunks do not fit into their array")

    def _map(
        self, given: Mapped, sizes: npt.NDArray[np.uint32], references: npt.NDArray[np.int64]
    ) -> None:
        """Have chunks where they lie in a file; nothing may be written from now on."""
        n, state = len(sizes), self.state
        ends = np.cumsum(_room_of(sizes))
        if n and ends[-1] >> ALIGNMENT_SHIFT >= 1 << 32:
            raise MemoryError("a mapped file may hold up to 32 GiB of one array; load it instead")
        self._mapped = given
        self._is_verified = np.zeros(n + 1, np.bool_)
        state.meta[GRANULE_SHIFT] = ALIGNMENT_SHIFT
        state.meta[N_ENTRIES] = n + 1
        state.offset[1 : n + 1] = (ends - _room_of(sizes)) >> ALIGNMENT_SHIFT
        state.size[1 : n + 1] = sizes
        state.references[: n + 1] = references
        self._region = None
        self.state = state._replace(memory=given.data)

    @property
    def is_mapped(self) -> bool:
        """Whether the chunks lie in a file, and nothing may be written."""
        return self._mapped is not None

    def verify(self, entries: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Compare mapped chunks with their checksums; return those that were not compared yet.

        ``entries`` are sorted; whoever has checked what is returned says so with `mark_verified`.
        """
        if self._mapped is None:
            return np.zeros(0, np.int64)
        new: npt.NDArray[np.int64] = entries[~self._is_verified[entries]].astype(np.int64)
        new = new[new > 0]
        starts = self.state.offset[new].astype(np.int64) << ALIGNMENT_SHIFT
        for start, size in zip(starts.tolist(), self.state.size[new].tolist(), strict=True):
            self._mapped.verify(start, start + size)
        return new

    def mark_verified(self, entries: npt.NDArray[np.int64]) -> None:
        """Take it that chunks hold what they should."""
        self._is_verified[entries] = True

    def copies(self, entries: npt.NDArray[np.uint32]) -> list[npt.NDArray[np.uint8]]:
        """Copies of chunks, in one memory, with `GUARD_BYTES` of room to look behind each."""
        sizes = self.state.size[entries]
        rooms = _room_of(sizes)
        ends = np.cumsum(rooms)
        memory = np.zeros(int(ends[-1]) + GUARD_BYTES if len(ends) else 0, np.uint8)
        gather_chunks(self.state, entries.astype(np.int64), ALIGNMENT, memory)
        starts = (ends - rooms).tolist()
        return [
            memory[start : start + size] for start, size in zip(starts, sizes.tolist(), strict=True)
        ]

    def view(self, entry: int) -> npt.NDArray[np.uint8]:
        """The bytes of one chunk, a view that the next write may move."""
        start = int(plain(chunk_start)(self.state, entry))
        return self.state.memory[start : start + int(self.state.size[entry])]


def _room_of(sizes: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Bytes that chunks of some sizes take in a snapshot."""
    rooms: npt.NDArray[np.int64] = (sizes.astype(np.int64) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    return rooms


def put_chunks(
    message: Message,
    places: npt.NDArray[np.int64],
    entries: npt.NDArray[np.uint32],
    state: ArenaState,
) -> None:
    """Add to a message what some places of a table hold, each chunk once.

    Parameters
    ----------
    places : ndarray, (n,) int64
        Sorted, no two the same.
    entries : ndarray, (n,) uint32
    """
    message.put_ints(np.diff(places, prepend=0))
    if not len(places):
        return
    held, chunks = np.unique(entries, return_inverse=True)
    if held[0]:  # 0 is no chunk
        held, chunks = np.insert(held, 0, 0), chunks + 1
    held = held[1:].astype(np.int64)
    sizes = state.size[held]
    data = np.empty(int(sizes.sum(dtype=np.int64)), np.uint8)
    gather_chunks(state, held, 1, data)
    message.put_ints(chunks)
    message.put_ints(sizes)
    message.put_bytes(data)


class GivenChunks(NamedTuple):
    """What `put_chunks` has added to a message."""

    places: npt.NDArray[np.int64]
    chunks: npt.NDArray[np.int64]  # the number of each place's chunk from 1 on, 0 for none
    sizes: npt.NDArray[np.int64]  # of the chunks
    data: npt.NDArray[np.uint8]  # their bytes, one behind the other, and some more that may be read


def take_chunks(items: Items, n_places: int) -> GivenChunks | None:
    """Take from a message what `put_chunks` has added, for a table of ``n_places``, if anything.

    Raises
    ------
    CorruptFrameError
        If places or chunks do not exist. Nothing is known of what chunks hold.
    """
    places = np.cumsum(items.ints(None, 0, n_places))
    if not len(places):
        return None
    chunks, sizes = items.ints(len(places), 0), items.ints(None, 0, MAX_CHUNK_BYTES)
    given = items.octets(int(sizes.sum()))
    if places[-1] >= n_places or (places[1:] <= places[:-1]).any() or chunks.max() > len(sizes):
        raise CorruptFrameError("a message names places or chunks that do not exist")
    data = np.zeros(len(given) + GUARD_BYTES, np.uint8)
    data[: len(given)] = given
    return GivenChunks(places, chunks, sizes, data)


@inlined
def chunk_start(state: Any, entry: Any) -> Any:
    """Where a chunk begins in ``state.memory``."""
    return np.int64(state.offset[entry]) << state.meta[GRANULE_SHIFT]


@kernel
def garbage_bytes(state: Any) -> Any:
    """Bytes of used segments that no live chunk covers and the head will not fill."""
    meta = state.meta
    return (
        (meta[N_USED_SEGMENTS] << meta[SEGMENT_SHIFT])
        - meta[LIVE_BYTES]
        - (meta[LIMIT] - meta[HEAD])
    )


@kernel
def _take_segment(state: Any, segment: Any) -> None:
    meta = state.meta
    if state.segment_use[segment] == FREE:
        meta[N_FREE_SEGMENTS] -= 1
        meta[HEAD_UNTOUCHED] = 0
    else:
        meta[HEAD_UNTOUCHED] = 1
    state.segment_use[segment] = USED
    meta[N_USED_SEGMENTS] += 1


@kernel
def _free_segment(state: Any, segment: Any) -> None:
    meta = state.meta
    state.segment_use[segment] = FREE
    meta[N_USED_SEGMENTS] -= 1
    meta[N_FREE_SEGMENTS] += 1
    meta[HINT] = min(meta[HINT], segment)


@kernel
def _leave_head(state: Any) -> None:
    """Give up the rest of the head's segments, so that empty ones are free again."""
    meta = state.meta
    shift = meta[SEGMENT_SHIFT]
    head, limit = meta[HEAD], meta[LIMIT]
    meta[HEAD] = 0
    meta[LIMIT] = 0
    if limit > head:
        for segment in range(head >> shift, limit >> shift):
            if state.segment_live[segment] == 0:
                _free_segment(state, segment)


@kernel
def _make_room(state: Any, n_bytes: Any) -> Any:
    """Put the head where ``n_bytes`` fit; return whether there was such a place."""
    meta = state.meta
    shift = meta[SEGMENT_SHIFT]
    n_segments = meta[N_SEGMENTS]
    if meta[LIMIT] > meta[HEAD] or meta[LIMIT] > 0:
        # grow into the segments behind, as far as they are free
        segment = meta[LIMIT] >> shift
        while (
            meta[LIMIT] - meta[HEAD] < n_bytes
            and segment < n_segments
            and state.segment_use[segment] < USED
        ):
            _take_segment(state, segment)
            meta[LIMIT] += 1 << shift
            segment += 1
        if meta[LIMIT] - meta[HEAD] >= n_bytes:
            return True
        _leave_head(state)
    needed = (n_bytes + (1 << shift) - 1) >> shift
    while meta[HINT] < n_segments and state.segment_use[meta[HINT]] >= USED:
        meta[HINT] += 1
    run = 0
    segment = meta[HINT]
    while segment < n_segments:
        if state.segment_use[segment] < USED:
            run += 1
            if run == needed:
                break
        else:
            run = 0
        segment += 1
    if run < needed:
        return False
    first = segment - needed + 1
    for i in range(first, segment + 1):
        _take_segment(state, i)
    meta[HEAD] = first << shift
    meta[LIMIT] = (segment + 1) << shift
    return True


@kernel
def _place(state: Any, entry: Any, n_bytes: Any) -> Any:
    meta = state.meta
    granule = np.int64(1) << meta[GRANULE_SHIFT]
    room = (n_bytes + granule - 1) & ~(granule - 1)
    if meta[LIMIT] - meta[HEAD] < room and not _make_room(state, room):
        return False
    start = meta[HEAD]
    meta[HEAD] += room
    state.offset[entry] = start >> meta[GRANULE_SHIFT]
    state.size[entry] = n_bytes
    _count_live(state, start, room, 1)
    return True


@kernel
def _count_live(state: Any, start: Any, room: Any, sign: Any) -> None:
    """Add a chunk to, or take it from, the live bytes of the segments that it lies in."""
    meta = state.meta
    shift = meta[SEGMENT_SHIFT]
    meta[LIVE_BYTES] += sign * room
    end = start + room
    while start < end:
        segment = start >> shift
        part = min(end, (segment + 1) << shift) - start
        state.segment_live[segment] = np.uint32(np.int64(state.segment_live[segment]) + sign * part)
        in_head = start >= (meta[HEAD] >> shift) << shift and start < meta[LIMIT]
        if sign < 0 and state.segment_live[segment] == 0 and not in_head:
            _free_segment(state, segment)
        start += part


@kernel
def compact(state: Any) -> None:
    """Slide every chunk down to the one before it: no garbage is left."""
    meta = state.meta
    shift = meta[SEGMENT_SHIFT]
    base = base_of(state.memory)
    granule = np.int64(1) << meta[GRANULE_SHIFT]
    live = np.empty(meta[N_ENTRIES], np.int64)
    offsets = np.empty(meta[N_ENTRIES], np.uint32)
    n_live = 0
    for entry in range(meta[N_ENTRIES]):
        if state.references[entry]:
            live[n_live] = entry
            offsets[n_live] = state.offset[entry]
            n_live += 1
    end = np.int64(0)
    for i in order_of(offsets[:n_live]):
        entry = live[i]
        size = np.int64(state.size[entry])
        move_bytes(base + end, base + chunk_start(state, entry), size)
        state.offset[entry] = end >> meta[GRANULE_SHIFT]
        end += (size + granule - 1) & ~(granule - 1)
    n_used = (end + (np.int64(1) << shift) - 1) >> shift
    n_free = 0
    for segment in range(meta[N_SEGMENTS]):
        if segment < n_used:
            state.segment_use[segment] = USED
            state.segment_live[segment] = min(end - (segment << shift), np.int64(1) << shift)
        elif state.segment_use[segment] != UNTOUCHED:
            state.segment_use[segment] = FREE
            state.segment_live[segment] = 0
            n_free += 1
    meta[N_USED_SEGMENTS] = n_used
    meta[N_FREE_SEGMENTS] = n_free
    meta[HEAD] = end
    meta[LIMIT] = n_used << shift
    meta[HEAD_UNTOUCHED] = 0
    meta[HINT] = n_used


@kernel
def allocate(state: Any, n_bytes: Any) -> Any:
    """A new chunk of ``n_bytes`` with one reference: its entry, or -1 if nothing fits.

    May move every other chunk.
    """
    meta = state.meta
    if n_bytes > MAX_CHUNK_BYTES:
        return -1
    entry = meta[FREE_ENTRY]
    fresh = entry == 0
    if fresh:
        entry = meta[N_ENTRIES]
        if entry >= len(state.offset):
            return -1
    follower = np.int64(state.offset[entry])
    if not _place(state, entry, n_bytes):
        # no run of free segments is long enough
        compact(state)
        if not _place(state, entry, n_bytes):
            return -1
    if fresh:
        meta[N_ENTRIES] += 1
    else:
        meta[FREE_ENTRY] = follower
    state.references[entry] = np.uint16(1)
    return entry


@kernel
def release(state: Any, entry: Any) -> Any:
    """Drop one reference; return whether it was the last and the chunk is gone."""
    state.references[entry] -= np.uint16(1)
    if state.references[entry] > 0:
        return False
    meta = state.meta
    granule = np.int64(1) << meta[GRANULE_SHIFT]
    room = (np.int64(state.size[entry]) + granule - 1) & ~(granule - 1)
    _count_live(state, chunk_start(state, entry), room, -1)
    state.size[entry] = 0
    state.offset[entry] = meta[FREE_ENTRY]  # free entries form a list through their offsets
    meta[FREE_ENTRY] = entry
    return True


@kernel
def share(state: Any, entry: Any, address: Any, n_bytes: Any) -> Any:
    """Add a reference to a chunk if it holds these bytes; return whether it does."""
    if (
        entry == 0
        or state.references[entry] == 0
        or state.references[entry] == MAX_REFERENCES
        or np.int64(state.size[entry]) != n_bytes
    ):
        return False
    start = base_of(state.memory) + chunk_start(state, entry)
    if not same_bytes(start, address, n_bytes):
        return False
    state.references[entry] += np.uint16(1)
    return True


@kernel
def clean(state: Any) -> None:
    """Move what lives in the emptiest segments to the head."""
    meta = state.meta
    shift = meta[SEGMENT_SHIFT]
    segment_bytes = np.int64(1) << shift
    _leave_head(state)
    used = np.flatnonzero(state.segment_use == USED)
    order = used[order_of(state.segment_live[used])]
    excess = garbage_bytes(state) - np.int64(GARBAGE_PART / 3 * meta[LIVE_BYTES])
    n_victims = 0
    while n_victims < len(order) and excess > 0:
        won = segment_bytes - np.int64(state.segment_live[order[n_victims]])
        if won <= 0:
            break
        state.segment_use[order[n_victims]] = VICTIM
        excess -= won
        n_victims += 1
    base = base_of(state.memory)
    granule = np.int64(1) << meta[GRANULE_SHIFT]
    for entry in range(1, meta[N_ENTRIES]):
        if state.references[entry] == 0:
            continue
        size = np.int64(state.size[entry])
        room = (size + granule - 1) & ~(granule - 1)
        start = chunk_start(state, entry)
        doomed = False
        for segment in range(start >> shift, ((start + max(room, 1) - 1) >> shift) + 1):
            doomed |= state.segment_use[segment] == VICTIM
        if doomed and room > 0:
            if not _place(state, entry, size):
                break
            copy_bytes(base + chunk_start(state, entry), base + start, size)
            _count_live(state, start, room, -1)
    for i in range(n_victims):  # one that could not be emptied stays in use
        if state.segment_use[order[i]] == VICTIM:
            state.segment_use[order[i]] = USED


@kernel
def gather_chunks(state: Any, entries: Any, alignment: Any, out: Any) -> None:
    """Copy chunks to ``out``, one behind the other, each from a multiple of ``alignment`` on."""
    target = base_of(out)
    for entry in entries:
        size = np.int64(state.size[entry])
        copy_bytes(target, base_of(state.memory) + chunk_start(state, entry), size)
        target += (size + alignment - 1) // alignment * alignment


@kernel
def restore(state: Any, sizes: Any, references: Any, source: Any) -> Any:
    """Fill an empty arena with chunks from an address; return whether they fit."""
    meta = state.meta
    for i in range(len(sizes)):
        entry = i + 1
        size = np.int64(sizes[i])
        if not _place(state, entry, size):
            return False
        state.references[entry] = np.uint16(references[entry])
        copy_bytes(base_of(state.memory) + chunk_start(state, entry), source, size)
        source += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
    meta[N_ENTRIES] = len(sizes) + 1
    return True
