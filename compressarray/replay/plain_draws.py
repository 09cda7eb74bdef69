"""Draws like most: uniform, with replacement, of transitions whose stacks are windows of frames.

One kernel call chooses them, reads all but their pixels, and finds their frames, with the kernels
that other draws use in half a dozen calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.kernels.attaching import (
    Float32Row,
    Int32Row,
    Int64Row,
    UInt8Row,
    UInt8Table,
    UInt32Row,
    attacher,
    describe,
)
from compressarray.kernels.compiling import kernel
from compressarray.replay.integers import Integers, draw_below
from compressarray.replay.observations import Observations
from compressarray.replay.reading import FoundReader
from compressarray.replay.runs import RunArrays
from compressarray.replay.stack_kernels import fill_windows_of
from compressarray.replay.stacks import Stacks
from compressarray.replay.transitions import Returns, Transitions, read_windows
from compressarray.replay.windows import Windows, select
from compressarray.ring import Ring, find_places

Int64s = npt.NDArray[np.int64]


class DrawArrays(NamedTuple):
    """What the kernel sees of a buffer."""

    n_rows: Int64Row  # (1,): frames that a lane keeps
    words: UInt32Row
    counts: Int32Row  # of windows
    codes: UInt8Row
    values: Float32Row
    flags: UInt8Table
    actions: UInt8Table
    transitions: Int64Row  # that each lane has had
    frames: Int64Row  # that each lane has had
    oldest: Int64Row  # frames


_draw_at: Any = attacher(DrawArrays)
_runs_at: Any = attacher(RunArrays, first=len(DrawArrays._fields))
_ROWS = 3  # of what is written for each transition, before its frames: cell, last cell, name


class Found(NamedTuple):
    """Transitions that were drawn."""

    cells: Int64s
    returns: Returns
    reader: FoundReader | None  # None where their stacks are no windows of frames


class PlainDraws:
    """Draws from one buffer.

    Parameters
    ----------
    entry : Stacks
        The only one of the observations, whose frames are a `DiffFrameArray`.
    transitions : Transitions
    windows : Windows
        True until one of these is replaced, or the frames are cleared; see `fits`.
    powers : ndarray, (n_step + 1,) float64
        Of the discount, from the zeroth.
    """

    def __init__(
        self,
        entry: Stacks,
        transitions: Transitions,
        windows: Windows,
        powers: npt.NDArray[np.float64],
    ) -> None:
        assert isinstance(entry.frames, DiffFrameArray)
        self._entry = entry
        self._frames = entry.frames
        self._now = entry.frames._frames._now
        self._transitions = transitions
        self._windows = windows
        self._powers = powers
        ring: Ring = self._now.ring
        self._arrays = DrawArrays(
            n_rows=np.array([ring.n_slots]),
            words=windows.words,
            counts=windows.counts,
            codes=transitions.rewards.arrays.codes,
            values=transitions.rewards.arrays.values,
            flags=transitions.flags,
            actions=transitions.action_bytes,
            transitions=transitions.counts,
            frames=ring.counts,
            oldest=ring.oldest,
        )
        self._runs = entry.runs.arrays
        self._view = describe([*self._arrays, *self._runs])
        self._no_retired = np.zeros(0, np.bool_)

    def fits(self, transitions: Transitions, windows: Windows, powers: Any) -> bool:
        """Whether these are still the parts that it was made of."""
        return (
            self._frames._frames._now is self._now
            and self._transitions is transitions
            and self._windows is windows
            and self._powers is powers
            and self._entry.runs.arrays is self._runs
            and transitions.rewards.arrays.values is self._arrays.values
        )

    def draw(self, integers: Integers, size: int) -> Found | None:
        """Draw transitions as `Integers.below` does; None, with nothing drawn, if it cannot.

        Frames are found as they are now: the buffer's lock is held.
        """
        stream, ring, store = self._now
        n = len(self._windows)
        if not integers.serves(n) or ring.has_retired or stream != self._entry.stream:
            return None
        n_frames = self._entry.layout.stack_size + 1
        whole = np.empty(size * (_ROWS + 2 * n_frames), np.int64)
        signals = np.empty((4, size), np.float32)
        action = np.empty((size, self._arrays.actions.shape[1]), np.uint8)
        n_changes = ring.n_changes
        with integers.lock:
            is_found = draw_plain(
                self._view, *integers.source, n, self._powers, store.n_pins, self._no_retired,
                signals, action, whole,
            )  # fmt: skip
        cells, last, names = whole[: _ROWS * size].reshape(_ROWS, size)
        returns = Returns(signals, self._transitions.as_actions(action), last, names)
        reader = None
        if is_found:
            found = whole[_ROWS * size :].reshape(2, size, n_frames)
            reader = FoundReader(self._entry, found[0], found[1].reshape(-1), self._now, n_changes)
        return Found(cells, returns, reader)


def plain_draws_of(
    observations: Observations, transitions: Transitions, windows: Windows, powers: Any
) -> PlainDraws | None:
    """Return what draws plainly from a buffer of these parts, if that can be."""
    if len(observations.entries) != 1 or len(powers) != 2:
        return None
    entry = observations.entries[0]
    if not isinstance(entry.frames, DiffFrameArray) or entry.frames._frames.stack != 1:
        return None
    if entry.frames._frames.is_empty:
        return None
    return PlainDraws(entry, transitions, windows, powers)


@kernel
def draw_plain(view: Any, function: Any, state: Any, n: Any, powers: Any, n_pins: Any,
               retired: Any, signals: Any, action: Any, whole: Any) -> Any:  # fmt: skip
    """Draw transitions; return whether their frames were found.

    Parameters
    ----------
    view : ndarray, int64
        Of `DrawArrays`.
    function, state, n
        As for `draw_below`: from 2 on.
    powers, signals, action
        As for `read_windows`.
    n_pins : int
    retired : ndarray of bool
        Empty.
    whole : ndarray, int64
        Overwritten: cells, last cells and names, then, if they were found, the frames of each
        transition, and where these are.
    """
    draw, runs = _draw_at(view), _runs_at(view)
    stack_size, n_rows, size = runs.sizes[0], draw.n_rows[0], signals.shape[1]
    cells, last, names = whole[:size], whole[size : 2 * size], whole[2 * size : 3 * size]
    if n == draw.flags.size:
        draw_below(function, state, n, cells)
    else:
        draw_below(function, state, n, last)  # until the cells are known
        select(draw.words, draw.counts, last, cells)
    read_windows(
        cells, powers, draw.transitions, draw.codes, draw.values, draw.flags, draw.actions,
        signals, action, last, names,
    )  # fmt: skip
    n_frames = size * (stack_size + 1)
    frames = whole[_ROWS * size : _ROWS * size + n_frames]
    is_regular = fill_windows_of(cells.reshape(size, 1), runs, frames.reshape(size, stack_size + 1))
    if not is_regular:
        return False
    places = whole[_ROWS * size + n_frames :]
    return find_places(frames, draw.frames, draw.oldest, n_rows, retired, n_pins, places) < 0
