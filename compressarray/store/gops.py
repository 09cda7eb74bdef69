"""Frames in groups of pictures (GOPs), found by their cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressarray.codecs import Codec
from compressarray.format.messages import Items, Message
from compressarray.snapshots import Snapshot, int_of
from compressarray.store import gop_feed as feed
from compressarray.store import gop_journal as journal
from compressarray.store import gop_keeping as keeping
from compressarray.store import gop_layout as layout
from compressarray.store import gop_reading as reading
from compressarray.store import gop_writing as writing
from compressarray.store.base import Int64s, Store, UInt8s
from compressarray.store.changes import ring_of_changes
from compressarray.store.description import Description
from compressarray.store.geometry import Geometry
from compressarray.store.gop_schedule import MAX_LEARN_PAUSE, Learning
from compressarray.store.gop_taking import take_changes
from compressarray.store.groups import FIRST_LOG_WORDS, WORDS_AT_ONCE, Groups, Work

# Words of notes on what a write replaces that are kept at most, with some for each lane.
KEPT_LOG_WORDS, KEPT_WORDS_A_LANE = 256, 32


class GopStore(Store):
    """Cells in GOPs of ``codec.gop_length`` rows (or diagonals, of stacks) of one lane.

    What a write has to touch is the groups that its cells lie in, and writing a cell twice costs
    no more than writing it once.
    """

    def __init__(self, geometry: Geometry, fill: UInt8s, codec: Codec) -> None:
        super().__init__(geometry, codec)
        self._groups = Groups(geometry, fill, codec)
        self._gop = self._groups.gop_length
        self._learning = Learning()
        self._tidied_at = 0
        self._last_row = 0  # that was written

    # -- reading -----------------------------------------------------------------------------

    @property
    def is_mapped(self) -> bool:
        """Whether the groups lie in a file, and nothing may be written."""
        return self._groups.arena.is_mapped

    def _read(self, cells: Int64s, out: UInt8s) -> None:
        groups = self._groups
        if groups.arena.is_mapped:
            keeping.verify(groups, cells[cells >= 0])
        read = reading.read_cells if len(out) < 2 * reading.BYTES_A_THREAD else reading.read_large
        n_frames, n_gops = read(groups.at.view, cells, self._pins, out)
        with self._count_lock:
            self._frames_decoded += n_frames
            self._gops_decoded += n_gops

    # -- writing -----------------------------------------------------------------------------

    def _finish_alone(self) -> bool:
        groups = self._groups
        state = groups.at.state
        if state.meta[layout.N_REPLACED] or groups.taken_from is not None:
            return False
        state.log[0] = 0
        return True

    def _finish(self) -> None:
        self._groups.finish()

    def _roll_back(self) -> None:
        self._groups.roll_back()

    def _write_rows(self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int) -> None:
        n = len(rows)
        if n == 0:
            return
        groups = self._groups
        work = groups.work()
        done = 0
        while done < n:
            groups.make_ready()
            done, answer = writing.append_rows(
                groups.at.view,
                lanes,
                rows,
                items,
                frames,
                done,
                work.scratch,
                work.closed,
                work.held,
            )
            if answer == writing.DONE:
                break
            if answer == writing.WRITTEN_AND_FULL:
                groups.close_full(int(lanes[done - 1]), int(rows[done - 1]), work)
            elif answer == writing.NO_MEMORY:
                raise MemoryError("the arena is full")
            elif answer == writing.GROW:
                groups.grow_open()
            elif answer == writing.GROW_LOG:
                needed = journal.needed_words(groups.at.view, int(lanes[done]), int(rows[done]))
                groups.have_log(int(needed) + WORDS_AT_ONCE)
            elif answer == writing.SEAL:
                lane, row = int(lanes[done]), int(rows[done])
                open_gop = groups.state.open_gop
                place = (row + self._stack - 1) // self._gop % open_gop.shape[1]
                groups.rebuild(lane, int(open_gop[lane, place]), work)
            elif answer == writing.REOPEN:
                self._reopen(int(lanes[done]), int(rows[done]), work)
            else:
                done = self._rewrite_rows(lanes, rows, items, frames, done, work)
        self._last_row = int(rows[-1])
        work.give_back()

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
        groups = self._groups
        work = groups.work()
        groups.make_ready()
        row = int(kernel(groups.at.view, *arguments, work.scratch, work.closed, work.held))
        if row >= 0:
            self._last_row = row
        work.give_back()
        return row

    def _reopen(self, lane: int, row: int, work: Work) -> None:
        """Bring the groups that ``row`` goes on into the open form, up to the row before."""
        groups = self._groups
        open_gop = groups.state.open_gop
        stack, gop_length = self._stack, self._gop
        for gop in range(row // gop_length, (row + stack - 1) // gop_length + 1):
            place = gop % open_gop.shape[1]
            if open_gop[lane, place] == gop or gop * gop_length == row + stack - 1:
                continue
            if open_gop[lane, place] != layout.CLOSED:
                groups.rebuild(lane, int(open_gop[lane, place]), work)
            groups.open_as_encoded(lane, gop, row - 1, work)

    def _rewrite_rows(
        self, lanes: Int64s, rows: Int64s, items: Int64s, frames: int, start: int, work: Work
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
            map_cells = (these[:, None] + np.arange(stack) - gop * gop_length) * stack + np.arange(
                stack
            )
            each = addresses[:, None] + np.arange(stack) * self._frame_bytes
            inside = (map_cells >= 0) & (map_cells < gop_length * stack)
            self._groups.rebuild(lane, gop, work, map_cells[inside], each[inside])
        writing.set_head(self._groups.at.view, lane, int(these[-1]), int(addresses[-1]))
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
        groups = self._groups
        work = groups.work()
        for group in np.split(order, np.flatnonzero(np.diff(keys)) + 1):
            groups.make_ready()
            lane, gop = int(lanes[group[0]]), int(gops[group[0]])
            map_cells = (rows[group] + k[group] - gop * gop_length) * stack + k[group]
            self._groups.rebuild(lane, gop, work, map_cells, frames + group * self._frame_bytes)
            groups.state.head_row[lane] = layout.STALE
        self._last_row = int(rows.max())
        work.give_back()

    def _forget(self, first: Int64s, end: Int64s, counts: Int64s) -> None:
        n_groups = int((np.maximum(end - first, 0) // self._gop + 2).sum())
        self._groups.have_log(n_groups * journal.WORDS_A_GROUP)
        writing.forget(self._groups.at.view, first, end, counts)

    def may_forget(self, first: Int64s, end: Int64s) -> bool:
        """Whether a group is left behind."""
        return bool(writing.leaves_groups(first, end, self._n_rows, self._gop))

    # -- cleaning up -------------------------------------------------------------------------

    def _is_untidy(self) -> bool:
        # not after most rows
        state = self._groups.at.state
        return bool(state.meta[layout.N_CHANGES] != self._tidied_at) or self._log_is_long

    @property
    def _log_is_long(self) -> bool:
        most = KEPT_LOG_WORDS + KEPT_WORDS_A_LANE * self._n_lanes
        return len(self._groups.at.state.log) > most

    def _tidy(self) -> None:
        groups = self._groups
        if self._log_is_long:
            groups.attach(groups.state._replace(log=np.zeros(FIRST_LOG_WORDS, np.int64)))
        meta = groups.state.meta
        changes = int(meta[layout.N_CHANGES])
        is_full = self._last_row == self._n_rows - 1 and meta[layout.N_OPEN] == 0
        if is_full and len(groups.state.head):
            groups.have_nothing_open()  # the array is full: nothing need be held for more
        if groups.codebooks is not None and changes != self._tidied_at and not self.follows:
            self._learning.go_on(groups)
        self._tidied_at = changes
        groups.arena.tidy()

    # -- replicas ----------------------------------------------------------------------------

    def _watch(self) -> None:
        groups = self._groups
        if len(groups.state.gop_changes):
            return
        ring = ring_of_changes(len(groups.state.gop_chunk))
        groups.attach(groups.state._replace(gop_changes=ring))

    def mark(self) -> tuple[feed.GopMark, int]:
        """Remember what a replica has that is filled now."""
        return feed.mark_of(self._groups.state, self._groups.codebooks), len(self._pins)

    def put_changes(self, message: Message, mark: tuple[feed.GopMark, int]) -> bool:
        """Add what has changed since a mark; see `Store.put_changes`."""
        since, n_pins = mark
        self._put_pins(message, n_pins)
        state, arena, _, codebooks = self._groups.at
        return feed.put_changes(message, since, state, arena, codebooks)

    def put_everything(self, message: Message) -> None:
        """See `Store.put_everything`."""
        self._put_pins(message, 0)
        state, arena, _, codebooks = self._groups.at
        feed.put_everything(message, self._groups.table.held(), state, arena, codebooks)

    def describe(self) -> Description | None:
        """See `Store.describe`."""
        groups = self._groups
        meta, books = groups.state.meta, groups.codebooks
        return Description(
            int(meta[layout.RECORD_KIND]),
            self._geometry.n_cells,
            groups.n_gops * self._n_lanes,
            self._n_lanes,
            self._stack,
            self._gop,
            int(meta[layout.OPEN_PER_LANE]),
            self._gop * self._stack,
            self._frame_bytes,
            self._geometry.row_bytes,
            0 if books is None else books.pixel_bytes,
            groups.packs,
            groups.group_bytes,
            0 if books is None else len(books.books),
            self._fill_frame(),
        )

    def _take(self, items: Items) -> None:
        self._take_pins(items)
        take_changes(self._groups, items)

    # -- accounting --------------------------------------------------------------------------

    def _fill_frame(self) -> UInt8s:
        return self._groups.state.backgrounds[0, : self._frame_bytes]

    def _bytes_by_part(self) -> dict[str, int]:
        groups = self._groups
        state, books = groups.state, groups.codebooks
        open_parts = (
            state.open_bytes, state.open_map, state.open_gop, state.open_next, state.open_frames,
            state.open_size, state.open_flags, state.open_background, state.head, state.head_row,
            state.open_born, state.open_dropped, state.open_number, state.log,
        )  # fmt: skip
        parts = {
            "arena": groups.arena.nbytes,
            "index": groups.table.nbytes + state.gop_changes.nbytes,
            "open": sum(part.nbytes for part in open_parts),
            "backgrounds": state.backgrounds.nbytes + state.candidate.nbytes,
            "tables": 0 if books is None else books.nbytes,
        }
        if books is not None and books.packer_bytes:
            parts["packer"] = books.packer_bytes
        return parts

    def _report(self) -> dict[str, int]:
        meta = self._groups.state.meta
        return {
            "gop_length": self._gop,
            "gops_closed": int(meta[layout.N_CLOSED]),
            "gops_evicted": int(meta[layout.N_EVICTED]),
            "gops_open": int(meta[layout.N_OPEN]),
            "frames_encoded": int(meta[layout.N_ENCODED]),
        }

    # -- copying and pickling ----------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        return keeping.snapshot_of(
            self._groups,
            {
                "learn_at": self._learning.at,
                "learn_pause": self._learning.pause,
                "ready_at_votes": self._groups.ready_at_votes,
                "tidied_at": self._tidied_at,
            },
        )

    def _restore(self, snapshot: Snapshot, is_ours: bool) -> None:
        self._learning = Learning(
            int_of(snapshot, "learn_at", 0), int_of(snapshot, "learn_pause", 1, MAX_LEARN_PAUSE)
        )
        self._groups.ready_at_votes = int_of(snapshot, "ready_at_votes", -1)
        self._tidied_at = int_of(snapshot, "tidied_at", 0)
        keeping.restore(self._groups, snapshot, is_ours=is_ours)
