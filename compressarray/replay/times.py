"""How often transitions were drawn, and an end to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressarray.replay.buffer import ReplayBuffer

Int64s = npt.NDArray[np.int64]


class TimesDrawn:
    """Counts how often each transition of a buffer was drawn, and takes it out after the last time.

    Four bytes a transition. Who calls this holds the buffer's lock.

    Parameters
    ----------
    buffer : ReplayBuffer
    most : int
        How often a transition may be drawn.
    before : TimesDrawn, optional
        Of another copy of the same buffer: what was drawn there counts.
    """

    def __init__(self, buffer: ReplayBuffer, most: int, before: TimesDrawn | None = None) -> None:
        self._buffer = buffer
        self._most = most
        self._transitions = buffer._transitions
        self.times = np.zeros(buffer.capacity, np.uint32)
        self._counts = buffer._transitions.counts.copy()
        if before is not None:
            before.catch_up()
            here = np.flatnonzero(self._transitions.is_held)
            there, known = before._transitions.find(self._transitions.names(here))
            self.times[here[known]] = before.times[there[known]]
        self._withdraw(np.flatnonzero(self.times))

    def set_to(self, times: npt.NDArray[np.uint32]) -> None:
        """Have other counts, ``(capacity,)``."""
        self.times[:] = times
        self._withdraw(np.flatnonzero(self.times))

    def caught_up(self) -> npt.NDArray[np.uint32]:
        """The counts as they are now, ``(capacity,)``; a view."""
        self.catch_up()
        return self.times

    def catch_up(self) -> None:
        """Hear of the transitions that have been added since."""
        held = self._buffer._transitions
        if held is not self._transitions:  # it was cleared
            self._transitions = held
            self._counts = np.zeros_like(held.counts)
            self.times[:] = 0
        n_new = np.minimum(held.counts - self._counts, held.n_slots)
        # An episode that was cut lets the starts before its end in once more.
        n_back = np.minimum(n_new + self._buffer.n_step, held.counts - held.oldest)
        lanes = held.all_lanes
        self.times[held.cells_of_new(lanes, held.counts - n_new, n_new)] = 0
        self._withdraw(held.cells_of_new(lanes, held.counts - n_back, n_back))
        self._counts = held.counts.copy()

    def add(self, cells: Int64s) -> None:
        """Count that cells, each given once, were drawn."""
        self.times[cells] += 1
        self._withdraw(cells)

    def _withdraw(self, cells: Int64s) -> None:
        self._buffer._windows.remove(cells[self.times[cells] >= self._most])
