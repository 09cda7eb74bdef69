"""What is known of transitions' stacks, by runs: next to nothing a transition.

While an episode goes on as episodes do, each stack is the one before it moved on by the next frame
of its lane. Such transitions are a *run*, of which only the beginning is held. A bit for each
transition says whether it begins one, and a number for each 64 how many there were before.
Where a wrapper hands out something else each transition is a run by itself, of 20 bytes.

Transitions are found by their time, of which 64 share a word: one word more than the ring fills, so
that a new lap never meets what is held of the old one.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.kernels.attaching import (
    Int64Row,
    UInt32Table,
    UInt64Table,
    attacher,
    describe,
    kind_of_row,
)
from compressarray.kernels.compiling import inlined, kernel
from compressarray.kernels.memory import count_bits
from compressarray.snapshots import MOST, Snapshot, array_of

Int64s = npt.NDArray[np.int64]

# Bits of marks: padding is the lane's pinned frame; the successor stands apart; its padding is
# the pinned frame.
PINNED, APART, NEXT_PINNED = 1, 2, 4
_UINT32 = 2**32 - 1
_ALL = np.uint64(2**64 - 1)
_MOST_AGE = 1 << 31  # of a run, in transitions, so that 32 bits tell them apart
_FIRST_ROOM = 4  # runs of a lane: a power of two, which doubles

# Of transitions that go on from each other, the first one; the others have the next newest frames.
RUN = np.dtype(
    [
        ("time", np.uint32),  # which transition of its lane it is, modulo 2**32
        ("newest", np.uint32),  # count of the newest frame, modulo 2**32
        ("age", np.uint32),
        ("step", np.uint32),
        ("marks", np.uint8),
    ],
    align=True,
)
# What is known of each lane.
Lanes = npt.NDArray[np.void]
LANE = np.dtype(
    [
        # Of its last successor, the stack that its next observation should be: the count of the
        # newest frame, the age, and PINNED or 0.
        ("at", np.int64),
        ("age", np.int64),
        ("marks", np.int64),
        ("oldest", np.int64),  # place of the oldest frame of that stack in the ring of ``current``
        ("first", np.int64),  # count of the first frame that has not been let go
        ("pad", np.int64),  # index of the padding frame, -1 as long as there is none
        ("count", np.int64),  # transitions that are written down, ever
        ("n_runs", np.int64),  # ever
        ("first_run", np.int64),  # the first one that may be needed
        ("known", np.bool_),  # whether there is a last successor
    ],
    align=True,
)
_SAVED = ("newest", "age", "step", "marks")
RunRow = Annotated[npt.NDArray[np.void], kind_of_row(RUN)]
LaneRow = Annotated[npt.NDArray[np.void], kind_of_row(LANE)]
RUN_FIELDS = ("count", "n_runs", "first_run")  # of a lane: how its runs lie, and no more
# One transition as others are told of it.
Cells = npt.NDArray[np.void]


def cell_dtype(stack_size: int) -> np.dtype[np.void]:
    """Return the dtype of what is known of a transition, seven bytes of up to 255 frames."""
    small = np.min_scalar_type(stack_size)
    return np.dtype([("newest", np.uint32), ("age", small), ("step", small), ("marks", np.uint8)])


class RunArrays(NamedTuple):
    """What kernels see of runs.

    Attributes
    ----------
    sizes : ndarray, (2,) int64
        Of a stack, and transitions that a lane keeps.
    begins : ndarray, (n_lanes, words) uint64
        A bit for each transition, by time: whether a run begins with it.
    before : ndarray, (n_lanes, words) uint32
        How many runs began before each word's, modulo 2**32.
    table : ndarray, (n_lanes * room,) `RUN`
        A ring of runs for each lane.
    lanes : ndarray, (n_lanes,) `LANE`
    """

    sizes: Int64Row
    begins: UInt64Table
    before: UInt32Table
    table: RunRow
    lanes: LaneRow


# (view): the arrays of runs, in kernels.
runs_at: Any = attacher(RunArrays)


class Runs:
    """The runs of lanes of ``n_slots`` transitions each.

    Parameters
    ----------
    lanes : ndarray, (n_lanes,) `LANE`
        Of whoever has the runs; here is kept what `RUN_FIELDS` names.
    n_slots, stack_size : int
    """

    def __init__(self, lanes: Lanes, n_slots: int, stack_size: int) -> None:
        n_lanes, n_words = len(lanes), -(-n_slots // 64) + 1
        self.n_lanes = n_lanes
        self.n_slots = n_slots
        self.stack_size = stack_size
        self._have(
            RunArrays(
                np.array([stack_size, n_slots]),
                np.zeros((n_lanes, n_words), np.uint64),
                np.zeros((n_lanes, n_words), np.uint32),
                np.zeros(n_lanes * _FIRST_ROOM, RUN),
                lanes,
            )
        )

    def _have(self, arrays: RunArrays) -> None:
        self._at = arrays, describe(arrays)  # in one step: a view must not outlive its arrays

    @property
    def arrays(self) -> RunArrays:
        """The arrays as they are now."""
        return self._at[0]

    @property
    def view(self) -> Int64s:
        """Where kernels find them."""
        return self._at[1]

    def grow(self) -> None:
        """Have room for twice as many runs."""
        lanes, table = self.arrays.lanes, self.arrays.table
        room = len(table) // max(self.n_lanes, 1)
        grown = np.zeros(2 * len(table), RUN)
        for k, (first, end) in enumerate(zip(lanes["first_run"], lanes["n_runs"], strict=True)):
            numbers = np.arange(first, end)
            grown[2 * k * room + numbers % (2 * room)] = table[k * room + numbers % room]
        self._have(self.arrays._replace(table=grown))

    def put(self, numbers: Int64s, cells: Cells) -> None:
        """Write down transitions, lane by lane, oldest first.

        Parameters
        ----------
        numbers : ndarray, (n,) int64
            ``lane * n_slots + slot``, of those that follow the ones that each lane has.
        cells : ndarray, (n,) of `cell_dtype`
        """
        of_lanes = numbers // max(self.n_slots, 1)
        done = put_cells(0, of_lanes, cells, self.view)
        while done < len(numbers):
            self.grow()
            done = put_cells(done, of_lanes, cells, self.view)

    def cells(self, numbers: Int64s) -> Cells:
        """Return what is known of some transitions, by ``lane * n_slots + slot``."""
        cells = np.zeros(len(numbers), cell_dtype(self.stack_size))
        fill_cells(numbers, self.view, cells)
        return cells

    def snapshot(self, oldest: Int64s) -> Snapshot:
        """Copy the runs that are needed.

        Parameters
        ----------
        oldest : ndarray, (n_lanes,) int64
            The first transition that each lane holds.
        """
        lanes, table = self.arrays.lanes, self.arrays.table
        room = len(table) // max(self.n_lanes, 1)
        first, end = lanes["first_run"], lanes["n_runs"]
        of_lane = np.repeat(np.arange(self.n_lanes), end - first)
        numbers = [np.arange(*span) for span in zip(first, end, strict=True)]
        runs = table[of_lane * room + np.concatenate(numbers) % room]
        newest = lanes["count"][of_lane] - 1
        held = {
            "counts": end - first,
            "times": newest - (newest - runs["time"].astype(np.int64)) % 2**32,
            **{name: runs[name].copy() for name in _SAVED},
        }
        return trimmed(held, oldest, lanes["count"])

    def restore(self, snapshot: Snapshot, oldest: Int64s, counts: Int64s) -> None:
        """Become what a snapshot was taken of, from nothing.

        Parameters
        ----------
        oldest, counts : ndarray, (n_lanes,) int64
            The first transition that each lane holds, and how many it has had.

        Raises
        ------
        CorruptFrameError
            If these are no runs of those transitions.
        """
        n_runs = array_of(snapshot, "counts", np.int64, (self.n_lanes,), 0, MOST)
        if (n_runs > np.maximum(counts - oldest, 0)).any() or (
            (n_runs == 0) != (counts == oldest)
        ).any():
            raise CorruptFrameError(f"stored runs are {n_runs}, of {counts - oldest} transitions")
        n = int(n_runs.sum())
        times = array_of(snapshot, "times", np.int64, (n,), 0, MOST)
        runs = np.zeros(n, RUN)
        runs["time"] = times & _UINT32
        highest = self.stack_size - 1, self.stack_size, PINNED | APART | NEXT_PINNED
        for name, most in zip(_SAVED, (None, *highest), strict=True):
            runs[name] = array_of(snapshot, name, RUN[name], (n,), 0, most)
        room = _FIRST_ROOM
        while room <= n_runs.max(initial=0):
            room *= 2
        _, begins, before, _, lanes = self.arrays
        table = np.zeros(self.n_lanes * room, RUN)
        ends = np.cumsum(n_runs)
        for k in np.flatnonzero(n_runs).tolist():
            mine = slice(ends[k] - n_runs[k], ends[k])
            since = times[mine]
            if since[0] > oldest[k] or since[-1] >= counts[k] or (np.diff(since) <= 0).any():
                raise CorruptFrameError(f"stored runs of lane {k} begin in no order, at {since}")
            if len(since) > 1 and since[1] <= oldest[k]:
                raise CorruptFrameError(f"stored runs of lane {k} are of no transition it holds")
            table[k * room :][: n_runs[k]] = runs[mine]
            first = oldest[k] >> 6
            blocks = np.arange(first, ((counts[k] - 1) >> 6) + 1)
            words = blocks % begins.shape[1]
            begun = np.maximum(since, first << 6)  # where the first one began is forgotten
            np.bitwise_or.at(
                begins[k], (begun >> 6) % begins.shape[1],
                np.uint64(1) << (begun & 63).astype(np.uint64),
            )  # fmt: skip
            before[k, words] = np.searchsorted(begun, blocks << 6)
        lanes["n_runs"] = n_runs
        lanes["first_run"] = 0
        lanes["count"] = counts
        self._have(self.arrays._replace(table=table))

    @property
    def nbytes(self) -> int:
        """Bytes held, the lanes apart."""
        held = sum(array.nbytes for array in self.arrays)
        return held - self.arrays.lanes.nbytes + self.view.nbytes


def trimmed(runs: Snapshot, oldest: Int64s, counts: Int64s) -> Snapshot:
    """Leave out of a snapshot the runs of transitions that are not held any more.

    Parameters
    ----------
    runs : dict
        From `Runs.snapshot`.
    oldest, counts : ndarray, (n_lanes,) int64
        The first transition that each lane holds, and how many it has had.
    """
    n_runs = array_of(runs, "counts", np.int64, oldest.shape, 0, MOST)
    n = int(n_runs.sum())
    times = array_of(runs, "times", np.int64, (n,))
    lanes = np.repeat(np.arange(len(n_runs)), n_runs)
    until = np.append(times[1:], 0)
    until[np.cumsum(n_runs)[n_runs > 0] - 1] = counts[n_runs > 0]
    needed = until > oldest[lanes]
    return {
        "counts": np.bincount(lanes[needed], minlength=len(n_runs)),
        "times": times[needed],
        **{name: array_of(runs, name, RUN[name], (n,))[needed] for name in _SAVED},
    }


# -- kernels ---------------------------------------------------------------------------------


@inlined
def time_in(lane: Any, slot: Any, n_slots: Any) -> Any:
    """Which transition of a lane lies in a slot."""
    newest = lane.count - 1
    at = newest % n_slots
    return newest - at + slot - (n_slots if slot > at else 0)


@inlined
def stack_of(k: Any, time: Any, runs: Any) -> Any:
    """What is known of a transition: the count of its newest frame, its age, step and marks."""
    lane, begins, room = runs.lanes[k], runs.begins, len(runs.table) // len(runs.lanes)
    word = (time >> 6) % begins.shape[1]
    begun = begins[k, word] & (_ALL >> np.uint64(63 - (time & 63)))
    number = np.int64(runs.before[k, word]) + count_bits(begun) - 1
    run = runs.table[k * room + (number & (room - 1))]
    done = (time - np.int64(run.time)) & _UINT32
    newest = lane.at - ((lane.at - np.int64(run.newest) - done) & _UINT32)
    age = min(np.int64(run.age) + done, runs.sizes[0] - 1)
    return newest, age, np.int64(run.step), np.int64(run.marks)


@inlined
def _goes_on(k: Any, time: Any, newest: Any, age: Any, marks: Any, runs: Any) -> Any:
    """Whether a transition goes on from the lane's newest one, as all of a run do."""
    lane, room = runs.lanes[k], len(runs.table) // len(runs.lanes)
    goes_on = False
    if lane.n_runs > lane.first_run and lane.count == time:
        run = runs.table[k * room + ((lane.n_runs - 1) & (room - 1))]
        done = (time - np.int64(run.time)) & _UINT32
        goes_on = (
            marks == np.int64(run.marks)
            and not marks & APART
            and done < _MOST_AGE
            and (newest - np.int64(run.newest) - done) & _UINT32 == 0
            and age == min(np.int64(run.age) + done, runs.sizes[0] - 1)
        )
    return goes_on


