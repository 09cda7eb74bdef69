"""Frames in groups of pictures (GOPs), found by their place in the array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs import Codec
from compressarray.codecs.packing import Packer
from compressarray.codecs.words import build_tables, read_tokens, starting_tokens
from compressarray.store import gop_kernels as kernels
from compressarray.store.arena import N_ENTRIES, Arena, reserve
from compressarray.store.base import Int64s, Store, UInt8s, address_of
from compressarray.store.gop_kernels import GopState

# Tables of tokens are trained anew after so many closed groups: the first time early, for small
# arrays, the last time late enough to have seen a game's stages.
TRAIN_AFTER_GOPS = (16, 128, 1024)
TRAIN_ON_GOPS = 256
# The dictionary waits for the second table: it learns from bytes that stay in use.
PACK_TRAIN_AFTER_GOPS = 130
MAX_BACKGROUNDS = 255
# Packed streams are unpacked this many at a time while reading.
UNPACK_AT_ONCE = 64
GUARD_BYTES = 64


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
        while gop > 1 and gop * stack >= kernels.NO_FRAME:
            gop //= 2
        self._gop = gop
        self._n_gops = -(-(n_rows + stack - 1) // gop)
        self._padded = (frame_bytes + 7) // 8 * 8 + 8
        self._packer = Packer() if codec.name == "delta-zstd" else None
        meta = np.zeros(kernels.N_META, np.int64)
        meta[kernels.N_ROWS] = n_rows
        meta[kernels.N_LANES] = n_lanes
        meta[kernels.STACK] = stack
        meta[kernels.GOP] = gop
        meta[kernels.FRAME_BYTES] = frame_bytes
        meta[kernels.ROW_BYTES] = row_bytes
        meta[kernels.RECORD_KIND] = kernels.SPARSE if codec.name == "sparse" else kernels.DELTA
        meta[kernels.OPEN_PER_LANE] = (stack - 1 + gop - 1) // gop + 1
        meta[kernels.PACKS] = self._packer is not None
        n_words = (frame_bytes + 7) // 8
        map_bytes = 2 * gop * stack
        self._stream_bytes = (
            kernels.HEADER_BYTES
            + 2 * map_bytes
            + gop * stack * (frame_bytes + kernels.RECORD_ROOM)
            + GUARD_BYTES
        )
        max_chunks = self._n_gops * n_lanes
        self._arena = Arena(
            n_rows * n_lanes * stack * (frame_bytes + 16) + max_chunks * (map_bytes + 64),
            max_chunks,
        )
        backgrounds = np.zeros((1, self._padded), np.uint8)
        backgrounds[0, :frame_bytes] = fill
        self._state = GopState(
            meta=meta,
            gop_chunk=reserve(max_chunks, np.uint32),
            open_gop=np.full((n_lanes, int(meta[kernels.OPEN_PER_LANE])), kernels.CLOSED),
            open_next=np.zeros((n_lanes, int(meta[kernels.OPEN_PER_LANE])), np.int64),
            open_frames=np.zeros((n_lanes, int(meta[kernels.OPEN_PER_LANE])), np.int64),
            open_size=np.zeros((n_lanes, int(meta[kernels.OPEN_PER_LANE])), np.int64),
            open_flags=np.zeros((n_lanes, int(meta[kernels.OPEN_PER_LANE])), np.int64),
            open_background=np.zeros((n_lanes, int(meta[kernels.OPEN_PER_LANE])), np.int64),
            open_map=np.zeros((0, 0, 0), np.uint16),
            open_bytes=np.zeros((0, 0), np.uint8),
            head=np.zeros((0, 0, 0), np.uint8),
            head_row=np.full(n_lanes, kernels.STALE, np.int64),
            backgrounds=backgrounds,
            background_uses=np.zeros(1, np.int64),
            candidate=np.zeros((2, 0), np.uint8),
            decode_tables=np.zeros((1, 256, 2), np.uint64),
            encode_tables=np.zeros((1, 1024), np.uint32),
            scratch=np.zeros(17 * n_words + 64 + frame_bytes + kernels.RECORD_ROOM, np.uint8),
        )
        self._trained = 0
        if meta[kernels.RECORD_KIND] == kernels.DELTA:
            build_tables(
                starting_tokens(row_bytes), self._state.decode_tables[0], self._state.encode_tables[0]
            )

    # -- reading -----------------------------------------------------------------------------

    def _read(self, cells: Int64s, out: int, step: int) -> None:
        state, arena = self._state, self._arena.state
        n = len(cells)
        chunk = np.zeros(n, np.int64)
        where = np.zeros(n, np.int64)
        unpacked = np.zeros(n, np.int64)
        counts = np.zeros(2, np.int64)
        kernels.locate(state, cells, chunk, where)
        for order, kept in self._batches(chunk, where, unpacked):
            kernels.decode(
                state, arena, cells, chunk, where, unpacked, order, self._pins, out, step, counts
            )
            del kept
        with self._count_lock:
            self._frames_decoded += int(counts[0])
            self._gops_decoded += int(counts[1])

    def _batches(self, chunk: Int64s, where: Int64s, unpacked: Int64s) -> Iterator[Any]:
        """Orders in which to decode, each with what it needs unpacked."""
        n = len(chunk)
        if self._packer is None:
            # Sorting pays where a group is likely to be asked for by more than one window.
            if n > 8 and n > self._state.meta[kernels.HIGH_GOP] * self._n_lanes // 2:
                yield np.lexsort((where, chunk)), None
            else:
                yield np.arange(n), None
            return
        order = np.lexsort((where, chunk))
        sorted_chunks = chunk[order]
        starts = np.flatnonzero(np.diff(sorted_chunks, prepend=sorted_chunks[:1] - 1))
        ends = np.append(starts[1:], n)
        for first in range(0, len(starts), UNPACK_AT_ONCE):
            kept = []
            last = min(first + UNPACK_AT_ONCE, len(starts))
            for i in range(first, last):
                entry = int(sorted_chunks[starts[i]])
                if entry > 0:
                    stream = self._unpack(entry)
                    if stream is not None:
                        kept.append(stream)
                        unpacked[order[starts[i] : ends[i]]] = address_of(stream)
            yield order[starts[first] : ends[last - 1]], kept

    def _unpack(self, entry: int) -> UInt8s | None:
        """A chunk's stream if it is packed; its last bytes are room to look into."""
        chunk = self._arena.view(entry)
        if not chunk[0] & kernels.PACKED_FLAG:
            return None
        assert self._packer is not None
        header = kernels.HEADER_BYTES
        n_bytes = int.from_bytes(chunk[header : header + 4].tobytes(), "little")
        body = self._packer.unpack(chunk[header + 4 :], n_bytes)
        stream = np.empty(header + n_bytes + GUARD_BYTES, np.uint8)
        stream[:header] = chunk[:header]
        stream[0] &= 255 - kernels.PACKED_FLAG
        stream[header : header + n_bytes] = np.frombuffer(body, np.uint8)
        return stream

    # -- writing -----------------------------------------------------------------------------

    def _write_rows(self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int) -> None:
        n = len(rows)
        if n == 0:
            return
        stream = np.empty(self._stream_bytes, np.uint8)
        done = 0
        while done < n:
            self._make_ready()
            state = self._state
            done, answer = kernels.append_rows(
                state, self._arena.state, lanes, rows, items, frames, done, address_of(stream)
            )
            if answer == kernels.DONE:
                break
            if answer == kernels.WRITTEN_AND_FULL:
                self._close_full(int(lanes[done - 1]), int(rows[done - 1]), stream)
            elif answer == kernels.NO_MEMORY:
                raise MemoryError("the arena is full")
            elif answer == kernels.GROW:
                self._grow_open()
            elif answer == kernels.SEAL:
                lane, row = int(lanes[done]), int(rows[done])
                place = (row + self._stack - 1) // self._gop % state.open_gop.shape[1]
                self._rebuild(lane, int(state.open_gop[lane, place]), stream)
            elif answer == kernels.REOPEN:
                self._reopen(int(lanes[done]), int(rows[done]), stream)
            else:
                done = self._rewrite_rows(lanes, rows, items, frames, done, stream)
        self._after_write(int(rows[-1]))

    def _rewrite_rows(
        self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int, start: int, stream: UInt8s
    ) -> int:
        """Rebuild the groups of row ``start``, and of those behind it in the same group."""
        lane, row = int(lanes[start]), int(rows[start])
        stack, gop_length = self._stack, self._gop
        end = start + 1
        if stack == 1:
            while end < len(rows) and lanes[end] == lane and rows[end] // gop_length == row // gop_length:
                end += 1
        these = rows[start:end]
        addresses = frames + items[start:end] * (stack * self._frame_bytes)
        for gop in range(row // gop_length, (row + stack - 1) // gop_length + 1):
            places = (these[:, None] + np.arange(stack) - gop * gop_length) * stack + np.arange(stack)
            each = addresses[:, None] + np.arange(stack) * self._frame_bytes
            inside = (places >= 0) & (places < gop_length * stack)
            self._rebuild(lane, gop, stream, places[inside], each[inside])
        kernels.set_head(self._state, lane, int(these[-1]), int(addresses[-1]))
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
        stream = np.empty(self._stream_bytes, np.uint8)
        for group in np.split(order, np.flatnonzero(np.diff(keys)) + 1):
            self._make_ready()
            lane, gop = int(lanes[group[0]]), int(gops[group[0]])
            places = (rows[group] + k[group] - gop * gop_length) * stack + k[group]
            self._rebuild(lane, gop, stream, places, frames + group * self._frame_bytes)
            self._state.head_row[lane] = kernels.STALE
        self._after_write(int(rows.max()))

    def _rebuild(
        self,
        lane: int,
        gop: int,
        stream: UInt8s,
        places: Int64s | None = None,
        addresses: Int64s | None = None,
    ) -> None:
        """Encode one group anew, closed, with some of its cells replaced."""
        size, *_ = self._encode_gop(lane, gop, stream, self._n_rows, places, addresses)
        self._put(lane, gop, stream[:size])
        place = gop % self._state.open_gop.shape[1]
        if self._state.open_gop[lane, place] == gop:
            kernels.drop_open(self._state, lane, place)

    def _encode_gop(
        self,
        lane: int,
        gop: int,
        stream: UInt8s,
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
        size, n_frames, flags = kernels.rebuild(
            state,
            lane,
            gop,
            0 if old is None else address_of(old),
            none if places is None else np.ascontiguousarray(places),
            none if addresses is None else np.ascontiguousarray(addresses),
            until,
            scratch,
            address_of(stream),
            numbers,
        )
        return size, n_frames, flags, numbers, scratch[-1]

    def _reopen(self, lane: int, row: int, stream: UInt8s) -> None:
        """Bring the groups that ``row`` goes on into the open form, up to the row before."""
        state = self._state
        stack, gop_length = self._stack, self._gop
        for gop in range(row // gop_length, (row + stack - 1) // gop_length + 1):
            place = gop % state.open_gop.shape[1]
            if state.open_gop[lane, place] == gop or gop * gop_length == row + stack - 1:
                continue
            if state.open_gop[lane, place] != kernels.CLOSED:
                self._rebuild(lane, int(state.open_gop[lane, place]), stream)
            built = self._encode_gop(lane, gop, stream, row - 1)
            size, n_frames, flags, numbers, last_frame = built
            while self._state.open_bytes.shape[1] < size + GUARD_BYTES:
                self._grow_open()
            kernels.open_again(
                self._state, lane, gop, row - 1, address_of(stream), size, n_frames, flags,
                numbers, address_of(last_frame),
            )  # fmt: skip

    def _close_full(self, lane: int, row: int, stream: UInt8s) -> None:
        state = self._state
        for place in range(state.open_gop.shape[1]):
            gop = int(state.open_gop[lane, place])
            last_row = min(self._n_rows - 1, (gop + 1) * self._gop - 1)
            if gop != kernels.CLOSED and last_row == row:
                size = kernels.finish_stream(state, lane, place, address_of(stream))
                self._put(lane, gop, stream[:size])
                kernels.drop_open(state, lane, place)

    def _put(self, lane: int, gop: int, stream: UInt8s) -> None:
        chunk = self._pack(stream)
        if not kernels.put_chunk(
            self._state, self._arena.state, lane, gop, address_of(chunk), len(chunk)
        ):
            raise MemoryError("the arena is full")

    def _pack(self, stream: UInt8s) -> UInt8s:
        if self._packer is None:
            return stream
        header = kernels.HEADER_BYTES
        body = self._packer.pack(stream[header:])
        if len(body) + 4 >= len(stream) - header:
            return stream
        chunk = np.empty(header + 4 + len(body), np.uint8)
        chunk[:header] = stream[:header]
        chunk[0] |= kernels.PACKED_FLAG
        chunk[header : header + 4] = np.frombuffer(
            (len(stream) - header).to_bytes(4, "little"), np.uint8
        )
        chunk[header + 4 :] = np.frombuffer(body, np.uint8)
        return chunk

    # -- what writing needs ------------------------------------------------------------------

    def _make_ready(self) -> None:
        """Have open streams, heads, and a free background."""
        state = self._state
        changes: dict[str, Any] = {}
        if state.head.shape[0] == 0:
            per_lane = state.open_gop.shape[1]
            changes["head"] = np.zeros((self._n_lanes, self._stack, self._padded), np.uint8)
            changes["open_bytes"] = np.zeros((self._n_lanes * per_lane, 256), np.uint8)
            mapped = self._gop * self._stack if self._stack > 1 else 0
            changes["open_map"] = np.zeros((self._n_lanes, per_lane, mapped), np.uint16)
            state.head_row[:] = kernels.STALE
            if state.meta[kernels.RECORD_KIND] == kernels.DELTA:
                changes["candidate"] = np.zeros((2, self._padded), np.uint8)
                state.meta[kernels.VOTES] = 0
        n = len(state.backgrounds)
        used = np.count_nonzero(state.background_uses[1:]) + 1
        if state.meta[kernels.RECORD_KIND] == kernels.DELTA and used + 1 >= n < MAX_BACKGROUNDS:
            grown = np.zeros((min(n + 2, MAX_BACKGROUNDS), self._padded), np.uint8)
            grown[:n] = state.backgrounds
            uses = np.zeros(len(grown), np.int64)
            uses[:n] = state.background_uses
            changes |= {"backgrounds": grown, "background_uses": uses}
        if changes:
            self._state = state._replace(**changes)

    def _grow_open(self) -> None:
        old = self._state.open_bytes
        n, room = old.shape
        grown = np.zeros((n, room + max(room // 4, 256)), np.uint8)
        grown[:, :room] = old
        self._state = self._state._replace(open_bytes=grown)

    def _after_write(self, row: int) -> None:
        state = self._state
        meta = state.meta
        if row == self._n_rows - 1 and meta[kernels.N_OPEN] == 0 and len(state.head):
            # the array is full: nothing is open, nothing need be held for it
            self._state = state._replace(
                head=np.zeros((0, 0, 0), np.uint8),
                open_bytes=np.zeros((0, 0), np.uint8),
                open_map=np.zeros((0, 0, 0), np.uint16),
                candidate=np.zeros((2, 0), np.uint8),
            )
        closed = int(meta[kernels.N_CLOSED])
        if (
            self._trained < len(TRAIN_AFTER_GOPS)
            and meta[kernels.RECORD_KIND] == kernels.DELTA
            and closed >= TRAIN_AFTER_GOPS[self._trained]
        ):
            while self._trained < len(TRAIN_AFTER_GOPS) and closed >= TRAIN_AFTER_GOPS[self._trained]:
                self._trained += 1
            self._train_table()
        if (
            self._packer is not None
            and not self._packer.trained
            and closed >= PACK_TRAIN_AFTER_GOPS
        ):
            self._train_packer()
        self._arena.tidy()

    def _some_streams(self) -> list[UInt8s]:
        """Streams of closed groups, spread over those held."""
        references = self._arena.state.references
        held = np.flatnonzero(references[: int(self._arena.state.meta[N_ENTRIES])])
        chosen = held[:: -(-len(held) // TRAIN_ON_GOPS)] if len(held) else held
        streams = []
        for entry in chosen.tolist():
            stream = self._unpack(entry)
            streams.append(self._arena.view(entry) if stream is None else stream[:-GUARD_BYTES])
        return streams

    def _train_table(self) -> None:
        """Give the tokens seen most often so far a byte each."""
        state = self._state
        room = sum(map(len, streams := self._some_streams()))
        keys = np.empty(room + 1, np.int64)
        n = 0
        for stream in streams:
            header = kernels.HEADER_BYTES
            if stream[0] & kernels.MAP_FLAG:
                header += 2 * self._gop * self._stack
            table = int(stream[0]) >> kernels.TABLE_SHIFT & kernels.TABLE_MASK
            n = read_tokens(
                address_of(stream) + header,
                int(stream[2]) + 256 * int(stream[3]),
                self._frame_bytes,
                state.decode_tables[table],
                keys,
                n,
            )
        unique, counts = np.unique(keys[:n], return_counts=True)
        ranked = unique[np.argsort(-counts, kind="stable")]
        decode = np.zeros((1, 256, 2), np.uint64)
        encode = np.zeros((1, 1024), np.uint32)
        build_tables(ranked, decode[0], encode[0])
        self._state = state._replace(
            decode_tables=np.concatenate([state.decode_tables, decode]),
            encode_tables=np.concatenate([state.encode_tables, encode]),
        )
        state.meta[kernels.TABLE] = len(self._state.decode_tables) - 1

    def _train_packer(self) -> None:
        """Train the dictionary on what is held, and pack that anew."""
        assert self._packer is not None
        arena = self._arena
        entries = np.flatnonzero(arena.state.references[: int(arena.state.meta[N_ENTRIES])]).tolist()
        header = kernels.HEADER_BYTES
        streams = {}
        for entry in entries:
            stream = self._unpack(entry)
            streams[entry] = (
                arena.view(entry).copy() if stream is None else stream[:-GUARD_BYTES].copy()
            )
        self._packer.train([streams[entry][header:].tobytes() for entry in entries])
        counted = self._state.meta[[kernels.N_CLOSED, kernels.N_EVICTED]]
        for index in np.flatnonzero(self._state.gop_chunk[: self._used_gops()]).tolist():
            entry = int(self._state.gop_chunk[index])
            gop, lane = divmod(index, self._n_lanes)
            self._put(lane, gop, streams[entry])
        self._state.meta[[kernels.N_CLOSED, kernels.N_EVICTED]] = counted

    def _used_gops(self) -> int:
        return int(self._state.meta[kernels.HIGH_GOP]) * self._n_lanes

    # -- accounting --------------------------------------------------------------------------

    def _bytes_by_part(self) -> dict[str, int]:
        state = self._state
        tables = state.decode_tables.nbytes + state.encode_tables.nbytes
        open_parts = (
            state.open_bytes, state.open_map, state.open_gop, state.open_next, state.open_frames,
            state.open_size, state.open_flags, state.open_background, state.head, state.head_row,
        )  # fmt: skip
        parts = {
            "arena": self._arena.nbytes,
            "index": 4 * self._used_gops(),
            "open": sum(part.nbytes for part in open_parts),
            "backgrounds": state.backgrounds.nbytes + state.candidate.nbytes,
            "tables": tables + state.scratch.nbytes,
        }
        if self._packer is not None:
            parts["packer"] = self._packer.nbytes
        return parts

    def _report(self) -> dict[str, int]:
        meta = self._state.meta
        return {
            "gop_length": self._gop,
            "gops_closed": int(meta[kernels.N_CLOSED]),
            "gops_evicted": int(meta[kernels.N_EVICTED]),
            "gops_open": int(meta[kernels.N_OPEN]),
            "frames_encoded": int(meta[kernels.N_ENCODED]),
        }

    # -- pickling ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        used = self._used_gops()
        packed = state["_state"]._asdict()
        packed["gop_chunk"] = packed["gop_chunk"][:used].copy()
        state["_state"] = packed
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = dict(state["_state"])
        gop_chunk = reserve(state["_n_gops"] * state["_n_lanes"], np.uint32)
        gop_chunk[: len(packed["gop_chunk"])] = packed["gop_chunk"]
        packed["gop_chunk"] = gop_chunk
        super().__setstate__({**state, "_state": GopState(**packed)})
