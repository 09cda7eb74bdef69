"""Frames in groups of pictures (GOPs), found by their place in the array."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from compressarray.codecs import Codec
from compressarray.codecs.codebooks import Codebooks
from compressarray.codecs.entropy import N_CONTEXTS
from compressarray.codecs.learning import Changes, Learnt
from compressarray.codecs.packing import Packer
from compressarray.codecs.records import coding_bytes
from compressarray.codecs.words import CODEBOOK_WORDS, encode_table_words, record_bytes
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.compiling import plain
from compressarray.snapshots import MOST, Snapshot, array_of, int_of, part_of
from compressarray.store import gop_feed as feed
from compressarray.store import gop_journal as journal
from compressarray.store import gop_layout as layout
from compressarray.store import gop_reading as reading
from compressarray.store import gop_writing as writing
from compressarray.store.arena import (
    N_ENTRIES,
    Arena,
    Table,
    gather_chunks,
    take_chunks,
)
from compressarray.store.base import Int64s, Store, UInt8s, address_of
from compressarray.store.changes import NOT_KEPT, ring_of_changes
from compressarray.store.description import Description
from compressarray.store.gop_checking import check_chunks, check_open, check_streams
from compressarray.store.gop_layout import GopState
from compressarray.store.gop_learning import collect_changes
from compressarray.store.gop_packing import count_stream, pack_stream, unpack_stream
from compressarray.store.gop_view import view_of
from compressarray.store.scratch import Scratch, borrow, give_back, trim

# What is held is looked at each time as many groups have been closed as there are, and half as
# many as ever were, and up to MAX_LEARN_PAUSE times later while nothing is learnt: new tokens and
# words are taken where they make records so much smaller, new codes where they do so. A table
# costs 8 KiB, codes up to 100.
LEARN_ON_GOPS = 256
LEARN_AFTER_GOPS = 16
MAX_LEARN_PAUSE = 8
MIN_CHANGES = 2000  # to learn from
# Learning takes some hundred bytes for each change that it looks at.
MOST_CHANGES = 1 << 18
LEAST_CHANGES = 1 << 14
BYTES_A_CHANGE = 16
TOKENS_GAIN, PACKED_TOKENS_GAIN = 0.03, 0.1
MAX_CODEBOOKS = layout.CODEBOOK_MASK + 1
RECODE_GOPS = 512  # at thirty microseconds each
# Packing: from so many bytes of records on, a code for so many. On Pong, 16, 24 and 48 codes take
# 17.1, 16.2 and 15.0 bytes a frame, and each takes 1.5 KiB.
PACK_AT_BYTES = 128 * 1024
BYTES_A_CODE = 32 * 1024
MIN_CODES, MAX_CODES = 16, 64
CODES_GAIN = 0.02
MAX_BACKGROUNDS = 255
MAX_GOP_BYTES = 1 << 28
_OPEN_FLAGS = layout.MAP_FLAG | layout.CODEBOOK_MASK << layout.CODEBOOK_SHIFT
MAX_PACKED_BYTES = 1 << 26  # of a frame, so that three bytes count its words
GUARD_BYTES = 64
# Of notes on what a write replaces: to begin with, more when they are full, and kept at most, with
# some for each lane.
FIRST_LOG_WORDS, WORDS_AT_ONCE, KEPT_LOG_WORDS, KEPT_WORDS_A_LANE = 64, 128, 256, 32
# Counts that a copy goes on from.
_COUNTS = [
    layout.VOTES, layout.CREDIT, layout.N_CLOSED, layout.N_EVICTED, layout.N_ENCODED,
    layout.N_CHANGES,
]  # fmt: skip


class _Attached(NamedTuple):
    """The arrays of a store, and where they lie: replaced together, so that no view is stale."""

    state: GopState
    view: Int64s
    codebooks: Codebooks | None  # whose tables `state.codebooks` names


class _Work(NamedTuple):
    """Scratch of a write, by address: for coding a frame, a closed stream, half a group."""

    scratch: Scratch
    coding: int
    stream: int
    held: int

    def stream_bytes(self, size: int) -> UInt8s:
        """The first bytes of the closed stream."""
        start = self.stream - self.scratch.address
        return self.scratch.memory[start : start + size]


def _gop_length(stack: int, frame_bytes: int, codec: Codec) -> int:
    """As asked for, but no more frames than can be numbered, or bytes than ``turn`` can count."""
    gop = codec.gop_length
    while gop > 1 and (
        gop * stack >= layout.NO_FRAME or gop * stack * frame_bytes >= MAX_GOP_BYTES
    ):
        gop //= 2
    return gop


def open_per_lane(stack: int, frame_bytes: int, codec: Codec) -> int:
    """How many groups of a lane may be open at once."""
    return -(-(stack - 1) // _gop_length(stack, frame_bytes, codec)) + 1


class GopStore(Store):
    """Cells in GOPs of ``codec.gop_length`` rows (or diagonals, of stacks) of one lane.

    A group is a pure function of the cells in it, of the background and of the table that were
    current when it was encoded: so writing a place twice costs no more than writing it once, and
    what a write has to touch is the groups that its cells lie in.
    """

    def __init__(
        self,
        n_rows: int,
        n_lanes: int,
        stack: int,
        frame_bytes: int,
        row_bytes: int,
        pixel_bytes: int,
        fill: UInt8s,
        codec: Codec,
    ) -> None:
        super().__init__(n_rows, n_lanes, stack, frame_bytes, row_bytes, pixel_bytes, codec)
        gop = self._gop = _gop_length(stack, frame_bytes, codec)
        self._n_gops = -(-(n_rows + stack - 1) // gop)
        self._padded = (frame_bytes + 7) // 8 * 8 + 8
        meta = np.zeros(layout.N_META, np.int64)
        meta[layout.N_ROWS] = n_rows
        meta[layout.N_LANES] = n_lanes
        meta[layout.STACK] = stack
        meta[layout.GOP] = gop
        meta[layout.FRAME_BYTES] = frame_bytes
        meta[layout.ROW_BYTES] = row_bytes
        meta[layout.RECORD_KIND] = layout.SPARSE if codec.name == "sparse" else layout.DELTA
        meta[layout.OPEN_PER_LANE] = per_lane = open_per_lane(stack, frame_bytes, codec)
        # what coding a frame takes, its record, then a closed stream
        record_room = plain(layout.record_room)(frame_bytes)
        self._coding_bytes = plain(coding_bytes)(frame_bytes) + GUARD_BYTES + record_room
        map_bytes = 2 * gop * stack
        self._stream_bytes = (
            layout.HEADER_BYTES + 2 * map_bytes + gop * stack * record_room + GUARD_BYTES
        )
        # ``turn`` counts the bits of packed records in 32 bits
        self._packs = (
            codec.name == "delta-huffman"
            and frame_bytes <= MAX_PACKED_BYTES
            and self._stream_bytes < 1 << 29
        )
        meta[layout.PACKS] = self._packs
        held_bytes = (gop * stack // 2 + 2) * self._padded
        self._work_bytes = self._coding_bytes + self._stream_bytes + held_bytes
        max_chunks = self._n_gops * n_lanes
        self._gops = Table(max_chunks)
        # A write holds what it replaces until it is done.
        self._arena = Arena(
            2 * n_rows * n_lanes * stack * (plain(record_bytes)(frame_bytes, self._packs) + 16)
            + 2 * max_chunks * (map_bytes + 64),
            2 * max_chunks,
            self._stream_bytes,
        )
        backgrounds = np.zeros((1, self._padded), np.uint8)
        backgrounds[0, :frame_bytes] = fill
        state = GopState(
            meta=meta,
            gop_chunk=self._gops.data,
            gop_touched=self._gops.touched,
            gop_noted=self._gops.noted,
            gop_changes=NOT_KEPT,
            open_gop=np.full((n_lanes, per_lane), layout.CLOSED),
            open_next=np.zeros((n_lanes, per_lane), np.int64),
            open_frames=np.zeros((n_lanes, per_lane), np.int64),
            open_size=np.zeros((n_lanes, per_lane), np.int64),
            open_flags=np.zeros((n_lanes, per_lane), np.int64),
            open_background=np.zeros((n_lanes, per_lane), np.int64),
            open_map=np.zeros((0, 0, 0), np.uint16),
            open_bytes=np.zeros((0, 0), np.uint8),
            head=np.zeros((0, 0, 0), np.uint8),
            head_row=np.full(n_lanes, layout.STALE, np.int64),
            backgrounds=backgrounds,
            background_uses=np.zeros(1, np.int64),
            candidate=np.zeros((2, 0), np.uint8),
            codebooks=np.zeros((1, CODEBOOK_WORDS), np.int64),
            encode_table=np.zeros(encode_table_words(0), np.uint64),
            open_born=np.zeros((n_lanes, per_lane), np.int64),
            open_dropped=np.zeros((n_lanes, per_lane), np.int64),
            open_number=np.zeros((n_lanes, per_lane), np.int64),
            background_number=np.zeros(1, np.int64),
            log=np.zeros(FIRST_LOG_WORDS, np.int64),
        )
        self._learn_at = LEARN_AFTER_GOPS
        self._learn_pause = 1
        self._ready_at_votes = -1
        self._tidied_at = 0
        self._last_row = 0  # that was written
        # What `take` has replaced that is not in the log: how it was, and the newest background.
        self._before: tuple[_Attached, int] | None = None
        codebooks = None
        if meta[layout.RECORD_KIND] == layout.DELTA:
            codebooks = Codebooks.starting(
                row_bytes, MAX_CODEBOOKS, pixel_bytes if self._packs else 0
            )
        self._at: _Attached
        self._attach_with(state, codebooks)

    @property
    def _state(self) -> GopState:
        return self._at.state

    @property
    def _codebooks(self) -> Codebooks | None:
        return self._at.codebooks

    def _attach(self, state: GopState) -> None:
        """Have other arrays."""
        self._attach_with(state, self._at.codebooks)

    def _attach_with(self, state: GopState, codebooks: Codebooks | None) -> None:
        """Have other arrays and codebooks."""
        if codebooks is not None:
            state = _with_codebooks(state, codebooks)
        self._at = _Attached(state, view_of(state, self._arena.state), codebooks)

    # -- reading -----------------------------------------------------------------------------

    @property
    def is_mapped(self) -> bool:
        """Whether the groups lie in a file, and nothing may be written."""
        return self._arena.is_mapped

    def _read(self, cells: Int64s, out: UInt8s) -> None:
        if self._arena.is_mapped:
            self._verify(cells[cells >= 0])
        read = reading.read_cells if len(out) < 2 * reading.PART_BYTES else reading.read_large
        n_frames, n_gops = read(self._at.view, cells, self._pins, out)
        with self._count_lock:
            self._frames_decoded += n_frames
            self._gops_decoded += n_gops

    def _verify(self, cells: Int64s) -> None:
        """Check the groups that cells lie in, if they are in a file and nobody has yet."""
        rows, k = np.divmod(cells, self._stack)
        rows, lanes = np.divmod(rows, self._n_lanes)
        groups = np.unique((rows + k) // self._gop * self._n_lanes + lanes)
        new = self._arena.verify(np.unique(self._gops.data[groups]))
        if not len(new):
            return
        arena = self._arena.state
        sizes = arena.size[new].astype(np.int64)
        data = np.zeros(int(sizes.sum()) + GUARD_BYTES, np.uint8)
        gather_chunks(arena, new, 1, data)
        check_chunks(self._state, data, sizes, self._n_words)
        self._arena.mark_verified(new)

    def _stream(self, entry: int) -> UInt8s:
        """A chunk's closed stream, unpacked; a view or a copy, with room to look behind it."""
        chunk = self._arena.view(entry)
        if not chunk[0] & layout.PACKED_FLAG:
            return chunk
        stream = np.empty(self._stream_bytes, np.uint8)
        codes = np.empty(plain(layout.record_room)(self._frame_bytes), np.uint8)
        size = unpack_stream(
            self._at.view,
            address_of(chunk),
            address_of(stream),
            address_of(codes),
        )
        return stream[:size]

    # -- writing -----------------------------------------------------------------------------

    def _finish_alone(self) -> bool:
        state = self._at.state
        if state.meta[layout.N_REPLACED] or self._before is not None:
            return False
        state.log[0] = 0
        return True

    def _finish(self) -> None:
        journal.finish(self._at.view)
        self._before = None

    def _roll_back(self) -> None:
        journal.roll_back(self._at.view)
        if self._before is not None:
            (state, _, codebooks), background = self._before
            self._state.meta[layout.BACKGROUND] = background
            self._attach_with(
                self._state._replace(
                    backgrounds=state.backgrounds,
                    background_uses=state.background_uses,
                    background_number=state.background_number,
                ),
                codebooks,
            )
            self._before = None

    def _write_rows(self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int) -> None:
        n = len(rows)
        if n == 0:
            return
        work = self._work()
        done = 0
        while done < n:
            self._make_ready()
            state = self._state
            done, answer = writing.append_rows(
                self._at.view,
                lanes,
                rows,
                items,
                frames,
                done,
                work.coding,
                work.stream,
                work.held,
            )
            if answer == writing.DONE:
                break
            if answer == writing.WRITTEN_AND_FULL:
                self._close_full(int(lanes[done - 1]), int(rows[done - 1]), work)
            elif answer == writing.NO_MEMORY:
                raise MemoryError("the arena is full")
            elif answer == writing.GROW:
                self._grow_open()
            elif answer == writing.GROW_LOG:
                needed = journal.needed_words(self._at.view, int(lanes[done]), int(rows[done]))
                self._have_log(int(needed) + WORDS_AT_ONCE)
            elif answer == writing.SEAL:
                lane, row = int(lanes[done]), int(rows[done])
                place = (row + self._stack - 1) // self._gop % state.open_gop.shape[1]
                self._rebuild(lane, int(state.open_gop[lane, place]), work)
            elif answer == writing.REOPEN:
                self._reopen(int(lanes[done]), int(rows[done]), work)
            else:
                done = self._rewrite_rows(lanes, rows, items, frames, done, work)
        self._last_row = int(rows[-1])
        give_back(work.scratch)

    def append_with(self, kernel: Any, *arguments: object) -> int:
        """Append a row to all lanes by a kernel that does more than that, in one go.

        Parameters
        ----------
        kernel : callable
            Gets `view_of`, the arguments, and three addresses as `gop_writing.append_rows`. It
            finishes the write or has it rolled back, and returns the row, below 0 for none.
        """
        return self._lock.write(self._append_with, kernel, arguments)

    def _append_with(self, kernel: Any, arguments: tuple[object, ...]) -> int:
        work = self._work()
        self._make_ready()
        row = int(kernel(self._at.view, *arguments, work.coding, work.stream, work.held))
        if row >= 0:
            self._last_row = row
        give_back(work.scratch)
        return row

    def _rewrite_rows(
        self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int, start: int, work: _Work
    ) -> int:
        """Rebuild the groups of row ``start``, and of those behind it in the same group."""
        lane, row = int(lanes[start]), int(rows[start])
        stack, gop_length = self._stack, self._gop
        end = start + 1
        if stack == 1:
            while (
                end < len(rows)
                and lanes[end] == lane
                and rows[end] // gop_length == row // gop_length
            ):
                end += 1
        these = rows[start:end]
        addresses = frames + items[start:end] * (stack * self._frame_bytes)
        for gop in range(row // gop_length, (row + stack - 1) // gop_length + 1):
            places = (these[:, None] + np.arange(stack) - gop * gop_length) * stack + np.arange(
                stack
            )
            each = addresses[:, None] + np.arange(stack) * self._frame_bytes
            inside = (places >= 0) & (places < gop_length * stack)
            self._rebuild(lane, gop, work, places[inside], each[inside])
        writing.set_head(self._at.view, lane, int(these[-1]), int(addresses[-1]))
        return end

    def _write_cells(self, cells: Int64s, frames: int) -> None:
        stack, gop_length = self._stack, self._gop
        k = cells % stack
        rows = cells // stack
        lanes = rows % self._n_lanes
        rows = rows // self._n_lanes
        gops = (rows + k) // gop_length
        order = np.lexsort((gops, lanes))
        keys = (gops * self._n_lanes + lanes)[order]
        work = self._work()
        for group in np.split(order, np.flatnonzero(np.diff(keys)) + 1):
            self._make_ready()
            lane, gop = int(lanes[group[0]]), int(gops[group[0]])
            places = (rows[group] + k[group] - gop * gop_length) * stack + k[group]
            self._rebuild(lane, gop, work, places, frames + group * self._frame_bytes)
            self._state.head_row[lane] = layout.STALE
        self._last_row = int(rows.max())
        give_back(work.scratch)

    def _forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None:
        n_groups = int((np.maximum(end - first, 0) // self._gop + 2).sum())
        self._have_log(n_groups * journal.WORDS_A_GROUP)
        writing.forget(self._at.view, first, end, counts)

    def may_forget(self, first: Int64s, end: Int64s) -> bool:
        """Whether a group is left behind."""
        return bool(writing.leaves_groups(first, end, self._n_rows, self._gop))

    def _rebuild(
        self,
        lane: int,
        gop: int,
        work: _Work,
        places: Int64s | None = None,
        addresses: Int64s | None = None,
    ) -> None:
        """Encode one group anew, closed, with some of its cells replaced."""
        size, *_ = self._encode_gop(lane, gop, work, self._n_rows, places, addresses)
        self._put(lane, gop, work.stream_bytes(size), ends_open=True)

    def _encode_gop(
        self,
        lane: int,
        gop: int,
        work: _Work,
        until: int,
        places: Int64s | None = None,
        addresses: Int64s | None = None,
        view: Int64s | None = None,
    ) -> tuple[int, int, int, Int64s, UInt8s]:
        state = self._state
        none = np.zeros(0, np.int64)
        entry = int(state.gop_chunk[gop * self._n_lanes + lane])
        old = None
        held = 0
        if entry:
            old = self._stream(entry)
            held += int(old[2]) + 256 * int(old[3])
        place = gop % state.open_gop.shape[1]
        if state.open_gop[lane, place] == gop:
            held += int(state.open_frames[lane, place])
        scratch = np.empty((held + 1, self._padded), np.uint8)
        numbers = np.empty(self._gop * self._stack, np.int64)
        size, n_frames, flags = writing.rebuild(
            self._at.view if view is None else view,
            lane,
            gop,
            0 if old is None else address_of(old),
            none if places is None else np.ascontiguousarray(places),
            none if addresses is None else np.ascontiguousarray(addresses),
            until,
            scratch,
            work.stream,
            numbers,
            work.coding,
        )
        return size, n_frames, flags, numbers, scratch[-1]

    def _reopen(self, lane: int, row: int, work: _Work) -> None:
        """Bring the groups that ``row`` goes on into the open form, up to the row before."""
        state = self._state
        stack, gop_length = self._stack, self._gop
        for gop in range(row // gop_length, (row + stack - 1) // gop_length + 1):
            place = gop % state.open_gop.shape[1]
            if state.open_gop[lane, place] == gop or gop * gop_length == row + stack - 1:
                continue
            if state.open_gop[lane, place] != layout.CLOSED:
                self._rebuild(lane, int(state.open_gop[lane, place]), work)
            self._open_as_encoded(lane, gop, row - 1, work)

    def _open_as_encoded(self, lane: int, gop: int, until: int, work: _Work) -> None:
        """Encode what a group holds up to a row, and go on from there."""
        built = self._encode_gop(lane, gop, work, until)
        size, n_frames, flags, numbers, last_frame = built
        while self._state.open_bytes.shape[1] < size + GUARD_BYTES:
            self._grow_open()
        self._have_log(journal.WORDS_A_GROUP + int(journal.open_records_room(self._at.view)))
        writing.open_again(
            self._at.view, lane, gop, until, work.stream, size, n_frames, flags,
            numbers, address_of(last_frame),
        )  # fmt: skip

    def _close_full(self, lane: int, row: int, work: _Work) -> None:
        gop = 0
        while gop >= 0:
            gop, size = writing.close_full(
                self._at.view, lane, row, work.stream, work.held, work.coding
            )
            if gop >= 0:
                self._put(lane, gop, work.stream_bytes(size), ends_open=True)

    def _put(self, lane: int, gop: int, stream: UInt8s, *, ends_open: bool = False) -> None:
        chunk = self._pack(stream)
        self._have_log(journal.WORDS_A_GROUP)
        if not writing.put_packed(
            self._at.view, lane, gop, address_of(chunk), len(chunk), ends_open
        ):
            raise MemoryError("the arena is full")

    def _pack(self, stream: UInt8s) -> UInt8s:
        if not self._packs:
            return stream
        assert self._codebooks is not None
        packer = self._codebooks.of(plain(layout.codebook_of)(int(stream[0]))).packer
        if packer is None:
            return stream
        chunk = np.empty(2 * len(stream) + GUARD_BYTES, np.uint8)
        size = pack_stream(
            self._at.view, address_of(stream), address_of(packer.encode), address_of(chunk)
        )
        return chunk[:size] if size < len(stream) else stream

    def _have_log(self, n_words: int) -> None:
        """Have room for so many words of notes."""
        log = self._state.log
        used = int(log[0]) + 1
        if len(log) - used < n_words:
            grown = np.zeros(used + used // 2 + n_words, np.int64)
            grown[:used] = log[:used]
            self._attach(self._state._replace(log=grown))

    def _work(self) -> _Work:
        scratch = borrow(self._work_bytes)
        stream = scratch.address + self._coding_bytes
        return _Work(scratch, scratch.address, stream, stream + self._stream_bytes)

    # -- what writing needs ------------------------------------------------------------------

    def _make_ready(self) -> None:
        """Have open streams, heads, and a free background."""
        state = self._state
        if len(state.head) and state.meta[layout.VOTES] == self._ready_at_votes:
            return
        if len(state.head) == 0:
            self._open()
            state = self._state
            state.head_row[:] = layout.STALE
            if state.meta[layout.RECORD_KIND] == layout.DELTA:
                state.meta[layout.VOTES] = 0
        if state.meta[layout.RECORD_KIND] == layout.DELTA:
            n = len(state.backgrounds)
            in_use = state.background_uses > 0
            in_use[[0, int(state.meta[layout.BACKGROUND])]] = True
            if in_use.all() and n < MAX_BACKGROUNDS:
                fresh = np.zeros((1, self._padded), np.uint8)
                self._attach(
                    state._replace(
                        backgrounds=np.concatenate([state.backgrounds, fresh]),
                        background_uses=np.append(state.background_uses, 0),
                        background_number=np.append(state.background_number, 0),
                    )
                )
        self._ready_at_votes = int(state.meta[layout.VOTES])

    def _open(self) -> None:
        """Have room for open streams, heads and a candidate."""
        state = self._state
        per_lane = state.open_gop.shape[1]
        mapped = self._gop * self._stack if self._stack > 1 else 0
        votes = self._padded if state.meta[layout.RECORD_KIND] == layout.DELTA else 0
        self._attach(
            state._replace(
                head=np.zeros((self._n_lanes, self._stack, self._padded), np.uint8),
                open_bytes=np.zeros((self._n_lanes * per_lane, 256), np.uint8),
                open_map=np.zeros((self._n_lanes, per_lane, mapped), np.uint16),
                candidate=np.zeros((2, votes), np.uint8),
            )
        )

    def _grow_open(self, least: int = 0) -> None:
        old = self._state.open_bytes
        n, room = old.shape
        grown = np.zeros((n, max(room + max(room // 4, 256), least)), np.uint8)
        grown[:, :room] = old
        self._attach(self._state._replace(open_bytes=grown))

    def _is_untidy(self) -> bool:
        # not after most rows
        state = self._at.state
        return bool(state.meta[layout.N_CHANGES] != self._tidied_at) or self._log_is_long

    @property
    def _log_is_long(self) -> bool:
        return len(self._at.state.log) > KEPT_LOG_WORDS + KEPT_WORDS_A_LANE * self._n_lanes

    def _tidy(self) -> None:
        if self._log_is_long:
            self._attach(self._state._replace(log=np.zeros(FIRST_LOG_WORDS, np.int64)))
        state = self._state
        meta = state.meta
        closed, changes = int(meta[layout.N_CLOSED]), int(meta[layout.N_CHANGES])
        if self._last_row == self._n_rows - 1 and meta[layout.N_OPEN] == 0 and len(state.head):
            # the array is full: nothing is open, nothing need be held for it
            self._attach(
                state._replace(
                    head=np.zeros((0, 0, 0), np.uint8),
                    open_bytes=np.zeros((0, 0), np.uint8),
                    open_map=np.zeros((0, 0, 0), np.uint16),
                    candidate=np.zeros((2, 0), np.uint8),
                    log=np.zeros(FIRST_LOG_WORDS, np.int64),
                )
            )
        if (
            meta[layout.RECORD_KIND] == layout.DELTA
            and closed >= self._learn_at
            and not self.follows
        ):
            self._learn()
        self._tidied_at = changes
        self._arena.tidy()

    def _learn(self) -> None:
        """Look for a better codebook, and write with it.

        Each group that is encoded anew holds the same frames before and after: wherever this is
        cut off, what is held can be read, and the rest changes over when it is written again.
        """
        assert self._codebooks is not None
        meta = self._state.meta
        held = self._gops_held()
        sample = held[:: max(1, -(-len(held) // LEARN_ON_GOPS))]
        repeats = len(held) / max(1, len(sample))
        streams = [self._stream(int(self._state.gop_chunk[i])).copy() for i in sample]
        # Only the newest codebook can be written with: open streams change over, and of small
        # arrays all groups, which saves most where most is held and frees the older ones.
        anew = self._packs or len(held) <= RECODE_GOPS
        books = self._codebooks.only(layout.codebooks_in_use(self._state, self._arena.state))
        number = next((i for i, book in enumerate(books.books) if book is None), -1)
        learnt = None
        if number >= 0:
            learnt = self._learn_changes(streams, repeats, anew)
        if learnt is not None:
            books = books.with_learnt(number, learnt, anew)
        packer = None
        if self._packs and number >= 0:
            if learnt is not None:
                streams = self._encoded(sample, books)
            packer = self._learn_codes(streams, repeats, books)
            if packer is not None:
                books = books.with_codes(number, packer)
        if learnt is not None or packer is not None:
            self._attach_with(self._state, books)
            self._change_over(held, learnt is not None, anew, number)
            in_use = layout.codebooks_in_use(self._state, self._arena.state)
            self._attach_with(self._state, books.only(in_use))
        # Where nothing was to be learnt, look less often.
        self._learn_pause = (
            1
            if learnt is not None or packer is not None
            else min(2 * self._learn_pause, MAX_LEARN_PAUSE)
        )
        closed = int(meta[layout.N_CLOSED])
        pause = max(LEARN_AFTER_GOPS, len(held), closed // 2)
        self._learn_at = closed + pause * self._learn_pause
        trim()

    def _change_over(self, held: Int64s, has_tokens: bool, anew: bool, number: int) -> None:
        """Write groups with the newest codebook, which has tokens of its own or codes only."""
        work = self._work()
        state = self._state
        meta = state.meta
        counted = meta[[layout.N_CLOSED, layout.N_EVICTED]]
        flags = number << layout.CODEBOOK_SHIFT
        mask = layout.CODEBOOK_MASK << layout.CODEBOOK_SHIFT
        if anew:
            for index in held.tolist():
                gop, lane = divmod(index, self._n_lanes)
                if has_tokens:
                    self._rebuild(lane, gop, work)
                else:
                    stream = self._stream(int(state.gop_chunk[index])).copy()
                    stream[0] = int(stream[0]) & ~mask | flags
                    self._put(lane, gop, stream)
                self._finish()
                self._arena.tidy()
        if has_tokens:
            for lane, place in np.argwhere(self._state.open_gop != layout.CLOSED).tolist():
                gop = int(self._state.open_gop[lane, place])
                row = int(self._state.open_next[lane, place])
                self._open_as_encoded(lane, gop, row - 1, work)
                self._finish()
        else:  # the same tokens
            self._state.open_flags[...] = self._state.open_flags & ~mask | flags
        meta[[layout.N_CLOSED, layout.N_EVICTED]] = counted
        give_back(work.scratch)

    def _encoded(self, indices: Int64s, codebooks: Codebooks) -> list[UInt8s]:
        """Closed groups as the newest of some codebooks encodes them."""
        work = self._work()
        state = _with_codebooks(self._state, codebooks)
        view = view_of(state, self._arena.state)
        streams = []
        for index in indices.tolist():
            gop, lane = divmod(index, self._n_lanes)
            size, *_ = self._encode_gop(lane, gop, work, self._n_rows, view=view)
            streams.append(work.stream_bytes(size).copy())
        give_back(work.scratch)
        return streams

    def _learn_changes(self, streams: list[UInt8s], repeats: float, anew: bool) -> Learnt | None:
        """Learn which changes get a token, and which words a place in the dictionary."""
        codebooks = self._codebooks
        assert codebooks is not None
        n_bytes = int(repeats * sum(map(len, streams)))
        most = min(max(LEAST_CHANGES, n_bytes // BYTES_A_CHANGE), MOST_CHANGES)
        changes = Changes(
            np.empty(most, np.int64), np.empty(most, np.uint64), np.empty(most, np.uint8)
        )
        frames = np.empty((self._gop * self._stack, self._padded), np.uint8)
        n = n_read = 0
        for stream in (stream for first in range(8) for stream in streams[first::8]):
            if n < most:
                n = collect_changes(
                    self._at.view, address_of(stream), frames, codebooks.pixel_bytes, *changes, n
                )
                n_read += 1
        if n < MIN_CHANGES:
            return None
        first = not len(codebooks.current.words)
        gain = PACKED_TOKENS_GAIN if self._packs and not first else TOKENS_GAIN
        # the array may hold twice as much when it learns again
        repeats *= 2 * len(streams) / n_read
        changes = Changes(changes.keys[:n], changes.words[:n], changes.residuals[:n])
        return codebooks.consider(changes, repeats, gain, anew)

    def _learn_codes(
        self, streams: list[UInt8s], repeats: float, codebooks: Codebooks
    ) -> Packer | None:
        """Learn the codes to pack with, if there is enough to pack and they are worth it."""
        n_bytes = int(repeats * sum(map(len, streams)))
        if n_bytes < PACK_AT_BYTES:
            return None
        counts = np.zeros((N_CONTEXTS, 256), np.int32)
        state = _with_codebooks(self._state, codebooks)
        view = view_of(state, self._arena.state)
        for stream in streams:
            count_stream(view, address_of(stream), counts)
        n_codes = min(max(MIN_CODES, n_bytes // BYTES_A_CODE), MAX_CODES)
        new, old = Packer(counts, n_codes), codebooks.current.packer
        if old is not None:
            saved = old.packed_bits(counts) - new.packed_bits(counts)
            if saved < CODES_GAIN * old.packed_bits(counts):
                return None
        return new

    def _gops_held(self) -> Int64s:
        """Numbers ``gop * n_lanes + lane`` of the groups that are closed."""
        return self._gops.held()

    # -- replicas ----------------------------------------------------------------------------

    def _watch(self) -> None:
        if len(self._state.gop_changes):
            return
        ring = ring_of_changes(self._n_gops * self._n_lanes)
        self._attach(self._state._replace(gop_changes=ring))

    def mark(self) -> tuple[feed.GopMark, int]:
        """Remember what a replica has that is filled now."""
        return feed.mark_of(self._state, self._codebooks), len(self._pins)

    def put_changes(self, message: Message, mark: tuple[feed.GopMark, int]) -> bool:
        """Add what has changed since a mark; see `Store.put_changes`."""
        since, n_pins = mark
        self._put_pins(message, n_pins)
        return feed.put_changes(message, since, self._state, self._arena.state, self._codebooks)

    def put_everything(self, message: Message) -> None:
        """See `Store.put_everything`."""
        self._put_pins(message, 0)
        feed.put_everything(
            message, self._gops_held(), self._state, self._arena.state, self._codebooks
        )

    def describe(self) -> Description | None:
        """See `Store.describe`."""
        state = self._state
        per_lane = int(state.meta[layout.OPEN_PER_LANE])
        books = self._codebooks
        return Description(
            int(state.meta[layout.RECORD_KIND]),
            self._n_rows * self._n_lanes * self._stack,
            self._n_gops * self._n_lanes,
            self._n_lanes,
            self._stack,
            self._gop,
            per_lane,
            self._gop * self._stack,
            self._frame_bytes,
            self._row_bytes,
            0 if books is None else books.pixel_bytes,
            self._packs,
            self._stream_bytes,
            0 if books is None else len(books.books),
            self._fill_frame(),
        )

    def _take(self, items: Items) -> None:
        self._take_pins(items)
        state = self._state
        if len(state.head) == 0:
            self._open()
        self._before = self._at, int(state.meta[layout.BACKGROUND])
        if self._codebooks is not None:
            books = self._codebooks.taken(items, packs=self._packs)
            self._attach_with(self._state, books)
        self._take_backgrounds(items)
        self._take_groups(items)
        self._take_open(items)

    def _take_backgrounds(self, items: Items) -> None:
        said = items.ints(least=0)
        if not len(said):
            return
        state = self._state
        n, newest, *changed = said.tolist()
        if not 1 <= n <= MAX_BACKGROUNDS or n < len(state.backgrounds):
            raise CorruptFrameError(f"there cannot be {n} backgrounds")
        if newest >= n or min(changed, default=1) < 1 or max(changed, default=0) >= n:
            raise CorruptFrameError(f"a message names backgrounds that are none of {n}")
        held = len(state.backgrounds)
        backgrounds = np.zeros((n, self._padded), np.uint8)
        backgrounds[:held] = state.backgrounds
        given = items.octets(len(changed) * self._padded)
        backgrounds[changed] = given.reshape(-1, self._padded)
        numbers = np.zeros(n, np.int64)
        numbers[:held] = state.background_number
        meta = state.meta
        numbers[changed] = meta[layout.N_BACKGROUNDS] + 1 + np.arange(len(changed))
        meta[layout.N_BACKGROUNDS] += len(changed)
        meta[layout.BACKGROUND] = newest
        uses = np.zeros(n, np.int64)
        uses[:held] = state.background_uses
        self._attach(
            state._replace(backgrounds=backgrounds, background_uses=uses, background_number=numbers)
        )

    def _take_groups(self, items: Items) -> None:
        given = take_chunks(items, self._n_gops * self._n_lanes)
        if given is None:
            return
        groups, chunks, sizes, data = given
        check_chunks(self._state, data, sizes, self._n_words)
        self._have_log(len(groups) * journal.WORDS_A_GROUP)
        if not feed.put_groups(self._at.view, groups, chunks, sizes, data):
            raise MemoryError("the arena is full")

    def _take_open(self, items: Items) -> None:
        given = items.ints()
        if len(given) % feed.N_COLUMNS:
            raise CorruptFrameError(f"{len(given)} numbers are no table of open streams")
        table = given.reshape(feed.N_COLUMNS, -1)
        maps, records = items.octets(), items.octets()
        state = self._state
        n = table.shape[1]
        if not n:
            return
        slots, start, size = table[feed.SLOT], table[feed.START], table[feed.SIZE]
        is_open = table[feed.GROUP] != layout.CLOSED
        if (slots < 0).any() or (np.diff(slots) <= 0).any() or slots[-1] >= state.open_gop.size:
            raise CorruptFrameError("a message names open streams that do not exist")
        goes_on = (state.open_gop.ravel()[slots] == table[feed.GROUP]) & (
            state.open_size.ravel()[slots] == start
        )
        n_maps = int(np.count_nonzero(table[feed.FLAGS] & layout.MAP_FLAG))
        if (
            ((start > 0) & ~goes_on).any()
            or (size < start).any()
            or (start < 0).any()
            or int((size - start).sum()) != len(records)
            or maps.nbytes != 2 * n_maps * state.open_map.shape[2]
            or (n_maps > 0 and not state.open_map.shape[2])
            or (table[feed.CHOSEN] < 0).any()
            or (table[feed.CHOSEN] >= len(state.backgrounds)).any()
            or (table[feed.FLAGS] & ~_OPEN_FLAGS).any()
            or (size[~is_open] > 0).any()
        ):
            raise CorruptFrameError("a message does not go on from the open streams that are held")
        room = int(size.max()) + GUARD_BYTES
        while self._state.open_bytes.shape[1] < room:
            self._grow_open(room)
        kept = journal.WORDS_A_GROUP + int(journal.open_records_room(self._at.view))
        self._have_log(n * kept)
        held = np.zeros(len(records) + GUARD_BYTES, np.uint8)
        held[: len(records)] = records
        feed.put_open(self._at.view, table, maps.copy().view(np.uint16), held)
        check_open(self._state, slots[is_open], self._n_words)

    @property
    def _n_words(self) -> Int64s:
        """Words in each codebook's dictionary, -1 where there is no codebook."""
        if self._codebooks is None:
            return np.full(1, -1)
        return np.array([-1 if book is None else len(book.words) for book in self._codebooks.books])

    # -- accounting --------------------------------------------------------------------------

    def _fill_frame(self) -> UInt8s:
        return self._state.backgrounds[0, : self._frame_bytes]

    def _bytes_by_part(self) -> dict[str, int]:
        state = self._state
        open_parts = (
            state.open_bytes, state.open_map, state.open_gop, state.open_next, state.open_frames,
            state.open_size, state.open_flags, state.open_background, state.head, state.head_row,
            state.open_born, state.open_dropped, state.open_number, state.log,
        )  # fmt: skip
        parts = {
            "arena": self._arena.nbytes,
            "index": self._gops.nbytes + state.gop_changes.nbytes,
            "open": sum(part.nbytes for part in open_parts),
            "backgrounds": state.backgrounds.nbytes + state.candidate.nbytes,
            "tables": 0 if self._codebooks is None else self._codebooks.nbytes,
        }
        if self._codebooks is not None and self._codebooks.packer_bytes:
            parts["packer"] = self._codebooks.packer_bytes
        return parts

    def _report(self) -> dict[str, int]:
        meta = self._state.meta
        return {
            "gop_length": self._gop,
            "gops_closed": int(meta[layout.N_CLOSED]),
            "gops_evicted": int(meta[layout.N_EVICTED]),
            "gops_open": int(meta[layout.N_OPEN]),
            "frames_encoded": int(meta[layout.N_ENCODED]),
        }

    # -- copying and pickling ----------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        state, meta, n_bytes = self._state, self._state.meta, self._frame_bytes
        chunks, numbers = self._arena.snapshot(self._gops)
        is_open = state.open_gop != layout.CLOSED
        mapped = is_open & (state.open_flags & layout.MAP_FLAG != 0)
        sizes = np.where(is_open, state.open_size, 0)
        streams = [
            stream[:size]
            for stream, size in zip(state.open_bytes, sizes.ravel().tolist(), strict=False)
        ]
        return {
            "counts": meta[_COUNTS].copy(),
            "learn_at": self._learn_at,
            "learn_pause": self._learn_pause,
            "ready_at_votes": self._ready_at_votes,
            "tidied_at": self._tidied_at,
            "codebooks": None if self._codebooks is None else self._codebooks.snapshot(),
            "open_codebook": plain(layout.codebook_of)(state.open_flags),
            "backgrounds": state.backgrounds[1:, :n_bytes].copy(),
            "background": int(meta[layout.BACKGROUND]),
            "candidate": state.candidate[:, :n_bytes].copy(),
            "chunks": chunks,
            "last_chunk": int(numbers[meta[layout.LAST_CHUNK]]),
            "is_ready": len(state.head) > 0,
            "head_row": state.head_row.copy(),
            "open_gop": state.open_gop.copy(),
            "open_next": state.open_next.copy(),
            "open_frames": state.open_frames.copy(),
            "open_size": sizes,
            "open_background": state.open_background.copy(),
            "open_mapped": mapped.view(np.uint8),
            "open_maps": state.open_map[mapped] if mapped.any() else np.zeros((0, 0), np.uint16),
            "open_bytes": np.concatenate([np.zeros(0, np.uint8), *streams]),
        }

    def _restore(self, snapshot: Snapshot, is_ours: bool) -> None:
        state = self._state
        meta, n_bytes = state.meta, self._frame_bytes
        meta[_COUNTS] = array_of(snapshot, "counts", np.int64, (len(_COUNTS),), 0, MOST)
        self._learn_at = int_of(snapshot, "learn_at", 0)
        self._learn_pause = int_of(snapshot, "learn_pause", 1, MAX_LEARN_PAUSE)
        self._ready_at_votes = int_of(snapshot, "ready_at_votes", -1)
        self._tidied_at = int_of(snapshot, "tidied_at", 0)
        if self._codebooks is not None:
            self._attach_with(
                self._state,
                Codebooks.from_snapshot(
                    part_of(snapshot, "codebooks"),
                    MAX_CODEBOOKS,
                    self._codebooks.pixel_bytes,
                    packs=self._packs,
                ),
            )
            state = self._state
        more = array_of(snapshot, "backgrounds", np.uint8, (None, n_bytes))
        n = 1 + len(more)
        meta[layout.BACKGROUND] = int_of(snapshot, "background", 0, n - 1)
        if n > MAX_BACKGROUNDS:
            raise CorruptFrameError(f"there cannot be {n} backgrounds")
        backgrounds = np.zeros((n, self._padded), np.uint8)
        backgrounds[0] = state.backgrounds[0]
        backgrounds[1:, :n_bytes] = more
        self._arena.restore(part_of(snapshot, "chunks"), self._gops)
        n_entries = int(self._arena.state.meta[N_ENTRIES])
        meta[layout.LAST_CHUNK] = int_of(snapshot, "last_chunk", 0, n_entries - 1)
        # Whoever follows what changes sees all of them as taken just now.
        numbers = meta[layout.N_BACKGROUNDS] + np.arange(n)
        numbers[0] = 0
        meta[layout.N_BACKGROUNDS] += n
        self._attach(
            state._replace(
                backgrounds=backgrounds,
                background_uses=np.zeros(n, np.int64),
                background_number=numbers,
            )
        )
        head_row = self._restore_open(snapshot)
        if self._arena.is_mapped:  # whose groups are checked when they are read
            slots = np.flatnonzero(self._state.open_gop != layout.CLOSED)
            check_open(self._state, slots, self._n_words)
        else:
            check_streams(self._state, self._arena.state, self._n_words, records_too=not is_ours)
        self._restore_heads(head_row)

    def _restore_open(self, snapshot: Snapshot) -> Int64s:
        """Take the open streams as they come; return which row each lane's head is of."""
        state = self._state
        shape = state.open_gop.shape
        head_row = array_of(
            snapshot, "head_row", np.int64, shape[:1], layout.STALE, self._n_rows - 1
        )
        if not part_of(snapshot, "is_ready"):
            return np.full(self._n_lanes, layout.STALE)
        self._open()
        state = self._state
        if len(state.candidate[0]):
            candidate = array_of(snapshot, "candidate", np.uint8, (2, self._frame_bytes))
            state.candidate[:, : self._frame_bytes] = candidate
        state.open_gop[:] = array_of(snapshot, "open_gop", np.int64, shape)
        state.open_next[:] = array_of(snapshot, "open_next", np.int64, shape)
        state.open_frames[:] = array_of(snapshot, "open_frames", np.int64, shape)
        most = len(state.backgrounds) - 1
        state.open_background[:] = array_of(snapshot, "open_background", np.int64, shape, 0, most)
        sizes = array_of(snapshot, "open_size", np.int64, shape, 0, MOST // state.open_gop.size)
        streams = array_of(snapshot, "open_bytes", np.uint8, (int(sizes.sum()),), copy=False)
        while self._state.open_bytes.shape[1] < sizes.max() + 8:  # for words at the end
            self._grow_open()
        state = self._state
        start = 0
        for row, size in zip(state.open_bytes, sizes.ravel().tolist(), strict=True):
            row[:size] = streams[start : start + size]
            start += size
        state.open_size[:] = sizes
        state.meta[layout.N_BEGUN] = sizes.size
        state.open_number[:] = 1 + np.arange(sizes.size).reshape(shape)
        mapped = array_of(snapshot, "open_mapped", np.uint8, shape, 0, 1).view(np.bool_)
        books = array_of(snapshot, "open_codebook", np.int64, shape, 0, MAX_CODEBOOKS - 1)
        state.open_flags[:] = books << layout.CODEBOOK_SHIFT
        state.open_flags[mapped] |= layout.MAP_FLAG
        if mapped.any():
            wanted = int(mapped.sum()), state.open_map.shape[2]
            if not wanted[1]:
                raise CorruptFrameError("a stored open stream has a map and no stacks")
            state.open_map[mapped] = array_of(snapshot, "open_maps", np.uint16, wanted)
        return head_row

    def _restore_heads(self, head_row: Int64s) -> None:
        """Decode the newest frames of each lane, which the next ones are coded against."""
        lanes = np.flatnonzero(head_row != layout.STALE)
        if not len(lanes):
            return
        rows = head_row[lanes][:, None]
        if (rows < 0).any():
            raise CorruptFrameError(f"stored heads are of row {rows.min()}")
        k = np.arange(self._stack)
        cells = (rows * self._n_lanes + lanes[:, None]) * self._stack + k
        frames = np.empty((*cells.shape, self._frame_bytes), np.uint8)
        if self._arena.is_mapped:
            self._verify(cells.ravel())
        reading.read_cells(self._at.view, cells.ravel(), self._pins, frames.reshape(-1))
        diagonals = (rows + k) % self._stack
        self._state.head[lanes[:, None], diagonals, : self._frame_bytes] = frames
        self._state.head_row[:] = head_row


def _with_codebooks(state: GopState, codebooks: Codebooks) -> GopState:
    return state._replace(codebooks=codebooks.addresses, encode_table=codebooks.encode_table)
