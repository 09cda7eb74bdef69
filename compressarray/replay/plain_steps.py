"""Steps like most: every lane goes on from its last one, and each stores one new frame.

One kernel call looks whether a step is such a one, and if so does all that adding it takes, with
the kernels that other steps are added by in a dozen calls. What is not of the kind, it leaves as it
was: the first step of an episode and the last one, Dicts, vectors, fields. Of frame indices see
`plain_indices`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.kernels.attaching import (
    BoolRow,
    Int64Block,
    Int64Row,
    Int64Table,
    UInt8Block,
    UInt8Row,
    attacher,
)
from compressarray.kernels.compiling import kernel
from compressarray.kernels.memory import base_of
from compressarray.replay.observations import Observations
from compressarray.replay.plain_indices import PlainIndices
from compressarray.replay.plain_rows import (
    N_BEFORE,
    PlainRows,
    all_go_on,
    rows_at,
    runs_behind,
    there_is_room,
    write_rows,
)
from compressarray.replay.stack_kernels import keep_stacks, plan_newest, plan_stacks
from compressarray.replay.stacks import FrameIndices, StoredStacks
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import Windows
from compressarray.ring import Ring, count_rows, number_rows
from compressarray.store.gop_journal import finish
from compressarray.store.gop_writing import DONE, append_rows
from compressarray.store.gops import GopStore
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

# How far a step has come: nothing was changed; frames are being written; all is written.
_UNTOUCHED, _BEGUN, _WRITTEN = range(3)
# What the kernel returns for no row: it is not such a step; frames need what no kernel has.
_NOT_PLAIN, _NOT_ALONE = -1, -2
# Fields of `FrameArrays.progress`.
_STATE, _MAY_LET_GO, _N_PROGRESS = range(3)


class FrameArrays(NamedTuple):
    """What the kernel sees of the frames that the buffer stores, but for their store."""

    sizes: Int64Row  # (2,): frames that a lane keeps, and whether one is given at a time
    progress: Int64Row
    items: Int64Row  # of all frames that a step brings, which one is the lane's newest
    numbers: Int64Block  # (2, 1, n_lanes): overwritten with indices and slots of new frames
    current: UInt8Block
    zeros: UInt8Row
    frame_counts: Int64Row
    oldest_frames: Int64Row
    both: Int64Table  # those two
    saved: Int64Table
    frame_changes: Int64Row
    retired: BoolRow


_frames_at: Any = attacher(FrameArrays, first=N_BEFORE)


class PlainSteps(PlainRows):
    """Adds plain steps to one buffer; a step of `compressarray.writing` while it does.

    Parameters
    ----------
    entry : StoredStacks
        Of frames in groups of pictures.
    transitions, windows
        See `PlainRows`.
    """

    def __init__(
        self, entry: StoredStacks, transitions: Transitions, windows: list[Windows]
    ) -> None:
        super().__init__(entry, transitions, windows)
        self._entry = entry
        ring: Ring = self._now.ring
        n_lanes, n_given = entry.current.shape[:2]
        self._progress = np.zeros(_N_PROGRESS, np.int64)
        layout = entry.layout
        self._stored = FrameArrays(
            sizes=np.array([ring.n_slots, layout.feed == "newest"]),
            progress=self._progress,
            items=np.arange(n_lanes) * n_given + n_given - 1,
            numbers=np.zeros((2, 1, n_lanes), np.int64),
            current=entry.current,
            zeros=np.zeros(layout.frame_bytes, np.uint8),
            frame_counts=ring.counts,
            oldest_frames=ring.oldest,
            both=ring.both,
            saved=ring.saved,
            frame_changes=ring.changes,
            retired=np.zeros(0, np.bool_),
        )
        self._step_view = self._view_with(self._stored)

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
) -> PlainSteps | PlainIndices | None:
    """Return what adds plain steps to a buffer of these parts, if it has any such steps."""
    if len(observations.entries) != 1 or transitions.fields.values:
        return None
    entry = observations.entries[0]
    if isinstance(entry, FrameIndices):
        return PlainIndices(entry, transitions, windows)
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
        Of `RowArrays`, `RunArrays` and `FrameArrays`.
    window_views, action
        As for `write_rows`.
    obs, successor : ndarray, uint8
        Flat.

    Returns
    -------
    int
        The last lane's row of the frame that was stored, `_NOT_PLAIN` or `_NOT_ALONE`.
    """
    rows, runs, stored = rows_at(step_view), runs_behind(step_view), _frames_at(step_view)
    progress = stored.progress
    n_slots, is_newest = stored.sizes[0], stored.sizes[1] != 0
    if not all_go_on(rows, reward, terminated, truncated):
        return np.int64(_NOT_PLAIN)
    if is_newest:
        is_plain = plan_newest(
            obs, stored.current, rows.live, stored.frame_counts, runs.lanes, rows.plan
        )
    else:
        is_plain = plan_stacks(
            obs, successor, stored.current, stored.zeros, rows.live, stored.frame_counts,
            runs.lanes, rows.plan,
        )  # fmt: skip
    if not is_plain or not there_is_room(rows, runs, reward):
        return np.int64(_NOT_PLAIN)

    both, saved = stored.both, stored.saved
    for i in range(both.shape[0]):
        for k in range(both.shape[1]):
            saved[i, k] = both[i, k]
    progress[_STATE] = _BEGUN
    stored.frame_changes[0] += 1
    lanes = rows.all_lanes
    number_rows(
        stored.frame_counts, stored.oldest_frames, n_slots, stored.retired, lanes, stored.numbers
    )
    slots = stored.numbers[1, 0]
    _, answer = append_rows(
        view, lanes, slots, stored.items, base_of(successor), 0, coding, stream, held
    )
    if answer != DONE:
        return np.int64(_NOT_ALONE)
    finish(view)
    count_rows(stored.frame_counts, lanes, 1)

    keep_stacks(successor, rows.live, rows.plan, stored.current, runs.lanes)
    progress[_MAY_LET_GO] = write_rows(
        rows, runs, window_views, action, reward, terminated, truncated
    )
    progress[_STATE] = _WRITTEN
    return slots[len(slots) - 1]
