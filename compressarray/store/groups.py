"""The groups of one array: what they are held in, and what is done with one of them at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compressarray.codecs import Codec
from compressarray.codecs.codebooks import Codebooks
from compressarray.codecs.encoding import encoding_bytes
from compressarray.codecs.words import encode_table_words
from compressarray.format.codebooks import CODEBOOK_BYTES
from compressarray.format.groups import (
    CODEBOOK_MASK,
    DELTA,
    HEADER_BYTES,
    NO_FRAME,
    PACKED_FLAG,
    SPARSE,
    codebook_of,
    flags_of,
    n_frames_of,
)
from compressarray.format.records import record_bytes, record_room
from compressarray.kernels.compiling import plain
from compressarray.store import gop_journal as journal
from compressarray.store import gop_layout as layout
from compressarray.store import gop_writing as writing
from compressarray.store.arena import Arena, Table
from compressarray.store.base import Int64s, UInt8s, address_of
from compressarray.store.changes import NOT_KEPT
from compressarray.store.geometry import Geometry
from compressarray.store.gop_layout import GopState
from compressarray.store.gop_packing import pack_group, unpack_group
from compressarray.store.gop_view import Attached, attached
from compressarray.store.scratch import Scratch, borrow, give_back

MAX_CODEBOOKS = CODEBOOK_MASK + 1
MAX_BACKGROUNDS = 255
MAX_GOP_BYTES = 1 << 28
MAX_PACKED_BYTES = 1 << 26  # of a frame, so that three bytes count its words
GUARD_BYTES = 64
# Of notes on what a write replaces: to begin with, and more when they are full.
FIRST_LOG_WORDS, WORDS_AT_ONCE = 64, 128


class Work(NamedTuple):
    """Scratch of a write, by address: to encode a frame, a closed group, half of its frames."""

    memory: Scratch
    scratch: int
    closed: int
    held: int

    def group(self, size: int) -> UInt8s:
        """The first bytes of the closed group."""
        start = self.closed - self.memory.address
        return self.memory.memory[start : start + size]

    def give_back(self) -> None:
        """Leave the memory to the next write."""
        give_back(self.memory)


class Encoded(NamedTuple):
    """What there is to know of a group that was encoded; it lies in `Work.closed`."""

    size: int  # in bytes
    last_frame: UInt8s


def gop_length_of(geometry: Geometry, codec: Codec) -> int:
    """As asked for, but no more frames than can be numbered, or bytes than a header can count."""
    gop, stack = codec.gop_length, geometry.stack
    stack_bytes = stack * geometry.frame_bytes
    while gop > 1 and (gop * stack >= NO_FRAME or gop * stack_bytes >= MAX_GOP_BYTES):
        gop //= 2
    return gop


def open_per_lane(geometry: Geometry, codec: Codec) -> int:
    """How many groups of a lane may be open at once."""
    return -(-(geometry.stack - 1) // gop_length_of(geometry, codec)) + 1


class Groups:
    """The groups of an array, closed and open; for the arguments see `make_store`.

    A group is a pure function of the cells in it, of the background and of the codebook that were
    current when it was encoded. Whoever writes here holds the store's lock, and calls `finish` or
    `roll_back` afterwards.

    Attributes
    ----------
    at : Attached
        The arrays as they are now.
    arena : Arena
        Closed groups.
    table : Table
        Which of them holds group ``gop * n_lanes + lane``.
    group_bytes : int
        Of a closed group, at most.
    packs : bool
        Whether closed groups may be packed.
    is_renewed : bool
        Whether all open groups are known to name the newest codebook, which is what they go on
        with.
    taken_from : tuple or None
        What a replica has replaced that is not in the log: how it was, and the newest background.
    """

    def __init__(self, geometry: Geometry, fill: UInt8s, codec: Codec) -> None:
        n_rows, n_lanes, stack, frame_bytes, row_bytes, pixel_bytes = geometry
        self.n_rows, self.n_lanes, self.stack = n_rows, n_lanes, stack
        self.frame_bytes = frame_bytes
        gop = self.gop_length = gop_length_of(geometry, codec)
        self.n_gops = -(-(n_rows + stack - 1) // gop)
        self.padded = (frame_bytes + 7) // 8 * 8 + 8
        meta = np.zeros(layout.N_META, np.int64)
        meta[layout.N_ROWS] = n_rows
        meta[layout.N_LANES] = n_lanes
        meta[layout.STACK] = stack
        meta[layout.GOP] = gop
        meta[layout.FRAME_BYTES] = frame_bytes
        meta[layout.ROW_BYTES] = row_bytes
        meta[layout.RECORD_KIND] = SPARSE if codec.name == "sparse" else DELTA
        meta[layout.OPEN_PER_LANE] = per_lane = open_per_lane(geometry, codec)
        # what encoding a frame takes, its record, then a closed group
        most = plain(record_room)(frame_bytes)
        self._encoding_bytes = plain(encoding_bytes)(frame_bytes) + GUARD_BYTES + most
        map_bytes = 2 * gop * stack
        self.group_bytes = HEADER_BYTES + 2 * map_bytes + gop * stack * most + GUARD_BYTES
        # A header counts the bits of packed records in 32 bits.
        self.packs = (
            codec.name == "delta-huffman"
            and frame_bytes <= MAX_PACKED_BYTES
            and self.group_bytes < 1 << 29
        )
        meta[layout.PACKS] = self.packs
        held_bytes = (gop * stack // 2 + 2) * self.padded
        self._work_bytes = self._encoding_bytes + self.group_bytes + held_bytes
        max_chunks = self.n_gops * n_lanes
        self.table = Table(max_chunks)
        # A write holds what it replaces until it is done.
        self.arena = Arena(
            2 * geometry.n_cells * (plain(record_bytes)(frame_bytes, self.packs) + 16)
            + 2 * max_chunks * (map_bytes + 64),
            2 * max_chunks,
            self.group_bytes,
        )
        backgrounds = np.zeros((1, self.padded), np.uint8)
        backgrounds[0, :frame_bytes] = fill
        state = GopState(
            meta=meta,
            gop_chunk=self.table.data,
            gop_touched=self.table.touched,
            gop_noted=self.table.noted,
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
            codebooks=np.zeros(CODEBOOK_BYTES, np.uint8),
            encode_table=np.zeros(encode_table_words(0), np.uint64),
            open_born=np.zeros((n_lanes, per_lane), np.int64),
            open_dropped=np.zeros((n_lanes, per_lane), np.int64),
            open_number=np.zeros((n_lanes, per_lane), np.int64),
            background_number=np.zeros(1, np.int64),
            log=np.zeros(FIRST_LOG_WORDS, np.int64),
        )
        self.ready_at_votes = -1
        self.is_renewed = False
        self.taken_from: tuple[Attached, int] | None = None
        codebooks = None
        if meta[layout.RECORD_KIND] == DELTA:
            codebooks = Codebooks.starting(
                row_bytes, MAX_CODEBOOKS, pixel_bytes if self.packs else 0
            )
        self.at = attached(state, self.arena.state, codebooks)

    @property
    def state(self) -> GopState:
        """The arrays that kernels see."""
        return self.at.state

    @property
    def codebooks(self) -> Codebooks | None:
        """What delta records are read and written with."""
        return self.at.codebooks

    def attach(self, state: GopState, codebooks: Codebooks | None = None) -> None:
        """Have other arrays, and other codebooks where some are given."""
        held = self.at.codebooks if codebooks is None else codebooks
        self.at = attached(state, self.arena.state, held)

    @property
    def n_words(self) -> Int64s:
        """Words in each codebook's dictionary, -1 where there is no codebook."""
        if self.codebooks is None:
            return np.full(1, -1)
        return np.array([-1 if book is None else len(book.words) for book in self.codebooks.books])

    # -- closed groups -----------------------------------------------------------------------

    def unpacked(self, index: int) -> UInt8s:
        """The bytes of closed group ``gop * n_lanes + lane``, unpacked; there is one.

        A view or a copy, with some more bytes behind it that may be read.
        """
        return self.unpacked_chunk(self.arena.view(int(self.state.gop_chunk[index])), self.at)

    def unpacked_chunk(self, chunk: UInt8s, at: Attached) -> UInt8s:
        """The bytes of a closed group, unpacked with some codebooks, or the chunk itself."""
        if not flags_of(chunk) & PACKED_FLAG:
            return chunk
        closed = np.empty(self.group_bytes, np.uint8)
        size = unpack_group(at.view, address_of(chunk), address_of(closed))
        return closed[:size]

    def encode(
        self,
        lane: int,
        gop: int,
        work: Work,
        until: int,
        map_cells: Int64s | None = None,
        addresses: Int64s | None = None,
        at: Attached | None = None,
        old: UInt8s | None = None,
    ) -> Encoded:
        """Encode a group anew, up to a row; see `gop_writing.rebuild`.

        ``at`` has other codebooks to encode with, ``old`` is the closed group, unpacked, where it
        is known.
        """
        state = self.state if at is None else at.state
        none = np.zeros(0, np.int64)
        index, n_held = gop * self.n_lanes + lane, 0
        if old is None and state.gop_chunk[index]:
            old = self.unpacked(index)
        if old is not None:
            n_held += n_frames_of(old)
        place = gop % state.open_gop.shape[1]
        if state.open_gop[lane, place] == gop:
            n_held += int(state.open_frames[lane, place])
        held = np.empty((n_held + 1, self.padded), np.uint8)
        size = writing.rebuild(
            (self.at if at is None else at).view,
            lane,
            gop,
            0 if old is None else address_of(old),
            none if map_cells is None else np.ascontiguousarray(map_cells),
            none if addresses is None else np.ascontiguousarray(addresses),
            until,
            held,
            work.closed,
            work.scratch,
        )
        return Encoded(size, held[-1])

    def rebuild(
        self,
        lane: int,
        gop: int,
        work: Work,
        map_cells: Int64s | None = None,
        addresses: Int64s | None = None,
    ) -> None:
        """Encode one group anew, closed, with some of its cells replaced."""
        size = self.encode(lane, gop, work, self.n_rows, map_cells, addresses).size
        self.put(lane, gop, work.group(size), ends_open=True)

    def put(self, lane: int, gop: int, closed: UInt8s, *, ends_open: bool = False) -> None:
        """Make a closed group, unpacked, what an entry of the index holds; pack it if it has codes.

        Raises
        ------
        MemoryError
            If the arena is full.
        """
        chunk = self._packed(closed)
        self.have_log(journal.WORDS_A_GROUP)
        if not writing.put_packed(
            self.at.view, lane, gop, address_of(chunk), len(chunk), ends_open
        ):
            raise MemoryError("the arena is full")

    def _packed(self, closed: UInt8s) -> UInt8s:
        if not self.packs:
            return closed
        assert self.codebooks is not None
        packer = self.codebooks.of(plain(codebook_of)(flags_of(closed))).packer
        if packer is None:
            return closed
        chunk = np.empty(2 * len(closed) + GUARD_BYTES, np.uint8)
        size = pack_group(
            self.at.view, address_of(closed), address_of(packer.encode), address_of(chunk)
        )
        return chunk[:size] if size < len(closed) else closed

    # -- open groups -------------------------------------------------------------------------

    def open_as_encoded(self, lane: int, gop: int, until: int, work: Work) -> None:
        """Encode what a group holds up to a row, and go on from there."""
        built = self.encode(lane, gop, work, until)
        while self.state.open_bytes.shape[1] < built.size + GUARD_BYTES:
            self.grow_open()
        self.have_log(journal.WORDS_A_GROUP + int(journal.open_records_room(self.at.view)))
        writing.open_again(
            self.at.view, lane, gop, until, work.closed, built.size, address_of(built.last_frame)
        )

    def renew_open(self) -> None:
        """Encode open groups anew that name another codebook than the newest, as may be.

        What is appended is encoded with the newest one: a group that went on under another name
        would be read wrong.
        """
        state = self.state
        if self.codebooks is None:
            self.is_renewed = True
            return
        named = plain(codebook_of)(state.open_flags)
        others = np.argwhere((state.open_gop != layout.CLOSED) & (named != self.codebooks.newest))
        if not len(others):
            self.is_renewed = True
            return
        work = self.work()
        for lane, place in others.tolist():
            gop, row = int(self.state.open_gop[lane, place]), int(self.state.open_next[lane, place])
            self.open_as_encoded(lane, gop, row - 1, work)
        work.give_back()

    def close_full(self, lane: int, row: int, work: Work) -> None:
        """Close the groups that a row has filled."""
        gop = 0
        while gop >= 0:
            gop, size = writing.close_full(
                self.at.view, lane, row, work.closed, work.held, work.scratch
            )
            if gop >= 0:
                self.put(lane, gop, work.group(size), ends_open=True)

    # -- room --------------------------------------------------------------------------------

    def work(self) -> Work:
        """Scratch, to be given back."""
        memory = borrow(self._work_bytes)
        closed = memory.address + self._encoding_bytes
        return Work(memory, memory.address, closed, closed + self.group_bytes)

    def have_log(self, n_words: int) -> None:
        """Have room for so many words of notes."""
        log = self.state.log
        used = int(log[0]) + 1
        if len(log) - used < n_words:
            grown = np.zeros(used + used // 2 + n_words, np.int64)
            grown[:used] = log[:used]
            self.attach(self.state._replace(log=grown))

    def make_ready(self) -> None:
        """Have room for open groups, which can go on, heads, and a free background."""
        if not self.is_renewed:
            self.renew_open()
        state = self.state
        if len(state.head) and state.meta[layout.VOTES] == self.ready_at_votes:
            return
        if len(state.head) == 0:
            self.have_open()
            state = self.state
            state.head_row[:] = layout.STALE
            if state.meta[layout.RECORD_KIND] == DELTA:
                state.meta[layout.VOTES] = 0
        if state.meta[layout.RECORD_KIND] == DELTA:
            n = len(state.backgrounds)
            in_use = state.background_uses > 0
            in_use[[0, int(state.meta[layout.BACKGROUND])]] = True
            if in_use.all() and n < MAX_BACKGROUNDS:
                fresh = np.zeros((1, self.padded), np.uint8)
                self.attach(
                    state._replace(
                        backgrounds=np.concatenate([state.backgrounds, fresh]),
                        background_uses=np.append(state.background_uses, 0),
                        background_number=np.append(state.background_number, 0),
                    )
                )
        self.ready_at_votes = int(state.meta[layout.VOTES])

    def have_open(self) -> None:
        """Have room for open groups, heads and a candidate."""
        state = self.state
        per_lane = state.open_gop.shape[1]
        mapped = self.gop_length * self.stack if self.stack > 1 else 0
        votes = self.padded if state.meta[layout.RECORD_KIND] == DELTA else 0
        self.attach(
            state._replace(
                head=np.zeros((self.n_lanes, self.stack, self.padded), np.uint8),
                open_bytes=np.zeros((self.n_lanes * per_lane, 256), np.uint8),
                open_map=np.zeros((self.n_lanes, per_lane, mapped), np.uint16),
                candidate=np.zeros((2, votes), np.uint8),
            )
        )

    def have_nothing_open(self) -> None:
        """Give back what is only needed while groups are open; none is."""
        self.attach(
            self.state._replace(
                head=np.zeros((0, 0, 0), np.uint8),
                open_bytes=np.zeros((0, 0), np.uint8),
                open_map=np.zeros((0, 0, 0), np.uint16),
                candidate=np.zeros((2, 0), np.uint8),
                log=np.zeros(FIRST_LOG_WORDS, np.int64),
            )
        )

    def grow_open(self, least: int = 0) -> None:
        """Have more room for the records of open groups."""
        old = self.state.open_bytes
        n, room = old.shape
        grown = np.zeros((n, max(room + max(room // 4, 256), least)), np.uint8)
        grown[:, :room] = old
        self.attach(self.state._replace(open_bytes=grown))

    # -- the end of a write ------------------------------------------------------------------

    def finish(self) -> None:
        """Let go of what the write that runs has replaced."""
        journal.finish(self.at.view)
        self.taken_from = None

    def roll_back(self) -> None:
        """Take back what the write that runs has done."""
        self.is_renewed = False
        journal.roll_back(self.at.view)
        if self.taken_from is not None:
            before, background = self.taken_from
            state = before.state
            self.state.meta[layout.BACKGROUND] = background
            self.attach(
                self.state._replace(
                    backgrounds=state.backgrounds,
                    background_uses=state.background_uses,
                    background_number=state.background_number,
                ),
                before.codebooks,
            )
            self.taken_from = None
