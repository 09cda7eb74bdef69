"""Frames coded alone, each distinct one once: raw, or by a numcodecs codec."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from compressarray.codecs import Codec
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of, copy_bytes, load64, load_tail, same_bytes
from compressarray.snapshots import Snapshot, array_of, int_of, part_of
from compressarray.store.arena import (
    MAX_REFERENCES,
    N_ENTRIES,
    PAGE_SHIFT,
    Arena,
    Table,
    allocate,
    chunk_start,
    put_chunks,
    release,
    share,
    take_chunks,
)
from compressarray.store.base import Int64s, Store, UInt8s, address_of
from compressarray.store.changes import NOT_KEPT, list_change, listed, ring_of_changes
from compressarray.store.description import RAW, Description
from compressarray.store.geometry import Geometry

# Recent frames that a new one is compared with: a row of all lanes and stacks, with room to
# spare, for up to as many environments as run on one machine.
RECENT = 4096
FIRST_LOG_ROWS, ROWS_AT_ONCE = 16, 1024  # of notes on cells that change, and written at once
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)  # xxHash64's first two primes
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)

# A frame that its codec does not make smaller is kept as it is. Its size says so.


class FrameStore(Store):
    """Cells that name chunks: one for each distinct frame among the recent ones."""

    def __init__(self, geometry: Geometry, fill: UInt8s, codec: Codec) -> None:
        super().__init__(geometry, codec)
        n_cells, frame_bytes = geometry.n_cells, geometry.frame_bytes
        self._codec = codec.foreign
        self._name = codec.name
        self._n_evicted = 0
        self._cells = Table(n_cells)
        # A write holds what it replaces until it is done.
        self._arena = Arena(2 * n_cells * frame_bytes, 2 * n_cells, frame_bytes)
        # How many cells the write that runs has changed, and how many were changed ever; from row
        # 1 on, each one and the entry that it had.
        self._log = np.zeros((FIRST_LOG_ROWS, 2), np.int64)
        self._changes = NOT_KEPT
        self._recent = np.zeros(min(RECENT, 1 << max(n_cells - 1, 1).bit_length()), np.uint32)
        self._fill: UInt8s = fill.copy()
        self._n_encoded = 0

    @property
    def is_mapped(self) -> bool:
        """Whether the frames lie in a file, and nothing may be written."""
        return self._arena.is_mapped

    def _read(self, cells: Int64s, out: UInt8s) -> None:
        if self._arena.is_mapped:
            entries = np.unique(self._cells.data[cells[cells >= 0]])
            self._arena.mark_verified(self._arena.verify(entries))
        if self._codec is None:
            seen = np.zeros(1 << (2 * len(cells)).bit_length(), np.uint32)
            n = read_raw(
                self._arena.state, self._cells.data, self._fill, self._pins, cells, out, seen
            )
        else:
            n = self._read_coded(cells, out)
        with self._count_lock:
            self._frames_decoded += n
            self._gops_decoded += n

    def _read_coded(self, cells: Int64s, out: UInt8s) -> int:
        frames = out.reshape(len(cells), -1)
        n = 0
        last = -1
        frame = self._fill
        entries = cells.copy()
        held = cells >= 0
        entries[held] = self._cells.data[cells[held]]
        for i in np.argsort(entries, kind="stable").tolist():
            entry = int(entries[i])
            if entry < 0:
                frame = self._pins[-1 - entry]
            elif entry == 0:
                frame = self._fill
            elif entry != last:
                frame = self._decode(entry)
                n += 1
            last = entry
            frames[i] = frame
        return n

    def _decode(self, entry: int) -> UInt8s:
        chunk = self._arena.view(entry)
        if len(chunk) == self._frame_bytes:
            return chunk
        decoded = self._decoded(chunk)
        if decoded.nbytes != self._frame_bytes:
            raise CorruptFrameError(
                f"codec {self._name!r} gave {decoded.nbytes} bytes for a frame of "
                f"{self._frame_bytes}"
            )
        return decoded

    def _decoded(self, chunk: UInt8s) -> UInt8s:
        decoded = np.ascontiguousarray(self._codec.decode(chunk.tobytes()))
        flat: UInt8s = decoded.reshape(-1).view(np.uint8)
        return flat

    def _write_rows(self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int) -> None:
        stack = self._stack
        cells = ((rows * self._n_lanes + lanes) * stack)[:, None] + np.arange(stack)
        places = (items * stack)[:, None] + np.arange(stack)
        self._write(cells.ravel(), frames + places.ravel() * self._frame_bytes)

    def _write_cells(self, cells: Int64s, frames: int) -> None:
        self._write(cells, frames + np.arange(len(cells)) * self._frame_bytes)

    def _write(self, cells: Int64s, addresses: Int64s) -> None:
        self._cells.touched[cells >> PAGE_SHIFT] = 1
        if self._codec is not None:
            for cell, address in zip(cells.tolist(), addresses.tolist(), strict=True):
                self._write_coded(cell, address)
            return
        for start in range(0, len(cells), ROWS_AT_ONCE):
            batch = cells[start : start + ROWS_AT_ONCE]
            self._have_log(len(batch))
            written = write_raw(
                self._arena.state, self._cells.data, self._cells.noted, self._changes,
                self._recent, self._frame_bytes,
                batch, addresses[start : start + ROWS_AT_ONCE], self._log,
            )  # fmt: skip
            self._n_encoded += written
            if written < len(batch):
                raise MemoryError("the arena is full")

    def _write_coded(self, cell: int, address: int) -> None:
        state, n_bytes = self._arena.state, self._frame_bytes
        slot = int(hash_frame(address, n_bytes)) % len(self._recent)
        frame = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
        entry = int(self._recent[slot])
        known = (
            entry > 0
            and 0 < state.references[entry] < MAX_REFERENCES
            and np.array_equal(self._decode(entry), frame)
        )
        chunk = frame if known else self._encode(frame)
        self._have_log(1)
        if not write_cell(
            state, self._cells.data, self._cells.noted, self._changes, self._recent, cell,
            entry if known else 0, slot, address_of(chunk), chunk.nbytes, self._log,
        ):  # fmt: skip
            raise MemoryError("the arena is full")
        self._n_encoded += not known

    def _forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None:
        for lane in range(self._n_lanes):
            start = max(int(first[lane]), int(counts[lane]) - self._n_rows)
            rows = np.arange(start, int(end[lane])) % self._n_rows
            self._have_log(len(rows))
            clear_cells(
                self._arena.state, self._cells.data, self._cells.noted, self._changes,
                rows * self._n_lanes + lane, self._log,
            )  # fmt: skip

    def _have_log(self, n_rows: int) -> None:
        """Have room for so many changes of cells."""
        used = int(self._log[0, 0]) + 1
        if len(self._log) - used < n_rows:
            grown = np.zeros((used + used // 2 + n_rows, 2), np.int64)
            grown[:used] = self._log[:used]
            self._log = grown

    def _finish(self) -> None:
        self._n_evicted += finish_cells(self._arena.state, self._cells.noted, self._log)

    def _roll_back(self) -> None:
        roll_back_cells(self._arena.state, self._cells.data, self._cells.noted, self._log)

    def _is_untidy(self) -> bool:
        return self._arena.is_untidy or len(self._log) > FIRST_LOG_ROWS + ROWS_AT_ONCE

    def _tidy(self) -> None:
        if len(self._log) > FIRST_LOG_ROWS + ROWS_AT_ONCE:
            shorter = np.zeros((FIRST_LOG_ROWS, 2), np.int64)
            shorter[0] = self._log[0]
            self._log = shorter
        self._arena.tidy()

    def _encode(self, frame: UInt8s) -> UInt8s:
        coded = np.frombuffer(self._codec.encode(frame.copy()), np.uint8)
        if coded.nbytes >= self._frame_bytes:
            return frame
        if not np.array_equal(self._decoded(coded), frame):
            raise ValueError(
                f"codec {self._name!r} does not give back what it was given; only lossless codecs "
                "of bytes can be used"
            )
        return coded

    # -- replicas ----------------------------------------------------------------------------

    def _watch(self) -> None:
        if not len(self._changes):
            self._changes = ring_of_changes(len(self._cells.data))

    def mark(self) -> tuple[int, int]:
        """Remember what a replica has that is filled now."""
        return int(self._log[0, 1]), len(self._pins)

    def put_changes(self, message: Message, mark: tuple[int, int]) -> bool:
        """Add what has changed since a mark; see `Store.put_changes`."""
        first, n_pins = mark
        cells = listed(self._changes, first, int(self._log[0, 1]))
        if cells is None:
            return False
        self._put_pins(message, n_pins)
        put_chunks(message, cells, self._cells.data[cells], self._arena.state)
        return True

    def put_everything(self, message: Message) -> None:
        """See `Store.put_everything`."""
        self._put_pins(message, 0)
        cells = self._cells.held()
        put_chunks(message, cells, self._cells.data[cells], self._arena.state)

    def describe(self) -> Description | None:
        """See `Store.describe`; numcodecs' codecs run on the CPU only."""
        if self._codec is not None:
            return None
        n_cells = self._geometry.n_cells
        return Description(
            RAW, n_cells, n_cells, self._n_lanes, self._stack, 1, 0, 0, self._frame_bytes,
            self._geometry.row_bytes, 0, False, self._frame_bytes, 0, self._fill,
        )  # fmt: skip

    def _take(self, items: Items) -> None:
        self._take_pins(items)
        given = take_chunks(items, len(self._cells.data))
        if given is None:
            return
        cells, chunks, sizes, data = given
        if (sizes > self._frame_bytes).any() or (
            self._codec is None and (sizes != self._frame_bytes).any()
        ):
            raise CorruptFrameError(f"a message has frames that are not {self._frame_bytes} bytes")
        self._cells.touched[cells >> PAGE_SHIFT] = 1
        self._have_log(len(cells))
        if not put_cells(
            self._arena.state, self._cells.data, self._cells.noted, self._changes, self._recent,
            cells, chunks, sizes, data, self._log,
        ):  # fmt: skip
            raise MemoryError("the arena is full")

    def _snapshot(self) -> Snapshot:
        chunks, numbers = self._arena.snapshot(self._cells)
        return {
            "chunks": chunks,
            "recent": numbers[self._recent],
            "n_encoded": self._n_encoded,
            "n_evicted": self._n_evicted,
        }

    def _restore(self, snapshot: Snapshot, is_ours: bool) -> None:  # noqa: ARG002
        chunks = part_of(snapshot, "chunks")
        # A frame that its codec does not make smaller lies there as it is.
        sizes = array_of(chunks, "sizes", np.uint32, (None,), 0, self._frame_bytes)
        if self._codec is None and (sizes != self._frame_bytes).any():
            raise CorruptFrameError(f"a stored raw frame has not {self._frame_bytes} bytes")
        self._arena.restore(chunks, self._cells)
        recent = array_of(snapshot, "recent", np.uint32, self._recent.shape, 0, len(sizes))
        self._recent = recent
        self._n_encoded = int_of(snapshot, "n_encoded", 0)
        self._n_evicted = int_of(snapshot, "n_evicted", 0)

    def _fill_frame(self) -> UInt8s:
        return self._fill

    def _bytes_by_part(self) -> dict[str, int]:
        return {
            "arena": self._arena.nbytes,
            "index": self._cells.nbytes,
            "recent": self._recent.nbytes
            + self._fill.nbytes
            + self._log.nbytes
            + self._changes.nbytes,
        }

    def _report(self) -> dict[str, int]:
        return {
            "gop_length": 1,
            "gops_closed": self._n_encoded,
            "gops_evicted": self._n_evicted,
            "gops_open": 0,
            "frames_encoded": self._n_encoded,
            "chunks": int(self._arena.state.meta[N_ENTRIES]) - 1,
        }


