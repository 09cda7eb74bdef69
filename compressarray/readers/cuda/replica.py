"""A replica of a store in a device's memory, kept in step, that decodes what is asked for."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.codecs.codebooks import Codebooks
from compressarray.errors import CorruptFrameError
from compressarray.format.groups import DELTA, MAP_FLAG
from compressarray.format.messages import Items, Message
from compressarray.format.records import record_room
from compressarray.kernels.compiling import plain
from compressarray.readers.cuda.blocks import SIZE_BYTES, Blocks
from compressarray.readers.cuda.device import WARPS_A_BLOCK, Device, Memory
from compressarray.readers.cuda.pieces import Pieces
from compressarray.readers.cuda.source import (
    FIELDS,
    GUARD_BYTES,
    MAX_WORDS_IN_FRAME,
    OPEN_FIELDS,
    RAW,
    REASONS,
)
from compressarray.store import Store
from compressarray.store import gop_feed as feed
from compressarray.store import gop_layout as layout
from compressarray.store.arena import take_chunks
from compressarray.store.description import Description

Int64s = npt.NDArray[np.int64]

_AT = {name: i for i, name in enumerate(FIELDS)}
_OPEN_AT = {name: i for i, name in enumerate(OPEN_FIELDS)}
_INDEX_BYTES = 4
# Of scratch for all warps together: more of them than that wait for others to be done.
_SCRATCH_BYTES = 1 << 25
MOST_CHUNK_BYTES = 1 << 30
_LEAST_ROOM = 1 << 12  # of the records of an open group


def can_be_decoded(described: Description | None) -> bool:
    """Whether the kernels decode such a store: places in a chunk are 31 bits there."""
    return (
        described is not None
        and described.frame_bytes < 8 * MAX_WORDS_IN_FRAME
        and described.most_chunk_bytes < MOST_CHUNK_BYTES
    )


class Replica:
    """What a store holds, in a device's memory.

    Whoever fills it, or follows with it, holds off writes of the store meanwhile; `decode` needs
    no such thing, and gives what the store held when it was followed last.

    Parameters
    ----------
    device : Device
    store : Store
        One that `describes` itself.

    Raises
    ------
    DeviceError
        If the device has too little memory; so do the methods, and what a replica holds is then
        nothing that can be used.
    """

    def __init__(self, device: Device, store: Store) -> None:
        self._device = device
        self._lock = threading.Lock()
        described = store.describe()
        assert described is not None
        self._described = described
        self._store = store
        self._row = 8 * len(OPEN_FIELDS)
        self.n_bytes_sent = 0
        with device.work():
            self._begin()

    # -- what is held --------------------------------------------------------------------------

    def _begin(self) -> None:
        said, allocate = self._described, self._device.allocate
        self._mark: Any = None
        self._is_fresh = True
        self._codebooks: Codebooks | None = None
        if said.kind == DELTA:
            self._codebooks = Codebooks.starting(said.row_bytes, said.most_books, said.pixel_bytes)
        self._padded = (said.frame_bytes + 7) // 8 * 8 + 8
        self._blocks = Blocks(allocate, said.most_chunk_bytes)
        self._index = allocate(_INDEX_BYTES * said.n_places)
        # Of each place, where its chunk lies plus one, and its bytes; of chunks that several
        # places name, how many do.
        self._at = np.zeros(said.n_places, np.int64)
        self._size = np.zeros(said.n_places, np.uint32)
        self._shared: dict[int, int] = {}
        self._open = allocate(self._row * max(said.n_open, 1))
        self._open_sizes = np.zeros(said.n_open, np.int64)
        self._open_room = _LEAST_ROOM
        self._open_bytes = allocate(self._open_room * max(said.n_open, 1))
        self._open_maps = allocate(max(2 * said.map_cells * said.n_open, 8))
        self._frames = np.zeros((1, self._padded), np.uint8)  # the backgrounds
        self._frames[0, : said.frame_bytes] = said.fill
        self._backgrounds = self._sent(self._frames)
        self._n_pins = 0
        self._pins = allocate(self._padded)
        self._books = allocate(8)
        self._n_books = 0
        self._table = self._sent(self._blocks.table())
        self._status = self._device.flag()
        self._scratch = allocate(8)
        self._asked: Memory = allocate(8)  # what a kernel was asked for last
        closed = np.zeros((said.n_open, len(OPEN_FIELDS)), np.int64)
        closed[:, _OPEN_AT["OPEN_GOP"]] = layout.CLOSED
        pieces = Pieces()
        pieces.put(self._open.address, closed)
        self._send(pieces)

    @property
    def nbytes(self) -> int:
        """Bytes of the device's memory that are held."""
        with self._lock:
            memories = (
                self._index, self._open, self._open_bytes, self._open_maps, self._backgrounds,
                self._pins, self._books, self._table, self._scratch, self._asked,
            )  # fmt: skip
            return self._blocks.nbytes + sum(memory.nbytes for memory in memories)

    def _sent(self, values: npt.NDArray[Any]) -> Memory:
        """Memory that holds what an array does."""
        flat = values.reshape(-1).view(np.uint8)
        staged = self._device.stage(len(flat) + GUARD_BYTES)
        staged.host[: len(flat)] = flat
        staged.host[len(flat) :] = 0
        self._device.send(staged)
        self.n_bytes_sent += len(flat)
        return staged.memory

    def _send(self, pieces: Pieces) -> None:
        self.n_bytes_sent += pieces.send(self._device)

    # -- following -----------------------------------------------------------------------------

    def follow(self) -> None:
        """Take over what has changed in the store since the last call; at first, everything."""
        with self._device.work(), self._lock:
            message = Message()
            if self._mark is None or not self._store.put_changes(message, self._mark):
                if not self._is_fresh:
                    self._begin()
                self._store.watch()
                message = Message()
                self._store.put_everything(message)
            # What is cut off on the way is filled anew.
            self._mark, self._is_fresh = None, False
            self._take(Items(message.finished()))
            self._mark = self._store.mark()
            self._know_request()

    def _take(self, items: Items) -> None:
        said = self._described
        pieces = Pieces()
        self._take_pins(items, pieces)
        if said.kind == RAW:
            self._take_chunks(items, pieces)
        else:
            if self._codebooks is not None:
                self._take_books(items)
            self._take_backgrounds(items)
            self._take_chunks(items, pieces)
            self._take_open(items, pieces)
        items.end()
        self._send(pieces)
        self._clean()
        self._blocks.give_back()
        if self._blocks.changed:
            self._blocks.changed = False
            self._table = self._sent(self._blocks.table())

    def _take_pins(self, items: Items, pieces: Pieces) -> None:
        n_known, more = items.number(0, self._n_pins), items.octets()
        frames = more.reshape(-1, self._described.frame_bytes)
        n = n_known + len(frames)
        if n * self._padded > self._pins.nbytes:
            grown = self._device.allocate(2 * n * self._padded)
            move = Pieces()
            move.move(grown.address, self._pins.address, n_known * self._padded)
            self._send(move)
            self._pins = grown
        if len(frames):
            padded = np.zeros((len(frames), self._padded), np.uint8)
            padded[:, : frames.shape[1]] = frames
            pieces.put(self._pins.address + n_known * self._padded, padded)
        self._n_pins = n

    def _take_books(self, items: Items) -> None:
        known = self._codebooks
        assert known is not None
        books = known.taken(items, packs=self._described.packs)
        if books is known and self._n_books:
            return
        self._codebooks = books
        self._books = self._sent(books.data[: books.n_read_bytes])
        self._n_books = len(books.books)

    def _take_backgrounds(self, items: Items) -> None:
        numbers = items.ints(least=0)
        if not len(numbers):
            return
        n, _, *changed = numbers.tolist()
        frames = np.zeros((max(n, len(self._frames)), self._padded), np.uint8)
        frames[: len(self._frames)] = self._frames
        frames[changed] = items.octets(len(changed) * self._padded).reshape(-1, self._padded)
        self._frames = frames
        self._backgrounds = self._sent(frames)

    def _take_chunks(self, items: Items, pieces: Pieces) -> None:
        given = take_chunks(items, self._described.n_places)
        if given is None:
            return
        places, chunks, sizes, data = given
        starts = np.cumsum(sizes) - sizes
        put: dict[int, int] = {}  # where each chunk of the message went
        entries = np.zeros(len(places), np.uint32)
        for i, (place, chunk) in enumerate(zip(places.tolist(), chunks.tolist(), strict=True)):
            before, size_before = int(self._at[place]) - 1, int(self._size[place])
            self._at[place] = self._size[place] = 0
            if chunk:
                size = int(sizes[chunk - 1])
                at = put.get(chunk)
                if at is None:
                    at = put[chunk] = self._blocks.take(size)
                    start = int(starts[chunk - 1])
                    chunk_bytes = np.empty(SIZE_BYTES + size, np.uint8)
                    chunk_bytes[:SIZE_BYTES] = np.array([size], np.int64).view(np.uint8)
                    chunk_bytes[SIZE_BYTES:] = data[start : start + size]
                    pieces.put(self._blocks.address(at), chunk_bytes)
                else:
                    self._shared[at] = self._shared.get(at, 1) + 1
                self._at[place], self._size[place] = at + 1, size
                entries[i] = (at >> 3) + 1
            if before >= 0:
                self._let_go(before, size_before)
        self._put_entries(pieces, places, entries)

    def _let_go(self, at: int, size: int) -> None:
        n = self._shared.pop(at, 1)
        if n > 2:
            self._shared[at] = n - 1
        if n == 1:
            self._blocks.let_go(at, size)

    def _put_entries(self, pieces: Pieces, places: Int64s, entries: npt.NDArray[np.uint32]) -> None:
        """Let the index name chunks; ``places`` are in order, and runs of them one piece."""
        firsts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
        sizes = np.diff(firsts, append=len(places))
        pieces.put_each(
            self._index.address + _INDEX_BYTES * places[firsts], _INDEX_BYTES * sizes, entries
        )

    def _clean(self) -> None:
        """Move chunks out of blocks that hold little else than garbage."""
        for block in self._blocks.to_clean():
            places = np.flatnonzero(
                (self._at > 0) & ((self._at - 1) >> self._blocks.shift == block)
            )
            pieces = Pieces()
            moved: dict[int, int] = {}
            entries = np.zeros(len(places), np.uint32)
            for i, place in enumerate(places.tolist()):
                before, size = int(self._at[place]) - 1, int(self._size[place])
                at = moved.get(before)
                if at is None:
                    at = moved[before] = self._blocks.take(size)
                    pieces.move(
                        self._blocks.address(at), self._blocks.address(before), SIZE_BYTES + size
                    )
                    if before in self._shared:
                        self._shared[at] = self._shared.pop(before)
                self._at[place] = at + 1
                entries[i] = (at >> 3) + 1
            self._put_entries(pieces, places, entries)
            self._send(pieces)
            sizes = {
                int(at): int(n) for at, n in zip(self._at[places], self._size[places], strict=True)
            }
            for before, at in moved.items():
                self._blocks.let_go(before, sizes[at + 1])

    def _take_open(self, items: Items, pieces: Pieces) -> None:
        table = items.ints().reshape(feed.N_COLUMNS, -1)
        maps, records = items.octets().view(np.uint16), items.octets()
        n_map = self._described.map_cells
        room = int(table[feed.SIZE].max(initial=0)) + GUARD_BYTES
        if room > self._open_room:
            self._grow_open(room)
        rows = np.zeros((table.shape[1], len(OPEN_FIELDS)), np.int64)
        for name, column in (
            ("OPEN_GOP", feed.GROUP),
            ("OPEN_NEXT", feed.NEXT),
            ("OPEN_FRAMES", feed.FRAMES),
            ("OPEN_FLAGS", feed.FLAGS),
            ("OPEN_BACKGROUND", feed.CHOSEN),
            ("OPEN_SIZE", feed.SIZE),
        ):
            rows[:, _OPEN_AT[name]] = table[column]
        slots, starts, sizes = (table[k] for k in (feed.SLOT, feed.START, feed.SIZE))
        pieces.put_each(
            self._open.address + self._row * slots, np.full(len(slots), self._row), rows
        )
        self._open_sizes[slots] = sizes
        of_map = slots[table[feed.FLAGS] & MAP_FLAG != 0]
        pieces.put_each(
            self._open_maps.address + 2 * n_map * of_map, np.full(len(of_map), 2 * n_map), maps
        )
        grown = sizes > starts
        pieces.put_each(
            self._open_bytes.address + self._open_room * slots[grown] + starts[grown],
            (sizes - starts)[grown],
            records,
        )

    def _grow_open(self, least: int) -> None:
        room = max(2 * self._open_room, 1 << (least - 1).bit_length())
        grown = self._device.allocate(room * len(self._open_sizes))
        pieces = Pieces()
        for slot in np.flatnonzero(self._open_sizes).tolist():
            pieces.move(
                grown.address + room * slot,
                self._open_bytes.address + self._open_room * slot,
                int(self._open_sizes[slot]),
            )
        self._send(pieces)
        self._open_bytes, self._open_room = grown, room

    # -- decoding ------------------------------------------------------------------------------

    def decode(self, cells: Int64s, frames: Any) -> None:
        """Decode cells into what `Device.frames` gave, or into a part of it.

        Parameters
        ----------
        cells : ndarray, (n,) int64
            As `Store.read` takes them.
        frames
            Room for ``n * frame bytes``; from a multiple of 8 on where a frame's bytes are one, or
            of 4.

        Raises
        ------
        CorruptFrameError
            If what an earlier call has read is corrupt.
        DeviceError
            If there is too little memory to work with.
        """
        with self._device.work(), self._lock:
            self._hear()
            if len(cells):
                self._launch(cells, self._device.address_of(frames))

    def check(self) -> None:
        """Wait until all is decoded; CorruptFrameError if something was corrupt."""
        with self._device.work(), self._lock:
            self._device.wait()
            self._hear()

    def _hear(self) -> None:
        said = self._status.value
        if said:
            reason = REASONS.get(said, f"for reason {said}")
            raise CorruptFrameError(f"a frame in a device's memory is corrupt: {reason}")

    def _launch(self, cells: Int64s, out: int) -> None:
        n, n_fields, device = len(cells), len(FIELDS), self._device
        n_warps = max(1, min(n, self._most_warps))
        if n_warps > WARPS_A_BLOCK:
            n_warps = -(-n_warps // WARPS_A_BLOCK) * WARPS_A_BLOCK
        if n_warps * self._warp_bytes > self._scratch.nbytes:
            self._scratch = device.allocate(n_warps * self._warp_bytes)
        n_bytes = 8 * (n_fields + n)
        staged = device.stage(n_bytes, self._asked)
        self._asked = staged.memory
        request = staged.host.view(np.int64)
        request[:n_fields] = self._request
        request[_AT["N_WANTED"]] = n
        request[_AT["OUT"]] = out
        request[_AT["SCRATCH"]] = self._scratch.address
        request[n_fields:] = cells
        device.send(staged)
        self.n_bytes_sent += n_bytes
        device.launch("decode_cells", n_warps, self._shared_bytes, staged.memory.address)

    def _know_request(self) -> None:
        """Put together what every request says of what is held now."""
        said, device = self._described, self._device
        room = _record_room(said.frame_bytes) if said.packs else 0
        is_shared = self._padded <= device.shared_bytes
        self._shared_bytes = self._padded if is_shared else 0
        warp = (1 if is_shared else 2) * self._padded + (2 * (room + GUARD_BYTES) if room else 0)
        self._warp_bytes = warp
        self._most_warps = min(device.most_warps, _SCRATCH_BYTES // warp)
        self._request = np.zeros(len(FIELDS), np.int64)
        for name, value in (
            ("SCRATCH_BYTES", warp),
            ("IS_SHARED", is_shared),
            ("STATUS", self._status.address),
            ("RECORD_KIND", said.kind),
            ("N_CELLS", said.n_cells),
            ("STACK", said.stack),
            ("N_LANES", said.n_lanes),
            ("GOP", said.gop_length),
            ("OPEN_PER_LANE", said.open_per_lane),
            ("FRAME_BYTES", said.frame_bytes),
            ("ROW_BYTES", said.row_bytes),
            ("PADDED", self._padded),
            ("RECORD_ROOM", room),
            ("INDEX", self._index.address),
            ("BLOCKS", self._table.address),
            ("N_BLOCKS", len(self._blocks.memories)),
            ("BLOCK_SHIFT", self._blocks.shift),
            ("OPEN", self._open.address),
            ("OPEN_MAPS", self._open_maps.address),
            ("MAP_CELLS", said.map_cells),
            ("OPEN_BYTES", self._open_bytes.address),
            ("OPEN_ROOM", self._open_room),
            ("BACKGROUNDS", self._backgrounds.address),
            ("N_BACKGROUNDS", len(self._frames)),
            ("PINS", self._pins.address),
            ("N_PINS", self._n_pins),
            ("BOOKS", self._books.address),
            ("N_BOOKS", self._n_books),
        ):
            self._request[_AT[name]] = value


def _record_room(frame_bytes: int) -> int:
    """Bytes of an unpacked record, a multiple of 8."""
    return plain(record_room)(frame_bytes) + 7 & ~7  # type: ignore[no-any-return]
