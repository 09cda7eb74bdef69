"""Steps like most: every lane goes on from its last one, and each stores one new frame.

One kernel call looks whether a step is such a one, and if so does all that adding it takes, with
the kernels that other steps are added by in a dozen calls. What is not of the kind, it leaves as it
was: the first step of an episode and the last one, Dicts, vectors, frame indices, fields.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.kernels.attaching import (
    BoolRow,
    Float32Row,
    Int64Block,
    Int64Row,
    Int64Table,
    UInt8Block,
    UInt8Row,
    UInt8Table,
    attacher,
    describe,
    kind_of_row,
)
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of
from compressarray.replay.observations import Observations
from compressarray.replay.rewards import has_codes
from compressarray.replay.runs import RunArrays
from compressarray.replay.stack_kernels import (
    LET_GO_AT,
    PLAN,
    find_needed_of,
    keep_stacks,
    plan_newest,
    plan_stacks,
    runs_fit,
    write_runs,
)
from compressarray.replay.stacks import StoredStacks
from compressarray.replay.transitions import Transitions, record
from compressarray.replay.windows import Windows, advance_of, windows_at
from compressarray.ring import Ring, count_rows, number_rows
from compressarray.store.gop_journal import finish
from compressarray.store.gop_writing import DONE, append_rows
from compressarray.store.gops import GopStore
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

PlanRow = Annotated[npt.NDArray[np.void], kind_of_row(PLAN)]

# How far a step has come: nothing was changed; frames are being written; all is written.
_UNTOUCHED, _BEGUN, _WRITTEN = range(3)
# What the kernel returns for no row: it is not such a step; frames need what no kernel has.
_NOT_PLAIN, _NOT_ALONE = -1, -2
# Fields of `StepArrays.progress`.
_STATE, _MAY_LET_GO, _N_PROGRESS = range(3)


class StepArrays(NamedTuple):
    """What the kernel sees of a buffer, but for its frames."""

    sizes: Int64Row  # (2,): frames that a lane keeps, and whether one is given at a time
    progress: Int64Row
    live: BoolRow  # all lanes
    all_lanes: Int64Row
    items: Int64Row  # of all frames that a step brings, which one is the lane's newest
    numbers: Int64Block  # (2, 1, n_lanes): overwritten with indices and slots of new frames
    plan: PlanRow
    current: UInt8Block
    zeros: UInt8Row
    frame_counts: Int64Row
    oldest_frames: Int64Row
    both: Int64Table  # those two
    saved: Int64Table
    frame_changes: Int64Row
    retired: BoolRow
    codes: UInt8Row
    values: Float32Row
    known: Int64Row
    flags: UInt8Table
    actions: UInt8Table
    counts: Int64Row
    first: Int64Row
    runs: Int64Row
    running: BoolRow


_step_at: Any = attacher(StepArrays)
_runs_at: Any = attacher(RunArrays, first=len(StepArrays._fields))


class PlainSteps:
    """Adds plain steps to one buffer; a step of `compressarray.writing` while it does.

    Parameters
    ----------
    entry : StoredStacks
        The only one of the observations, of frames in groups of pictures.
    transitions : Transitions
    windows : list of Windows
        True until one of these is replaced, or the frames are cleared; see `fits`.
    """

    def __init__(
        self, entry: StoredStacks, transitions: Transitions, windows: list[Windows]
    ) -> None:
        frames = entry.frames
        assert isinstance(frames, DiffFrameArray)
        self._entry = entry
        self._frames = frames._frames
        self._now = self._frames._now
        self._transitions = transitions
        self._windows = windows
        ring: Ring = self._now.ring
        n_lanes, n_given = entry.current.shape[:2]
        self._progress = np.zeros(_N_PROGRESS, np.int64)
        layout = entry.layout
        self._arrays = StepArrays(
            sizes=np.array([ring.n_slots, layout.feed == "newest"]),
            progress=self._progress,
            live=np.ones(n_lanes, np.bool_),
            all_lanes=np.arange(n_lanes),
            items=np.arange(n_lanes) * n_given + n_given - 1,
            numbers=np.zeros((2, 1, n_lanes), np.int64),
            plan=entry.plan,
            current=entry.current,
            zeros=np.zeros(layout.frame_bytes, np.uint8),
            frame_counts=ring.counts,
            oldest_frames=ring.oldest,
            both=ring.both,
            saved=ring.saved,
            frame_changes=ring.changes,
            retired=np.zeros(0, np.bool_),
            codes=transitions.rewards.arrays.codes,
            values=transitions.rewards.arrays.values,
            known=transitions.rewards.arrays.known,
            flags=transitions.flags,
            actions=transitions.action_bytes,
            counts=transitions.counts,
            first=transitions.first,
            runs=transitions.runs,
            running=transitions.running,
        )
        self._runs = entry.runs.arrays
        self._step_view = describe([*self._arrays, *self._runs])
        self._window_views = np.stack([each.view for each in windows])

    def fits(self, transitions: Transitions, n_windows: int) -> bool:
        """Whether these are still the parts that it was made of."""
        return (
            self._frames._now is self._now
            and self._entry.runs.arrays is self._runs
            and transitions.rewards.arrays.values is self._arrays.values
            and self._transitions is transitions
            and len(self._windows) == n_windows
        )

    def add(
        self,
        obs: AnyArray,
        successor: AnyArray,
        action: AnyArray,
        reward: AnyArray,
        terminated: Bools,
        truncated: Bools,
        writer: Writer,
    ) -> bool:
        """Add a step if it is a plain one; say whether that is done.

        Parameters
        ----------
        obs, successor, action, reward, terminated, truncated : ndarray, (n_lanes, ...)
            Checked, but for rewards that are not finite.
        writer : Writer
            The buffer's, with its lock held, and no write that was cut off.
        """
        _, ring, store = self._now
        assert isinstance(store, GopStore)
        if ring.has_retired or store.follows:
            return False
        layout, n_lanes = self._entry.layout, len(terminated)
        self._progress[_STATE] = _UNTOUCHED
        writer.steps.append(self)
        row = store.append_with(
            add_plain, self._step_view, self._window_views,
            layout.as_bytes(obs), layout.as_bytes(successor),
            action.reshape(n_lanes, -1).view(np.uint8), reward.astype(np.float64, copy=False),
            terminated, truncated,
        )  # fmt: skip
        if row < 0:
            self.roll_back()
        writer.steps.clear()
        if row < 0:
            return False
        if self._progress[_MAY_LET_GO]:
            self._entry.frames.discard(self._entry.lanes["first"])
        store.tidy()
        return True

    def finish(self) -> None:
        """Do nothing: what the kernel has done is done."""

    def roll_back(self) -> None:
        """Take back what was begun; what is all written stays."""
        if self._progress[_STATE] == _BEGUN:
            self._now.ring.roll_back()
            self._now.store.roll_back()
            self._progress[_STATE] = _UNTOUCHED


def plain_steps_of(
    observations: Observations, transitions: Transitions, windows: list[Windows]
) -> PlainSteps | None:
    """Return what adds plain steps to a buffer of these parts, if it has any such steps."""
    if len(observations.entries) != 1 or transitions.fields.values:
        return None
    entry = observations.entries[0]
    if not isinstance(entry, StoredStacks) or not isinstance(entry.frames, DiffFrameArray):
        return None
    frames = entry.frames._frames
    is_native = frames.is_native and frames.stack == 1 and not frames.is_empty
    if not is_native or not isinstance(frames._now.store, GopStore):
        return None
    return PlainSteps(entry, transitions, windows)


@kernel
def add_plain(view: Any, step_view: Any, window_views: Any, obs: Any, successor: Any,
              action: Any, reward: Any, terminated: Any, truncated: Any, coding: Any,
              stream: Any, held: Any) -> Any:  # fmt: skip
    """Add a step if it is a plain one.

    Parameters
    ----------
    view, coding, stream, held
        As for `append_rows`.
    step_view : ndarray, int64
        Of `StepArrays`.
    window_views : ndarray, int64
        Of `WindowArrays`, one for each kind.
    obs, successor : ndarray, uint8
        Flat.
    action : ndarray, (n_lanes, bytes) uint8

    Returns
    -------
    int
        The last lane's row of the frame that was stored, `_NOT_PLAIN` or `_NOT_ALONE`.
    """
    step, runs = _step_at(step_view), _runs_at(step_view)
    progress, counts = step.progress, step.counts
    n_slots, is_newest = step.sizes[0], step.sizes[1] != 0
    for k in range(len(counts)):
        is_finite = abs(np.float32(reward[k])) < np.inf
        if terminated[k] or truncated[k] or not step.running[k] or not is_finite:
            return np.int64(_NOT_PLAIN)
    if is_newest:
        is_plain = plan_newest(
            obs, step.current, step.live, step.frame_counts, runs.lanes, step.plan
        )
    else:
        is_plain = plan_stacks(
            obs, successor, step.current, step.zeros, step.live, step.frame_counts, runs.lanes,
            step.plan,
        )  # fmt: skip
    if (
        not is_plain
        or not runs_fit(step.live, counts, step.plan, runs)
        or not has_codes(step.all_lanes, reward, step.codes, step.values, step.known)
    ):
        return np.int64(_NOT_PLAIN)

    both, saved = step.both, step.saved
    for i in range(both.shape[0]):
        for k in range(both.shape[1]):
            saved[i, k] = both[i, k]
    progress[_STATE] = _BEGUN
    step.frame_changes[0] += 1
    number_rows(
        step.frame_counts, step.oldest_frames, n_slots, step.retired, step.all_lanes, step.numbers
    )
    rows = step.numbers[1, 0]
    _, answer = append_rows(
        view, step.all_lanes, rows, step.items, base_of(successor), 0, coding, stream, held
    )
    if answer != DONE:
        return np.int64(_NOT_ALONE)
    finish(view)
    count_rows(step.frame_counts, step.all_lanes, 1)

    write_runs(step.live, counts, step.plan, runs)
    keep_stacks(successor, step.live, step.plan, step.current, runs.lanes)
    record(
        step.all_lanes, action, reward, terminated, truncated, step.actions, step.codes,
        step.values, step.known, step.flags, counts, step.runs, step.running,
    )  # fmt: skip
    for i in range(len(window_views)):
        windows = windows_at(window_views[i])
        advance_of(step.all_lanes, True, counts, step.runs, step.flags, windows)
    progress[_MAY_LET_GO] = find_needed_of(counts, step.first, runs, LET_GO_AT)
    progress[_STATE] = _WRITTEN
    return rows[len(rows) - 1]