@kernel
def hash_frame(address: Any, n_bytes: Any) -> Any:
    """A quick 64-bit hash: four interleaved chains of multiply and rotate, as in xxHash64."""
    chains = (np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4))
    a, b, c, d = chains
    whole = n_bytes >> 3
    i = 0
    while i + 4 <= whole:
        p = address + (i << 3)
        a = (a ^ load64(p)) * _PRIME_1
        b = (b ^ load64(p + 8)) * _PRIME_1
        c = (c ^ load64(p + 16)) * _PRIME_1
        d = (d ^ load64(p + 24)) * _PRIME_1
        a ^= a >> np.uint64(29)
        b ^= b >> np.uint64(31)
        c ^= c >> np.uint64(30)
        d ^= d >> np.uint64(32)
        i += 4
    while i < whole:
        a = (a ^ load64(address + (i << 3))) * _PRIME_1
        a ^= a >> np.uint64(29)
        i += 1
    if n_bytes & 7:
        b = (b ^ load_tail(address + (whole << 3), n_bytes & 7)) * _PRIME_1
    mixed = (a * _PRIME_2) ^ (b * _PRIME_1) ^ (c + _PRIME_2) ^ (d * _PRIME_2 + _PRIME_1)
    mixed ^= mixed >> np.uint64(32)
    mixed *= _PRIME_2
    return mixed >> np.uint64(33)


