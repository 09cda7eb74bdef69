"""Which frames make up each observation, in seven bytes a transition.

The frames of a lane are numbered as they are stored: their *count*. A stack whose newest frame has
count c, and whose episode (or padding) began ``age`` frames before, is ``c - age, ..., c`` behind
as many padding frames as are missing: frame ``c - age`` again, or a pinned one. So a transition
needs the count of its newest frame (four bytes, relative to the lane's newest), the age (one), how
many frames on its successor's newest frame lies (one), and three bits.

In the regular case the successor is the stack moved on by one frame. Where a wrapper hands out
something else, the successor stands *apart*: all its frames are stored, whatever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from compressarray.codecs.memory import same_bytes
from compressarray.errors import FrameEvictedError, StaleStreamError
from compressarray.jit import inlined, kernel
from compressarray.replay.layout import Layout
from compressarray.store.base import address_of

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

# Bits of `marks`: padding is the lane's pinned frame; the successor stands apart; its padding is
# the pinned frame.
PINNED, APART, NEXT_PINNED = 1, 2, 4
_UINT32 = 2**32 - 1
# Indices from here on name pinned frames.
_LOWEST_PIN = 2**62


class FrameMemory(Protocol):
    """What frames are stored in: a `DiffFrameArray`, or a `PlainRing`."""

    @property
    def stream(self) -> int: ...  # noqa: D102

    @property
    def lane_counts(self) -> Int64s: ...  # noqa: D102

    @property
    def nbytes_stored(self) -> int: ...  # noqa: D102

    def append(self, frames: AnyArray, lanes: Any = None) -> Any: ...  # noqa: D102

    def gather(self, indices: Any, out: Any = None, *, stream: int | None = None) -> Any: ...  # noqa: D102

    def clear(self) -> None: ...  # noqa: D102


class Plan(NamedTuple):
    """What one step brings, for each lane; rows of lanes without a transition mean nothing."""

    newest: Int64s  # count of the observation's newest frame, once it is stored
    age: Int64s
    step: Int64s  # from there to the successor's newest frame
    marks: UInt8s
    n_enter: Int64s  # frames to be stored for the observation itself

    @classmethod
    def empty(cls, n: int) -> Plan:
        """Return a plan of ``n`` lanes that stores one frame for each successor."""
        newest, age, n_enter = np.zeros((3, n), np.int64)
        return cls(newest, age, np.ones(n, np.int64), np.zeros(n, np.uint8), n_enter)


class Stacks(ABC):
    """The stacks of one entry of the observations, over the frames that hold its pixels.

    Subclasses say what `add` is given: stacks, newest frames, or frame indices.

    Parameters
    ----------
    layout : Layout
    frames : DiffFrameArray or PlainRing
        Of ``n_lanes`` lanes.
    n_lanes, n_slots : int
        Cells are ``lane * n_slots + slot``, as in `Transitions`.
    """

    def __init__(self, layout: Layout, frames: FrameMemory, n_lanes: int, n_slots: int) -> None:
        self.layout = layout
        self.frames = frames
        self.stream = frames.stream
        self.n_lanes = n_lanes
        self.n_slots = n_slots
        small = np.min_scalar_type(layout.stack_size)
        self.newest = np.zeros(n_lanes * n_slots, np.uint32)
        self.age = np.zeros(n_lanes * n_slots, small)
        self.step = np.zeros(n_lanes * n_slots, small)
        self.marks = np.zeros(n_lanes * n_slots, np.uint8)
        # The last successor of each lane: the stack that its next observation should be.
        self.known = np.zeros(n_lanes, np.bool_)
        self.at: Int64s = np.full(n_lanes, -1, np.int64)
        self.lane_age: Int64s = np.zeros(n_lanes, np.int64)
        self.lane_marks: UInt8s = np.zeros(n_lanes, np.uint8)
        # The index of each lane's padding frame, -1 as long as there is none.
        self.pads: Int64s = np.full(n_lanes, -1, np.int64)

    # -- adding ------------------------------------------------------------------------------

    @abstractmethod
    def compare(self, obs: AnyArray, live: Bools) -> Bools:
        """Say which lanes' observations are their last successors, ``(n_lanes,)``."""

    @abstractmethod
    def plan(
        self, obs: AnyArray, successor: AnyArray, live: Bools, same: Bools, begins: Bools
    ) -> Plan:
        """Find out how the observations of a step go on; nothing is written.

        Parameters
        ----------
        obs, successor : ndarray, (n_lanes, *layout.shape)
            Checked. The successor is what the step led to, an episode's last observation included.
        live : ndarray, (n_lanes,) bool
            Lanes that add a transition.
        same : ndarray, (n_lanes,) bool
            What `compare` said.
        begins : ndarray, (n_lanes,) bool
            Lanes where an episode begins.
        """

    @abstractmethod
    def store(self, plan: Plan, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Store the frames that are new, and fill in ``plan.newest``."""

    def commit(self, plan: Plan, lanes: Int64s, cells: Int64s, successor: AnyArray) -> None:
        """Write down what was planned and stored, for a transition of each of some lanes."""
        del successor
        write_down(
            lanes, cells, plan.newest, plan.age, plan.step, plan.marks, self.newest, self.age,
            self.step, self.marks, self.layout.stack_size, self.known, self.at, self.lane_age,
            self.lane_marks,
        )  # fmt: skip

    def oldest_counts(self, oldest: Int64s, held: Bools) -> Int64s:
        """Return the count of the oldest frame that each lane needs, ``(n_lanes,)``.

        Parameters
        ----------
        oldest : ndarray, (n_lanes,) int64
            Cells of the oldest transitions.
        held : ndarray, (n_lanes,) bool
            Whether there is one.
        """
        needed = self.at - ((self.at - self.newest[oldest]) & _UINT32) - self.age[oldest]
        return np.maximum(np.where(held, needed, self.at - self.lane_age), 0)

    def clear(self) -> None:
        """Forget all stacks."""
        self.known[:] = False
        self.at[:] = -1
        self.stream = self.frames.stream

    # -- sampling ----------------------------------------------------------------------------

    def are_regular(self, cells: Int64s) -> bool:
        """Say whether all successors are their observation moved on by one frame."""
        return not bool((self.marks[cells] & APART).any())

    def window_indices(self, cells: Int64s) -> Int64s:
        """Return frame indices of stacks and of the frames that follow.

        Parameters
        ----------
        cells : ndarray, (B, T) int64
            Consecutive transitions of an episode, all regular.

        Returns
        -------
        ndarray, (B, stack_size + T) int64
            The t-th observation is ``[t : t + stack_size]``, its successor one further on.
        """
        out = np.empty((len(cells), self.layout.stack_size + cells.shape[1]), np.int64)
        fill_windows(cells, *self._columns, out)
        return out

    def stack_indices(self, cells: Int64s, after: bool, out: Int64s) -> None:
        """Fill ``(n, stack_size)`` with the frame indices of observations, or of successors."""
        fill_stacks(cells, after, *self._columns, out)

    @property
    def _columns(self) -> tuple[Any, ...]:
        return (
            self.newest, self.age, self.step, self.marks, self.at, self.pads, self.n_slots,
            self.layout.stack_size,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes held, frames apart."""
        arrays = (value for value in vars(self).values() if isinstance(value, np.ndarray))
        return sum(array.nbytes for array in arrays)


class _StoredStacks(Stacks):
    """Stacks whose frames this memory stores by itself."""

    def __init__(self, layout: Layout, frames: FrameMemory, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        n_given = 1 if layout.feed == "newest" else layout.stack_size
        self.current: UInt8s = np.zeros((n_lanes, n_given, layout.frame_bytes), np.uint8)

    def compare(self, obs: AnyArray, live: Bools) -> Bools:
        """Compare bytes: a NaN is itself, and -0.0 is not 0.0."""
        same = np.zeros(self.n_lanes, np.bool_)
        given = self._bytes(obs)
        compare_lanes(
            address_of(given), address_of(self.current), given[0].size, live & self.known, same
        )
        return same

    def commit(self, plan: Plan, lanes: Int64s, cells: Int64s, successor: AnyArray) -> None:
        """Write down also how the successors look."""
        super().commit(plan, lanes, cells, successor)
        given = self._bytes(successor)
        if len(lanes) == self.n_lanes:
            self.current[...] = given
        else:
            self.current[lanes] = given[lanes]

    def store(self, plan: Plan, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Append lane by lane what is missing of the observation, then of the successor."""
        obs, successor = self.layout.to_frames(obs), self.layout.to_frames(successor)
        n_enter = plan.n_enter
        n_next = plan.step * live
        self._mend()
        if not n_enter.any() and (n_next == 1).all():
            self.frames.append(successor[:, -1])
        else:
            n_given = obs.shape[1]
            for k in range(int((n_enter + n_next).max(initial=0))):
                lanes = np.flatnonzero(n_enter + n_next > k)
                enters = n_enter[lanes]
                frames = successor[lanes, n_given - n_next[lanes] + np.maximum(k - enters, 0)]
                entering = k < enters
                frames[entering] = obs[lanes, n_given - enters + np.minimum(k, enters - 1)][
                    entering
                ]
                self.frames.append(frames, lanes)
        plan.newest[...] = self.frames.lane_counts - 1 - n_next

    def _mend(self) -> None:
        """Store stacks anew that stray frames, of an append that failed, cut from what follows."""
        torn = self.known & (self.frames.lane_counts != self.at + 1)
        for lane in np.flatnonzero(torn).tolist() if torn.any() else ():
            counts = self.at[lane] - np.arange(self.lane_age[lane], -1, -1)
            frames = np.empty((len(counts), *self.layout.frame_shape), self.layout.frame_dtype)
            self.frames.gather(counts * self.n_lanes + lane, out=frames)
            for frame in frames:
                self.frames.append(frame[None], np.array([lane]))
            self.at[lane] = self.frames.lane_counts[lane] - 1

    def _bytes(self, given: AnyArray) -> UInt8s:
        frames = np.ascontiguousarray(self.layout.to_frames(given))
        return frames.reshape(-1).view(np.uint8).reshape(self.current.shape)


class GivenStacks(_StoredStacks):
    """Fed with stacks of whatever wrapper."""

    def __init__(self, layout: Layout, frames: Any, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        self._zeros = np.zeros(layout.frame_shape, layout.frame_dtype)
        if layout.stack_size > 1:
            # Many wrappers begin an episode with zeros: those are stored once and for all.
            self.pads[:] = frames.pin(self._zeros)

    def plan(
        self, obs: AnyArray, successor: AnyArray, live: Bools, same: Bools, begins: Bools
    ) -> Plan:
        """Look for padding in stacks that are new, and whether successors go on."""
        del begins
        plan = Plan.empty(self.n_lanes)
        stacks, after = self._bytes(obs), self._bytes(successor)
        plan_stacks(
            address_of(stacks), address_of(after), self.layout.frame_bytes, self.layout.stack_size,
            address_of(self._zeros), live, same, self.lane_age, self.lane_marks, plan.age,
            plan.step, plan.marks, plan.n_enter,
        )  # fmt: skip
        return plan


class NewestFrames(_StoredStacks):
    """Fed with the newest frame of each observation; the stacks are made here.

    Parameters
    ----------
    padding : ndarray or None
        The frame before an episode's first one; None repeats the first one.
    """

    def __init__(
        self, layout: Layout, frames: Any, n_lanes: int, n_slots: int, padding: AnyArray | None
    ) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        self._padding_mark = 0
        if padding is not None:
            self.pads[:] = frames.pin(padding)
            self._padding_mark = PINNED

    def plan(
        self, obs: AnyArray, successor: AnyArray, live: Bools, same: Bools, begins: Bools
    ) -> Plan:
        """Begin padded stacks with episodes; frames that are there already are not stored again."""
        del obs, successor
        plan = Plan.empty(self.n_lanes)
        plan.age[...] = np.where(begins, 0, self.lane_age)
        plan.marks[...] = self._padding_mark
        plan.n_enter[...] = live & ~same
        return plan


class FrameIndices(Stacks):
    """Fed with the frame indices that an `IndexedFrameStack` emits."""

    def __init__(self, layout: Layout, frames: Any, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        self._ring_rows = int(frames.shape[0])
        self.current: Int64s = np.zeros((n_lanes, layout.stack_size), np.int64)

    def compare(self, obs: AnyArray, live: Bools) -> Bools:
        """Compare indices."""
        same: Bools = live & self.known & (obs == self.current).all(axis=1)
        return same

    def plan(
        self, obs: AnyArray, successor: AnyArray, live: Bools, same: Bools, begins: Bools
    ) -> Plan:
        """Read counts and ages off the indices.

        Raises
        ------
        StaleStreamError
            If the frames' numbering started over since the first transition.
        FrameEvictedError
            If a frame is not held.
        ValueError
            If the indices are no stacks, or the successor's do not follow.
        """
        del same, begins
        if self.frames.stream != self.stream and self.known.any():
            raise StaleStreamError(
                f"the frames are in stream {self.frames.stream}, and the buffer holds transitions "
                f"of stream {self.stream}: a reset with a seed began the new one. Reset without a "
                "seed, or call clear() first"
            )
        plan, after = Plan.empty(self.n_lanes), Plan.empty(self.n_lanes)
        pads = self.pads.copy()
        self._read(obs, live, pads, plan)
        self._read(successor, live, pads, after)
        regular = (after.newest == plan.newest + 1) & (
            after.age == np.minimum(plan.age + 1, self.layout.stack_size - 1)
        )
        if not regular[live].all():
            lane = int(np.flatnonzero(live & ~regular)[0])
            raise ValueError(
                f"next_obs {successor[lane]} of lane {lane} does not follow obs {obs[lane]}: it "
                "must be the same stack moved on by the next frame. Pass the observation that the "
                "step gave, and info, whose final_obs ends episodes"
            )
        self._refuse_evicted(plan, live)
        self.pads[...] = pads
        return plan

    def store(self, plan: Plan, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Do nothing: the wrapper has stored all frames."""

    def commit(self, plan: Plan, lanes: Int64s, cells: Int64s, successor: AnyArray) -> None:
        """Write down also the successors' indices."""
        super().commit(plan, lanes, cells, successor)
        self.stream = self.frames.stream
        self.current[lanes] = successor[lanes]

    def _read(self, indices: AnyArray, live: Bools, pads: Int64s, plan: Plan) -> None:
        bad = read_stacks(indices, live, self.n_lanes, pads, plan.newest, plan.age, plan.marks)
        if bad >= 0:
            raise ValueError(
                f"the frame indices {indices[bad]} of lane {bad} are no stack of its frames: "
                "consecutive ones of one lane are, behind padding. Pass the observations of the "
                "IndexedFrameStack whose frames the buffer was given"
            )

    def _refuse_evicted(self, plan: Plan, live: Bools) -> None:
        counts = self.frames.lane_counts
        first, last = plan.newest - plan.age, plan.newest + 1
        for lane in np.flatnonzero(live & ((last >= counts) | (first < counts - self._ring_rows))):
            given = [int(count) * self.n_lanes + int(lane) for count in (first[lane], last[lane])]
            oldest = max(int(counts[lane]) - self._ring_rows, 0) * self.n_lanes + int(lane)
            raise FrameEvictedError(
                f"lane {lane} adds a transition of frames {given[0]} to {given[1]}, and its oldest "
                f"kept frame is {oldest}, of {counts[lane]} that it had: add each step before the "
                "next one, and build the wrapper with a larger capacity where they must wait"
            )


# -- kernels ---------------------------------------------------------------------------------


@kernel
def compare_lanes(first: Any, second: Any, lane_bytes: Any, lanes: Any, same: Any) -> Any:
    """Say of each of some lanes whether its bytes at two addresses are equal."""
    for lane in range(len(lanes)):
        if lanes[lane]:
            offset = lane * lane_bytes
            same[lane] = same_bytes(first + offset, second + offset, lane_bytes)


@kernel
def padding_of(stack: Any, frame_bytes: Any, stack_size: Any, zeros: Any) -> Any:
    """Find the padding that a stack begins with.

    Parameters
    ----------
    stack, zeros : int
        Addresses of the stack, and of a frame of zeros.

    Returns
    -------
    age : int
        Frames from the oldest one that has to be stored to the newest one.
    mark : int
        PINNED where frames of zeros stand before it, 0 where it is repeated.
    """
    n_zeros = 0
    while n_zeros < stack_size - 1 and same_bytes(
        stack + n_zeros * frame_bytes, zeros, frame_bytes
    ):
        n_zeros += 1
    if n_zeros:
        return stack_size - 1 - n_zeros, PINNED
    n_equal = 1
    while n_equal < stack_size and same_bytes(stack + n_equal * frame_bytes, stack, frame_bytes):
        n_equal += 1
    return stack_size - n_equal, 0


@kernel
def plan_stacks(obs: Any, successor: Any, frame_bytes: Any, stack_size: Any, zeros: Any, live: Any,
                same: Any, lane_age: Any, lane_marks: Any, age: Any, step: Any, marks: Any,
                n_enter: Any) -> Any:  # fmt: skip
    """Fill a `Plan` for the stacks of all lanes at two addresses."""
    lane_bytes = stack_size * frame_bytes
    for lane in range(len(live)):
        if not live[lane]:
            continue
        stack, after = obs + lane * lane_bytes, successor + lane * lane_bytes
        if same[lane]:
            age[lane] = lane_age[lane]
            mark = np.int64(lane_marks[lane])
        else:
            age[lane], mark = padding_of(stack, frame_bytes, stack_size, zeros)
            n_enter[lane] = age[lane] + 1
        if not same_bytes(stack + frame_bytes, after, lane_bytes - frame_bytes):
            next_age, next_mark = padding_of(after, frame_bytes, stack_size, zeros)
            step[lane] = next_age + 1
            mark |= APART | (NEXT_PINNED if next_mark else 0)
        marks[lane] = mark


@kernel
def write_down(lanes: Any, cells: Any, newest: Any, age: Any, step: Any, marks: Any,
               newest_column: Any, age_column: Any, step_column: Any, marks_column: Any,
               stack_size: Any, known: Any, at: Any, lane_age: Any, lane_marks: Any,
               ) -> Any:  # fmt: skip
    """Write a `Plan` into the columns, and where its successors leave the lanes."""
    for i in range(len(lanes)):
        lane, cell = lanes[i], cells[i]
        mark = np.int64(marks[lane])
        newest_column[cell] = newest[lane] & _UINT32
        age_column[cell] = age[lane]
        step_column[cell] = step[lane]
        marks_column[cell] = mark
        known[lane] = True
        at[lane] = newest[lane] + step[lane]
        if mark & APART:
            lane_age[lane] = step[lane] - 1
            lane_marks[lane] = PINNED if mark & NEXT_PINNED else 0
        else:
            lane_age[lane] = min(age[lane] + 1, stack_size - 1)
            lane_marks[lane] = mark & PINNED


@kernel
def read_stacks(indices: Any, live: Any, n_lanes: Any, pads: Any, newest: Any, age: Any,
                marks: Any) -> Any:  # fmt: skip
    """Take stacks of frame indices apart; return a lane whose indices are none, or -1."""
    size = indices.shape[1]
    for lane in range(len(indices)):
        if not live[lane]:
            continue
        stack = indices[lane]
        last = stack[size - 1]
        if last < 0 or last >= _LOWEST_PIN or last % n_lanes != lane:
            return lane
        k = size - 1
        while k > 0 and stack[k - 1] == stack[k] - n_lanes and stack[k - 1] >= 0:
            k -= 1
        newest[lane] = last // n_lanes
        age[lane] = size - 1 - k
        if k == 0:
            continue
        pad = stack[0]
        for i in range(k):
            if stack[i] != pad:
                return lane
        if pad >= _LOWEST_PIN:
            if pads[lane] not in (-1, pad):
                return lane
            pads[lane] = pad
            marks[lane] = PINNED
        elif pad != stack[k]:
            return lane
    return -1


@inlined
def count_of(cell: Any, at: Any, newest: Any) -> Any:
    """Return the count of a transition's newest frame; ``at`` is the lane's newest."""
    return at - ((at - np.int64(newest[cell])) & _UINT32)


@kernel
def fill_stack(count: Any, age: Any, mark: Any, lane: Any, pads: Any, out: Any) -> Any:
    """Fill ``out``, ``(stack_size,)``, with the frame indices of one stack."""
    n_lanes = len(pads)
    size = len(out)
    for k in range(size):
        back = size - 1 - k
        if back > age and mark & PINNED:
            out[k] = pads[lane]
        else:
            out[k] = (count - min(back, age)) * n_lanes + lane


@kernel
def fill_stacks(cells: Any, after: Any, newest: Any, age: Any, step: Any, marks: Any, at: Any,
                pads: Any, n_slots: Any, stack_size: Any, out: Any) -> Any:  # fmt: skip
    """See `Stacks.stack_indices`."""
    for i in range(len(cells)):
        cell = cells[i]
        lane = cell // n_slots
        count = count_of(cell, at[lane], newest)
        first = np.int64(age[cell])
        mark = np.int64(marks[cell])
        if after:
            count += step[cell]
            if mark & APART:
                first = np.int64(step[cell]) - 1
                mark = PINNED if mark & NEXT_PINNED else 0
            else:
                first = min(first + 1, stack_size - 1)
        fill_stack(count, first, mark, lane, pads, out[i])


@kernel
def fill_windows(cells: Any, newest: Any, age: Any, step: Any, marks: Any, at: Any, pads: Any,
                 n_slots: Any, stack_size: Any, out: Any) -> Any:  # fmt: skip
    """See `Stacks.window_indices`."""
    n_lanes = len(pads)
    for i in range(len(cells)):
        cell = cells[i, 0]
        lane = cell // n_slots
        count = count_of(cell, at[lane], newest)
        fill_stack(count, age[cell], marks[cell], lane, pads, out[i, :stack_size])
        for t in range(cells.shape[1]):
            cell = cells[i, t]
            count = count_of(cell, at[lane], newest) + step[cell]
            out[i, stack_size + t] = count * n_lanes + lane
