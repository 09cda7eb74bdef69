"""What writes of a buffer change beside frames, as steps of `compressarray.writing`.

Rows of the ring and starts of windows are written in place, over what is no longer needed once the
write is done: so they are written after it is committed, and written again, from where the lanes
stood before, should that be cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.replay.observations import Observations
from compressarray.replay.resets import Course, Resets, Told
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import Windows

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Parts(NamedTuple):
    """The parts of a buffer that a step writes to."""

    observations: Observations
    transitions: Transitions
    resets: Resets
    windows: list[Windows]


class Rows(NamedTuple):
    """Transitions that are added; arrays ``(n_lanes, ...)``, nobody else's."""

    action: AnyArray
    reward: AnyArray
    terminated: Bools
    truncated: Bools
    fields: Mapping[str, AnyArray]


class AddStep:
    """One transition more in some lanes; made once a step, so it takes little time to make.

    Parameters
    ----------
    parts : Parts
    after : list of ndarray
        What the step led to, by entry of the observations.
    rows : Rows
    course : Course
    told : Told
    breaks : bool
        Whether an episode that nobody ended is cut off.
    was_last : bool
        Whether ends are followed by a reset before the next step is added, whatever the mode.
    """

    __slots__ = (
        "_after",
        "_breaks",
        "_course",
        "_observations",
        "_parts",
        "_rows",
        "_told",
        "_transitions",
        "_was_last",
    )  # fmt: skip

    def __init__(
        self,
        parts: Parts,
        after: list[AnyArray],
        rows: Rows,
        course: Course,
        told: Told,
        breaks: bool,
        was_last: bool,
    ) -> None:
        self._parts = parts
        self._after: list[AnyArray] | None = after
        self._rows = rows
        self._course = course
        self._told = told
        self._breaks = breaks
        self._was_last = was_last
        self._transitions = parts.transitions.standing
        self._observations = parts.observations.standing

    def finish(self) -> None:
        """Write the transitions down."""
        observations, transitions, resets, windows = self._parts
        after, self._after = self._after, None
        if after is None:
            self.roll_back()
        live, begins = self._course.live, self._course.begins
        if self._breaks:
            transitions.cut(live & begins, windows)
        if after is None:
            observations.commit_again(live, transitions.counts)
        else:
            observations.commit(after, live, transitions.counts)
        lanes = transitions.all_lanes
        if self._course.n_live < len(lanes):
            lanes = np.flatnonzero(live)
        transitions.add(lanes, *self._rows, windows)
        resets.commit(self._course, self._told)
        if self._was_last:
            resets.begin(live & self._course.ended)

    def roll_back(self) -> None:
        """Let the lanes stand where they stood."""
        self._parts.transitions.standing = self._transitions
        self._parts.observations.standing = self._observations

    def tidy(self) -> None:
        """Let go of the frames that no transition needs any more."""
        transitions = self._parts.transitions
        self._parts.observations.discard(transitions.counts, transitions.first)


class RewardStep:
    """Rewards that are rewritten."""

    def __init__(self, transitions: Transitions, cells: Int64s, rewards: AnyArray) -> None:
        self._transitions = transitions
        self._cells = cells
        self._rewards = rewards

    def finish(self) -> None:
        """Write them."""
        self._transitions.rewrite(self._cells, self._rewards)

    def roll_back(self) -> None:
        """Do nothing: nothing was changed."""


class CutStep:
    """Episodes that end without a step, since their lanes were reset from outside."""

    def __init__(self, parts: Parts, named: Bools) -> None:
        self._parts = parts
        self._named = named
        self._transitions = parts.transitions.standing

    def finish(self) -> None:
        """End them."""
        _, transitions, resets, windows = self._parts
        transitions.standing = self._transitions
        transitions.cut(self._named, windows)
        resets.begin(self._named)

    def roll_back(self) -> None:
        """Do nothing: nothing was changed."""


class ClearStep:
    """A buffer that forgets everything; its new parts are in place, and here are the old ones."""

    def __init__(self, buffer: Any, names: tuple[str, ...]) -> None:
        self._buffer = buffer
        self._before = {name: vars(buffer)[name] for name in names}
        self._observations = buffer._observations.standing

    def finish(self) -> None:
        """Do nothing."""

    def roll_back(self) -> None:
        """Have the old parts."""
        vars(self._buffer).update(self._before)
        self._buffer._observations.standing = self._observations