@kernel
def read_raw(arena: Any, cell_chunk: Any, fill: Any, pins: Any, cells: Any, out: Any,
             seen: Any) -> Any:  # fmt: skip
    """Copy cells to ``out``, one after the other; return how many distinct frames they hold.

    ``seen`` is a hash set: zeros, a power of two above twice the cells.
    """
    n_bytes = len(fill)
    base = base_of(arena.memory)
    n = 0
    last = np.int64(0)
    for i in range(len(cells)):
        cell = cells[i]
        source = base_of(fill)
        if cell < 0:
            source = base_of(pins) + (-1 - cell) * n_bytes
        elif cell_chunk[cell] != 0:
            entry = np.int64(cell_chunk[cell])
            source = base + chunk_start(arena, entry)
            if entry != last:
                slot = entry & (len(seen) - 1)
                while seen[slot] != 0 and seen[slot] != entry:
                    slot = (slot + 1) & (len(seen) - 1)
                n += seen[slot] == 0
                seen[slot] = entry
            last = entry
        copy_bytes(base_of(out) + i * n_bytes, source, n_bytes)
    return n


@kernel
def _set_cell(arena: Any, cell_chunk: Any, noted: Any, changes: Any, cell: Any, entry: Any,
              log: Any) -> None:  # fmt: skip
    """Let a cell name an entry; note the one before, or let it go if this write put it there."""
    before = np.int64(cell_chunk[cell])
    cell_chunk[cell] = np.uint32(entry)
    if not noted[cell]:
        noted[cell] = 1
        list_change(changes, log[0, 1], cell)
        log[0, 1] += 1
        log[0, 0] += 1
        log[log[0, 0], 0] = cell
        log[log[0, 0], 1] = before
    elif before:
        release(arena, before)


