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

from compressarray.errors import CorruptFrameError
from compressarray.format.messages import Items, Message
from compressarray.kernels.compiling import kernel
from compressarray.snapshots import Snapshot, array_of, int_of

AnyArray = npt.NDArray[Any]
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
_NO_LANES: Int64s = np.zeros(0, np.int64)


class Told(NamedTuple):
    """What was said of resets since the last step."""

    resets: Int8s  # (n_lanes,): NOT_RESET, RESET or UNTOLD
    began: Int64s | None  # (n_lanes,): the emulator's frame with which each game began
    is_counted: bool  # by ALE's counters and not by the user


class Course(NamedTuple):
    """What one step is to each lane; bool arrays ``(n_lanes,)``, valid until the next step."""

    live: Bools  # it adds a transition: it is not the row in which NEXT_STEP resets
    ended: Bools  # of those, the ones whose episode ends with it
    begins: Bools  # its observation is a reset's, whatever it looks like
    replaced: Bools  # `next_obs` is a reset's, and what the step led to is in ``final_obs``
    n_live: int
    n_replaced: int
    n_anew: int  # lanes that do not run on after it


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
        self.all_run = False  # whether ``phase`` is RUNS everywhere
        self._nothing_told = Told(np.full(n_lanes, UNTOLD, np.int8), None, False)
        # Of the step that is being added; they mean nothing before and after.
        self._told: Int8s = np.zeros(n_lanes, np.int8)
        self._begins_now: Int64s = np.zeros(n_lanes, np.int64)
        self._next: Int8s = np.zeros(n_lanes, np.int8)
        self._rows: Bools = np.zeros((5, n_lanes), np.bool_)

    def snapshot(self) -> Snapshot:
        """Show what is kept from one step to the next."""
        return {
            "phase": self.phase,
            "began": self._began,
            "counted": int(self._counted),
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Become what a snapshot was taken of, or raise `CorruptFrameError`."""
        lanes = self.phase.shape
        self.phase = array_of(snapshot, "phase", np.int8, lanes, RUNS, BEGINS)
        self._began = array_of(snapshot, "began", np.int64, lanes)
        self._counted = bool(int_of(snapshot, "counted", 0, 1))
        self.all_run = not self.phase.any()

    def put(self, message: Message) -> None:
        """Add to a message how the lanes stand."""
        message.put_ints(self.phase)
        message.put_ints(self._began if self._counted else [])

    def read(self, items: Items) -> tuple[Int8s, Int64s]:
        """Take what `put` has added, for `have`."""
        n_lanes = len(self.phase)
        phase, began = items.ints(n_lanes, RUNS, BEGINS), items.ints()
        if len(began) not in (0, n_lanes):
            raise CorruptFrameError(f"a message has {len(began)} games of {n_lanes} lanes")
        return phase.astype(np.int8), began

    def have(self, given: tuple[Int8s, Int64s]) -> None:
        """Let the lanes stand so."""
        phase, began = given
        self.phase[:] = phase
        self.all_run = not self.phase.any()
        self._counted = len(began) > 0
        if self._counted:
            self._began[:] = began

    def told(self, info: Mapping[str, Any], was_reset: Bools | None) -> Told:
        """Read who was reset since the last step, by the user's word or ALE's counters."""
        counters = _ale_counters(info, len(self.phase))
        if counters is None and was_reset is None:
            return self._nothing_told
        began = None
        if counters is not None:
            began = self._begins_now
            compare_counters(*counters, self._counted, self._began, self._told, began)
        if was_reset is not None:
            np.copyto(self._told, was_reset, casting="unsafe")
        return Told(self._told, began, was_reset is None)

    def none_is_near(self, told: Told) -> bool:
        """Whether no lane was reset, or awaits that: a step that ends nothing changes nothing here.

        Where nobody has said so, a lane may have been reset all the same.
        """
        if not self.all_run:
            return False
        if told is self._nothing_told:
            return not self._counted
        return told.is_counted and self._counted and not told.resets.any()

    def follow(
        self,
        told: Told,
        terminated: Bools,
        truncated: Bools,
        repeats: Callable[[Int64s], Bools],
        among: Int64s | None = None,
    ) -> Course:
        """Find out what a step is to each lane; nothing is written.

        Parameters
        ----------
        told : Told
        terminated, truncated : ndarray, (n_lanes,) bool
        repeats : callable
            Says of some lanes, by number, whether their observation is what the last step led to.
        among : ndarray of int64, optional
            The lanes that have stepped; the others stand as they stood.

        Raises
        ------
        ValueError
            Where ALE's counters cannot tell a lost life from the end of a game: they are compared
            with those of the last step, and after a reset from outside they have changed, too, or
            are the same by chance.
        """
        rows = self._rows
        rows[4] = False
        step = (
            self._mode, self.phase, told.resets, told.is_counted, terminated, truncated, rows,
            self._next,
        )  # fmt: skip
        n_live, n_replaced, n_anew, n_asked, unsure = follow(*step)
        if n_asked:  # seldom: a lane waits for its reset, or ends
            asked = np.flatnonzero(rows[4])
            rows[4, asked] = repeats(asked)
            n_live, n_replaced, n_anew, _, unsure = follow(*step)
        if unsure >= 0:
            raise ValueError(
                f"lane {unsure} terminated with the first step after a reset, and nothing tells "
                "whether ALE's game is over or has lost a life and goes on (life_loss_info=True), "
                "where final_obs is garbage. Pass was_reset"
            )
        if among is not None:
            others = np.ones(len(self.phase), np.bool_)
            others[among] = False
            rows[:4, others] = False
            self._next[others] = self.phase[others]
            n_live, n_replaced = int(rows[0].sum()), int(rows[3].sum())
            n_anew = int(np.count_nonzero(self._next != RUNS))
        return Course(rows[0], rows[1], rows[2], rows[3], n_live, n_replaced, n_anew)

    def commit(self, course: Course, told: Told) -> None:
        """Write down how the lanes stand after a step that was added."""
        if course.n_anew or not self.all_run:
            self.phase[:] = self._next
            self.all_run = not course.n_anew
        self._counted = told.began is not None
        if told.began is not None:
            self._began[:] = told.began

    def begin(self, lanes: Bools | Int64s) -> None:
        """Hear that lanes were reset from outside."""
        self.phase[lanes] = BEGINS
        self.all_run = False

    def begin_anew(self) -> Int64s:
        """Return the lanes whose observation must be a new one, since a reset has followed an end.

        Not those of NEXT_STEP, where the row of the reset itself begins with the last one.
        """
        if self._mode == _NEXT_STEP:
            return _NO_LANES
        return np.flatnonzero(self.phase == (BEGINS if self._mode == _SAME_STEP else AWAITS))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self.phase, self._began, self._told, self._begins_now, self._next, self._rows)
        return sum(array.nbytes for array in arrays) + self._nothing_told.resets.nbytes


def _ale_counters(info: Mapping[str, Any], n_lanes: int) -> tuple[AnyArray, AnyArray] | None:
    """Return the emulator's frame numbers of the lanes, all and of the episode, if they are there.

    Those of ALE's own vector environment, which counts through lost lives and knows no wrappers of
    single environments. Where Gymnasium has gathered such counters (it adds ``_frame_number``), a
    wrapper inside may reset without the game's beginning anew.
    """
    number, of_episode = info.get("frame_number"), info.get("episode_frame_number")
    if (
        isinstance(number, np.ndarray)
        and isinstance(of_episode, np.ndarray)
        and number.shape == of_episode.shape == (n_lanes,)
        and number.dtype.kind == of_episode.dtype.kind == "i"
        and "_frame_number" not in info
    ):
        return number, of_episode
    return None


@kernel
def compare_counters(number: Any, of_episode: Any, counted: Any, before: Any, resets: Any,
                     began: Any) -> None:  # fmt: skip
    """Fill ``began``, and ``resets`` where ``before``, that of the last step, was ``counted``.

    An episode began at the difference of the counters. Only a reset changes it.
    """
    for lane in range(len(resets)):
        began[lane] = np.int64(number[lane]) - np.int64(of_episode[lane])
        if not counted:
            resets[lane] = UNTOLD
        else:
            resets[lane] = NOT_RESET if began[lane] == before[lane] else RESET


@kernel
def follow(mode: Any, phase: Any, told: Any, is_counted: Any, terminated: Any, truncated: Any,
           rows: Any, after: Any) -> Any:  # fmt: skip
    """Fill the rows of `Course`, and ``after`` with how the lanes stand after the step.

    Parameters
    ----------
    rows : ndarray, (5, n_lanes) bool
        In the last row is whether the observation is what the last step led to, where that is
        known. Lanes for which it counts are noted there.

    Returns
    -------
    n_live, n_replaced, n_anew, n_asked : int
        Lanes that live, that are replaced, that do not run on, and that were noted.
    unsure : int
        A lane that ended, and of which nothing tells whether it was reset, or -1.
    """
    n_live = n_replaced = n_anew = n_asked = 0
    unsure = -1
    for lane in range(len(phase)):
        repeats = rows[4, lane]
        ends = terminated[lane] or truncated[lane]
        waits = phase[lane] == AWAITS
        # No reset ends an episode: a row that does was played.
        is_reset_row = (
            mode == _NEXT_STEP and waits and repeats and not ends and told[lane] != NOT_RESET
        )
        ended = ends and not is_reset_row
        begins = phase[lane] == BEGINS
        replaced = False
        if mode == _SAME_STEP and ended:
            replaced = told[lane] != NOT_RESET
            if is_counted and truncated[lane]:
                replaced = True  # a game: ALE truncates no life
            elif is_counted and (phase[lane] != RUNS or told[lane] == UNTOLD or not repeats):
                unsure = lane
        elif mode == _DISABLED and waits:
            begins = begins or told[lane] != NOT_RESET
        else:
            begins = begins or told[lane] == RESET
        asks = (mode == _NEXT_STEP and waits) or unsure == lane
        rows[0, lane] = not is_reset_row
        rows[1, lane] = ended
        rows[2, lane] = begins
        rows[3, lane] = replaced
        rows[4, lane] = asks
        if is_reset_row or replaced:
            after[lane] = BEGINS
        elif ended and mode != _SAME_STEP:
            after[lane] = AWAITS
        else:
            after[lane] = RUNS
        n_live += not is_reset_row
        n_replaced += replaced
        n_anew += after[lane] != RUNS
        n_asked += asks
    return n_live, n_replaced, n_anew, n_asked, unsure
