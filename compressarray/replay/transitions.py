"""What is known of each transition beside its observations, in a ring for each lane."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of, prefetch
from compressarray.replay.changed import ChangedCells
from compressarray.replay.fields import Fields
from compressarray.replay.rewards import Rewards, put_reward, reward_at
from compressarray.replay.windows import CUT, END, FIRST, TERMINATED, TRUNCATED, Windows
from compressarray.snapshots import MOST, Snapshot, array_of, part_of

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

# Transitions whose memory begins to load before their turn comes: of a million ones each is a
# cache miss of 80 ns.
AHEAD = 8


class Returns(NamedTuple):
    """What windows of n steps come to."""

    signals: Floats  # (4, B): reward, terminated, discount, and ones
    action: AnyArray  # (B, *action shape), as stored: of the first step
    last: Int64s  # (B,): the cell of the last step
    names: Int64s  # (B,): of the transitions


class Steps(NamedTuple):
    """The steps of sequences; each field is ``(B, T)``."""

    reward: Floats
    terminated: Floats
    truncated: Floats
    is_first: Floats


class NewRows(NamedTuple):
    """What a message brings of some lanes."""

    lanes: Int64s  # (n,), sorted
    n_new: Int64s  # (n,): transitions of each
    was_cut: Bools  # (n,): whether the newest one before those was cut
    cells: Int64s  # (rows,): where they go, lane by lane, oldest first
    flags: UInt8s
    rewards: Floats
    actions: UInt8s  # (rows, bytes of an action)
    fields: dict[str, AnyArray]  # (rows, ...) each


class Transitions:
    """Actions, rewards and ends of ``n_lanes`` rings of ``n_slots`` transitions.

    Transition t of a lane lies in cell ``lane * n_slots + t % n_slots``, and its name is
    ``t * n_lanes + lane``, which no other transition ever has.
    """

    def __init__(
        self,
        n_lanes: int,
        n_slots: int,
        action_shape: tuple[int, ...],
        action_dtype: np.dtype[Any],
        fields: Any = None,
    ) -> None:
        self.n_lanes = n_lanes
        self.n_slots = n_slots
        self.all_lanes = np.arange(n_lanes)
        self.rewards = Rewards(n_lanes * n_slots)
        self.flags = np.zeros((n_lanes, n_slots), np.uint8)
        # As bytes, so that kernels need not be compiled for each dtype.
        n_bytes = prod(action_shape) * action_dtype.itemsize
        self.action_bytes: UInt8s = np.zeros((n_lanes * n_slots, n_bytes), np.uint8)
        self.fields = Fields(fields, n_lanes * n_slots)
        self.rewritten = ChangedCells(n_lanes * n_slots)  # cells whose rewards were
        self._action_shape = action_shape
        self._action_dtype = action_dtype
        self.counts: Int64s = np.zeros(n_lanes, np.int64)
        # The first transition that there may be, where a smaller ring has let go of those before.
        self.first: Int64s = np.zeros(n_lanes, np.int64)
        # Steps of each lane's newest episode that are held, and whether it goes on.
        self.runs: Int64s = np.zeros(n_lanes, np.int64)
        self.running: Bools = np.zeros(n_lanes, np.bool_)

    @property
    def standing(self) -> tuple[Int64s, Int64s, Bools]:
        """How many transitions and running steps the lanes have; copies, to be restored."""
        return self.counts.copy(), self.runs.copy(), self.running.copy()

    @standing.setter
    def standing(self, standing: tuple[Int64s, Int64s, Bools]) -> None:
        self.counts[:], self.runs[:], self.running[:] = standing

    def __len__(self) -> int:
        return int((self.counts - self.oldest).sum())

    @property
    def oldest(self) -> Int64s:
        """The oldest transition that each lane holds, ``(n_lanes,)``, where it holds one."""
        return np.maximum(self.counts - self.n_slots, self.first)

    @property
    def actions(self) -> AnyArray:
        """The stored actions of all cells, ``(n_lanes * n_slots, *action_shape)``, a view."""
        return self.as_actions(self.action_bytes)

    def as_actions(self, rows: UInt8s) -> AnyArray:
        """View rows of ``action_bytes`` as stored actions."""
        return rows.view(self._action_dtype).reshape(len(rows), *self._action_shape)

    def add(
        self,
        lanes: Int64s,
        action: AnyArray,
        reward: npt.NDArray[np.floating[Any]],
        terminated: Bools,
        truncated: Bools,
        fields: Mapping[str, AnyArray],
        windows: list[Windows],
    ) -> None:
        """Add a transition to some lanes.

        Parameters
        ----------
        lanes : ndarray of int64
            To which.
        action, reward, terminated, truncated : ndarray, (n_lanes, ...)
            C-contiguous; rewards are rounded to float32. Rows of other lanes mean nothing.
        fields : mapping of str to ndarray, (n_lanes, ...)
        windows : list of Windows
            Told of what may start now.
        """
        if fields:
            cells = lanes * self.n_slots + self.counts[lanes] % self.n_slots
            self.fields.write(cells, fields, lanes)
        self.rewards.make_room(lanes, reward)
        record(
            lanes, action.reshape(self.n_lanes, -1).view(np.uint8), reward, terminated, truncated,
            self.action_bytes, *self.rewards.arrays, self.flags, self.counts, self.runs,
            self.running,
        )  # fmt: skip
        for each in windows:
            each.advance(lanes, True, self.counts, self.runs, self.flags)

    def take(self, rows: NewRows) -> None:
        """Have the transitions of a message, see `compressarray.replay.following`.

        Windows are told before, while ``counts`` and ``runs`` still say what there was.
        """
        n_slots = self.n_slots
        cut = rows.lanes[rows.was_cut]
        self.flags[cut, (self.counts[cut] - 1) % n_slots] |= CUT
        self.flags.reshape(-1)[rows.cells] = rows.flags
        self.rewards[rows.cells] = rows.rewards
        self.action_bytes[rows.cells] = rows.actions
        self.fields.write(rows.cells, rows.fields, slice(None))

    def have(self, rows: NewRows) -> None:
        """Count the transitions that `take` brought."""
        count_rows(rows.lanes, rows.n_new, rows.was_cut, self.counts, self.runs, self.running,
                   self.flags)  # fmt: skip

    def cells_of_new(self, lanes: Int64s, first: Int64s, n_new: Int64s) -> Int64s:
        """Return the cells of ``n_new`` transitions from the ``first`` on, lane by lane."""
        lane = np.repeat(lanes, n_new)
        within = np.arange(len(lane)) - np.repeat(np.cumsum(n_new) - n_new, n_new)
        cells: Int64s = lane * self.n_slots + (np.repeat(first, n_new) + within) % self.n_slots
        return cells

    def cut(self, named: Bools, windows: list[Windows]) -> None:
        """End the running episodes of the lanes that ``named``, ``(n_lanes,)``, says."""
        ended = np.zeros(self.n_lanes, np.bool_)
        if end_runs(named, self.flags, self.counts, self.running, ended):
            for each in windows:
                each.advance(np.flatnonzero(ended), False, self.counts, self.runs, self.flags)

    def cells_of(self, names: Int64s) -> tuple[Int64s, Bools]:
        """Find where some transitions lie; return their cells, and which are still held.

        Raises
        ------
        IndexError
            If a name is none that ever was.
        """
        unknown = (names < 0) | (names // self.n_lanes >= self.counts[names % self.n_lanes])
        if unknown.any():
            raise IndexError(f"transition {names[unknown][0]} was never added")
        return self.find(names)

    def find(self, names: Int64s) -> tuple[Int64s, Bools]:
        """Do the same, where what was never added is not held, either; no name is below zero."""
        counts, lanes = np.divmod(names, self.n_lanes)
        cells: Int64s = lanes * self.n_slots + counts % self.n_slots
        return cells, (counts >= self.oldest[lanes]) & (counts < self.counts[lanes])

    def newest(self, n: int) -> Int64s:
        """Return the names of the ``n`` newest transitions that are held, or of all, in order."""
        first = np.maximum(self.oldest, self.counts - n)
        times = [np.arange(*span) for span in zip(first, self.counts, strict=True)]
        names = np.concatenate([t * self.n_lanes + lane for lane, t in enumerate(times)])
        names.sort()
        return names[len(names) - min(n, len(names)) :]

    def rewrite(self, cells: Int64s, rewards: Floats) -> None:
        """Have other rewards in some cells."""
        self.rewritten.add(cells)
        self.rewards[cells] = rewards

    def names(self, cells: Int64s) -> Int64s:
        """Return the names of what some cells hold."""
        lanes, slots = np.divmod(cells, self.n_slots)
        newest = self.counts[lanes] - 1
        return (newest - (newest - slots) % self.n_slots) * self.n_lanes + lanes

    def returns(self, cells: Int64s, powers: npt.NDArray[np.float64]) -> Returns:
        """Sum discounted rewards of windows that start in some cells.

        Parameters
        ----------
        cells : ndarray, (B,) int64
        powers : ndarray, (n_step + 1,) float64
            Of the discount, from the zeroth.
        """
        n = len(cells)
        signals = np.empty((4, n), np.float32)
        action = np.empty((n, self.action_bytes.shape[1]), np.uint8)
        last, names = np.empty(n, np.int64), np.empty(n, np.int64)
        read_windows(
            cells, powers, self.counts, *self.rewards.arrays[:2], self.flags, self.action_bytes,
            signals, action, last, names,
        )  # fmt: skip
        return Returns(signals, self.as_actions(action), last, names)

    def steps(self, cells: Int64s) -> Steps:
        """Return what ``(B, T)`` cells hold."""
        flags = self.flags.reshape(-1)[cells]
        return Steps(
            self.rewards[cells],
            *((flags & bit != 0).astype(np.float32) for bit in (TERMINATED, TRUNCATED, FIRST)),
        )

    def runs_of(self, cells: Int64s, length: int) -> Int64s:
        """Return the cells of ``length`` steps from each of ``(B,)`` cells, ``(B, length)``."""
        lanes, slots = np.divmod(cells, self.n_slots)
        steps = (slots[:, None] + np.arange(length)) % self.n_slots
        runs: Int64s = (lanes * self.n_slots)[:, None] + steps
        return runs

    @property
    def n_episodes(self) -> int:
        """Episodes of which a transition is held; takes a pass over the flags."""
        # An episode begins where the oldest transition of a lane is, and after each end but
        # that of the newest transition.
        return int(np.count_nonzero(self.flags & END) + np.count_nonzero(self.running))

    # -- pickling ----------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Show what cannot be worked out from the rest, as views."""
        return {
            "counts": self.counts,
            "first": self.first,
            "flags": self.flags,
            "rewards": self.rewards.snapshot(),
            "actions": self.actions,
            "fields": self.fields.snapshot(),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of; nothing is known of whether actions are allowed.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of such transitions.
        """
        n_cells = len(self.rewards)
        counts = array_of(snapshot, "counts", np.int64, (self.n_lanes,), 0, MOST // self.n_lanes)
        first = array_of(snapshot, "first", np.int64, (self.n_lanes,), 0)
        if (first > counts).any():
            raise CorruptFrameError(f"stored first is {first}, past the counts {counts}")
        flags = array_of(
            snapshot, "flags", np.uint8, self.flags.shape, 0,
            TERMINATED | TRUNCATED | CUT | FIRST,
        )  # fmt: skip
        rewards = Rewards(n_cells)
        rewards.restore(part_of(snapshot, "rewards"))
        actions = array_of(snapshot, "actions", self._action_dtype, (n_cells, *self._action_shape))
        self.counts, self.flags, self.rewards, self.first = counts, flags, rewards, first
        self.action_bytes = actions.reshape(n_cells, prod(self._action_shape)).view(np.uint8)
        self.fields.restore(part_of(snapshot, "fields"))
        self._check_flags()
        for lane in range(self.n_lanes):
            n = int(counts[lane] - self.oldest[lane])
            slots = (counts[lane] - 1 - np.arange(n)) % self.n_slots
            ends = flags[lane, slots] & END != 0  # from the newest one back
            self.running[lane] = n > 0 and not ends[0]
            self.runs[lane] = 1 + np.argmax(ends[1:]) if ends[1:].any() else n

    def _check_flags(self) -> None:
        """Refuse episodes that do not begin where others end."""
        ends, firsts = self.flags & END != 0, self.flags & FIRST != 0
        begins = np.roll(ends, 1, axis=1)
        # Nothing is known of the step before the oldest one that is held, but of the very first.
        oldest = self.oldest % self.n_slots
        is_first = firsts[self.all_lanes, oldest] | (self.oldest == 0)
        begins[self.all_lanes, oldest] = is_first
        is_both = (self.flags & CUT != 0) & (self.flags & (TERMINATED | TRUNCATED) != 0)
        wrong = self.is_held & ((begins != firsts) | is_both)
        if wrong.any():
            lane, slot = np.argwhere(wrong)[0]
            raise CorruptFrameError(
                f"stored flags of lane {lane} say in slot {slot} ({self.flags[lane, slot]}) that "
                "an episode begins where none ended, goes on where one did, or ended twice"
            )

    @property
    def is_held(self) -> Bools:
        """Which slots hold a transition, ``(n_lanes, n_slots)``."""
        newest = self.counts[:, None] - 1
        times = newest - (newest - np.arange(self.n_slots)) % self.n_slots
        held: Bools = times >= self.oldest[:, None]
        return held

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        parts = (self.flags, self.action_bytes, self.counts, self.runs, self.running,
                 self.first)  # fmt: skip
        beside = self.rewards.nbytes + self.fields.nbytes + self.rewritten.nbytes
        return beside + sum(part.nbytes for part in parts)


@kernel
def first_not_finite(reward: Any, live: Any) -> Any:
    """Return the first lane that lives and whose reward is not finite as float32, or -1."""
    for lane in range(len(live)):
        if live[lane] and not np.isfinite(np.float32(reward[lane])):
            return lane
    return -1


@kernel
def record(lanes: Any, action: Any, reward: Any, terminated: Any, truncated: Any, actions: Any,
           codes: Any, values: Any, known: Any, flags: Any, counts: Any, runs: Any,
           running: Any) -> Any:  # fmt: skip
    """Write down a transition of each of some lanes; there are codes for their rewards."""
    n_slots = flags.shape[1]
    for lane in lanes:
        slot = counts[lane] % n_slots
        cell = lane * n_slots + slot
        for i in range(action.shape[1]):
            actions[cell, i] = action[lane, i]
        put_reward(cell, reward[lane], codes, values, known)
        flag = TERMINATED * terminated[lane] | TRUNCATED * truncated[lane]
        if not running[lane]:
            flag |= FIRST
            runs[lane] = 0
        flags[lane, slot] = flag
        counts[lane] += 1
        runs[lane] = min(runs[lane] + 1, n_slots)
        running[lane] = not (terminated[lane] or truncated[lane])


@kernel
def count_rows(lanes: Any, n_new: Any, was_cut: Any, counts: Any, runs: Any, running: Any,
               flags: Any) -> Any:  # fmt: skip
    """Let the rows of some lanes that were written count, as `record` and `end_runs` do."""
    n_slots = flags.shape[1]
    for i in range(len(lanes)):
        lane = lanes[i]
        if was_cut[i]:
            running[lane] = False
        for _ in range(n_new[i]):
            flag = flags[lane, counts[lane] % n_slots]
            if flag & FIRST:
                runs[lane] = 0
            counts[lane] += 1
            runs[lane] = min(runs[lane] + 1, n_slots)
            running[lane] = not flag & END


@kernel
def end_runs(named: Any, flags: Any, counts: Any, running: Any, ended: Any) -> Any:
    """End the running episodes of named lanes; fill ``ended`` with those, and return how many."""
    n_ended = 0
    for lane in range(len(named)):
        ended[lane] = named[lane] and running[lane]
        if ended[lane]:
            flags[lane, (counts[lane] - 1) % flags.shape[1]] |= CUT
            running[lane] = False
            n_ended += 1
    return n_ended


@kernel
def read_windows(cells: Any, powers: Any, counts: Any, codes: Any, values: Any, flags: Any,
                 actions: Any, signals: Any, action: Any, last: Any,
                 names: Any) -> Any:  # fmt: skip
    """Fill the fields of `Returns`; sums are of ``gamma ** k * reward[t + k]`` until an end."""
    n_lanes, n_slots = flags.shape
    n_step = len(powers) - 1
    for i in range(len(cells)):
        later = cells[min(i + AHEAD, len(cells) - 1)]
        prefetch(base_of(codes) + later if len(codes) else base_of(values) + later * 4)
        prefetch(base_of(flags) + later)
        prefetch(base_of(actions) + later * actions.shape[1])
        lane = cells[i] // n_slots
        slot = cells[i] - lane * n_slots
        newest = counts[lane] - 1
        names[i] = (newest - (newest - slot) % n_slots) * n_lanes + lane
        for j in range(actions.shape[1]):
            action[i, j] = actions[cells[i], j]
        total = 0.0
        k = 0
        while True:
            total += powers[k] * reward_at(codes, values, lane * n_slots + slot)
            k += 1
            ends = flags[lane, slot] & END
            if ends or k == n_step:
                break
            slot = slot + 1 if slot + 1 < n_slots else 0
        signals[0, i] = total
        signals[1, i] = (flags[lane, slot] & TERMINATED) != 0
        signals[2, i] = powers[k]
        signals[3, i] = 1.0
        last[i] = lane * n_slots + slot
