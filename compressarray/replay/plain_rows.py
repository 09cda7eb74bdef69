"""What plain steps of every kind have in common: rows that go on, written by one kernel call."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.kernels.attaching import (
    BoolRow,
    Float32Row,
    Int64Row,
    UInt8Row,
    UInt8Table,
    attacher,
    describe,
    kind_of_row,
)
from compressarray.kernels.compiling import kernel
from compressarray.replay.rewards import has_codes
from compressarray.replay.runs import RunArrays
from compressarray.replay.stack_kernels import (
    LET_GO_AT,
    PLAN,
    find_needed_of,
    runs_fit,
    write_runs,
)
from compressarray.replay.stacks import Stacks
from compressarray.replay.transitions import Transitions, record
from compressarray.replay.windows import Windows, advance_of, windows_at

PlanRow = Annotated[npt.NDArray[np.void], kind_of_row(PLAN)]


class RowArrays(NamedTuple):
    """What kernels see of a buffer's transitions, and of the step that is added."""

    live: BoolRow  # all lanes
    all_lanes: Int64Row
    plan: PlanRow
    codes: UInt8Row
    values: Float32Row
    known: Int64Row
    flags: UInt8Table
    actions: UInt8Table
    counts: Int64Row
    first: Int64Row
    runs: Int64Row
    running: BoolRow


# In kernels, of a view that begins with `RowArrays` and goes on with `RunArrays`.
rows_at: Any = attacher(RowArrays)
runs_behind: Any = attacher(RunArrays, first=len(RowArrays._fields))
N_BEFORE = len(RowArrays._fields) + len(RunArrays._fields)


def row_arrays(entry: Stacks, transitions: Transitions) -> RowArrays:
    """The arrays of a buffer whose observations are this entry."""
    n_lanes = entry.n_lanes
    return RowArrays(
        live=np.ones(n_lanes, np.bool_),
        all_lanes=np.arange(n_lanes),
        plan=entry.plan,
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


class PlainRows:
    """The parts of one buffer that plain steps are added to.

    Parameters
    ----------
    entry : Stacks
        The only one of the observations, with frames in a `DiffFrameArray`.
    transitions : Transitions
    windows : list of Windows
        True until one of these is replaced, or the frames are cleared; see `fits`.
    """

    def __init__(self, entry: Stacks, transitions: Transitions, windows: list[Windows]) -> None:
        frames = entry.frames
        assert isinstance(frames, DiffFrameArray)
        self._frames = frames._frames
        self._now = self._frames._now
        self._transitions = transitions
        self._windows = windows
        self._rows = row_arrays(entry, transitions)
        self._run_table = entry.runs
        self._runs = entry.runs.arrays
        self._window_views = np.stack([each.view for each in windows])

    def _view_with(self, arrays: NamedTuple) -> npt.NDArray[np.int64]:
        """A view of rows and runs, and behind them of other arrays, which are to be kept."""
        return describe([*self._rows, *self._runs, *arrays])

    def fits(self, transitions: Transitions, n_windows: int) -> bool:
        """Whether these are still the parts that it was made of."""
        return (
            self._frames._now is self._now
            and self._run_table.arrays is self._runs
            and transitions.rewards.arrays.values is self._rows.values
            and self._transitions is transitions
            and len(self._windows) == n_windows
        )


@kernel
def all_go_on(rows: Any, reward: Any, terminated: Any, truncated: Any) -> Any:
    """Whether every lane is in an episode that the step does not end, with a finite reward."""
    for k in range(len(rows.counts)):
        is_finite = abs(np.float32(reward[k])) < np.inf
        if terminated[k] or truncated[k] or not rows.running[k] or not is_finite:
            return False
    return True


@kernel
def there_is_room(rows: Any, runs: Any, reward: Any) -> Any:
    """Whether the runs have room for what was planned, and rewards a code each."""
    return runs_fit(rows.live, rows.counts, rows.plan, runs) and has_codes(
        rows.all_lanes, reward, rows.codes, rows.values, rows.known
    )


@kernel
def write_rows(rows: Any, runs: Any, window_views: Any, action: Any, reward: Any, terminated: Any,
               truncated: Any) -> Any:  # fmt: skip
    """Write down a step for which there is room.

    Parameters
    ----------
    window_views : ndarray, int64
        Of `WindowArrays`, one for each kind.
    action : ndarray, (n_lanes, bytes) uint8

    Returns
    -------
    bool
        Whether frames may be let go; then ``first`` of all lanes has moved on.
    """
    counts = rows.counts
    write_runs(rows.live, counts, rows.plan, runs)
    record(
        rows.all_lanes, action, reward, terminated, truncated, rows.actions, rows.codes,
        rows.values, rows.known, rows.flags, counts, rows.runs, rows.running,
    )  # fmt: skip
    for i in range(len(window_views)):
        windows = windows_at(window_views[i])
        advance_of(rows.all_lanes, True, counts, rows.runs, rows.flags, windows)
    return find_needed_of(counts, rows.first, runs, LET_GO_AT)
