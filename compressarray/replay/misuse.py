"""Misuse that no single step proves, and a few in a row do: told once, and nothing is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.replay.layout import Layout
from compressarray.snapshots import Snapshot, array_of, int_of

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

# Steps that all have to say the same, and those after which nobody asks any more.
_N_SAYING = 8
_N_STEPS = 64
# Stacks are searched for along axes of up to so many planes a frame and frames a stack.
_MOST_CHANNELS, _MOST_FRAMES = 4, 16
# Steps in a row that begin an episode without a word: nobody resets an environment so often.
_N_BROKEN = 3


class StackWatch:
    """Watches whether observations go on as the stacks that `observation_space` was read as.

    What is sampled is right in any case; what it takes may be ten times as much.

    Parameters
    ----------
    layout : Layout
        Of stacks, or of what was said to be single frames, of three axes or more.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._n_saying = 0
        self._n_steps = 0
        self._others = [
            (axis, channels)
            for axis, size in enumerate(layout.shape)
            for channels in range(1, _MOST_CHANNELS + 1)
            if size % channels == 0
            and 2 <= size // channels <= _MOST_FRAMES
            and (axis, channels) != (layout.axis, layout.channels)
        ]

    @property
    def is_done(self) -> bool:
        """Whether nothing more can be said."""
        return self._n_steps >= _N_STEPS

    def snapshot(self) -> Snapshot:
        """Copy what was seen."""
        return {
            "n_saying": self._n_saying,
            "n_steps": self._n_steps,
            "others": np.array(self._others, np.int64).reshape(-1, 2),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of, or raise `CorruptFrameError`."""
        others = array_of(snapshot, "others", np.int64, (None, 2))
        pairs = [(axis, channels) for axis, channels in others.tolist()]
        if not set(pairs) <= set(self._others):
            raise CorruptFrameError(f"stored others are {pairs}, not all of {self._others}")
        self._others = pairs
        self._n_saying = int_of(snapshot, "n_saying", 0, _N_SAYING)
        self._n_steps = int_of(snapshot, "n_steps", 0, _N_STEPS)

    def put(self, message: Message) -> None:
        """Add to a message what was seen."""
        message.put_ints([self._n_saying, self._n_steps, *np.ravel(self._others).tolist()])

    def have(self, given: Int64s) -> bool:
        """Have seen what `put` has added; False if nobody looks any more, which is nothing."""
        if len(given) < 2 or len(given) % 2:
            return False
        pairs = set(zip(given[2::2].tolist(), given[3::2].tolist(), strict=True))
        self._n_saying, self._n_steps = given[:2].tolist()
        self._others = [pair for pair in self._others if pair in pairs]
        return True

    def see(self, obs: AnyArray, successor: AnyArray, live: Bools, apart: Bools) -> str | None:
        """Look at one step; return what is to be said of it, at most once.

        Parameters
        ----------
        obs, successor : ndarray, (n_lanes, *layout.shape)
        live : ndarray, (n_lanes,) bool
        apart : ndarray, (n_lanes,) bool
            Where the successor is not the observation moved on by one frame.
        """
        is_stack = self._layout.stack_size > 1
        self._n_steps += 1
        # One that stays as it is goes on in any reading.
        moved = [k for k in np.flatnonzero(live) if obs[k].tobytes() != successor[k].tobytes()]
        if not moved:
            return None
        if is_stack and not apart[moved].all():
            self._n_steps = _N_STEPS
            return None
        self._others = [
            (axis, channels)
            for axis, channels in self._others
            if all(_goes_on(obs[k], successor[k], axis, channels) for k in moved)
        ]
        self._n_saying += 1
        if self._n_saying < _N_SAYING and (is_stack or self._others):
            return None
        self._n_steps = _N_STEPS
        return self._remark() if is_stack or self._others else None

    def _remark(self) -> str:
        layout = self._layout
        space = layout.name_in("observation_space")
        if layout.axis is None:
            read = "single frames (stack_axis=None)"
        else:
            read = (
                f"stacks of {layout.stack_size} frames of shape {layout.frame_shape} "
                f"(stack_axis={layout.axis}, frame_channels={layout.channels})"
            )
        fix = "stack_axis=None, which reads them as single frames, would take less"
        if self._others:
            axis, channels = self._others[0]
            fix = f"as with stack_axis={axis} and frame_channels={channels} they would"
        return (
            f"{space} of shape {layout.shape} was read as {read}, and the first {_N_SAYING} "
            f"observations do not go on from one to the next as such: {fix}. What is sampled is "
            "right, but every frame is stored several times"
        )


def _goes_on(obs: AnyArray, successor: AnyArray, axis: int, channels: int) -> bool:
    old = np.moveaxis(obs, axis, 0)[channels:]
    new = np.moveaxis(successor, axis, 0)[:-channels]
    return bool((old == new).all())


class BreakWatch:
    """Watches for lanes in which no step goes on from the one before it.

    Parameters
    ----------
    n_lanes : int
    """

    def __init__(self, n_lanes: int) -> None:
        self._counts: Int64s = np.full(n_lanes, -2, np.int64)  # of transitions, at the last break
        self._n_broken: Int64s = np.zeros(n_lanes, np.int64)
        self._has_spoken = False

    def see(self, broken: Bools, counts: Int64s, same: Mapping[str | None, Bools]) -> str | None:
        """Look at one step; return what is to be said of it, at most once.

        Parameters
        ----------
        broken : ndarray, (n_lanes,) bool
            Lanes in which an episode begins though nobody ended the last one.
        counts : ndarray, (n_lanes,) int64
            Transitions that they had before.
        same : dict of ndarray
            Whether each entry of the observation is what the last step led to.
        """
        if self._has_spoken:
            return None
        again = broken & (self._counts == counts - 1)
        self._n_broken = np.where(again, self._n_broken + 1, np.where(broken, 1, self._n_broken))
        self._counts[broken] = counts[broken]
        lane = int(np.argmax(np.where(broken, self._n_broken, 0)))
        if self._n_broken[lane] < _N_BROKEN:
            return None
        self._has_spoken = True
        names = [key for key, each in same.items() if key is not None and not each[lane]]
        which = f" in {', '.join(map(repr, names))}" if names else ""
        return (
            f"{_N_BROKEN} steps in a row of lane {lane} were added whose obs is not the next_obs "
            f"of the step before{which}: each of them is an episode by itself, stacks begin anew, "
            "and neither n-step returns nor sequences reach beyond one step. next_obs must hold "
            "all that the next step's obs will; what is known only then is no part of it"
        )

    def snapshot(self) -> Snapshot:
        """Copy what was seen."""
        return {
            "counts": self._counts.copy(),
            "n_broken": self._n_broken.copy(),
            "has_spoken": int(self._has_spoken),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of, or raise `CorruptFrameError`."""
        lanes = self._counts.shape
        self._counts = array_of(snapshot, "counts", np.int64, lanes, -2)
        self._n_broken = array_of(snapshot, "n_broken", np.int64, lanes, 0, _N_BROKEN)
        self._has_spoken = bool(int_of(snapshot, "has_spoken", 0, 1))

    def put(self, message: Message) -> None:
        """Add to a message what was seen."""
        message.put_ints(self._counts)
        message.put_ints([self._has_spoken, *self._n_broken])

    def read(self, items: Items) -> tuple[Int64s, Int64s]:
        """Take what `put` has added, for `have`."""
        n_lanes = len(self._counts)
        return items.ints(n_lanes, -2), items.ints(1 + n_lanes, 0, _N_BROKEN)

    def have(self, given: tuple[Int64s, Int64s]) -> None:
        """Have seen it."""
        self._counts[:], self._n_broken[:] = given[0], given[1][1:]
        self._has_spoken = bool(given[1][0])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._counts.nbytes + self._n_broken.nbytes
