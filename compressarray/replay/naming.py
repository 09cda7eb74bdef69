"""What is done to transitions by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from compressarray.replay.batches import Transition
from compressarray.replay.checks import (
    checked_int,
    checked_names,
    checked_priorities,
    checked_values,
    scaled_priorities,
)
from compressarray.replay.outputs import deliver_all
from compressarray.replay.parts import BufferParts
from compressarray.replay.steps import RewardStep

Int64s = npt.NDArray[np.int64]

_READ_AT_ONCE = 64


class Naming(BufferParts):
    """The methods of a buffer that take names of transitions, ``batch.index``."""

    def get(self, index: npt.ArrayLike) -> Transition:
        """Return transitions by name, each a single step as it was added.

        Parameters
        ----------
        index : array_like of int
            Names, of any shape: those of ``batch.index`` or `newest`. A lane's t-th transition is
            ``t * n_envs + lane``, for good.

        Returns
        -------
        Transition
            Numpy arrays, or tensors where the buffer has a device; yours. The newest transition of
            a lane can be had, too, before it has its `n_step` steps.

        Raises
        ------
        IndexError
            If a transition was never added, or has left the buffer.
        TypeError
            If names are no integers.
        """
        with self._lock:
            self._writer.settle()
            names = checked_names(index)
            transitions = self._transitions
            cells, held = transitions.cells_of(names.reshape(-1))
            if not held.all():
                gone = int(names.reshape(-1)[np.argmin(held)])
                lane = gone % transitions.n_lanes
                oldest = int(transitions.oldest[lane]) * transitions.n_lanes + lane
                raise IndexError(
                    f"transition {gone} has left the buffer; the oldest one that lane {lane} "
                    f"keeps is {oldest}"
                )
            steps = transitions.steps(cells)
            shape = names.shape
            action = self._actions.given_back(transitions.actions[cells])
            fields = transitions.fields.read(cells)
            readers = self._observations.sequence_readers(cells[:, None])
            pair = self._observations.read([readers], self._output)

        def shaped(values: Any) -> Any:
            if isinstance(values, dict):
                return {key: shaped(each) for key, each in values.items()}
            return values.reshape(shape + tuple(values.shape[1:]))

        obs, next_obs = (
            {key: shaped(each[:, 0]) for key, each in part.items()}
            if isinstance(part, dict)
            else shaped(part[:, 0])
            for part in pair
        )
        deliver = self._output.deliver_small
        return Transition(
            obs=obs,
            action=shaped(deliver(action)),
            reward=shaped(deliver(steps.reward)),
            next_obs=next_obs,
            terminated=shaped(deliver(steps.terminated)),
            truncated=shaped(deliver(steps.truncated)),
            is_first=shaped(deliver(steps.is_first)),
            index=names,
            fields=shaped(deliver_all(self._output, fields)),
        )

    def __getitem__(self, index: npt.ArrayLike) -> Transition:
        """Return what `get` does: names, and not places, so that nothing is ever another one."""
        return self.get(index)

    def __iter__(self) -> Iterator[Transition]:
        """Iterate over all transitions that are held now, from the oldest to the newest.

        Raises IndexError where one has left the buffer before its turn comes.
        """
        names = self.newest(max(len(self), 1))
        for start in range(0, len(names), _READ_AT_ONCE):
            read = self.get(names[start : start + _READ_AT_ONCE])
            for row in range(len(read.index)):
                yield Transition(*(_row(part, row) for part in read))

    def newest(self, n: int) -> Int64s:
        """Return the names of the ``n`` newest transitions, or of all there are, oldest first.

        Of several lanes, by the time since each lane's first transition.
        """
        with self._lock:
            self._writer.settle()
            return self._transitions.newest(checked_int("n", n, 1))

    def set_rewards(self, index: npt.ArrayLike, rewards: npt.ArrayLike) -> None:
        """Have other rewards, such as those that a learnt model gives.

        Parameters
        ----------
        index : array_like of int
            Names. Transitions that have left the buffer since are passed over; of several rewards
            for one the last one stays.
        rewards : array_like of float
            Of the same shape; kept as float32.

        Raises
        ------
        ValueError
            If shapes differ, or a reward is not finite as float32.
        IndexError
            If an index names no transition that ever was.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            names, values = checked_values("rewards", index, rewards)
            with np.errstate(over="ignore"):
                rounded = values.astype(np.float32)
            wrong = ~np.isfinite(rounded)
            if wrong.any():
                place = int(np.argmax(wrong))
                raise ValueError(
                    f"reward {values[place]} at position {place} is not finite as float32"
                )
            cells, held = self._transitions.cells_of(names)
            step = RewardStep(self._transitions, cells[held], rounded[held])
            self._writer.run(self._writer.steps.append, step)

    def update_priorities(self, index: npt.ArrayLike, priorities: npt.ArrayLike) -> None:
        """Set the priorities of transitions, such as the sizes of their errors.

        Parameters
        ----------
        index : array_like of int
            ``batch.index``. Transitions that have left the buffer since are passed over; of
            several priorities for one the last one stays.
        priorities : array_like of float
            Of the same shape, not negative.

        Raises
        ------
        ValueError
            If the buffer has no priorities, shapes differ, a priority is negative or NaN, or all
            priorities would be zero.
        IndexError
            If an index names no transition that ever was.
        """
        with self._lock:
            self._writer.settle()
            if not self.prioritized:
                raise ValueError("this buffer has no priorities; build it with prioritized=True")
            names, values = checked_priorities(index, priorities)
            scaled = scaled_priorities(values, self.epsilon, self.alpha, self.capacity)
            cells, held = self._transitions.cells_of(names)
            among = held & self._windows.holds(cells)
            if among.any():
                self._tree.update(cells[among], scaled[among])
            for windows in self._sequences.values():
                among = held & windows.holds(cells)
                if len(windows.tree.leaves) and among.any():
                    top = max(windows.tree.top, float(scaled[among].max()))
                    windows.tree.set_to(cells[among], scaled[among], top)


def _row(values: Any, row: int) -> Any:
    if isinstance(values, dict):
        return {key: each[row] for key, each in values.items()}
    return values[row]
