"""How runs of steps are drawn from a buffer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.replay.assembling import SequencePart, sequence_batch_of
from compressarray.replay.batches import SequenceBatch
from compressarray.replay.checks import checked_int, checked_number
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.priorities import SumTree
from compressarray.replay.sampling import Sampling, Starts
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import END, FIRST, Windows

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

# Kinds of sequences whose starts are kept track of at once, three to six bits a transition each,
# and nine bytes more where they have priorities.
_MOST_KINDS = 3


class Kind(NamedTuple):
    """What sequences are of one kind, so that the same transitions may start them."""

    length: int
    is_padded: bool
    is_prioritized: bool


class Asked(NamedTuple):
    """What a user asks for, checked."""

    size: int
    kind: Kind
    burn_in: int
    crosses: bool
    replace: bool
    beta: float


class Anywhere:
    """The cells that any ``length`` steps of a lane start with, whatever episodes they are of."""

    def __init__(self, transitions: Transitions, length: int) -> None:
        self._n_slots = transitions.n_slots
        self._oldest = transitions.oldest
        self._n_starts = np.maximum(transitions.counts - self._oldest - length + 1, 0)
        self._ends = np.cumsum(self._n_starts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def select(self, ranks: Int64s) -> Int64s:
        """Return the cells of some ranks, each below ``len(self)``."""
        lanes = np.searchsorted(self._ends, ranks, "right")
        times = self._oldest[lanes] + ranks - (self._ends - self._n_starts)[lanes]
        cells: Int64s = lanes * self._n_slots + times % self._n_slots
        return cells


class Sequences(Sampling):
    """The methods of a buffer that draw runs of steps from it."""

    def sample_sequences(
        self,
        batch_size: int,
        length: int,
        replace: bool = True,
        *,
        burn_in: int = 0,
        pad: bool = False,
        cross_episodes: bool = False,
        prioritized: bool = False,
        beta: float | None = None,
    ) -> SequenceBatch:
        """Draw runs of ``length`` steps.

        Parameters
        ----------
        batch_size, length : int
        replace : bool, default True
            False: no run twice.
        burn_in : int, default 0
            Steps before each run, of the same episode, that a recurrent network warms up with: the
            batch then has ``burn_in + length`` steps. Where the episode begins later, or its older
            steps have left the buffer, runs are padded in front.
        pad : bool, default False
            Draw also runs that the end of their episode cuts short, and pad them behind.
        cross_episodes : bool, default False
            Draw runs of steps that a lane had one after the other, whatever episodes they are of;
            ``is_first`` tells where one begins. Not together with `pad` or `prioritized`.
        prioritized : bool, default False
            In a prioritized buffer: draw in proportion to the priorities of the transitions that
            runs (burn-in apart) start with; ``batch.index[:, burn_in]`` names them for
            `update_priorities`.
        beta : float, optional
            Exponent of the weights instead of ``self.beta``.

        Returns
        -------
        SequenceBatch
            ``mask`` is 0 where a run is padded.

        Notes
        -----
        Without `cross_episodes`, the first call with another length, `pad` or `prioritized` takes a
        pass over all transitions.

        Raises
        ------
        ValueError
            As `sample`, or if `length` is more than a lane keeps.
        """
        asked = self._asked(
            batch_size, length, burn_in, pad, cross_episodes, prioritized, replace, beta
        )
        return self._draw_sequences(asked).result()

    def sequences(
        self,
        batch_size: int,
        length: int,
        *,
        lookahead: int = 1,
        thread: bool = True,
        replace: bool = True,
        burn_in: int = 0,
        pad: bool = False,
        cross_episodes: bool = False,
        prioritized: bool = False,
        beta: float | None = None,
    ) -> Batches[SequenceBatch]:
        """Iterate over sequences that are drawn ahead of their delivery; see `batches`.

        Parameters
        ----------
        batch_size, length, replace, burn_in, pad, cross_episodes, prioritized, beta
            As for `sample_sequences`.
        lookahead, thread
            As for `batches`.
        """
        asked = self._asked(
            batch_size, length, burn_in, pad, cross_episodes, prioritized, replace, beta
        )
        ahead = checked_int("lookahead", lookahead, 0)
        return Batches(lambda: self._draw_sequences(asked), ahead, thread)

    def _asked(
        self,
        batch_size: int,
        length: int,
        burn_in: int,
        pad: bool,
        crosses: bool,
        prioritized: bool,
        replace: bool,
        beta: float | None,
    ) -> Asked:
        n_steps, most = checked_int("length", length, 1), self._transitions.n_slots
        if n_steps > most:
            raise ValueError(
                f"length={n_steps} is more than the {most} transitions that a lane keeps"
            )
        if crosses and (pad or prioritized):
            raise ValueError(
                f"cross_episodes=True, pad={pad} and prioritized={prioritized}: runs that cross "
                "episodes are of full length and drawn uniformly; leave the others out"
            )
        if prioritized and not self.prioritized:
            raise ValueError("this buffer has no priorities; build it with prioritized=True")
        return Asked(
            checked_int("batch_size", batch_size, 1),
            Kind(n_steps, bool(pad), bool(prioritized)),
            checked_int("burn_in", burn_in, 0),
            bool(crosses),
            bool(replace),
            self.beta if beta is None else checked_number("beta", beta, 0),
        )

    def _draw_sequences(self, asked: Asked) -> Drawn[SequenceBatch]:
        with self._lock:
            self._writer.settle()
            self._know_process()
            starts, weight = self._choose_starts(asked)
            cells, mask = self._runs(starts, asked)
            goes_on = bool(mask.all()) and not asked.crosses
            part = self._sequence_part(cells, mask, goes_on)
            output = self._output.begin([part.readers])

            def decode() -> SequenceBatch:
                def observe(readers: Any) -> Any:
                    return self._observations.read(readers, output)

                return sequence_batch_of([part], part.names, weight, observe, output)

            return self._note(Drawn(self._transitions.names(cells[:, 0]), decode, output.arrive))

    def _sequence_part(
        self, cells: Int64s, mask: Bools, goes_on: bool, as_stacks: bool = False
    ) -> SequencePart:
        """Read, of runs of cells ``(B, T)``, all but the pixels.

        Parameters
        ----------
        cells : ndarray of int64
        mask : ndarray of bool
            False where a run is padded.
        goes_on : bool
            Whether each step goes on from the one before.
        as_stacks : bool
            Read stack by stack also where runs are windows of frames.
        """
        transitions = self._transitions
        return SequencePart(
            transitions.steps(cells),
            self._actions.given_back(transitions.actions[cells]),
            np.where(mask, transitions.names(cells), -1),
            mask,
            transitions.fields.read(cells),
            self._observations.sequence_readers(cells, goes_on=goes_on, as_stacks=as_stacks),
        )

    def _choose_starts(self, asked: Asked) -> tuple[Int64s, Floats]:
        """Return the cells that runs start with, ``(B,)``, and their weights."""
        starts = self._starts(asked)
        if not len(starts):
            raise self._no_sequence(asked.kind.length)
        if isinstance(starts, Windows) and asked.kind.is_prioritized:
            self._refuse_more(len(starts), asked.size, asked.replace)
            return self._choose_by_priority(starts.tree, asked.size, asked.replace, asked.beta)
        uniform = np.ones(asked.size, np.float32)
        return self._choose_uniformly(starts, asked.size, asked.replace), uniform

    def _starts(self, asked: Asked) -> Starts:
        """The cells that runs may start with."""
        if asked.crosses:
            return Anywhere(self._transitions, asked.kind.length)
        return self._sequences_of(asked.kind)

    def _no_sequence(self, length: int) -> ValueError:
        return ValueError(
            f"no sequence of length={length} can be drawn: the buffer holds {len(self)} "
            f"transitions, in {self._transitions.n_episodes} episodes"
        )

    def _runs(self, starts: Int64s, asked: Asked) -> tuple[Int64s, Bools]:
        """Return the cells of runs, ``(B, burn_in + length)``, and where they are no padding."""
        transitions, length, burn_in = self._transitions, asked.kind.length, asked.burn_in
        n_slots, flags = transitions.n_slots, transitions.flags.reshape(-1)
        cells = transitions.runs_of(starts, length)
        mask = np.ones(cells.shape, np.bool_)
        if asked.kind.is_padded:
            ended = np.logical_or.accumulate(flags[cells] & END != 0, axis=1)
            mask[:, 1:] = ~ended[:, :-1]
            last = mask.sum(axis=1) - 1
            steps = np.minimum(np.arange(length), last[:, None])
            cells = np.take_along_axis(cells, steps, axis=1)
        if not burn_in:
            return cells, mask
        lanes, slots = np.divmod(starts, n_slots)
        times = transitions.names(starts) // transitions.n_lanes
        room = times - transitions.oldest[lanes]  # steps before the start that are held
        before = np.empty((len(starts), burn_in), np.int64)
        is_held = np.empty(before.shape, np.bool_)
        goes_on = np.ones(len(starts), np.bool_)
        at = slots
        for back in range(1, burn_in + 1):
            goes_on = goes_on & (back <= room)
            if not asked.crosses:
                goes_on &= flags[lanes * n_slots + at] & FIRST == 0
            at = np.where(goes_on, (slots - back) % n_slots, at)
            before[:, -back], is_held[:, -back] = lanes * n_slots + at, goes_on
        return np.hstack([before, cells]), np.hstack([is_held, mask])

    def _sequences_of(self, kind: Kind) -> Windows:
        windows = self._sequences.pop(kind, None)
        if windows is None:
            tree = SumTree(self.capacity) if kind.is_prioritized else None
            windows = Windows(self.capacity, kind.length, not kind.is_padded, tree)
            held = self._transitions
            windows.rebuild(held.oldest, held.counts, held.flags)
            if tree is not None:
                starts = windows.select(np.arange(len(windows)))
                known = self._windows.holds(starts)
                leaves = np.where(known, self._tree.leaves[starts], self._tree.top)
                tree.set_to(starts, leaves, self._tree.top)
        self._sequences[kind] = windows  # the last one is the one used last
        if len(self._sequences) > _MOST_KINDS:
            del self._sequences[next(iter(self._sequences))]
        return windows
