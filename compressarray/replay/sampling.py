"""How transitions are drawn from a buffer."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.replay.assembling import Part, batch_of
from compressarray.replay.batches import Batch
from compressarray.replay.checks import (
    checked_int,
    checked_number,
)
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.parts import BufferParts
from compressarray.replay.plain_draws import Found, plain_draws_of
from compressarray.replay.priorities import SumTree
from compressarray.replay.reading import Reader
from compressarray.replay.transitions import Returns

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")


class Starts(Protocol):
    """Cells that may be drawn."""

    def __len__(self) -> int:
        """How many."""

    def select(self, ranks: Int64s) -> Int64s:
        """Return the cells of some ranks, each below ``len(self)``."""


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
            part, weight = self._draw_part(size, replace, exponent)
            names = part.returns.names
            output = self._output.begin([part.readers])

            def decode() -> Batch:
                def observe(readers: Any) -> Any:
                    return self._observations.read(readers, output, kept)

                return batch_of([part], names, weight, observe, output)

            return self._note(Drawn(names, decode, output.arrive))

    def _draw_part(self, size: int, replace: bool, beta: float) -> tuple[Part, Floats | None]:
        """Draw transitions, and read all of them but the pixels."""
        if replace and not self.prioritized and self._draws_plainly:
            found = self._found_plainly(size)
            if found is not None:
                return self._part_of(found.cells, found.returns, reader=found.reader), None
        cells, weight = self._choose(size, replace, beta)
        return self._part(cells), weight

    def _found_plainly(self, size: int) -> Found | None:
        """Draw as most draws do, if that can be."""
        parts = self._transitions, self._windows, self._powers
        draws = self._plain_draws
        if draws is None or not draws.fits(*parts):
            draws = self._plain_draws = plain_draws_of(self._observations, *parts)
            if draws is None:
                self._draws_plainly = False
                return None
        return draws.draw(self._integers, size)

    @property
    def _powers(self) -> npt.NDArray[np.float64]:
        """Of the discount, from the zeroth; the same array while it is the same."""
        gamma, powers = self._discount
        if gamma != self.gamma:
            powers = np.array([self.gamma**k for k in range(self.n_step + 1)])
            self._discount = self.gamma, powers
        return powers

    def _part(self, cells: Int64s, as_stacks: bool = False) -> Part:
        """Read, of windows that start in some cells, all but the pixels."""
        return self._part_of(cells, self._transitions.returns(cells, self._powers), as_stacks)

    def _part_of(
        self,
        cells: Int64s,
        returns: Returns,
        as_stacks: bool = False,
        reader: Reader | None = None,
    ) -> Part:
        readers = (
            [reader]
            if reader is not None
            else self._observations.step_readers(
                cells, returns.last, self.n_step, as_stacks=as_stacks
            )
        )
        action = self._actions.given_back(returns.action)
        return Part(returns, action, self._transitions.fields.read(cells), readers)

    def _choose(self, size: int, replace: bool, beta: float) -> tuple[Int64s, Floats | None]:
        windows = self._windows
        if not len(windows):
            raise ValueError(
                f"nothing can be drawn: the buffer holds {len(self)} transitions, and none has "
                f"all of its n_step={self.n_step} steps yet"
            )
        if not self.prioritized:
            return self._choose_uniformly(windows, size, replace), None
        self._refuse_more(len(windows), size, replace)
        return self._choose_by_priority(self._tree, size, replace, beta)

    def _choose_by_priority(
        self, tree: SumTree, size: int, replace: bool, beta: float
    ) -> tuple[Int64s, Floats]:
        cells, probabilities = tree.draw(self._rng.random(size), replace)
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

    def _choose_uniformly(self, starts: Starts, size: int, replace: bool) -> Int64s:
        self._refuse_more(len(starts), size, replace)
        if replace:
            return starts.select(self._integers.below(len(starts), size))
        return starts.select(self._rng.choice(len(starts), size, replace=False))

    def _refuse_more(self, n: int, size: int, replace: bool) -> None:
        if not replace and size > n:
            raise ValueError(
                f"batch_size={size} is more than the {n} that can be drawn without "
                "replacement; draw fewer, or with replace=True"
            )