@kernel
def write_raw(arena: Any, cell_chunk: Any, noted: Any, changes: Any, recent: Any, n_bytes: Any,
              cells: Any, addresses: Any, log: Any) -> Any:  # fmt: skip
    """Store frames in cells, equal ones of late once; return how many found room."""
    for i in range(len(cells)):
        base = base_of(arena.memory)
        slot = np.int64(hash_frame(addresses[i], n_bytes)) % len(recent)
        entry = np.int64(recent[slot])
        if (
            entry > 0
            and 0 < arena.references[entry] < MAX_REFERENCES
            and same_bytes(base + chunk_start(arena, entry), addresses[i], n_bytes)
        ):
            arena.references[entry] += np.uint16(1)
        else:
            entry = allocate(arena, n_bytes)
            if entry < 0:
                return i
            copy_bytes(base + chunk_start(arena, entry), addresses[i], n_bytes)
            recent[slot] = np.uint32(entry)
        _set_cell(arena, cell_chunk, noted, changes, cells[i], entry, log)
    return len(cells)


@kernel
def write_cell(arena: Any, cell_chunk: Any, noted: Any, changes: Any, recent: Any, cell: Any,
               entry: Any, slot: Any, chunk: Any, n_bytes: Any, log: Any) -> Any:  # fmt: skip
    """Let a cell share an entry or, of 0, have a copy of a chunk; return whether it found room."""
    if entry > 0:
        arena.references[entry] += np.uint16(1)
    else:
        entry = allocate(arena, n_bytes)
        if entry < 0:
            return False
        copy_bytes(base_of(arena.memory) + chunk_start(arena, entry), chunk, n_bytes)
        recent[slot] = np.uint32(entry)
    _set_cell(arena, cell_chunk, noted, changes, cell, entry, log)
    return True


