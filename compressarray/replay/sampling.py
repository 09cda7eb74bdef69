"""How transitions are drawn from a buffer."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.replay.batches import Batch, SequenceBatch
from compressarray.replay.checks import (
    checked_int,
    checked_number,
    checked_priorities,
    scaled_priorities,
)
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.parts import BufferParts
from compressarray.replay.windows import Windows

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")

# Lengths of sequences whose starts are kept track of at once, three to six bits a transition each.
_MOST_LENGTHS = 3


class Sampling(BufferParts):
    """The methods of a buffer that draw from it."""

    def sample(
        self,
        batch_size: int,
        replace: bool = True,
        *,
        beta: float | None = None,
        out: Batch | None = None,
    ) -> Batch:
        """Draw transitions, uniformly or in proportion to their priorities.

        Parameters
        ----------
        batch_size : int
        replace : bool, default True
            False: no transition twice.
        beta : float, optional
            Exponent of the weights instead of ``self.beta``.
        out : Batch, optional
            One that this method returned for the same `batch_size`: its observations' memory is
            used again wherever it fits, and what it holds is lost. For large batches that is
            faster: of two that take turns, a cache may hold neither.

        Returns
        -------
        Batch
            Yours to keep. Once it is gone, views and all, later ones take its memory.

        Raises
        ------
        ValueError
            If nothing can be drawn yet, less than asked for without replacement, or all
            priorities are zero.
        """
        return self._draw(batch_size, replace, beta, out).result()

    def batches(
        self,
        batch_size: int,
        *,
        lookahead: int = 1,
        thread: bool = True,
        replace: bool = True,
        beta: float | None = None,
    ) -> Batches[Batch]:
        """Iterate over batches that are drawn ahead of their delivery, without end.

        Parameters
        ----------
        batch_size, replace, beta
            As for `sample`.
        lookahead : int, default 1
            Batches that are drawn before they are asked for: newer transitions, and priorities
            that are updated meanwhile, do not count for them. Transitions that were drawn are
            delivered as they were, even if the ring has moved on.
        thread : bool, default True
            Decode in a thread what was drawn. The batches are the same without.

        Notes
        -----
        Where nothing can be drawn any more, what was drawn before is delivered, and the error comes
        after it. What was drawn before `clear` is gone.
        """
        checked_int("batch_size", batch_size, 1)
        ahead = checked_int("lookahead", lookahead, 0)
        if beta is not None:
            checked_number("beta", beta, 0)
        return Batches(lambda: self._draw(batch_size, replace, beta, None), ahead, thread)

    def sample_sequences(self, batch_size: int, length: int, replace: bool = True) -> SequenceBatch:
        """Draw runs of ``length`` steps of one episode, uniformly from all that are held.

        The first call with a length takes a pass over all transitions.

        Raises
        ------
        ValueError
            As `sample`, or if `length` is more than a lane keeps.
        """
        with self._lock:
            self._writer.settle()
            self._know_process()
            size = checked_int("batch_size", batch_size, 1)
            n_steps = checked_int("length", length, 1)
            if n_steps > self._transitions.n_slots:
                raise ValueError(
                    f"length={n_steps} is more than the {self._transitions.n_slots} transitions "
                    "that a lane keeps"
                )
            windows = self._sequences_of(n_steps)
            if not len(windows):
                raise ValueError(
                    f"no sequence of length={n_steps} can be drawn: the buffer holds {len(self)} "
                    f"transitions, in {self._transitions.n_episodes} episodes"
                )
            cells = self._transitions.runs_of(
                self._choose_uniformly(windows, size, replace), n_steps
            )
            steps = self._transitions.steps(cells)
            action = self._actions.given_back(self._transitions.actions[cells])
            names = self._transitions.names(cells)
            readers = self._observations.sequence_readers(cells)

            def decode() -> SequenceBatch:
                obs, next_obs = self._observations.read(readers, self._output)
                deliver = self._output.deliver_small
                return SequenceBatch(
                    obs=obs,
                    action=deliver(action),
                    reward=deliver(steps.reward),
                    next_obs=next_obs,
                    terminated=deliver(steps.terminated),
                    truncated=deliver(steps.truncated),
                    is_first=deliver(steps.is_first),
                    index=names,
                )

            drawn = self._note(Drawn(names[:, 0], decode))
        return drawn.result()

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
            counts, lanes = np.divmod(names, self.n_envs)
            unknown = (names < 0) | (counts >= self._transitions.counts[lanes])
            if unknown.any():
                raise IndexError(f"transition {names[np.argmax(unknown)]} was never added")
            n_slots = self._transitions.n_slots
            cells = lanes * n_slots + counts % n_slots
            held = (counts >= self._transitions.oldest[lanes]) & self._windows.holds(cells)
            if held.any():
                self._tree.update(cells[held], scaled[held])

    def _draw(
        self, batch_size: int, replace: bool, beta: float | None, out: Batch | None
    ) -> Drawn[Batch]:
        with self._lock:
            self._writer.settle()
            self._know_process()
            size = checked_int("batch_size", batch_size, 1)
            exponent = self.beta if beta is None else checked_number("beta", beta, 0)
            kept = None
            if out is not None:
                if not isinstance(out, Batch):
                    raise TypeError(
                        f"out is a {type(out).__name__}; it must be a Batch that sample() returned"
                    )
                if len(out.index) != size:
                    raise ValueError(
                        f"out holds {len(out.index)} transitions and batch_size={size}: its "
                        "memory fits batches of its own size"
                    )
                kept = self._observations.memories(out.obs, self._output)
            cells, weight = self._choose(size, replace, exponent)
            powers = np.array([self.gamma**k for k in range(self.n_step + 1)])
            returns = self._transitions.returns(cells, powers)
            if weight is not None:
                returns.signals[3] = weight
            action = self._actions.given_back(returns.action)
            readers = self._observations.step_readers(cells, returns.last, self.n_step)

            def decode() -> Batch:
                obs, next_obs = self._observations.read(readers, self._output, kept)
                reward, terminated, discount, weights = self._output.deliver_rows(returns.signals)
                return Batch(
                    obs=obs,
                    action=self._output.deliver_small(action),
                    reward=reward,
                    next_obs=next_obs,
                    terminated=terminated,
                    discount=discount,
                    index=returns.names,
                    weight=weights,
                )

            return self._note(Drawn(returns.names, decode))

    def _choose(self, size: int, replace: bool, beta: float) -> tuple[Int64s, Floats | None]:
        windows = self._windows
        if not len(windows):
            raise ValueError(
                f"nothing can be drawn: the buffer holds {len(self)} transitions, and none has "
                f"all of its n_step={self.n_step} steps yet"
            )
        if not self.prioritized:
            return self._choose_uniformly(windows, size, replace), None
        self._refuse_more(windows, size, replace)
        cells, probabilities = self._tree.draw(self._rng.random(size), replace)
        if not len(cells):
            raise ValueError("all priorities are zero; use epsilon > 0")
        if len(cells) < size:
            raise ValueError(
                f"batch_size={size} transitions without replacement, and only {len(cells)} have a "
                "priority above zero; use epsilon > 0"
            )
        # (n * p) ** -beta over the largest of them, without what overflows on the way
        weight = (probabilities.min() / probabilities) ** beta
        return cells, weight.astype(np.float32)

    def _choose_uniformly(self, windows: Windows, size: int, replace: bool) -> Int64s:
        self._refuse_more(windows, size, replace)
        if replace:
            return windows.select(self._integers.below(len(windows), size))
        return windows.select(self._rng.choice(len(windows), size, replace=False))

    def _refuse_more(self, windows: Windows, size: int, replace: bool) -> None:
        if not replace and size > len(windows):
            raise ValueError(
                f"batch_size={size} is more than the {len(windows)} that can be drawn without "
                "replacement; draw fewer, or with replace=True"
            )

    def _sequences_of(self, length: int) -> Windows:
        windows = self._sequences.pop(length, None)
        if windows is None:
            windows = Windows(self.capacity, length, True)
            held = self._transitions
            windows.rebuild(held.oldest, held.counts, held.flags)
        self._sequences[length] = windows  # the last one is the one used last
        if len(self._sequences) > _MOST_LENGTHS:
            del self._sequences[next(iter(self._sequences))]
        return windows
