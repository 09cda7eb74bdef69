"""Steps like most, fed with frame indices: every lane's stack moves on by a frame that is there.

Whoever stepped the environments has stored the frames, so that one kernel call is all there is to
do, and there is nothing to take back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.kernels.attaching import Int64Row, Int64Table, attacher
from compressarray.kernels.compiling import kernel
from compressarray.replay.layout import for_kernels
from compressarray.replay.plain_rows import (
    N_BEFORE,
    PlainRows,
    all_go_on,
    rows_at,
    runs_behind,
    there_is_room,
    write_rows,
)
from compressarray.replay.stack_kernels import FINE, plan_indices
from compressarray.replay.stacks import FrameIndices
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import Windows
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

# What the kernel returns.
_NOT_PLAIN, _ADDED, _MAY_LET_GO = range(3)


class GivenArrays(NamedTuple):
    """What the kernel sees of frames that are stored by others."""

    n_rows: Int64Row  # (1,): frames that a lane keeps
    frame_counts: Int64Row
    current: Int64Table
    pads: Int64Row  # overwritten


_given_at: Any = attacher(GivenArrays, first=N_BEFORE)


class PlainIndices(PlainRows):
    """Adds plain steps to one buffer of frame indices; see `PlainSteps`.

    Parameters
    ----------
    entry : FrameIndices
    transitions, windows
        See `PlainRows`.
    """

    def __init__(
        self, entry: FrameIndices, transitions: Transitions, windows: list[Windows]
    ) -> None:
        super().__init__(entry, transitions, windows)
        self._entry = entry
        self._given = GivenArrays(
            n_rows=np.array([entry.n_ring_rows]),
            frame_counts=self._now.ring.counts,
            current=entry.current,
            pads=np.zeros(entry.n_lanes, np.int64),
        )
        self._view = self._view_with(self._given)

    def fits(self, transitions: Transitions, n_windows: int) -> bool:
        """See `PlainRows`; a write of the frames that was cut off, by others, is done with."""
        self._frames.writer.settle()
        is_current = self._entry.current is self._given.current
        return is_current and super().fits(transitions, n_windows)

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
        """Add a step if it is a plain one; say whether that is done. See `PlainSteps.add`."""
        del writer
        entry = self._entry
        if entry.stream != self._now.number or not entry.padding_is_checked:
            return False
        answer = add_indices(
            self._view, self._window_views, for_kernels(obs), for_kernels(successor),
            action.reshape(len(terminated), -1).view(np.uint8),
            reward.astype(np.float64, copy=False), terminated, truncated,
        )  # fmt: skip
        if answer == _MAY_LET_GO:
            entry.frames.discard(entry.lanes["first"])
        return bool(answer != _NOT_PLAIN)


@kernel
def add_indices(view: Any, window_views: Any, obs: Any, successor: Any, action: Any, reward: Any,
                terminated: Any, truncated: Any) -> Any:  # fmt: skip
    """Add a step if it is a plain one, and say so; otherwise nothing that lasts has changed.

    Parameters
    ----------
    view : ndarray, int64
        Of `RowArrays`, `RunArrays` and `GivenArrays`.
    window_views, action
        As for `write_rows`.
    obs, successor : ndarray, (n_lanes, stack_size) int64
    """
    rows, runs, given = rows_at(view), runs_behind(view), _given_at(view)
    if not all_go_on(rows, reward, terminated, truncated):
        return _NOT_PLAIN
    lanes, plan, pads, current = runs.lanes, rows.plan, given.pads, given.current
    for k in range(len(pads)):
        pads[k] = lanes[k].pad
    problem, _ = plan_indices(
        obs, successor, current, rows.live, given.frame_counts, given.n_rows[0], lanes, plan
    )
    is_plain = problem == FINE
    for k in range(len(pads)):
        if is_plain and (lanes[k].pad != pads[k] or not plan[k].same):
            is_plain = False
    if not is_plain or not there_is_room(rows, runs, reward):
        for k in range(len(pads)):
            lanes[k].pad = pads[k]
        return _NOT_PLAIN
    may_let_go = write_rows(rows, runs, window_views, action, reward, terminated, truncated)
    for k in range(current.shape[0]):
        for i in range(current.shape[1]):
            current[k, i] = successor[k, i]
    return _MAY_LET_GO if may_let_go else _ADDED
