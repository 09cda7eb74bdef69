"""`ReplayEnsemble`: several replay buffers, drawn from as if they were one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.replay.assembling import batch_of, joined, sequence_batch_of
from compressarray.replay.batches import Batch, SequenceBatch
from compressarray.replay.buffer import ReplayBuffer
from compressarray.replay.checks import (
    checked_generator,
    checked_int,
    checked_names,
    checked_number,
    checked_priorities,
)
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.integers import Integers
from compressarray.replay.outputs import make_output
from compressarray.replay.sampling import Starts
from compressarray.replay.sequences import Asked
from compressarray.replay.times import TimesDrawn

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

D = TypeVar("D")

_NAME_BITS = 40  # of a transition's name in its buffer; above them is the buffer's key
MAX_KEY = (1 << 63 - _NAME_BITS) - 1


class _Share(NamedTuple):
    """What is drawn of one buffer."""

    key: int
    buffer: ReplayBuffer
    cells: Int64s


class _Choice(NamedTuple):
    shares: list[_Share]
    weight: Floats | None


class ReplayEnsemble:
    """Several replay buffers that are drawn from as if they were one.

    Uniformly each transition has the same chance, by priorities each has its share of the sum over
    all, whichever buffer holds it. Of one buffer alone, whose key is 0, it draws bit for bit what
    that buffer would with the same seed.

    Parameters
    ----------
    beta : float
        Exponent of the weights where buffers have priorities, see `ReplayBuffer`. May be set.
    max_times_drawn : int, optional
        Given: a transition is not drawn any more by `sample` once it was so often, and no batch
        has one twice.
    device : str or torch.device, optional
        Given: samples are tensors there.
    seed : int or numpy.random.Generator, optional

    Notes
    -----
    The names in ``batch.index`` are ``key << 40 | name``, where the key is that of a buffer and the
    name the one that it gives. Rows of a batch stand in the order of their buffers.

    Buffers may be added to meanwhile, by other threads, too.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium.spaces import Box, Discrete
    >>> from compressarray import ReplayBuffer, ReplayEnsemble
    >>> stacks = Box(0, 255, (4, 84, 84), np.uint8)
    >>> pong, qbert = (ReplayBuffer(100, stacks, Discrete(6)) for _ in range(2))
    >>> obs = np.zeros((2, 1, 4, 84, 84), np.uint8)
    >>> for buffer in (pong, qbert):
    ...     buffer.add(obs[0], [1], [0.0], [False], [False], obs[1])
    >>> both = ReplayEnsemble({0: pong, 1: qbert}, seed=1)
    >>> both.sample(8).obs.shape, both.n_samplable
    ((8, 4, 84, 84), 2)
    """

    def __init__(
        self,
        buffers: Mapping[int, ReplayBuffer] | None = None,
        *,
        beta: float = 0.4,
        max_times_drawn: int | None = None,
        device: Any = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.beta = checked_number("beta", beta, 0)
        self._most = (
            None if max_times_drawn is None else checked_int("max_times_drawn", max_times_drawn, 1)
        )
        self._output = make_output(device)
        self._lock = threading.RLock()
        self._buffers: dict[int, ReplayBuffer] = {}
        self._times: dict[int, TimesDrawn] = {}
        self.seed(seed)
        for key, buffer in (buffers or {}).items():
            self.put(key, buffer)

    def seed(self, seed: int | np.random.Generator | None = None) -> None:
        """Draw from now on as one would that was built with this `seed`."""
        rng = checked_generator(seed)
        with self._lock:
            self._rng, self._integers = rng, Integers(rng)

    @property
    def device(self) -> Any:
        """Where samples go: None for numpy, else a torch.device. May be set."""
        return self._output.device

    @device.setter
    def device(self, device: Any) -> None:
        self._output = make_output(device)

    # -- buffers -----------------------------------------------------------------------------

    @property
    def buffers(self) -> Mapping[int, ReplayBuffer]:
        """The buffers by their keys; a view."""
        return MappingProxyType(self._buffers)

    def put(self, key: int, buffer: ReplayBuffer) -> None:
        """Draw from a buffer, too, or from another one in place of the one of this key.

        Raises
        ------
        TypeError, ValueError
            If it is no buffer, or not one like those that are there.
        """
        checked_int("key", key, 0)
        if key > MAX_KEY:
            raise ValueError(
                f"key={key} is more than {MAX_KEY}, the largest that names have room for"
            )
        if not isinstance(buffer, ReplayBuffer):
            raise TypeError(f"buffer {key} is a {type(buffer).__name__}; it must be a ReplayBuffer")
        with self._lock:
            others = [each for at, each in self._buffers.items() if at != key]
            if others:
                refuse_unlike(buffer, others[0])
            times = None
            if self._most is not None:
                times = TimesDrawn(buffer, self._most, self._times.get(key))
            self._buffers[key] = buffer
            self._buffers = dict(sorted(self._buffers.items()))
            if times is not None:
                self._times[key] = times

    def remove(self, key: int) -> ReplayBuffer:
        """Draw no more from the buffer of a key; return it. KeyError if there is none."""
        with self._lock:
            self._times.pop(key, None)
            return self._buffers.pop(key)

    def __len__(self) -> int:
        return sum(len(buffer) for buffer in self._buffers.values())

    @property
    def n_samplable(self) -> int:
        """Transitions that `sample` may draw now."""
        with self._settled() as buffers:
            return sum(len(buffer._windows) for buffer in buffers)

    @property
    def prioritized(self) -> bool:
        """Whether the buffers have priorities."""
        return any(buffer.prioritized for buffer in self._buffers.values())

    @property
    def nbytes_stored(self) -> int:
        """Bytes that the buffers hold."""
        return sum(buffer.nbytes_stored for buffer in self._buffers.values())

    @contextlib.contextmanager
    def _settled(self) -> Iterator[list[ReplayBuffer]]:
        """Hold off what changes the buffers."""
        with contextlib.ExitStack() as locks:
            locks.enter_context(self._lock)
            for buffer in self._buffers.values():
                locks.enter_context(buffer._lock)
                buffer._writer.settle()
            for times in self._times.values():
                times.catch_up()
            yield list(self._buffers.values())

    # -- drawing -----------------------------------------------------------------------------

    def sample(self, batch_size: int, replace: bool = True, *, beta: float | None = None) -> Batch:
        """Draw transitions, uniformly or in proportion to their priorities.

        Parameters
        ----------
        batch_size, replace, beta
            As for `ReplayBuffer.sample`.

        Raises
        ------
        ValueError
            If nothing can be drawn yet, less than asked for without replacement, or all
            priorities are zero.
        """
        return self._draw(batch_size, replace, beta).result()

    def batches(
        self,
        batch_size: int,
        *,
        lookahead: int = 1,
        thread: bool = True,
        replace: bool = True,
        beta: float | None = None,
    ) -> Batches[Batch]:
        """Iterate over batches that are drawn ahead; see `ReplayBuffer.batches`."""
        checked_int("batch_size", batch_size, 1)
        ahead = checked_int("lookahead", lookahead, 0)
        return Batches(lambda: self._draw(batch_size, replace, beta), ahead, thread)

    def _draw(self, batch_size: int, replace: bool, beta: float | None) -> Drawn[Batch]:
        size = checked_int("batch_size", batch_size, 1)
        exponent = self.beta if beta is None else checked_number("beta", beta, 0)
        with self._settled() as buffers:
            starts = [buffer._windows for buffer in buffers]
            replace = replace and self._most is None
            if self.prioritized:
                choice = self._choose_by_priority(starts, size, replace, exponent)
            else:
                choice = self._choose_uniformly(starts, size, replace)
            parts = [share.buffer._part(share.cells) for share in choice.shares]
            if not _are_of_one_kind([part.readers for part in parts]):
                parts = [share.buffer._part(share.cells, as_stacks=True) for share in choice.shares]
            of_each = [part.returns.names for part in parts]
            names = _names_of(choice.shares, of_each)
            for share in choice.shares:
                if self._most is not None:
                    self._times[share.key].add(share.cells)

            output = self._output.begin([part.readers for part in parts])
            observe = _observing(choice.shares, output)

            def decode() -> Batch:
                return batch_of(parts, names, choice.weight, observe, output)

            return _noted(choice.shares, of_each, Drawn(names, decode, output.arrive))

    def sample_sequences(
        self, batch_size: int, length: int, replace: bool = True, **how: Any
    ) -> SequenceBatch:
        """Draw runs of ``length`` steps, each of one buffer; see `ReplayBuffer.sample_sequences`.

        Raises
        ------
        ValueError
            As `sample`, or if `length` is more than a lane of some buffer keeps.
        """
        return self._draw_sequences(batch_size, length, replace, how).result()

    def sequences(
        self,
        batch_size: int,
        length: int,
        *,
        lookahead: int = 1,
        thread: bool = True,
        replace: bool = True,
        **how: Any,
    ) -> Batches[SequenceBatch]:
        """Iterate over sequences that are drawn ahead; see `ReplayBuffer.sequences`."""
        ahead = checked_int("lookahead", lookahead, 0)
        return Batches(
            lambda: self._draw_sequences(batch_size, length, replace, how), ahead, thread
        )

    def _draw_sequences(
        self, batch_size: int, length: int, replace: bool, how: dict[str, Any]
    ) -> Drawn[SequenceBatch]:
        with self._settled() as buffers:
            asked = [_asked(each, self.beta, batch_size, length, replace, how) for each in buffers]
            if not asked:
                raise self._nothing()
            starts = [each._starts(what) for each, what in zip(buffers, asked, strict=True)]
            first = asked[0]
            if first.kind.is_prioritized:
                choice = self._choose_by_priority(starts, first.size, replace, first.beta)
            else:
                choice = self._choose_uniformly(starts, first.size, replace)
            runs = [share.buffer._runs(share.cells, first) for share in choice.shares]
            goes_on = not first.crosses and all(mask.all() for _, mask in runs)
            pairs = list(zip(choice.shares, runs, strict=True))
            parts = [share.buffer._sequence_part(*run, goes_on) for share, run in pairs]
            if not _are_of_one_kind([part.readers for part in parts]):
                parts = [
                    share.buffer._sequence_part(*run, goes_on, as_stacks=True)
                    for share, run in pairs
                ]
            oldest = [share.buffer._transitions.names(cells[:, 0]) for share, (cells, _) in pairs]
            names = _names_of(choice.shares, [part.names for part in parts])
            weight = np.ones(first.size, np.float32) if choice.weight is None else choice.weight
            output = self._output.begin([part.readers for part in parts])
            observe = _observing(choice.shares, output)

            def decode() -> SequenceBatch:
                return sequence_batch_of(parts, names, weight, observe, output)

            return _noted(choice.shares, oldest, Drawn(names, decode, output.arrive))

    def _choose_uniformly(self, starts: Sequence[Starts], size: int, replace: bool) -> _Choice:
        ends = np.cumsum([len(each) for each in starts])
        total = int(ends[-1]) if len(ends) else 0
        self._refuse_none(total, size, replace)
        if replace:
            ranks = self._integers.below(total, size)
        else:
            ranks = self._rng.choice(total, size, replace=False)
        return _Choice(self._shares(starts, ends, ranks, lambda one, own: one.select(own))[0], None)

    def _choose_by_priority(
        self, starts: Sequence[Any], size: int, replace: bool, beta: float
    ) -> _Choice:
        self._refuse_none(sum(len(each) for each in starts), size, replace)
        trees = [each.tree for each in starts]
        ends = np.cumsum([tree.total for tree in trees])
        if not ends[-1] > 0:
            raise ValueError("all priorities are zero; use epsilon > 0")
        randoms = self._rng.random(size)
        if not replace:
            shares, drawn = self._shares_without_replacement(trees, randoms)
        else:
            # As `SumTree.draw` does: the i-th in the i-th of equal parts of the sum.
            targets = (np.arange(size) + randoms) / size * ends[-1]
            shares, drawn = self._shares(trees, ends, targets, lambda one, own: one.find(own))
        leaves = [trees[at].leaves[share.cells] for at, share in zip(drawn, shares, strict=True)]
        probabilities = joined(leaves) / ends[-1]
        weight = (probabilities.min() / probabilities) ** beta
        return _Choice(shares, weight.astype(np.float32))

    def _shares(
        self, of: Sequence[Any], ends: Any, values: Any, cells_at: Callable[[Any, Any], Int64s]
    ) -> tuple[list[_Share], list[int]]:
        """Divide values below ``ends[-1]`` among the buffers between whose ends they lie."""
        # Rounding may bring a value to the last end: then the last buffer that has any is it.
        last = int(np.searchsorted(ends, ends[-1]))
        which = np.minimum(np.searchsorted(ends, values, "right"), last)
        begins = np.concatenate([[0], ends[:-1]])
        shares, drawn = [], []
        for at, (key, buffer) in enumerate(self._buffers.items()):
            own = values[which == at]
            if len(own):
                shares.append(_Share(key, buffer, cells_at(of[at], own - begins[at])))
                drawn.append(at)
        return shares, drawn

    def _shares_without_replacement(
        self, trees: Sequence[Any], randoms: Any
    ) -> tuple[list[_Share], list[int]]:
        """Draw one by one; what was drawn counts as zero for those that follow."""
        found: list[tuple[int, int, float]] = []
        try:
            for random in randoms:
                ends = np.cumsum([tree.total for tree in trees])
                if not ends[-1] > 0:
                    raise ValueError(
                        f"batch_size={len(randoms)} transitions without replacement, and only "
                        f"{len(found)} have a priority above zero; use epsilon > 0"
                    )
                target = random * ends[-1]
                at = min(int(np.searchsorted(ends, target, "right")),
                         int(np.searchsorted(ends, ends[-1])))  # fmt: skip
                tree, before = trees[at], ends[at - 1] if at else 0.0
                cell = tree.find(np.array([target - before]))
                found.append((at, int(cell[0]), float(tree.leaves[cell[0]])))
                tree.set_to(cell, np.zeros(1), tree.top)
        finally:
            for at, one, leaf in found:
                trees[at].set_to(np.array([one]), np.array([leaf]), trees[at].top)
        items = list(self._buffers.items())
        drawn = sorted({at for at, _, _ in found})
        return [
            _Share(*items[at], np.array([one for which, one, _ in found if which == at]))
            for at in drawn
        ], drawn

    def _refuse_none(self, n: int, size: int, replace: bool) -> None:
        if not n:
            raise self._nothing()
        if not replace and size > n:
            raise ValueError(
                f"batch_size={size} is more than the {n} that can be drawn without replacement; "
                "draw fewer, or with replace=True and no max_times_drawn"
            )

    def _nothing(self) -> ValueError:
        return ValueError(
            f"nothing can be drawn: the {len(self._buffers)} buffers hold {len(self)} transitions, "
            "and none that all of its steps are known of"
            + ("" if self._most is None else f", or that was drawn fewer than {self._most} times")
        )

    # -- names -------------------------------------------------------------------------------

    def update_priorities(self, index: npt.ArrayLike, priorities: npt.ArrayLike) -> None:
        """Set the priorities of transitions; see `ReplayBuffer.update_priorities`.

        Transitions whose buffer is there no more are passed over, too.
        """
        names, values = checked_priorities(index, priorities)
        keys = names >> _NAME_BITS
        with self._settled():
            for key in np.unique(keys):
                buffer = self._buffers.get(int(key))
                if buffer is not None:
                    own = keys == key
                    buffer.update_priorities(names[own] & (1 << _NAME_BITS) - 1, values[own])
            # What is new gets the largest there is, whichever buffer it comes to.
            top = max((each._tree.top for each in self._buffers.values()), default=1.0)
            for each in self._buffers.values():
                each._tree.sums[0] = top

    def origin(self, index: npt.ArrayLike) -> tuple[Int64s, Int64s]:
        """Return the keys of the buffers that names are of, and the names there."""
        names = checked_names(index)
        return names >> _NAME_BITS, names & (1 << _NAME_BITS) - 1

    def __repr__(self) -> str:
        return (
            f"ReplayEnsemble({len(self._buffers)} buffers, {len(self):,} transitions, "
            f"nbytes_stored={self.nbytes_stored:,})"
        )


def refuse_unlike(buffer: ReplayBuffer, other: ReplayBuffer) -> None:
    """Raise a ValueError that names what differs, if two buffers' batches cannot be one."""
    for name in ("observation_space", "action_space", "n_step", "full_windows", "prioritized"):
        this, that = getattr(buffer, name), getattr(other, name)
        if this != that:
            raise ValueError(f"{name} is {this} here and {that} in the others; it must be the same")
    for name in ("stack_size", "stack_axis", "frame_channels"):
        this, that = buffer._given[name], other._given[name]
        if this != that:
            raise ValueError(f"{name} is {this} here and {that} in the others; it must be the same")
    if buffer._given["fields"] != other._given["fields"]:
        raise ValueError(
            f"fields are {sorted(buffer._given['fields'])} here and "
            f"{sorted(other._given['fields'])} in the others, or of other spaces"
        )


