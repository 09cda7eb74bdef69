"""Which frames make up each observation, in next to nothing a transition.

The frames of a lane are numbered as they are stored: their *count*. A stack whose newest frame has
count c, and whose episode (or padding) began ``age`` frames before, is ``c - age, ..., c`` behind
as many padding frames as are missing: frame ``c - age`` again, or a pinned one. So of a transition
there is to know the count of its newest frame, the age, how many frames on its successor's newest
frame lies, and three bits; mostly they follow from those of the transition before it (`runs.py`).

In the regular case the successor is the stack moved on by one frame. Where a wrapper hands out
something else, the successor stands *apart*: all its frames are stored, whatever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError, FrameEvictedError, StaleStreamError
from compressarray.format.messages import Items, Message
from compressarray.replay.layout import Layout, for_kernels
from compressarray.replay.misuse import StackWatch
from compressarray.replay.plain import PlainRing
from compressarray.replay.runs import (
    APART,
    LANE,
    PINNED,
    RUN_FIELDS,
    Cells,
    Lanes,
    Runs,
)
from compressarray.replay.stack_kernels import (
    FINE,
    GOES_BACK,
    LET_GO_AT,
    NO_NEXT_STACK,
    NO_STACK,
    NOT_NEXT,
    PLAN,
    Plan,
    fill_stacks,
    fill_windows,
    find_needed,
    find_wrong,
    keep_stacks,
    plan_indices,
    plan_newest,
    plan_stacks,
    write_down,
)
from compressarray.ring import FIRST_PIN
from compressarray.snapshots import MOST, Snapshot, array_of, int_of, part_of
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
UInt8s = npt.NDArray[np.uint8]


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

    def _write_with(self, writer: Writer) -> None: ...

    def _append_row(self, frames: AnyArray) -> None: ...

    @property
    def _counts(self) -> Int64s: ...


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
        self.lanes: Lanes = np.zeros(n_lanes, LANE)
        self.lanes["at"] = self.lanes["pad"] = -1
        self.runs = Runs(self.lanes, n_slots, layout.stack_size)
        # Of the step that is being added; means nothing before and after.
        self.plan: Plan = np.zeros(n_lanes, PLAN)

    # -- adding ------------------------------------------------------------------------------

    @abstractmethod
    def plan_step(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
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
        """Hear, after `plan_step`, in which lanes a stack begins anew, for whatever reason."""

    def remark(self, obs: AnyArray, successor: AnyArray, live: Bools) -> str | None:
        """Return, after `plan_step`, what is to be said of how observations go on, if anything."""
        del obs, successor, live
        return None

    @property
    def is_watched(self) -> bool:
        """Whether `remark` may have something to say yet."""
        return False

    @abstractmethod
    def repeats(self, obs: AnyArray, lanes: Int64s) -> Bools:
        """Say of some lanes whether their observation is what their last step led to.

        Parameters
        ----------
        obs : ndarray, (n_lanes, *layout.shape)
        lanes : ndarray, (n,) int64
            That had a step before, `clear` or not.
        """

    @abstractmethod
    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Store the frames that are new."""

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down what was planned and stored.

        Parameters
        ----------
        successor, live
            As for `plan_step`.
        counts : ndarray, (n_lanes,) int64
            Transitions that each lane had before.
        """
        del successor
        self._write_down(live, counts)

    def _write_down(self, live: Bools, counts: Int64s) -> None:
        while not write_down(live, counts, self.plan, self.runs.view):
            self.runs.grow()

    def commit_again(self, live: Bools, counts: Int64s) -> None:
        """Do what `commit` does after it was cut off, without the successor: it may be gone.

        Where the lanes stood before has been restored.
        """
        self._write_down(live, counts)
        lanes = np.flatnonzero(live)
        cells = lanes * self.n_slots + counts[lanes] % self.n_slots
        indices = np.empty((len(lanes), self.layout.stack_size), np.int64)
        self.stack_indices(cells, True, indices)
        self._keep(lanes, indices)

    @abstractmethod
    def _keep(self, lanes: Int64s, indices: Int64s) -> None:
        """Keep how the successors of some lanes look, by their frame indices."""

    def let_go(self, counts: Int64s, since: Int64s) -> None:
        """Give up the frames that no transition needs, as soon as there are a few.

        Parameters
        ----------
        counts, since : ndarray, (n_lanes,) int64
            Transitions that each lane has had, and the first of them that there may be.
        """
        if find_needed(counts, since, self.runs.view, LET_GO_AT):
            self.frames.discard(self.lanes["first"])

    def clear(self) -> None:
        """Forget all stacks, but not what the last steps led to.

        Frames that were let go stay so for as long as their stream lasts.
        """
        self.lanes["known"] = False
        self.lanes["at"] = -1
        for name in RUN_FIELDS:
            self.lanes[name] = 0
        if self.frames.stream != self.stream:
            self.lanes["first"] = 0
            self.stream = self.frames.stream

    # -- replicas, see `compressarray.replay.following` ----------------------------------------

    def take(
        self, numbers: Int64s, cells: Cells, changed: Int64s, lanes: Lanes, with_new: Int64s
    ) -> None:
        """Have what a message brings: cells by number, and how the ``changed`` lanes stand.

        Parameters
        ----------
        with_new : ndarray of int64
            The lanes that have got transitions.
        """
        self.runs.put(numbers, cells)
        for name in LANE.names or ():
            if name not in ("oldest", *RUN_FIELDS):
                self.lanes[name][changed] = lanes[name][changed]
        if not len(with_new):
            return
        newest = cells_of_newest(with_new, numbers, self.n_slots)
        indices = np.empty((len(with_new), self.layout.stack_size), np.int64)
        self.stack_indices(newest, True, indices)
        self._keep(with_new, indices)

    def are_of_held_pins(self, pads: Int64s) -> bool:
        """Say whether some padding frames are pinned frames of these, or none."""
        n_pins = 0
        if not isinstance(self.frames, PlainRing):
            n_pins = _frame_array(self.frames)._frames.store.n_pins
        return bool(((pads < 0) | ((pads > FIRST_PIN - n_pins) & (pads <= FIRST_PIN))).all())

    def put_watch(self, message: Message) -> None:  # noqa: B027 - most have none
        """Add to a message what is watched for."""

    def read_watch(self, items: Items) -> Any:
        """Take what `put_watch` has added, for `have_watch`."""
        del items

    def have_watch(self, given: Any) -> None:
        """Watch as the sender does."""
        del given

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
        size = self.layout.stack_size
        out = np.empty((len(cells), size + cells.shape[1]), np.int64)
        is_regular = fill_windows(cells, self.runs.view, out)
        return out if is_regular else None

    def stack_indices(self, cells: Int64s, after: bool, out: Int64s) -> None:
        """Fill ``(n, stack_size)`` with the frame indices of observations, or of successors."""
        fill_stacks(cells, after, self.runs.view, out)

    # -- pickling ----------------------------------------------------------------------------

    def snapshot(self, since: Int64s) -> Snapshot:
        """Show what cannot be worked out from the rest; the frames are not in it.

        Parameters
        ----------
        since : ndarray, (n_lanes,) int64
            The oldest transition that each lane holds.
        """
        lanes = {name: self.lanes[name] for name in ("at", "age", "marks", "first")}
        return {
            "runs": self.runs.snapshot(since),
            "lanes": {**lanes, "known": self.lanes["known"].astype(np.uint8)},
        }

    def restore(self, snapshot: Snapshot, since: Int64s, counts: Int64s, flags: UInt8s) -> None:
        """Become what a snapshot was taken of; the frames are there.

        Parameters
        ----------
        snapshot : dict
        since, counts : ndarray, (n_lanes,) int64
            The oldest transition that each lane holds, and how many it has had.
        flags : ndarray, (n_lanes, n_slots) uint8
            Theirs.

        Raises
        ------
        CorruptFrameError
            If the snapshot is not one of such stacks over these frames.
        """
        size = self.layout.stack_size
        lanes = part_of(snapshot, "lanes")
        for name, least, most in (("at", -1, MOST // self.n_lanes), ("age", 0, size - 1),
                                  ("marks", 0, PINNED), ("first", 0, MOST)):  # fmt: skip
            shape = self.lanes.shape
            self.lanes[name] = array_of(lanes, name, np.int64, shape, least, most, copy=False)
        self.lanes["known"] = array_of(lanes, "known", np.uint8, self.lanes.shape, 0, 1) != 0
        self._restore(snapshot)
        self.runs.restore(part_of(snapshot, "runs"), since, counts)
        oldest, n_frames, in_order = self._bounds()
        if (self.lanes["first"] > n_frames).any():
            raise CorruptFrameError(f"stored first is {self.lanes['first']}, past {n_frames}")
        cells = self.runs.cells(np.arange(self.n_lanes * self.n_slots))
        lane = find_wrong(since, counts, flags, cells, self.lanes, oldest, n_frames, size, in_order)
        if lane >= 0:
            raise CorruptFrameError(
                f"stored stacks of lane {lane} are not of the frames {oldest[lane]} to "
                f"{n_frames[lane] - 1} that it holds, in their order"
            )

    @abstractmethod
    def _restore(self, snapshot: Snapshot) -> None:
        """Take what only this kind of stacks has."""

    @abstractmethod
    def _bounds(self) -> tuple[Int64s, Int64s, bool]:
        """Return what `find_wrong` compares with: ``oldest``, ``n_frames`` and ``in_order``."""

    @property
    def nbytes(self) -> int:
        """Bytes held, frames apart."""
        arrays = (value for value in vars(self).values() if isinstance(value, np.ndarray))
        return self.runs.nbytes + sum(array.nbytes for array in arrays)


class StoredStacks(Stacks):
    """Stacks whose frames this memory stores by itself."""

    def __init__(self, layout: Layout, frames: FrameMemory, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        n_given = 1 if layout.feed == "newest" else layout.stack_size
        # The last successors as they were given, in rings of frames.
        self.current: UInt8s = np.zeros((n_lanes, n_given, layout.frame_bytes), np.uint8)
        # Whether all that the step stores is each lane's newest frame; see `plan_step`.
        self._is_plain = False

    def repeats(self, obs: AnyArray, lanes: Int64s) -> Bools:
        """Compare bytes, as `plan_step` does."""
        n_given = self.current.shape[1]
        given = self.layout.as_bytes(obs).reshape(self.current.shape)[lanes]
        order = (self.lanes["oldest"][lanes, None] + np.arange(n_given)) % n_given
        kept = self.current[lanes[:, None], order]
        return (given == kept).all(axis=(1, 2))  # type: ignore[no-any-return]

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down also how the successors look."""
        flat = self.layout.as_bytes(successor)  # first, for it may have to copy
        super().commit(successor, live, counts)
        keep_stacks(flat, live, self.plan, self.current, self.lanes)

    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Append what is missing of the observation, then of the successor."""
        if self._is_plain:
            self.frames._append_row(self.layout.newest_of(successor))
        else:
            self._store_each(self.layout.to_frames(obs), self.layout.to_frames(successor))

    def _keep(self, lanes: Int64s, indices: Int64s) -> None:
        shape, dtype = self.layout.frame_shape, self.layout.frame_dtype
        n_given = self.current.shape[1]
        frames = np.empty((len(lanes), n_given, *shape), dtype)
        self.frames.gather(indices[:, indices.shape[1] - n_given :], out=frames)
        self.current[lanes] = self.layout.as_bytes(frames).reshape(len(lanes), n_given, -1)
        self.lanes["oldest"][lanes] = 0

    def _store_each(self, obs: AnyArray, successor: AnyArray) -> None:
        n_given = obs.shape[1]
        for frames, n_new in ((obs, self.plan["n_enter"]), (successor, self.plan["step"])):
            for k in range(int(n_new.max(initial=0))):
                lanes = np.flatnonzero(n_new > k)
                self.frames.append(frames[lanes, n_given - n_new[lanes] + k], lanes)
        self.plan["newest"] = self.frames.lane_counts - self.plan["step"] - 1

    def _last_stack(self, lane: int) -> AnyArray:
        """Return the frames of the lane's last successor, padding apart."""
        counts = self.lanes["at"][lane] - np.arange(self.lanes["age"][lane], -1, -1)
        frames = np.empty((len(counts), *self.layout.frame_shape), self.layout.frame_dtype)
        self.frames.gather(counts * self.n_lanes + lane, out=frames)
        return frames

    def _append_stack(self, lane: int, frames: AnyArray) -> None:
        for frame in frames:
            self.frames.append(frame[None], np.array([lane]))
        self.lanes["at"][lane] = self.frames.lane_counts[lane] - 1

    def snapshot(self, since: Int64s) -> Snapshot:
        """Show also how the last successors look."""
        return {
            **super().snapshot(since),
            "oldest": self.lanes["oldest"],
            "current": self.current,
        }

    def _restore(self, snapshot: Snapshot) -> None:
        last = self.current.shape[1] - 1
        self.lanes["oldest"] = array_of(snapshot, "oldest", np.int64, self.lanes.shape, 0, last)
        self.current = array_of(snapshot, "current", np.uint8, self.current.shape)

    def _bounds(self) -> tuple[Int64s, Int64s, bool]:
        oldest = _oldest(self.frames)
        return np.maximum(oldest, self.lanes["first"]), self.frames.lane_counts, True

    def clear(self) -> None:
        """Forget the frames, too."""
        self.frames.clear()
        super().clear()