@kernel
def clear_cells(arena: Any, cell_chunk: Any, noted: Any, changes: Any, cells: Any,
                log: Any) -> None:  # fmt: skip
    """Let cells name nothing."""
    for cell in cells:
        if cell_chunk[cell] != 0:
            _set_cell(arena, cell_chunk, noted, changes, cell, 0, log)


@kernel
def put_cells(arena: Any, cell_chunk: Any, noted: Any, changes: Any, recent: Any, cells: Any,
              chunks: Any, sizes: Any, data: Any, log: Any) -> Any:  # fmt: skip
    """Let cells hold chunks, numbered from 1 on, 0 for none; return whether there is room.

    Chunks that are held already, among the recent ones, are held once.
    """
    entries = np.zeros(len(sizes) + 1, np.int64)
    starts = np.empty(len(sizes) + 1, np.int64)
    starts[0] = 0
    for i in range(len(sizes)):
        starts[i + 1] = starts[i] + sizes[i]
    for i in range(len(cells)):
        number = chunks[i]
        entry = entries[number]
        if number > 0:
            n_bytes = sizes[number - 1]
            source = base_of(data) + starts[number - 1]
            slot = np.int64(hash_frame(source, n_bytes)) % len(recent)
            if entry == 0:
                entry = np.int64(recent[slot])
            if not share(arena, entry, source, n_bytes):
                entry = allocate(arena, n_bytes)
                if entry < 0:
                    return False
                copy_bytes(base_of(arena.memory) + chunk_start(arena, entry), source, n_bytes)
                recent[slot] = np.uint32(entry)
            entries[number] = entry
        _set_cell(arena, cell_chunk, noted, changes, cells[i], entry, log)
    return True


@kernel
def finish_cells(arena: Any, noted: Any, log: Any) -> Any:
    """Let go of the entries that cells had; return how many frames are gone."""
    n_gone = 0
    for i in range(1, log[0, 0] + 1):
        noted[log[i, 0]] = 0
        if log[i, 1] != 0:
            n_gone += release(arena, log[i, 1])
    log[0, 0] = 0
    return n_gone


@kernel
def roll_back_cells(arena: Any, cell_chunk: Any, noted: Any, log: Any) -> None:
    """Give cells back the entries that they had."""
    for i in range(log[0, 0], 0, -1):
        noted[log[i, 0]] = 0
        written = np.int64(cell_chunk[log[i, 0]])
        cell_chunk[log[i, 0]] = np.uint32(log[i, 1])
        if written:
            release(arena, written)
    log[0, 0] = 0
