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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compressarray.errors import FrameEvictedError, StaleStreamError
from compressarray.replay.layout import Layout, as_kernels_take
from compressarray.replay.stack_kernels import (
    LANE,
    NO_NEXT_STACK,
    NO_STACK,
    NOT_HELD,
    NOT_NEXT,
    PINNED,
    PLAN,
    Cells,
    Lanes,
    Plan,
    cell_dtype,
    fill_stacks,
    fill_windows,
    find_needed,
    keep_stacks,
    plan_indices,
    plan_newest,
    plan_stacks,
    write_down,
)

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]

# Frames of a lane that go together: letting go takes several microseconds, a tenth of adding a
# transition, and memory comes back by groups of as many.
_LET_GO_AT = 16


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

    def discard(self, before: Int64s) -> None: ...  # noqa: D102

    def clear(self) -> None: ...  # noqa: D102


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
        self.cells: Cells = np.zeros(n_lanes * n_slots, cell_dtype(layout.stack_size))
        self.lanes: Lanes = np.zeros(n_lanes, LANE)
        self.lanes["at"] = self.lanes["pad"] = -1
        # Of the step that is being added; means nothing before and after.
        self.plan: Plan = np.zeros(n_lanes, PLAN)

    # -- adding ------------------------------------------------------------------------------

    @abstractmethod
    def look(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Find out how the observations of a step go on, and fill ``plan`` with it.

        Nothing of the step is held after that.

        Parameters
        ----------
        obs, successor : ndarray, (n_lanes, *layout.shape)
            Checked. The successor is what the step led to, an episode's last observation included.
        live : ndarray, (n_lanes,) bool
            Lanes that add a transition.
        """

    def begin(self, begins: Bools) -> None:  # noqa: B027 - most have nothing to do
        """Hear, after `look`, in which lanes an episode begins, for whatever reason."""

    @abstractmethod
    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Store the frames that are new."""

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down what was planned and stored.

        Parameters
        ----------
        successor, live
            As for `look`.
        counts : ndarray, (n_lanes,) int64
            Transitions that each lane had before.
        """
        del successor
        write_down(live, counts, self.plan, self.layout.stack_size, self.cells, self.lanes)

    def let_go(self, counts: Int64s) -> None:
        """Give up the frames that no transition needs, as soon as there are a few.

        Parameters
        ----------
        counts : ndarray, (n_lanes,) int64
            Transitions that each lane has had.
        """
        if find_needed(counts, self.cells, self.lanes, _LET_GO_AT):
            self.frames.discard(self.lanes["first"])

    def clear(self) -> None:
        """Forget all stacks; frames that were let go stay so for as long as their stream lasts."""
        self.lanes["known"] = False
        self.lanes["at"] = -1
        if self.frames.stream != self.stream:
            self.lanes["first"] = 0
            self.stream = self.frames.stream

    # -- sampling ----------------------------------------------------------------------------

    def window_indices(self, cells: Int64s) -> Int64s | None:
        """Return frame indices of stacks and of the frames that follow.

        Parameters
        ----------
        cells : ndarray, (B, T) int64
            Consecutive transitions of an episode.

        Returns
        -------
        ndarray, (B, stack_size + T) int64, or None
            The t-th observation is ``[t : t + stack_size]``, its successor one further on. None
            where a successor is something else than its observation moved on by one frame.
        """
        out = np.empty((len(cells), self.layout.stack_size + cells.shape[1]), np.int64)
        is_regular = fill_windows(cells, self.cells, self.lanes, self.layout.stack_size, out)
        return out if is_regular else None

    def stack_indices(self, cells: Int64s, after: bool, out: Int64s) -> None:
        """Fill ``(n, stack_size)`` with the frame indices of observations, or of successors."""
        fill_stacks(cells, after, self.cells, self.lanes, out)

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
        # The last successors as they were given, in rings of frames.
        self.current: UInt8s = np.zeros((n_lanes, n_given, layout.frame_bytes), np.uint8)
        # Whether all that the step stores is each lane's newest frame; see `look`.
        self._is_plain = False

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down also how the successors look."""
        flat = self.layout.as_bytes(successor)  # first, for it may have to copy
        super().commit(successor, live, counts)
        keep_stacks(flat, live, self.plan, self.current, self.lanes)

    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Append what is missing of the observation, then of the successor."""
        if self._is_plain:
            self.frames.append(self.layout.newest_of(successor))
        else:
            self._mend()
            self._store_each(self.layout.to_frames(obs), self.layout.to_frames(successor))

    def _store_each(self, obs: AnyArray, successor: AnyArray) -> None:
        n_given = obs.shape[1]
        for frames, n_new in ((obs, self.plan["n_enter"]), (successor, self.plan["step"])):
            for k in range(int(n_new.max(initial=0))):
                lanes = np.flatnonzero(n_new > k)
                self.frames.append(frames[lanes, n_given - n_new[lanes] + k], lanes)
        self.plan["newest"] = self.frames.lane_counts - self.plan["step"] - 1

    def _mend(self) -> None:
        """Store stacks anew that stray frames, of an append that failed, cut from what follows."""
        at = self.lanes["at"]
        torn = self.lanes["known"] & (self.frames.lane_counts != at + 1)
        for lane in np.flatnonzero(torn).tolist():
            counts = at[lane] - np.arange(self.lanes["age"][lane], -1, -1)
            frames = np.empty((len(counts), *self.layout.frame_shape), self.layout.frame_dtype)
            self.frames.gather(counts * self.n_lanes + lane, out=frames)
            for frame in frames:
                self.frames.append(frame[None], np.array([lane]))
            at[lane] = self.frames.lane_counts[lane] - 1


class GivenStacks(_StoredStacks):
    """Fed with stacks of whatever wrapper."""

    def __init__(self, layout: Layout, frames: Any, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        zeros = np.zeros(layout.frame_shape, layout.frame_dtype)
        self._zeros = zeros.reshape(-1).view(np.uint8)
        if layout.stack_size > 1:
            # Many wrappers begin an episode with zeros: those are stored once and for all.
            self.lanes["pad"] = frames.pin(zeros)

    def look(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare bytes, and look for padding in stacks that are new.

        A NaN is itself, and -0.0 is not 0.0.
        """
        self._is_plain = plan_stacks(
            self.layout.as_bytes(obs), self.layout.as_bytes(successor), self.current, self._zeros,
            live, self.frames.lane_counts, self.lanes, self.plan,
        )  # fmt: skip


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
        if padding is not None:
            self.lanes["pad"] = frames.pin(padding)
            self.plan["marks"] = PINNED  # now and for ever

    def look(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare bytes; frames that are there already are not stored again."""
        del successor
        flat, counts = self.layout.as_bytes(obs), self.frames.lane_counts
        self._is_plain = plan_newest(flat, self.current, live, counts, self.lanes, self.plan)

    def begin(self, begins: Bools) -> None:
        """Begin padded stacks."""
        self.plan["age"][begins] = 0


class FrameIndices(Stacks):
    """Fed with the frame indices that an `IndexedFrameStack` emits."""

    def __init__(self, layout: Layout, frames: Any, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        self._ring_rows = int(frames.shape[0])
        self.current: Int64s = np.zeros((n_lanes, layout.stack_size), np.int64)

    def look(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare indices, and read counts and ages off them.

        Raises
        ------
        StaleStreamError
            If the frames' numbering started over since the first transition.
        FrameEvictedError
            If a frame is not held.
        ValueError
            If the indices are no stacks, or the successor's do not follow.
        """
        if self.frames.stream != self.stream:
            if self.lanes["known"].any():
                raise StaleStreamError(
                    f"the frames are in stream {self.frames.stream}, and the buffer holds "
                    f"transitions of stream {self.stream}: a reset with a seed began the new one. "
                    "Reset without a seed, or call clear() first"
                )
            self.clear()
        counts = self.frames.lane_counts
        problem, lane = plan_indices(
            as_kernels_take(obs), as_kernels_take(successor), self.current, live, counts,
            self._ring_rows, self.lanes, self.plan,
        )  # fmt: skip
        if problem in (NO_STACK, NO_NEXT_STACK):
            raise ValueError(
                f"the frame indices {(obs if problem == NO_STACK else successor)[lane]} of lane "
                f"{lane} are no stack of its frames: consecutive ones of one lane are, behind "
                "padding. Pass the observations of the IndexedFrameStack whose frames the buffer "
                "was given"
            )
        if problem == NOT_NEXT:
            raise ValueError(
                f"next_obs {successor[lane]} of lane {lane} does not follow obs {obs[lane]}: it "
                "must be the same stack moved on by the next frame. Pass the observation that the "
                "step gave, and info, whose final_obs ends episodes"
            )
        if problem == NOT_HELD:
            newest, age = int(self.plan["newest"][lane]), int(self.plan["age"][lane])
            first, last = ((count * self.n_lanes + lane) for count in (newest - age, newest + 1))
            kept = max(int(counts[lane]) - self._ring_rows, int(self.lanes["first"][lane]), 0)
            raise FrameEvictedError(
                f"lane {lane} adds a transition of frames {first} to {last}, and its oldest kept "
                f"frame is {kept * self.n_lanes + lane}, of {counts[lane]} that it had: add each "
                "step before the next one, and build the wrapper with a larger capacity where they "
                "must wait"
            )

    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Do nothing: the wrapper has stored all frames."""

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down also the successors' indices."""
        super().commit(successor, live, counts)
        np.copyto(self.current, successor, where=live[:, None])