class GivenStacks(StoredStacks):
    """Fed with stacks of whatever wrapper."""

    def __init__(self, layout: Layout, frames: Any, n_lanes: int, n_slots: int) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        zeros = np.zeros(layout.frame_shape, layout.frame_dtype)
        self._zeros = zeros.reshape(-1).view(np.uint8)
        if layout.stack_size > 1:
            # Many wrappers begin an episode with zeros: those are stored once and for all.
            self.lanes["pad"] = frames.pin(zeros)
        is_watched = layout.is_image and len(layout.shape) > 2
        self._watch = StackWatch(layout) if is_watched else None

    def plan_step(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare bytes, and look for padding in stacks that are new.

        A NaN is itself, and -0.0 is not 0.0.
        """
        self._is_plain = plan_stacks(
            self.layout.as_bytes(obs), self.layout.as_bytes(successor), self.current, self._zeros,
            live, self.frames._counts, self.lanes, self.plan,
        )  # fmt: skip

    @property
    def is_watched(self) -> bool:
        """Whether the first stacks have been seen to go on as such, or not."""
        return self._watch is not None

    def remark(self, obs: AnyArray, successor: AnyArray, live: Bools) -> str | None:
        """Say whether the first stacks do not go on as such."""
        if self._watch is None:
            return None
        apart = (self.plan["marks"] & APART) != 0
        remark = self._watch.see(obs, successor, live, apart)
        if self._watch.is_done:
            self._watch = None
        return remark

    def put_watch(self, message: Message) -> None:
        """Add what was seen of how stacks go on, if anybody looks any more."""
        if self._watch is None:
            message.put_ints([])
        else:
            self._watch.put(message)

    def read_watch(self, items: Items) -> Any:
        """Take it."""
        return items.ints()

    def have_watch(self, given: Any) -> None:
        """Have seen it."""
        if self._watch is not None and not self._watch.have(given):
            self._watch = None

    def snapshot(self, since: Int64s) -> Snapshot:
        """Show also what was seen of how stacks go on."""
        watch = None if self._watch is None else self._watch.snapshot()
        return {**super().snapshot(since), "watch": watch}

    def _restore(self, snapshot: Snapshot) -> None:
        super()._restore(snapshot)
        given = part_of(snapshot, "watch")
        if given is None:
            self._watch = None
        elif self._watch is None:
            raise CorruptFrameError("stored watch is of stacks that are not watched")
        else:
            self._watch.restore(given)


class NewestFrames(StoredStacks):
    """Fed with the newest frame of each observation; the stacks are made here.

    Parameters
    ----------
    padding : ndarray or "reset"
        The frame before an episode's first one; "reset" repeats the first one.
    """

    def __init__(
        self, layout: Layout, frames: Any, n_lanes: int, n_slots: int, padding: AnyArray | str
    ) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        if isinstance(padding, np.ndarray):
            self.lanes["pad"] = frames.pin(padding)
            self.plan["marks"] = PINNED  # now and for ever

    def plan_step(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare bytes; frames that are there already are not stored again."""
        del successor
        flat, counts = self.layout.as_bytes(obs), self.frames._counts
        self._is_plain = plan_newest(flat, self.current, live, counts, self.lanes, self.plan)

    def begin(self, begins: Bools) -> None:
        """Begin padded stacks."""
        self.plan["age"][begins] = 0

    def clear(self) -> None:
        """Forget all but the last stacks: `add` is not given again what those that go on need."""
        lanes = np.flatnonzero(self.lanes["known"]).tolist()
        stacks = [self._last_stack(lane) for lane in lanes]
        super().clear()
        for lane, frames in zip(lanes, stacks, strict=True):
            self._append_stack(lane, frames)
            self.lanes["known"][lane] = True


class FrameIndices(Stacks):
    """Fed with the frame indices that an `IndexedFrameStack` emits.

    Parameters
    ----------
    padding : str or ndarray
        What should stand before an episode's first frame: "reset" for that frame, or a frame;
        "any" where nobody said.
    """

    def __init__(
        self, layout: Layout, frames: Any, n_lanes: int, n_slots: int, padding: AnyArray | str
    ) -> None:
        super().__init__(layout, frames, n_lanes, n_slots)
        self.n_ring_rows = int(frames.shape[0])  # that a lane has
        self._padding = padding
        self.current: Int64s = np.zeros((n_lanes, layout.stack_size), np.int64)

    def plan_step(self, obs: AnyArray, successor: AnyArray, live: Bools) -> None:
        """Compare indices, and read counts and ages off them.

        Raises
        ------
        StaleStreamError
            If the frames' numbering started over since the first transition.
        FrameEvictedError
            If a frame is not held.
        ValueError
            If the indices are no stacks, the successor's do not follow, or the padding is another
            one than it should be.
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
        pads: Int64s = self.lanes["pad"].copy()
        problem, lane = plan_indices(
            for_kernels(obs), for_kernels(successor), self.current, live, counts,
            self.n_ring_rows, self.lanes, self.plan,
        )  # fmt: skip
        if problem != FINE:
            self._refuse(problem, lane, obs, successor, counts)
        new = np.flatnonzero(pads != self.lanes["pad"])
        try:
            for lane in new.tolist():
                self._check_pinned(lane)
            if isinstance(self._padding, np.ndarray) or self._padding != "any":
                self._check_padding(obs, live)
        except ValueError:
            self.lanes["pad"] = pads
            raise

    def _refuse(
        self, problem: int, lane: int, obs: AnyArray, successor: AnyArray, counts: Int64s
    ) -> None:
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
        newest, age = int(self.plan["newest"][lane]), int(self.plan["age"][lane])
        if problem == GOES_BACK:
            last = int(self.lanes["at"][lane]) * self.n_lanes + lane
            raise ValueError(
                f"lane {lane} adds a transition that begins with frame "
                f"{newest * self.n_lanes + lane}, and its last one led to frame {last}: frames are "
                "numbered as they come, so these are not the frames that the buffer was given. To "
                "go on with a buffer that was loaded, call go_on_from(buffer.frames) of the "
                "IndexedFrameStack before its first reset"
            )
        first, last = ((count * self.n_lanes + lane) for count in (newest - age, newest + 1))
        kept = max(int(counts[lane]) - self.n_ring_rows, int(self.lanes["first"][lane]), 0)
        raise FrameEvictedError(
            f"lane {lane} adds a transition of frames {first} to {last}, and its oldest kept "
            f"frame is {kept * self.n_lanes + lane}, of {counts[lane]} that it had: add each "
            "step before the next one, and build the wrapper with a larger capacity where they "
            "must wait"
        )

    def _check_pinned(self, lane: int) -> AnyArray:
        """Return a lane's padding frame; refuse the index of one that is not these frames'."""
        pad = int(self.lanes["pad"][lane])
        frame = np.empty(self.layout.frame_shape, self.layout.frame_dtype)
        try:
            self.frames.gather(np.int64(pad), out=frame)
        except FrameEvictedError:
            raise ValueError(
                f"the stacks of lane {lane} begin with the pinned frame {pad}, which is none of "
                "the frames that the buffer was given. Pass the observations of their own "
                "IndexedFrameStack"
            ) from None
        return frame

    def _check_padding(self, obs: AnyArray, live: Bools) -> None:
        """Refuse padding that is not what it should be, in the first stack that has any."""
        padded = np.flatnonzero(live & (self.plan["age"] < self.layout.stack_size - 1))
        if not len(padded):
            return
        lane = int(padded[0])
        is_pinned = bool(self.plan["marks"][lane] & PINNED)
        if isinstance(self._padding, np.ndarray):
            fits = is_pinned and np.array_equal(self._check_pinned(lane), self._padding)
        else:
            fits = not is_pinned
        if not fits:
            raise ValueError(
                f"padding_type of the buffer is not how the frame indices {obs[lane]} of lane "
                f"{lane} are padded: by {'another' if is_pinned else 'their first'} frame. With "
                "frames, the wrapper pads: build IndexedFrameStack with that padding_type"
            )
        self._padding = "any"

    def repeats(self, obs: AnyArray, lanes: Int64s) -> Bools:
        """Compare indices; those of another stream name other frames."""
        same: Bools = (obs[lanes] == self.current[lanes]).all(axis=1)
        return same & (self.frames.stream == self.stream)

    def store(self, obs: AnyArray, successor: AnyArray) -> None:
        """Do nothing: the wrapper has stored all frames."""

    def commit(self, successor: AnyArray, live: Bools, counts: Int64s) -> None:
        """Write down also the successors' indices."""
        super().commit(successor, live, counts)
        np.copyto(self.current, successor, where=live[:, None])

    def _keep(self, lanes: Int64s, indices: Int64s) -> None:
        self.current[lanes] = indices

    def put_watch(self, message: Message) -> None:
        """Add whether padding still has to be compared."""
        message.put_ints([self.padding_is_checked])

    def read_watch(self, items: Items) -> Any:
        """Take it."""
        return items.number(0, 1)

    def have_watch(self, given: Any) -> None:
        """Have compared it."""
        if given:
            self._padding = "any"

    @property
    def padding_is_checked(self) -> int:
        """1 if no padding is looked at any more, else 0."""
        return int(isinstance(self._padding, str) and self._padding == "any")

    def snapshot(self, since: Int64s) -> Snapshot:
        """Show also the last successors' indices, and what is known of padding."""
        return {
            **super().snapshot(since),
            "stream": self.stream,
            "pad": self.lanes["pad"],
            "current": self.current,
            "padding_is_checked": self.padding_is_checked,
        }

    def _restore(self, snapshot: Snapshot) -> None:
        self.stream = int_of(snapshot, "stream", 0, self.frames.stream)
        pads = array_of(snapshot, "pad", np.int64, self.lanes.shape, -1, FIRST_PIN)
        n_pins = _frame_array(self.frames)._frames.store.n_pins
        if ((pads >= 0) & (pads <= FIRST_PIN - n_pins)).any():
            raise CorruptFrameError(f"stored pad is {pads}, not all of {n_pins} pinned frames")
        self.lanes["pad"] = pads
        self.current = array_of(snapshot, "current", np.int64, self.current.shape)
        if int_of(snapshot, "padding_is_checked", 0, 1):
            self._padding = "any"

    def _bounds(self) -> tuple[Int64s, Int64s, bool]:
        # Whoever appends to these frames may have evicted what transitions need, or begun another
        # stream, and nobody says in which order stacks are added. `gather` refuses what is gone.
        anything = np.full(self.n_lanes, MOST)
        n_frames = self.frames.lane_counts if self.stream == self.frames.stream else anything
        return -anything, n_frames, False


def cells_of_newest(lanes: Int64s, numbers: Int64s, n_slots: int) -> Int64s:
    """Of cells that lie lane by lane, oldest first, return the last one of each of the lanes."""
    last = np.searchsorted(numbers // n_slots, lanes, "right") - 1
    newest: Int64s = numbers[last]
    return newest


def _oldest(frames: FrameMemory) -> Int64s:
    """Return the first frame of each lane that is held, of frames that nothing was assigned to."""
    if isinstance(frames, PlainRing):
        return frames.oldest
    ring = _frame_array(frames)._frames.ring
    if ring.was_assigned:
        raise CorruptFrameError("stored frames were assigned to, and not only appended")
    return ring.oldest


def _frame_array(frames: FrameMemory) -> DiffFrameArray:
    assert isinstance(frames, DiffFrameArray)
    return frames