def _asked(
    buffer: ReplayBuffer, beta: float, size: int, length: int, replace: bool, how: dict[str, Any]
) -> Asked:
    known = {"burn_in", "pad", "cross_episodes", "prioritized", "beta"}
    if set(how) - known:
        raise TypeError(f"{sorted(set(how) - known)} are none of {sorted(known)}")
    given = how.get("beta")
    return buffer._asked(
        size,
        length,
        how.get("burn_in", 0),
        how.get("pad", False),
        how.get("cross_episodes", False),
        how.get("prioritized", False),
        replace,
        beta if given is None else given,
    )


def _names_of(shares: list[_Share], names: list[Int64s]) -> Int64s:
    """The names in an ensemble; -1 stays."""
    of_all = [
        np.where(own < 0, own, own | share.key << _NAME_BITS)
        for share, own in zip(shares, names, strict=True)
    ]
    return joined(of_all)


def _are_of_one_kind(readers: list[Any]) -> bool:
    """Whether, of each entry, all are windows of frames or none is."""
    return all(
        len({each.is_window for each in of_entry}) == 1 for of_entry in zip(*readers, strict=True)
    )


def _observing(shares: list[_Share], output: Any) -> Callable[[Any], Any]:
    """What decodes the observations of all; any buffer's, since they are alike."""
    observations = shares[0].buffer._observations
    return lambda readers: observations.read(readers, output)


def _noted(shares: list[_Share], names: list[Int64s], whole: Drawn[D]) -> Drawn[D]:
    """Have each buffer keep the frames of what was drawn until it is decoded."""
    noted = [
        share.buffer._note(Drawn(own, whole.decode, whole.decode))
        for share, own in zip(shares, names, strict=True)
    ]
    return whole.keep(noted)
