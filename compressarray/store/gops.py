"""Frames in groups of pictures (GOPs), found by their place in the array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from compressarray.codecs import Codec
from compressarray.codecs.packing import Packer, Unpack
from compressarray.codecs.words import (
    build_tables,
    choose_tokens,
    read_tokens,
    starting_tokens,
    token_bytes,
)
from compressarray.store import gop_layout as layout
from compressarray.store import gop_reading as reading
from compressarray.store import gop_writing as writing
from compressarray.store.arena import N_ENTRIES, PAGE_SHIFT, Arena, Table
from compressarray.store.base import Int64s, Store, UInt8s, address_of
from compressarray.store.gop_layout import GopState
from compressarray.store.scratch import Scratch, borrow, give_back

# What is held is looked at each time as many groups have been closed as there are, and up to
# MAX_LEARN_PAUSE times later while nothing is learnt: a new table of tokens is taken where it makes
# them so much smaller, a new dictionary where it packs groups so much smaller. A table costs
# 10 KiB, a dictionary up to 60, digested.
LEARN_ON_GOPS = 64
LEARN_AFTER_GOPS = 16
MAX_LEARN_PAUSE = 8
MIN_TOKENS = 2000
TABLE_GAIN, PACKED_TABLE_GAIN = 0.03, 0.1
MAX_TABLES = layout.TABLE_MASK + 1
RECODE_GOPS = 512  # at thirty microseconds each
DICTIONARY_AT_BYTES = 256 * 1024
DICTIONARY_GAIN = 0.05
MAX_BACKGROUNDS = 255
# Packed streams are unpacked this many at a time while reading.
UNPACK_AT_ONCE = 64
GUARD_BYTES = 64


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
        fill: UInt8s,
        codec: Codec,
    ) -> None:
        super().__init__(n_rows, n_lanes, stack, frame_bytes)
        gop = codec.gop_length
        while gop > 1 and gop * stack >= layout.NO_FRAME:
            gop //= 2
        self._gop = gop
        self._n_gops = -(-(n_rows + stack - 1) // gop)
        self._padded = (frame_bytes + 7) // 8 * 8 + 8
        self._packer = Packer() if codec.name == "delta-zstd" else None
        meta = np.zeros(layout.N_META, np.int64)
        meta[layout.N_ROWS] = n_rows
        meta[layout.N_LANES] = n_lanes
        meta[layout.STACK] = stack
        meta[layout.GOP] = gop
        meta[layout.FRAME_BYTES] = frame_bytes
        meta[layout.ROW_BYTES] = row_bytes
        meta[layout.RECORD_KIND] = layout.SPARSE if codec.name == "sparse" else layout.DELTA
        meta[layout.OPEN_PER_LANE] = (stack - 1 + gop - 1) // gop + 1
        meta[layout.PACKS] = self._packer is not None
        # tokens, values and a record of one frame, then a closed stream
        self._coding_bytes = (
            17 * ((frame_bytes + 7) // 8) + GUARD_BYTES + frame_bytes + layout.RECORD_ROOM
        )
        map_bytes = 2 * gop * stack
        self._stream_bytes = (
            layout.HEADER_BYTES
            + 2 * map_bytes
            + gop * stack * (frame_bytes + layout.RECORD_ROOM)
            + GUARD_BYTES
        )
        held_bytes = (gop * stack // 2 + 2) * self._padded
        self._work_bytes = self._coding_bytes + self._stream_bytes + held_bytes
        max_chunks = self._n_gops * n_lanes
        self._gops = Table(max_chunks)
        self._arena = Arena(
            n_rows * n_lanes * stack * (frame_bytes + 16) + max_chunks * (map_bytes + 64),
            max_chunks,
        )
        has_tokens = meta[layout.RECORD_KIND] == layout.DELTA
        backgrounds = np.zeros((1, self._padded), np.uint8)
        backgrounds[0, :frame_bytes] = fill
        state = GopState(
            meta=meta,
            gop_chunk=self._gops.data,
            gop_touched=self._gops.touched,
            open_gop=np.full((n_lanes, int(meta[layout.OPEN_PER_LANE])), layout.CLOSED),
            open_next=np.zeros((n_lanes, int(meta[layout.OPEN_PER_LANE])), np.int64),
            open_frames=np.zeros((n_lanes, int(meta[layout.OPEN_PER_LANE])), np.int64),
            open_size=np.zeros((n_lanes, int(meta[layout.OPEN_PER_LANE])), np.int64),
            open_flags=np.zeros((n_lanes, int(meta[layout.OPEN_PER_LANE])), np.int64),
            open_background=np.zeros((n_lanes, int(meta[layout.OPEN_PER_LANE])), np.int64),
            open_map=np.zeros((0, 0, 0), np.uint16),
            open_bytes=np.zeros((0, 0), np.uint8),
            head=np.zeros((0, 0, 0), np.uint8),
            head_row=np.full(n_lanes, layout.STALE, np.int64),
            backgrounds=backgrounds,
            background_uses=np.zeros(1, np.int64),
            candidate=np.zeros((2, 0), np.uint8),
            decode_tables=np.zeros((int(has_tokens), 256, 5), np.uint64),
            encode_table=np.zeros(1024 * has_tokens, np.uint32),
        )
        self._learn_at = LEARN_AFTER_GOPS
        self._learn_pause = 1
        self._ready_at_votes = -1
        self._tidied_at = 0
        self._tokens: Int64s = np.zeros(0, np.int64)
        self._free_tables: list[int] = []
        if meta[layout.RECORD_KIND] == layout.DELTA:
            self._tokens = starting_tokens(row_bytes)
            build_tables(self._tokens, state.decode_tables[0], state.encode_table)
        self._take(state)

    def _take(self, state: GopState) -> None:
        self._state = state
        self._view = reading.view_of(state, self._arena.state)
        self._write_view = writing.view_of(state, self._arena.state)

    # -- reading -----------------------------------------------------------------------------

    def _read(self, cells: Int64s, out: UInt8s) -> None:
        if self._packer is None:
            n_frames, n_gops = reading.read_cells(self._view, cells, self._pins, out)
        else:
            n_frames, n_gops = self._read_packed(cells, out)
        with self._count_lock:
            self._frames_decoded += n_frames
            self._gops_decoded += n_gops

    def _read_packed(self, cells: Int64s, out: UInt8s) -> tuple[int, int]:
        view = self._view
        n = len(cells)
        chunk, where, order = (np.empty(n, np.int64) for _ in range(3))
        unpacked = np.zeros(n, np.int64)
        counts = np.zeros(2, np.int64)
        reading.locate(view, cells, chunk, where, order)
        for part, kept in self._batches(chunk, order, unpacked):
            reading.decode(view, cells, chunk, where, unpacked, part, self._pins, out, counts)
            del kept
        return int(counts[0]), int(counts[1])

    def _batches(self, chunk: Int64s, order: Int64s, unpacked: Int64s) -> Iterator[Any]:
        """Parts of an order in which to decode, each with what it needs unpacked."""
        assert self._packer is not None
        unpack = self._packer.unpacker()
        entries = chunk[order]
        starts = np.flatnonzero(np.diff(entries, prepend=entries[:1] - 1))
        ends = np.append(starts[1:], len(order))
        for first in range(0, len(starts), UNPACK_AT_ONCE):
            kept = []
            last = min(first + UNPACK_AT_ONCE, len(starts))
            for i in range(first, last):
                entry = int(entries[starts[i]])
                if entry > 0:
                    stream = self._unpack(entry, unpack)
                    if stream is not None:
                        kept.append(stream)
                        unpacked[order[starts[i] : ends[i]]] = address_of(stream)
            yield order[starts[first] : ends[last - 1]], kept

    def _unpack(self, entry: int, unpack: Unpack | None = None) -> UInt8s | None:
        """A chunk's stream if it is packed; its last bytes are room to look into."""
        chunk = self._arena.view(entry)
        if not chunk[0] & layout.PACKED_FLAG:
            return None
        assert self._packer is not None
        header = layout.HEADER_BYTES
        n_bytes = int.from_bytes(chunk[header : header + 4].tobytes(), "little")
        body = (unpack or self._packer.unpacker())(chunk[header + 4 :], n_bytes)
        stream = np.empty(header + n_bytes + GUARD_BYTES, np.uint8)
        stream[:header] = chunk[:header]
        stream[0] &= 255 - layout.PACKED_FLAG
        stream[header : header + n_bytes] = np.frombuffer(body, np.uint8)
        return stream

    # -- writing -----------------------------------------------------------------------------

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
                self._write_view,
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
            elif answer == writing.SEAL:
                lane, row = int(lanes[done]), int(rows[done])
                place = (row + self._stack - 1) // self._gop % state.open_gop.shape[1]
                self._rebuild(lane, int(state.open_gop[lane, place]), work)
            elif answer == writing.REOPEN:
                self._reopen(int(lanes[done]), int(rows[done]), work)
            else:
                done = self._rewrite_rows(lanes, rows, items, frames, done, work)
        self._after_write(int(rows[-1]))
        give_back(work.scratch)

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
        writing.set_head(self._state, lane, int(these[-1]), int(addresses[-1]))
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
        self._after_write(int(rows.max()))
        give_back(work.scratch)

    def _forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None:
        gops_before, gops_after = (count % self._n_rows // self._gop for count in (first, end))
        if (gops_before != gops_after).any() or (end - first >= self._gop).any():
            writing.forget(self._state, self._arena.state, first, end, counts)
            self._arena.tidy()

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
    ) -> tuple[int, int, int, Int64s, UInt8s]:
        state = self._state
        none = np.zeros(0, np.int64)
        entry = int(state.gop_chunk[gop * self._n_lanes + lane])
        old = None
        held = 0
        if entry:
            old = self._unpack(entry)
            if old is None:
                old = self._arena.view(entry)
            held += int(old[2]) + 256 * int(old[3])
        place = gop % state.open_gop.shape[1]
        if state.open_gop[lane, place] == gop:
            held += int(state.open_frames[lane, place])
        scratch = np.empty((held + 1, self._padded), np.uint8)
        numbers = np.empty(self._gop * self._stack, np.int64)
        size, n_frames, flags = writing.rebuild(
            state,
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
        writing.open_again(
            self._state, lane, gop, until, work.stream, size, n_frames, flags,
            numbers, address_of(last_frame),
        )  # fmt: skip

    def _close_full(self, lane: int, row: int, work: _Work) -> None:
        gop = 0
        while gop >= 0:
            gop, size = writing.close_full(
                self._write_view, lane, row, work.stream, work.held, work.coding
            )
            if gop >= 0:
                self._put(lane, gop, work.stream_bytes(size), ends_open=True)

    def _put(self, lane: int, gop: int, stream: UInt8s, *, ends_open: bool = False) -> None:
        chunk = self._pack(stream)
        if not writing.put_packed(
            self._write_view, lane, gop, address_of(chunk), len(chunk), ends_open
        ):
            raise MemoryError("the arena is full")

    def _pack(self, stream: UInt8s) -> UInt8s:
        if self._packer is None:
            return stream
        header = layout.HEADER_BYTES
        body = self._packer.pack(stream[header:])
        if len(body) + 4 >= len(stream) - header:
            return stream
        chunk = np.empty(header + 4 + len(body), np.uint8)
        chunk[:header] = stream[:header]
        chunk[0] |= layout.PACKED_FLAG
        chunk[header : header + 4] = np.frombuffer(
            (len(stream) - header).to_bytes(4, "little"), np.uint8
        )
        chunk[header + 4 :] = np.frombuffer(body, np.uint8)
        return chunk

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
        changes: dict[str, Any] = {}
        if state.head.shape[0] == 0:
            per_lane = state.open_gop.shape[1]
            changes["head"] = np.zeros((self._n_lanes, self._stack, self._padded), np.uint8)
            changes["open_bytes"] = np.zeros((self._n_lanes * per_lane, 256), np.uint8)
            mapped = self._gop * self._stack if self._stack > 1 else 0
            changes["open_map"] = np.zeros((self._n_lanes, per_lane, mapped), np.uint16)
            state.head_row[:] = layout.STALE
            if state.meta[layout.RECORD_KIND] == layout.DELTA:
                changes["candidate"] = np.zeros((2, self._padded), np.uint8)
                state.meta[layout.VOTES] = 0
        if state.meta[layout.RECORD_KIND] == layout.DELTA:
            n = len(state.backgrounds)
            in_use = state.background_uses > 0
            in_use[[0, int(state.meta[layout.BACKGROUND])]] = True
            if in_use.all() and n < MAX_BACKGROUNDS:
                changes["backgrounds"] = np.concatenate(
                    [state.backgrounds, np.zeros((1, self._padded), np.uint8)]
                )
                changes["background_uses"] = np.append(state.background_uses, 0)
        self._ready_at_votes = int(state.meta[layout.VOTES])
        if changes:
            self._take(state._replace(**changes))

    def _grow_open(self) -> None:
        old = self._state.open_bytes
        n, room = old.shape
        grown = np.zeros((n, room + max(room // 4, 256)), np.uint8)
        grown[:, :room] = old
        self._take(self._state._replace(open_bytes=grown))

    def _after_write(self, row: int) -> None:
        state = self._state
        meta = state.meta
        closed = int(meta[layout.N_CLOSED])
        if closed == self._tidied_at:  # as after most rows
            return
        if row == self._n_rows - 1 and meta[layout.N_OPEN] == 0 and len(state.head):
            # the array is full: nothing is open, nothing need be held for it
            self._take(
                state._replace(
                    head=np.zeros((0, 0, 0), np.uint8),
                    open_bytes=np.zeros((0, 0), np.uint8),
                    open_map=np.zeros((0, 0, 0), np.uint16),
                    candidate=np.zeros((2, 0), np.uint8),
                )
            )
        if meta[layout.RECORD_KIND] == layout.DELTA and closed >= self._learn_at:
            self._learn()
        if self._packer is not None:
            self._packer.rest()
        self._tidied_at = int(meta[layout.N_CLOSED])
        self._arena.tidy()

    def _learn(self) -> None:
        arena = self._arena
        held = np.flatnonzero(arena.state.references[: int(arena.state.meta[N_ENTRIES])])
        streams = []
        for entry in held[:: max(1, -(-len(held) // LEARN_ON_GOPS))].tolist():
            stream = self._unpack(entry)
            streams.append(arena.view(entry).copy() if stream is None else stream[:-GUARD_BYTES])
        learnt = self._learn_tokens(streams)
        if self._packer is not None and arena.live_bytes >= DICTIONARY_AT_BYTES:
            learnt |= self._learn_dictionary(streams)
        # Where nothing was to be learnt, look less often.
        self._learn_pause = 1 if learnt else min(2 * self._learn_pause, MAX_LEARN_PAUSE)
        closed = int(self._state.meta[layout.N_CLOSED])
        self._learn_at = closed + max(LEARN_AFTER_GOPS, len(held)) * self._learn_pause

    def _learn_tokens(self, streams: list[UInt8s]) -> bool:
        """Give the tokens seen most often a byte each, if that is worth it."""
        state = self._state
        keys = np.empty(sum(map(len, streams)), np.int32)
        n = 0
        for stream in streams:
            header = layout.HEADER_BYTES
            if stream[0] & layout.MAP_FLAG:
                header += 2 * self._gop * self._stack
            table = int(stream[0]) >> layout.TABLE_SHIFT & layout.TABLE_MASK
            n = read_tokens(
                address_of(stream) + header,
                int(stream[2]) + 256 * int(stream[3]),
                self._frame_bytes,
                state.decode_tables[table],
                keys,
                n,
            )
        if n < MIN_TOKENS:
            return False
        found, counts = np.unique(keys[:n], return_counts=True)
        seen = found.astype(np.int64)
        first = len(state.decode_tables) == 1
        needed = TABLE_GAIN if self._packer is None or first else PACKED_TABLE_GAIN
        enough = (1 - needed) * token_bytes(self._tokens, seen, counts)
        if n > enough:  # not even a byte for each would do
            return False
        tokens = choose_tokens(seen, counts)
        if token_bytes(tokens, seen, counts) > enough:
            return False
        if not self._free_tables and len(state.decode_tables) == MAX_TABLES:
            return False
        self._tokens = tokens
        if self._free_tables:
            slot = self._free_tables.pop()
        else:
            slot = len(state.decode_tables)
            grown = np.concatenate([state.decode_tables, np.zeros((1, 256, 5), np.uint64)])
            state = state._replace(decode_tables=grown)
            self._take(state)
        build_tables(tokens, state.decode_tables[slot], state.encode_table)
        state.meta[layout.TABLE] = slot
        # Only the newest table can be encoded with: open streams change over, and of small arrays
        # all groups, which saves most where most is held and frees the older tables.
        work = self._work()
        held = self._gops_held()
        counted = state.meta[[layout.N_CLOSED, layout.N_EVICTED]]
        if len(held) <= RECODE_GOPS:
            for gop, lane in (divmod(int(index), self._n_lanes) for index in held):
                self._rebuild(lane, gop, work)
        state.meta[[layout.N_CLOSED, layout.N_EVICTED]] = counted
        for lane, place in np.argwhere(state.open_gop != layout.CLOSED).tolist():
            gop, row = int(state.open_gop[lane, place]), int(state.open_next[lane, place])
            self._open_as_encoded(lane, gop, row - 1, work)
        if len(held) <= RECODE_GOPS:
            self._free_tables = [i for i in range(len(state.decode_tables)) if i != slot]
        return True

    def _learn_dictionary(self, streams: list[UInt8s]) -> bool:
        """Train a dictionary and pack what is held anew, if that is worth it."""
        old, new = self._packer, Packer()
        assert old is not None
        header = layout.HEADER_BYTES
        new.train([stream[header:].tobytes() for stream in streams])
        tried = [stream[header:] for stream in streams[::4]]
        before = sum(len(old.pack(body)) for body in tried)
        if sum(len(new.pack(body)) for body in tried) > (1 - DICTIONARY_GAIN) * before:
            return False
        unpack = old.unpacker()
        self._packer = new
        counted = self._state.meta[[layout.N_CLOSED, layout.N_EVICTED]]
        for index in map(int, self._gops_held()):
            entry = int(self._state.gop_chunk[index])
            stream = self._unpack(entry, unpack)
            whole = self._arena.view(entry).copy() if stream is None else stream[:-GUARD_BYTES]
            gop, lane = divmod(index, self._n_lanes)
            self._put(lane, gop, whole)
            self._arena.tidy()
        self._state.meta[[layout.N_CLOSED, layout.N_EVICTED]] = counted
        return True

    def _gops_held(self) -> Int64s:
        """Numbers ``gop * n_lanes + lane`` of the groups that are closed."""
        held = [np.zeros(0, np.int64)]
        for page in np.flatnonzero(self._gops.touched).tolist():
            start = page << PAGE_SHIFT
            part = self._gops.data[start : start + (1 << PAGE_SHIFT)]
            held.append(start + np.flatnonzero(part))
        return np.concatenate(held)

    # -- accounting --------------------------------------------------------------------------

    def _bytes_by_part(self) -> dict[str, int]:
        state = self._state
        tables = state.decode_tables.nbytes + state.encode_table.nbytes
        open_parts = (
            state.open_bytes, state.open_map, state.open_gop, state.open_next, state.open_frames,
            state.open_size, state.open_flags, state.open_background, state.head, state.head_row,
        )  # fmt: skip
        parts = {
            "arena": self._arena.nbytes,
            "index": self._gops.nbytes,
            "open": sum(part.nbytes for part in open_parts),
            "backgrounds": state.backgrounds.nbytes + state.candidate.nbytes,
            "tables": tables,
        }
        if self._packer is not None:
            parts["packer"] = self._packer.nbytes
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

    # -- pickling ----------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        state = self._state._asdict()
        del state["gop_chunk"], state["gop_touched"]
        parts = super()._parts()
        del parts["_view"], parts["_write_view"]
        return {
            **parts,
            "_arena": self._arena.snapshot(),
            "_gops": self._gops.snapshot(),
            "_state": state,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        gops = Table.from_snapshot(state["_gops"])
        fields = {**state["_state"], "gop_chunk": gops.data, "gop_touched": gops.touched}
        super().__setstate__(
            {
                **state,
                "_arena": Arena.from_snapshot(state["_arena"]),
                "_gops": gops,
            }
        )
        self._take(GopState(**fields))
