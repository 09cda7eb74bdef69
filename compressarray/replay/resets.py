"""When lanes begin anew: by what the environment says, and by what it shows.

An episode's end and an environment's reset are not the same. A vector environment resets a lane in
the step that ends its episode (SAME_STEP), in the one after it (NEXT_STEP), or leaves that to its
user (DISABLED); a user may reset any lane at any time; and a lost life ends an episode for the
learner while the game goes on. What tells them apart is, in this order: the user's `was_reset`, the
frame counters of ALE's vector environment, and whether an observation is the one that the lane's
last step led to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.kernels.compiling import kernel

Bools = npt.NDArray[np.bool_]
Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
Mode = Literal["same_step", "next_step", "disabled"]

# How a lane stands: its next observation is the one that its last step led to; or that step ended
# the episode, and a reset is awaited (in the next step or from the user); or its next observation
# is the first one after a reset.
RUNS, AWAITS, BEGINS = range(3)
# Whether a lane was reset since the last step, as far as anybody said.
NOT_RESET, RESET, UNTOLD = range(3)
_NUMBER: dict[Mode, int] = {"same_step": 0, "next_step": 1, "disabled": 2}
_SAME_STEP, _NEXT_STEP, _DISABLED = range(3)


class Told(NamedTuple):
    """What was said of resets since the last step."""

    resets: Int8s  # (n_lanes,): NOT_RESET, RESET or UNTOLD
    began: Int64s | None  # (n_lanes,): the emulator's frame with which each game began
    is_counted: bool  # by ALE's counters and not by the user


class Course(NamedTuple):
    """What one step is to each lane; bool arrays ``(n_lanes,)``."""

    live: Bools  # it adds a transition: it is not the row in which NEXT_STEP resets
    ended: Bools  # of those, the ones whose episode ends with it
    begins: Bools  # its observation is a reset's, whatever it looks like
    replaced: Bools  # `next_obs` is a reset's, and what the step led to is in ``final_obs``
    n_live: int
    n_replaced: int


class Resets:
    """What is known of the resets of ``n_lanes`` lanes.

    Parameters
    ----------
    n_lanes : int
    mode : {"same_step", "next_step", "disabled"}
    """

    def __init__(self, n_lanes: int, mode: Mode) -> None:
        self._mode = _NUMBER[mode]
        self.phase: Int8s = np.full(n_lanes, BEGINS, np.int8)
        # The emulator's frame with which each lane's game began, by ALE's counters.
        self._began: Int64s = np.zeros(n_lanes, np.int64)
        self._counted = False
        self._untold: Int8s = np.full(n_lanes, UNTOLD, np.int8)

    def told(self, info: Mapping[str, Any], was_reset: Bools | None) -> Told:
        """Read who was reset since the last step, by the user's word or ALE's counters."""
        began = _began_of(info, len(self.phase))
        if was_reset is not None:
            return Told(was_reset.astype(np.int8), began, False)
        if began is None or not self._counted:
            return Told(self._untold, began, began is not None)
        return Told((began != self._began).astype(np.int8), began, True)

    def follow(
        self, told: Told, terminated: Bools, truncated: Bools, repeats: Callable[[Int64s], Bools]
    ) -> Course:
        """Find out what a step is to each lane; nothing is written.

        Parameters
        ----------
        told : Told
        terminated, truncated : ndarray, (n_lanes,) bool
        repeats : callable
            Says of some lanes, by number, whether their observation is what the last step led to.

        Raises
        ------
        ValueError
            Where ALE's counters cannot tell a lost life from the end of a game.
        """
        n, resets = len(self.phase), told.resets
        repeated = np.zeros(n, np.bool_)
        if self._mode == _NEXT_STEP:
            asked = np.flatnonzero(self.phase == AWAITS)
            if len(asked):
                repeated[asked] = repeats(asked)
        elif self._mode == _SAME_STEP and told.is_counted:
            if truncated.any():  # a game: ALE truncates no life
                resets = np.where(truncated, np.int8(RESET), resets)
            self._refuse_unsure(resets, np.flatnonzero(terminated & ~truncated), repeats)
        rows = np.empty((4, n), np.bool_)
        n_live, n_replaced = follow(
            self._mode, self.phase, resets, repeated, terminated, truncated, rows
        )
        return Course(rows[0], rows[1], rows[2], rows[3], n_live, n_replaced)

    def _refuse_unsure(
        self, resets: Int8s, asked: Int64s, repeats: Callable[[Int64s], Bools]
    ) -> None:
        """Refuse ends of which ALE's counters say nothing.

        They are compared with those of the last step. After a reset from outside they have
        changed, too, or are the same by chance.
        """
        if not len(asked):
            return
        unsure = (self.phase[asked] != RUNS) | (resets[asked] == UNTOLD)
        rest = np.flatnonzero(~unsure)
        if len(rest):
            unsure[rest] = ~repeats(asked[rest])
        if unsure.any():
            raise ValueError(
                f"lane {asked[np.argmax(unsure)]} terminated with the first step after a reset, "
                "and nothing tells whether ALE's game is over or has lost a life and goes on "
                "(life_loss_info=True), where final_obs is garbage. Pass was_reset"
            )

    def commit(self, course: Course, told: Told) -> None:
        """Write down how the lanes stand after a step that was added."""
        settle(self._mode, course.live, course.ended, course.replaced, self.phase)
        self._counted = told.began is not None
        if told.began is not None:
            self._began = told.began

    def begin(self, lanes: Bools | Int64s) -> None:
        """Hear that lanes were reset from outside."""
        self.phase[lanes] = BEGINS

    @property
    def begin_anew(self) -> Bools:
        """Lanes whose observation must be a new one, since a reset has followed an end.

        Not those of NEXT_STEP, where the row of the reset itself begins with the last one.
        """
        if self._mode == _NEXT_STEP:
            return np.zeros(len(self.phase), np.bool_)
        return self.phase == (BEGINS if self._mode == _SAME_STEP else AWAITS)  # type: ignore[no-any-return]


def _began_of(info: Mapping[str, Any], n_lanes: int) -> Int64s | None:
    """Return the emulator frame with which each lane's game began; None without ALE's counters.

    Those of ALE's own vector environment, which counts through lost lives and knows no wrappers of
    single environments. Where Gymnasium has gathered such counters (it adds ``_frame_number``), a
    wrapper inside may reset without the game's beginning anew.
    """
    number, of_episode = info.get("frame_number"), info.get("episode_frame_number")
    if (
        not isinstance(number, np.ndarray)
        or not isinstance(of_episode, np.ndarray)
        or "_frame_number" in info
        or number.shape != (n_lanes,)
        or of_episode.shape != (n_lanes,)
    ):
        return None
    return np.subtract(number, of_episode, dtype=np.int64)


@kernel
def follow(mode: Any, phase: Any, told: Any, repeated: Any, terminated: Any, truncated: Any,
           rows: Any) -> Any:  # fmt: skip
    """Fill the rows of `Course`; return how many lanes live, and how many are replaced."""
    n_live = n_replaced = 0
    for lane in range(len(phase)):
        ends = terminated[lane] or truncated[lane]
        waits = phase[lane] == AWAITS
        # No reset ends an episode: a row that does was played.
        is_reset_row = (
            mode == _NEXT_STEP and waits and repeated[lane] and not ends and told[lane] != NOT_RESET
        )
        ended = ends and not is_reset_row
        begins = phase[lane] == BEGINS
        replaced = False
        if mode == _SAME_STEP and ended:
            replaced = told[lane] != NOT_RESET
        elif mode == _DISABLED and waits:
            begins = begins or told[lane] != NOT_RESET
        else:
            begins = begins or told[lane] == RESET
        rows[0, lane] = not is_reset_row
        rows[1, lane] = ended
        rows[2, lane] = begins
        rows[3, lane] = replaced
        n_live += not is_reset_row
        n_replaced += replaced
    return n_live, n_replaced


@kernel
def settle(mode: Any, live: Any, ended: Any, replaced: Any, phase: Any) -> Any:
    """Fill ``phase`` with how the lanes stand after a step."""
    for lane in range(len(phase)):
        if not live[lane] or replaced[lane]:
            phase[lane] = BEGINS
        elif ended[lane] and mode != _SAME_STEP:
            phase[lane] = AWAITS
        else:
            phase[lane] = RUNS