@inlined
def _first_needed(k: Any, time: Any, runs: Any) -> Any:
    """The first run that is needed once a lane has a transition more."""
    lane, room = runs.lanes[k], len(runs.table) // len(runs.lanes)
    first = lane.first_run
    while lane.n_runs - first > 1:
        second = np.int64(runs.table[k * room + ((first + 1) & (room - 1))].time)
        if (time - second) & _UINT32 < runs.sizes[1] - 1:
            break
        first += 1
    return first


@kernel
def has_room(k: Any, time: Any, newest: Any, age: Any, marks: Any, runs: Any) -> Any:
    """Whether `put_cell` has room for a transition, once it forgets the runs that nobody needs."""
    if _goes_on(k, time, newest, age, marks, runs):
        return True
    room = len(runs.table) // len(runs.lanes)
    return runs.lanes[k].n_runs - _first_needed(k, time, runs) < room


@kernel
def put_cell(k: Any, time: Any, newest: Any, age: Any, step: Any, marks: Any, runs: Any) -> None:
    """Write down one transition; it has room, and the one before it is the lane's newest."""
    lane, begins, room = runs.lanes[k], runs.begins, len(runs.table) // len(runs.lanes)
    word, bit = (time >> 6) % begins.shape[1], np.uint64(1) << np.uint64(time & 63)
    goes_on = _goes_on(k, time, newest, age, marks, runs)
    if time & 63 == 0 or lane.n_runs == 0:
        begins[k, word] = np.uint64(0)
        runs.before[k, word] = lane.n_runs & _UINT32
    if goes_on:
        begins[k, word] &= ~bit
    else:
        lane.first_run = _first_needed(k, time, runs)
        run = runs.table[k * room + (lane.n_runs & (room - 1))]
        run.time, run.newest = time & _UINT32, newest & _UINT32
        run.age, run.step, run.marks = age, step, marks
        begins[k, word] |= bit
        lane.n_runs += 1
    lane.count = time + 1


@kernel
def put_cells(done: Any, of_lanes: Any, cells: Any, view: Any) -> Any:
    """See `Runs.put`; begins with cell ``done``, and returns how many are done."""
    runs = runs_at(view)
    for i in range(done, len(cells)):
        cell, k = cells[i], of_lanes[i]
        time, newest, age = runs.lanes[k].count, np.int64(cell.newest), np.int64(cell.age)
        marks = np.int64(cell.marks)
        if not has_room(k, time, newest, age, marks, runs):
            return i
        put_cell(k, time, newest, age, np.int64(cell.step), marks, runs)
    return len(cells)


@kernel
def fill_cells(numbers: Any, view: Any, cells: Any) -> None:
    """See `Runs.cells`."""
    runs = runs_at(view)
    n_slots = runs.sizes[1]
    for i in range(len(numbers)):
        k = numbers[i] // n_slots
        time = time_in(runs.lanes[k], numbers[i] - k * n_slots, n_slots)
        newest, age, step, marks = stack_of(k, time, runs)
        cell = cells[i]
        cell.newest = newest & _UINT32
        cell.age, cell.step, cell.marks = age, step, marks
