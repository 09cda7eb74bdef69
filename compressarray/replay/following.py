"""What changes in a buffer, told to replicas, and how a replica takes it.

A message has, in this order: where the sender stood, in one number, so that a replica that stands
elsewhere refuses it; the transitions that are new, and the lanes whose newest one was cut; of each
entry of the observations its frames, the cells of those transitions, and how the lanes stand;
priorities; and what a buffer keeps to go on adding and drawing. It takes time and bytes in
proportion to what changed.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.array.frames import FramesMark
from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.replay.observations import Observations
from compressarray.replay.plain import PlainRing
from compressarray.replay.priorities import SumTree
from compressarray.replay.resets import Resets
from compressarray.replay.runs import LANE, RUN_FIELDS, cell_dtype
from compressarray.replay.stack_kernels import find_wrong
from compressarray.replay.stacks import Stacks
from compressarray.replay.transitions import NewRows, Transitions
from compressarray.replay.windows import CUT, END, FIRST, TERMINATED, TRUNCATED, Windows

AnyArray = npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

# What a lane's stacks are told to replicas by. Not where the ring of its last stack begins: each
# replica has a ring of its own.
_LANE_FIELDS = ("at", "age", "marks", "first", "pad", "known")
_FLAGS = TERMINATED | TRUNCATED | CUT | FIRST


class EntryMark(NamedTuple):
    """What a replica has of one entry of the observations."""

    stream: int
    lanes: AnyArray  # of LANE
    frames: FramesMark | tuple[int, Int64s]


class BufferMark(NamedTuple):
    """What a replica has of a buffer."""

    transitions: Transitions  # the very one: `clear` makes another
    counts: Int64s
    running: npt.NDArray[np.bool_]
    entries: tuple[EntryMark, ...]
    rewritten: int
    priorities: int


class Followed(NamedTuple):
    """The parts of a buffer that its replicas have, too."""

    observations: Observations
    transitions: Transitions
    resets: Resets
    windows: list[Windows]
    tree: SumTree

    def mark(self) -> BufferMark:
        """Remember what a replica has that is filled now."""
        transitions = self.transitions
        return BufferMark(
            transitions,
            transitions.counts.copy(),
            transitions.running.copy(),
            tuple(
                EntryMark(entry.stream, entry.lanes.copy(), _mark_of(entry.frames))
                for entry in self.observations.entries
            ),
            transitions.rewritten.mark(),
            self.tree.changed.mark(),
        )

    def put_changes(self, message: Message, mark: BufferMark) -> bool:
        """Add what has changed since a mark; False if a replica has to be filled anew."""
        transitions, n_slots = self.transitions, self.transitions.n_slots
        if transitions is not mark.transitions:
            return False
        n_new = transitions.counts - mark.counts
        if (n_new >= n_slots).any():
            return False
        newest = transitions.flags[transitions.all_lanes, (mark.counts - 1) % n_slots]
        was_cut = mark.running & (newest & CUT != 0)
        lanes = np.flatnonzero((n_new > 0) | was_cut)
        n_new, was_cut = n_new[lanes], was_cut[lanes]
        cells = transitions.cells_of_new(lanes, mark.counts[lanes], n_new)
        message.put_ints([_standing(mark.counts, mark.running)])
        message.put_ints(lanes)
        message.put_ints(n_new)
        message.put_ints(was_cut)
        message.put_bytes(transitions.flags.reshape(-1)[cells])
        message.put_bytes(transitions.rewards[cells])
        message.put_bytes(transitions.action_bytes[cells])
        for values in transitions.fields.values.values():
            message.put_bytes(values[cells])
        rewritten = transitions.rewritten.since(mark.rewritten)
        if rewritten is None:
            return False
        message.put_ints(np.diff(rewritten, prepend=0))
        message.put_bytes(transitions.rewards[rewritten])
        for entry, known in zip(self.observations.entries, mark.entries, strict=True):
            if entry.stream != known.stream or not _put_frames(entry.frames, message, known.frames):
                return False
            _put_stacks(entry, message, known, cells)
        if not self._put_priorities(message, mark, lanes, n_new):
            return False
        self.resets.put(message)
        self.observations.put_watches(message)
        return True

    def _put_priorities(
        self, message: Message, mark: BufferMark, lanes: Int64s, n_new: Int64s
    ) -> bool:
        if not len(self.tree.leaves):
            return True
        updated = self.tree.changed.since(mark.priorities)
        if updated is None:
            return False
        # Starts that became known, or went: what the new transitions replaced and complete.
        length, n_slots = self.windows[0].length, self.transitions.n_slots
        back = np.minimum(np.minimum(length, mark.counts[lanes]), n_slots - n_new)
        begun = self.transitions.cells_of_new(lanes, mark.counts[lanes] - back, n_new + back)
        cells = np.union1d(updated, begun)
        message.put_ints(np.diff(cells, prepend=0))
        message.put_bytes(self.tree.leaves[cells])
        message.put_bytes(self.tree.sums[:1])
        return True


def _standing(counts: Int64s, running: npt.NDArray[np.bool_]) -> int:
    """Where the lanes stand, as one number."""
    return zlib.crc32(running.tobytes(), zlib.crc32(counts.tobytes()))


def _mark_of(frames: Any) -> Any:
    return frames.mark() if isinstance(frames, PlainRing) else frames._frames.mark()


def _put_frames(frames: Any, message: Message, mark: Any) -> bool:
    of = frames if isinstance(frames, PlainRing) else frames._frames
    return bool(of.put_changes(message, mark))


def _put_stacks(entry: Stacks, message: Message, mark: EntryMark, cells: Int64s) -> None:
    new = entry.runs.cells(cells)
    for name in new.dtype.names or ():
        message.put_bytes(new[name])
    changed = np.flatnonzero(entry.lanes != mark.lanes)
    message.put_ints(changed)
    for name in _LANE_FIELDS:
        message.put_ints(entry.lanes[name][changed])


class _NewStacks(NamedTuple):
    """What a message brings of one entry."""

    entry: Stacks
    cells: Any  # of the entry's cell dtype, as many as there are transitions
    changed: Int64s  # lanes
    lanes: Any  # (n_lanes,) of LANE: as they stand with it


class TakeStep:
    """A message that a buffer takes; a step of `compressarray.writing`.

    Parameters
    ----------
    buffer : Any
        Has ``followed``, how far it has come.
    followed : Followed
        Its parts.
    position : Any
        How far it has come with this message.
    """

    def __init__(self, buffer: Any, followed: Followed, position: Any) -> None:
        self._buffer = buffer
        self._parts = followed
        self._transitions = followed.transitions.standing
        self._observations = followed.observations.standing
        self._before = buffer._position
        self._position = position

    def read_rows(self, items: Items, is_allowed: Any) -> Int64s:
        """Take the transitions; return how many are new in each lane, ``(n_lanes,)``.

        Raises
        ------
        CorruptFrameError
            If they are none that go on from here. What was taken is to be rolled back.
        """
        transitions = self._parts.transitions
        n_slots, counts = transitions.n_slots, transitions.counts
        if items.number(0, (1 << 32) - 1) != _standing(counts, transitions.running):
            raise ValueError(
                "this replica was written to, so that it no longer holds what its writer did; fill "
                "another one"
            )
        lanes = items.ints(None, 0, transitions.n_lanes - 1)
        n_new = items.ints(len(lanes), 0, n_slots - 1)
        was_cut = items.ints(len(lanes), 0, 1) != 0
        if (np.diff(lanes) <= 0).any() or not transitions.running[lanes[was_cut]].all():
            raise CorruptFrameError("a message names lanes in no order, or cuts what has ended")
        cells = transitions.cells_of_new(lanes, counts[lanes], n_new)
        n = len(cells)
        flags = items.octets(n)
        rewards = items.octets(4 * n).view(np.float32)
        n_bytes = transitions.action_bytes.shape[1]
        actions = items.octets(n * n_bytes).reshape(n, n_bytes)
        if (flags & ~np.uint8(_FLAGS)).any() or not np.isfinite(rewards).all():
            raise CorruptFrameError("a message has flags or rewards of no transition")
        is_allowed(transitions.as_actions(actions.copy()))
        ends = flags & END != 0
        before = np.concatenate([[True], ends[:-1]])
        first = np.cumsum(n_new) - n_new
        has_any = n_new > 0
        before[first[has_any]] = (~transitions.running[lanes] | was_cut)[has_any]
        is_both = (flags & CUT != 0) & (flags & (TERMINATED | TRUNCATED) != 0)
        if ((flags & FIRST != 0) != before[:n]).any() or is_both.any():
            raise CorruptFrameError("a message has episodes that begin where none ended")
        fields = {}
        for name, held in transitions.fields.values.items():
            fields[name] = items.octets(n * held[:1].nbytes).view(held.dtype)
            fields[name] = fields[name].reshape(n, *held.shape[1:])
        self._rows = NewRows(lanes, n_new, was_cut, cells, flags, rewards, actions, fields)
        rewritten = np.cumsum(items.ints(None, 0))
        others = items.octets(4 * len(rewritten)).view(np.float32)
        if rewritten.max(initial=0) >= len(transitions.rewards) or not np.isfinite(others).all():
            raise CorruptFrameError("a message rewrites rewards of no transition")
        self._rewritten = rewritten, others
        added = np.zeros(transitions.n_lanes, np.int64)
        added[lanes] = n_new
        return added

    def read_rest(self, items: Items) -> None:
        """Take all else; see `read_rows`."""
        followed = self._parts
        self._stacks = [self._read_entry(entry, items) for entry in followed.observations.entries]
        tree = followed.tree
        self._priorities: tuple[Int64s, npt.NDArray[np.float64], float] | None = None
        if len(tree.leaves):
            cells = np.cumsum(items.ints(None, 0))
            leaves = items.octets(8 * len(cells)).view(np.float64)
            top = float(items.octets(8).view(np.float64)[0])
            highest = np.finfo(float).max / len(tree.leaves)
            if cells.max(initial=0) >= len(self._parts.transitions.rewards) or not (
                tree.top <= top <= highest and ((leaves >= 0) & (leaves <= top)).all()
            ):
                raise CorruptFrameError("a message has priorities of no buffer")
            self._priorities = cells, leaves, top
        self._resets = followed.resets.read(items)
        self._watches = followed.observations.read_watches(items)

    def _read_entry(self, entry: Stacks, items: Items) -> _NewStacks:
        frames, rows = entry.frames, self._rows
        if isinstance(frames, DiffFrameArray):
            frames._frames.take_within(items, None)
        else:
            assert isinstance(frames, PlainRing)
            frames.take_within(items)
        cells = np.zeros(len(rows.cells), cell_dtype(entry.layout.stack_size))
        size = entry.layout.stack_size
        for name, most in (("newest", None), ("age", size - 1), ("step", size), ("marks", 7)):
            dtype = cells.dtype[name]
            cells[name] = items.octets(len(cells) * dtype.itemsize).view(dtype)
            if most is not None and (cells[name] > most).any():
                raise CorruptFrameError(f"a message has stacks whose {name} is above {most}")
        changed = items.ints(None, 0, entry.n_lanes - 1)
        lanes = entry.lanes.copy()
        for name in _LANE_FIELDS:
            least, most = (0, 1) if name in ("marks", "known") else (-1, None)
            lanes[name][changed] = items.ints(len(changed), least, most)
        if (np.diff(changed) <= 0).any() or (lanes["age"] >= size).any():
            raise CorruptFrameError("a message has stacks of no lanes")
        if not entry.are_of_held_pins(lanes["pad"][changed]):
            raise CorruptFrameError("a message has stacks that are padded with no pinned frame")
        self._check_stacks(entry, cells, lanes)
        return _NewStacks(entry, cells, changed, lanes)

    def _check_stacks(self, entry: Stacks, cells: AnyArray, lanes: AnyArray) -> None:
        """Check the new stacks as if they, and the one before them, were all that there are."""
        rows, transitions = self._rows, self._parts.transitions
        with_new = rows.n_new > 0
        chosen, n_new = rows.lanes[with_new], rows.n_new[with_new]
        if not len(chosen):
            return
        held = np.minimum(transitions.counts - transitions.oldest, 1)[chosen]
        n_slots = 1 + int(n_new.max())
        within = np.arange(n_slots) < (held + n_new)[:, None]
        is_new = within & (np.arange(n_slots) >= held[:, None])
        some_cells = np.zeros((len(chosen), n_slots), cells.dtype)
        some_flags = np.zeros((len(chosen), n_slots), np.uint8)
        newest = (transitions.counts[chosen] - 1) % transitions.n_slots
        numbers = chosen * transitions.n_slots + newest
        some_cells[:, 0] = entry.runs.cells(numbers)
        some_flags[:, 0] = transitions.flags[chosen, newest]
        some_cells[is_new], some_flags[is_new] = cells, rows.flags
        oldest, n_frames, in_order = entry._bounds()
        wrong = find_wrong(
            np.zeros(len(chosen), np.int64), held + n_new, some_flags, some_cells.reshape(-1),
            lanes[chosen], oldest[chosen], n_frames[chosen], entry.layout.stack_size, in_order,
        )  # fmt: skip
        if wrong >= 0:
            raise CorruptFrameError(
                f"a message has stacks of lane {chosen[wrong]} that are not of its frames"
            )

    def finish(self) -> None:
        """Write it down; from where the lanes stood before, should that be cut off."""
        observations, transitions, resets, windows, tree = self._parts
        transitions.standing, rows = self._transitions, self._rows
        transitions.take(rows)
        transitions.rewrite(*self._rewritten)
        for each in windows:
            each.catch_up(
                rows.lanes, rows.n_new, rows.was_cut, transitions.counts, transitions.runs,
                transitions.flags,
            )  # fmt: skip
        transitions.have(rows)
        if self._priorities is not None:
            cells, leaves, top = self._priorities
            tree.set_to(cells, np.where(windows[0].holds(cells), leaves, 0.0), top)
        observations.standing = self._observations
        for entry, cells, changed, lanes in self._stacks:
            entry.take(rows.cells, cells, changed, lanes, rows.lanes[rows.n_new > 0])
        resets.have(self._resets)
        observations.have_watches(self._watches)
        self._buffer._have_drawing(*self._drawing)

    def roll_back(self) -> None:
        """Have come as far as before."""
        self._parts.transitions.standing = self._transitions
        self._parts.observations.standing = self._observations
        self._buffer._position = self._before

    def begin(
        self, rng: np.random.Generator | None, numbers: list[float], has_warned: bool
    ) -> None:
        """Hear what else a buffer keeps, and say how far it will have come."""
        self._drawing = rng, numbers, has_warned
        self._buffer._position = self._position


assert {*_LANE_FIELDS, "oldest", *RUN_FIELDS} == set(LANE.names or ())
