"""From frame indices to observations: one gather a batch and buffer, handed out as views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.replay.outputs import NumpyOutput
from compressarray.replay.stacks import Stacks

Int64s = npt.NDArray[np.int64]


def read_entry(readers: Sequence[Reader], output: NumpyOutput, kept: Any = None) -> tuple[Any, Any]:
    """Decode one entry; return observations and successors, views of one memory.

    Parameters
    ----------
    readers : sequence of Reader
        Of one buffer, or of several whose transitions stand in one batch, one behind the other: all
        of one kind, and all of windows or none.
    output : NumpyOutput
    kept : array or tensor, optional
        Memory to be used again where it fits.
    """
    first = readers[0]
    axis = int(first.in_parts)
    shape = first.indices.shape
    if len(readers) > 1:
        n = sum(reader.indices.shape[axis] for reader in readers)
        shape = (*shape[:axis], n, *shape[axis + 1 :])
    whole = shape + first.layout.frame_shape
    there = output.read_there(readers, whole, kept)
    if there is not None:
        return first.views(there)
    memory = output.memory(whole, first.layout.frame_dtype, kept)
    if len(readers) == 1:
        first.decode(memory)
    else:
        begin = 0
        for reader in readers:
            end = begin + reader.indices.shape[axis]
            if first.in_parts:  # each of them is one piece of the memory
                for part in range(2):
                    reader.decode_part(part, memory[part, begin:end])
            else:
                reader.decode(memory[begin:end])
            begin = end
    return first.views(output.deliver(memory, kept))


class Reader:
    """Reads one entry of the observations of some transitions, and of their successors.

    The frame indices are fixed when it is made: what happens to the buffer afterwards does not
    change what it reads.

    Parameters
    ----------
    stacks : Stacks
    indices : ndarray of int64
        ``(B, stack_size + T)`` where observations are runs of one window, else the stacks,
        ``(parts, B, stack_size)`` or ``(B, T + 1, stack_size)``.
    is_window : bool
    """

    def __init__(self, stacks: Stacks, indices: Int64s, is_window: bool) -> None:
        self.layout = stacks.layout
        self.indices = indices
        self.is_window = is_window
        self._frames = stacks.frames
        self._stream = stacks.stream

    @property
    def in_parts(self) -> bool:
        """Whether what is read of all transitions comes twice: observations, then successors."""
        return False

    def decode(self, memory: Any) -> None:
        """Decode into memory of ``indices.shape + frame shape``."""
        self._frames.gather(self.indices, out=memory, stream=self._stream)

    def decode_part(self, part: int, memory: Any) -> None:
        """Decode one of the two parts into memory of their shape."""
        self._frames.gather(self.indices[part], out=memory, stream=self._stream)

    def locate_there(self, device: Any) -> Any:
        """Find the frames in a replica on a device; None if there is none."""
        if not isinstance(self._frames, DiffFrameArray) or not self.indices.size:
            return None
        return self._frames._locate_there(device, self.indices, self._stream)

    def views(self, frames: Any) -> tuple[Any, Any]:
        """View what was decoded as observations and successors."""
        raise NotImplementedError


class StepReader(Reader):
    """Reads the observations of transitions, and those that their windows of steps lead to.

    Parameters
    ----------
    cells, last : ndarray, (B,) int64
        Where windows begin, and their last steps.
    as_stacks : bool
        Read stack by stack also where they are windows of frames.
    """

    def __init__(self, stacks: Stacks, cells: Int64s, last: Int64s, as_stacks: bool) -> None:
        windows = None if as_stacks else stacks.window_indices(cells[:, None])
        if windows is not None:
            super().__init__(stacks, windows, True)
            return
        indices = np.empty((2, len(cells), stacks.layout.stack_size), np.int64)
        stacks.stack_indices(cells, False, indices[0])
        stacks.stack_indices(last, True, indices[1])
        super().__init__(stacks, indices, False)

    @property
    def in_parts(self) -> bool:
        """See `Reader`."""
        return not self.is_window

    def views(self, frames: Any) -> tuple[Any, Any]:
        """See `Reader`."""
        parts = (frames[:, :-1], frames[:, 1:]) if self.is_window else (frames[0], frames[1])
        return self.layout.to_sample(parts[0], 1), self.layout.to_sample(parts[1], 1)


class FoundReader(StepReader):
    """Reads windows of frames that were found when the transitions were drawn.

    Parameters
    ----------
    indices : ndarray, (B, stack_size + 1) int64
    places : ndarray, (B * (stack_size + 1),) int64
        As `Ring.places` has found them,
    now, n_changes
        in this ring and store, when so many of its indices had ended.
    """

    def __init__(
        self, stacks: Stacks, indices: Int64s, places: Int64s, now: Any, n_changes: int
    ) -> None:
        Reader.__init__(self, stacks, indices, True)
        self._found = places, now, n_changes

    def decode(self, memory: Any) -> None:
        """See `Reader`."""
        assert isinstance(self._frames, DiffFrameArray)
        if not self._frames._gather_found(*self._found, memory):
            super().decode(memory)

    def locate_there(self, device: Any) -> Any:
        """See `Reader`."""
        assert isinstance(self._frames, DiffFrameArray)
        places, now, n_changes = self._found
        located = self._frames._locate_found(device, places, now, n_changes)
        return super().locate_there(device) if located is None else located


class SequenceReader(Reader):
    """Reads the observations of runs of steps.

    Parameters
    ----------
    cells : ndarray, (B, T) int64
    as_stacks : bool
        As for `StepReader`.
    """

    def __init__(self, stacks: Stacks, cells: Int64s, as_stacks: bool) -> None:
        windows = None if as_stacks else stacks.window_indices(cells)
        if windows is not None:
            super().__init__(stacks, windows, True)
            return
        n, length = cells.shape
        indices = np.empty((n, length + 1, stacks.layout.stack_size), np.int64)
        for t in range(length):
            stacks.stack_indices(cells[:, t].copy(), False, indices[:, t])
        stacks.stack_indices(cells[:, -1].copy(), True, indices[:, -1])
        super().__init__(stacks, indices, False)

    def views(self, frames: Any) -> tuple[Any, Any]:
        """See `Reader`."""
        stacks = _runs(frames, self.layout.stack_size) if self.is_window else frames
        return self.layout.to_sample(stacks[:, :-1], 2), self.layout.to_sample(stacks[:, 1:], 2)


class PairsReader(Reader):
    """Reads observations and successors each by itself, of steps that need not go on.

    Parameters
    ----------
    cells : ndarray, (B, T) int64
    """

    def __init__(self, stacks: Stacks, cells: Int64s) -> None:
        indices = np.empty((2, cells.size, stacks.layout.stack_size), np.int64)
        for after in (False, True):
            stacks.stack_indices(cells.ravel(), after, indices[int(after)])
        super().__init__(stacks, indices.reshape(2, *cells.shape, -1), False)

    @property
    def in_parts(self) -> bool:
        """See `Reader`."""
        return True

    def views(self, frames: Any) -> tuple[Any, Any]:
        """See `Reader`."""
        return self.layout.to_sample(frames[0], 2), self.layout.to_sample(frames[1], 2)


def _runs(frames: Any, size: int) -> Any:
    """View ``(B, n, ...)`` as all runs of ``size`` frames, ``(B, n - size + 1, size, ...)``."""
    if hasattr(frames, "unfold"):  # a tensor
        return frames.unfold(1, size, 1).movedim(-1, 2)
    runs = np.lib.stride_tricks.sliding_window_view(frames, size, axis=1, writeable=True)
    return np.moveaxis(runs, -1, 2)
