"""`ReplayBuffer`: transitions for off-policy learning, each frame stored once."""

from __future__ import annotations

import copy as copying
import operator
import threading
import warnings
import weakref
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.replay.actions import Actions
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.footprint import expected_part, memory_bytes
from compressarray.replay.layout import Layout, read_layouts
from compressarray.replay.outputs import make_output
from compressarray.replay.plain import PlainRing
from compressarray.replay.priorities import SumTree
from compressarray.replay.stacks import (
    FrameIndices,
    GivenStacks,
    NewestFrames,
    Stacks,
)
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import Windows

AnyArray = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

_MODES = ("same_step", "next_step", "disabled")
# Lengths of sequences whose starts are kept track of at once, three bits a transition each.
_MOST_LENGTHS = 4
# Which buffer each frames array belongs to, by the array's id.
_owners: weakref.WeakValueDictionary[int, ReplayBuffer] = weakref.WeakValueDictionary()


class Batch(NamedTuple):
    """Transitions that were drawn; numpy arrays, or tensors where the buffer has a device.

    Attributes
    ----------
    obs, next_obs : (B, *observation shape)
        Of a Dict space, a dict of such. They may be views of the same memory: do not write.
    action : (B, *action shape)
        In the action space's dtype.
    reward : (B,) float32
        Sum of the discounted rewards of up to ``n_step`` steps.
    terminated : (B,) float32
        1 where the episode terminated with the last of them, else 0.
    discount : (B,) float32
        ``gamma ** k``, k the steps that were summed: targets are
        ``reward + discount * (1 - terminated) * value(next_obs)``.
    index : (B,) int64
        Names for `ReplayBuffer.update_priorities`. Always a numpy array.
    weight : (B,) float32
        Importance weights, at most 1; all 1 without priorities.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    discount: Any
    index: Int64s  # type: ignore[assignment]
    weight: Any


class SequenceBatch(NamedTuple):
    """Runs of T steps of one episode each; fields as in `Batch`, with axes ``(B, T, ...)``.

    Rewards are those of single steps. ``is_first`` is 1 where an episode begins, ``truncated``
    where one was truncated; both float32.
    """

    obs: Any
    action: Any
    reward: Any
    next_obs: Any
    terminated: Any
    truncated: Any
    is_first: Any
    index: Int64s  # type: ignore[assignment]


class ReplayBuffer:
    """A ring of the newest transitions, whose frames are stored once, compressed, without loss.

    Parameters
    ----------
    capacity : int
        Transitions, over all lanes; each keeps ``capacity // n_envs``.
    observation_space : Box, Discrete, or Dict of such
        Of one environment, as `add` is given observations: stacks of frames, the newest frame
        (with `stack_size`), or frame indices (with `frames`). Entries of a Dict with fewer than
        two axes, and a Box with one, are stored plain.
    action_space : Discrete, Box, MultiDiscrete or MultiBinary
        Of one environment.
    n_envs : int
        Lanes: environments that are stepped together.
    frames : DiffFrameArray, optional
        ``env.frames`` of an `IndexedFrameStack`; then observations are frame indices. It belongs
        to this buffer alone, which lets go of frames that no transition needs any more.
    stack_size : int, optional
        Given: `add` gets newest frames, and stacks of so many are sampled.
    stack_axis : int or None, default 0
        Of observations that are stacks (of three axes or more), the one that frames are stacked
        along; None if they are single frames.
    frame_channels : int, default 1
        Planes of a frame along `stack_axis`: 3 where RGB frames are concatenated.
    padding_type : {"reset", "zero"} or frame
        With `stack_size`, what stands before an episode's first frame: that frame repeated, the
        frame closest to zero, or a given one.
    codec, gop_length
        How frames are stored, see `DiffFrameArray`.
    n_step : int, default 1
        Steps whose rewards are summed. An episode's end cuts them short; until then the newest
        ``n_step - 1`` transitions cannot be drawn.
    gamma : float
        Discount per step.
    full_windows : bool, default False
        Draw only what has `n_step` steps (DrQ-v2's rule).
    autoreset_mode : {"same_step", "next_step", "disabled"} or gymnasium.vector.AutoresetMode
        What the vector environment does where an episode ends.
    prioritized : bool
        Draw in proportion to priorities.
    alpha, beta, epsilon : float
        ``(priority + epsilon) ** alpha`` is what drawing is in proportion to; weights are
        ``(n * probability) ** -beta``, divided by the batch's largest. `beta` may be set later.
    device : str or torch.device, optional
        Given: samples are tensors there.
    seed : int or numpy.random.Generator, optional

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what does.

    Warns
    -----
    UserWarning
        If the dense equivalent would not fit in memory: with its bytes, and those expected here.

    Notes
    -----
    A transition may be drawn if it is among the newest ``capacity // n_envs`` of its lane and its
    window of steps is complete: nothing else counts, least of all how pixels are stored.

    An observation that is not the one that the lane's last step led to begins another episode:
    nothing is drawn across. The step before it counts as truncated then, though not as such in
    sequences' ``truncated``.

    What is sampled is bit for bit what was added, whatever a wrapper did: a stack that is not
    its predecessor moved on by one frame is stored whole.

    Beside frames, a transition takes 13 bytes with up to 256 discrete actions, and less than one
    for the index of starts; priorities take nine more. Methods may be called from several
    threads.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium.spaces import Box, Discrete
    >>> from compressarray import ReplayBuffer
    >>> stacks = Box(0, 255, (4, 84, 84), np.uint8)
    >>> buffer = ReplayBuffer(1000, stacks, Discrete(6), n_envs=2, seed=1)
    >>> obs = np.zeros((2, 4, 84, 84), np.uint8)
    >>> no, ends = np.zeros(2, bool), np.ones(2, bool)
    >>> buffer.add(obs, [0, 5], [0.5, 1.0], ends, no, obs, {"final_obs": obs})
    >>> batch = buffer.sample(32)
    >>> batch.next_obs.shape, batch.discount[0]
    ((32, 4, 84, 84), np.float32(0.99))
    """

    def __init__(
        self,
        capacity: int,
        observation_space: Any,
        action_space: Any,
        n_envs: int = 1,
        *,
        frames: DiffFrameArray | None = None,
        stack_size: int | None = None,
        stack_axis: int | None = 0,
        frame_channels: int = 1,
        padding_type: Any = "reset",
        codec: Any = "delta",
        gop_length: int | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        full_windows: bool = False,
        autoreset_mode: Any = "same_step",
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        epsilon: float = 1e-6,
        device: Any = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self.n_envs = _checked_int("n_envs", n_envs, 1)
        n_slots = _checked_int("capacity", capacity, self.n_envs) // self.n_envs
        self.n_step = _checked_int("n_step", n_step, 1)
        if self.n_step > n_slots:
            raise ValueError(
                f"n_step={n_step} is more than the {n_slots} transitions that a lane keeps "
                f"(capacity={capacity}, n_envs={n_envs}): no window would ever be complete"
            )
        self.gamma = _checked_number("gamma", gamma, 0, 1)
        self.alpha = _checked_number("alpha", alpha, 0)
        self.beta = _checked_number("beta", beta, 0)
        self.epsilon = _checked_number("epsilon", epsilon, 0)
        self.full_windows = bool(full_windows)
        self.autoreset_mode = _checked_mode(autoreset_mode)
        if stack_size is not None:
            stack_size = _checked_int("stack_size", stack_size, 1)
        layouts = read_layouts(
            observation_space,
            frames=frames,
            stack_size=stack_size,
            stack_axis=stack_axis,
            frame_channels=frame_channels,
        )
        self._actions = Actions(action_space)
        self._output = make_output(device)
        self._rng = np.random.default_rng(seed)
        self._powers = np.array([self.gamma**k for k in range(self.n_step + 1)])
        if frames is not None:
            _check_shared(frames, self.n_envs, n_slots, layouts)
        self._is_dict = hasattr(observation_space, "spaces")
        self._stacks = [
            self._make_stacks(layout, frames, n_slots, padding_type, codec, gop_length)
            for layout in layouts
        ]
        self._transitions = Transitions(
            self.n_envs, n_slots, self._actions.shape, self._actions.stored_dtype
        )
        tree = SumTree(self.n_envs * n_slots) if prioritized else None
        self._windows = Windows(self.n_envs * n_slots, self.n_step, self.full_windows, tree)
        self._sequences: dict[int, Windows] = {}
        # Lanes whose next row is a reset and no transition (NEXT_STEP).
        self._resetting: Bools = np.zeros(self.n_envs, np.bool_)
        self._open()
        self._claim()
        self._warn_if_dense_would_not_fit()

    def _make_stacks(
        self,
        layout: Layout,
        frames: DiffFrameArray | None,
        n_slots: int,
        padding_type: Any,
        codec: Any,
        gop_length: int | None,
    ) -> Stacks:
        if layout.feed == "indices":
            return FrameIndices(layout, frames, self.n_envs, n_slots)
        if not layout.is_image:
            memory = PlainRing(self.n_envs, layout.frame_shape, layout.frame_dtype)
            return GivenStacks(layout, memory, self.n_envs, n_slots)
        # Episodes of one step store two observations a transition, and a wrapper whose stacks
        # never go on stores each of them whole. Rows are address space until they are written.
        whole = 1 if layout.feed == "newest" else layout.stack_size
        own = DiffFrameArray(
            (2 * whole * n_slots + layout.stack_size + 2, self.n_envs, *layout.frame_shape),
            layout.frame_dtype,
            frame_ndim=len(layout.frame_shape),
            codec=codec,
            stack_axis=None,
            gop_length=gop_length,
        )
        if layout.feed == "newest":
            padding = _padding_frame(padding_type, layout)
            return NewestFrames(layout, own, self.n_envs, n_slots, padding)
        return GivenStacks(layout, own, self.n_envs, n_slots)

    def _open(self) -> None:
        self._lock = threading.RLock()
        self._drawn: weakref.WeakSet[Drawn[Any]] = weakref.WeakSet()

    def _claim(self) -> None:
        for stacks in self._stacks:
            owner = _owners.get(id(stacks.frames))
            if owner is not None and any(each.frames is stacks.frames for each in owner._stacks):
                raise ValueError(
                    "frames belong to another ReplayBuffer already, which lets go of them as its "
                    "own transitions go: give each buffer its own IndexedFrameStack"
                )
        for stacks in self._stacks:
            _owners[id(stacks.frames)] = self

    def _warn_if_dense_would_not_fit(self) -> None:
        there = memory_bytes()
        dense = self.nbytes
        if there is None or dense <= there:
            return
        expected = self.capacity * sum(
            stacks.layout.frame_bytes * expected_part(stacks.frames.codec)
            if isinstance(stacks.frames, DiffFrameArray)
            else stacks.layout.frame_bytes
            for stacks in self._stacks
        )
        expected += self._bytes_beside_frames()
        warnings.warn(
            f"a dense buffer of {self.capacity:,} transitions would take {dense / 1e9:,.1f} GB, "
            f"and there are {there / 1e9:,.1f} GB of memory; this one is expected to take "
            f"{expected / 1e9:,.2f} GB once it is full, if its frames resemble those of ten Atari "
            "games (nbytes_stored says what it takes)",
            stacklevel=3,
        )

    # -- adding ------------------------------------------------------------------------------

    def add(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        next_obs: Any,
        info: dict[str, Any] | None = None,
    ) -> None:
        """Add what one step of all environments gave; copied.

        Parameters
        ----------
        obs : (n_envs, *observation shape)
            What the policy saw; of a Dict space, a dict of such.
        action : (n_envs, *action shape)
        reward : (n_envs,) of numbers
            Kept as float32.
        terminated, truncated : (n_envs,) bool
        next_obs : as `obs`
            What the step returned. Where it is a reset's (SAME_STEP), the episode's last
            observation is taken from `info`.
        info : dict, optional
            The step's; only ``final_obs`` and ``_final_obs`` are looked at.

        Raises
        ------
        TypeError, ValueError
            For wrong shapes and dtypes, NaN, actions outside their space, or no final observation.
        FrameEvictedError, StaleStreamError
            IndexErrors: for frame indices that are not held, or of another stream.

        Notes
        -----
        After an error nothing of the step is in the buffer. Under NEXT_STEP, rows of lanes that
        the environment reset are passed over.
        """
        with self._lock:
            n = self.n_envs
            before = self._entries(obs, "obs")
            after = self._entries(next_obs, "next_obs")
            actions = self._actions.stored(action, n)
            live = ~self._resetting
            rewards = _checked_rewards(reward, live)
            ends = _checked_bools("terminated", terminated, n)
            cuts = _checked_bools("truncated", truncated, n)
            ended = (ends | cuts) & live
            if self.autoreset_mode == "same_step" and ended.any():
                after = self._with_final(after, ended, info)
            lanes = np.flatnonzero(live)
            if len(lanes):
                begins = self._transitions.runs == 0
                plans = [
                    stacks.plan(*entry, live, begins)
                    for stacks, *entry in zip(self._stacks, before, after, strict=True)
                ]
                self._settle(live)
                for stacks, plan, *entry in zip(self._stacks, plans, before, after, strict=True):
                    stacks.store(plan, *entry, live)
                # From here on nothing can fail.
                continues = np.logical_and.reduce([plan.continues for plan in plans])
                windows = self._all_windows
                self._transitions.cut(np.flatnonzero(live & ~begins & ~continues), windows)
                cells = self._transitions.next_cells(lanes)
                for stacks, plan, successor in zip(self._stacks, plans, after, strict=True):
                    stacks.commit(plan, lanes, cells, successor)
                self._transitions.add(
                    lanes, actions[lanes], rewards[lanes], ends[lanes], cuts[lanes], windows
                )
                self._discard()
            if self.autoreset_mode == "next_step":
                self._resetting = ended

    def cut(self, lanes: npt.ArrayLike | None = None) -> None:
        """Say that lanes were reset from outside, all of them by default.

        Needed only where a reset's first observation may equal what the last step returned, bit
        for bit; any other one is noticed.
        """
        with self._lock:
            numbers = np.arange(self.n_envs) if lanes is None else np.asarray(lanes, np.int64)
            self._transitions.cut(numbers, self._all_windows)
            self._resetting[numbers] = False

    def clear(self) -> None:
        """Forget all transitions, whose names start over, and all frames that were not given."""
        with self._lock:
            for drawn in list(self._drawn):
                drawn.result()
            for stacks in self._stacks:
                if not isinstance(stacks, FrameIndices):
                    stacks.frames.clear()
                stacks.clear()
            old = self._transitions
            self._transitions = Transitions(
                self.n_envs, old.n_slots, self._actions.shape, self._actions.stored_dtype
            )
            tree = SumTree(self.capacity) if self.prioritized else None
            self._windows = Windows(self.capacity, self.n_step, self.full_windows, tree)
            self._sequences.clear()
            self._resetting[:] = False

    def _entries(self, observations: Any, what: str) -> list[AnyArray]:
        if not self._is_dict:
            return [self._stacks[0].layout.checked(observations, self.n_envs, what)]
        return [
            stacks.layout.checked(_entry(observations, stacks.layout, what), self.n_envs, what)
            for stacks in self._stacks
        ]

    def _with_final(
        self, after: list[AnyArray], ended: Bools, info: dict[str, Any] | None
    ) -> list[AnyArray]:
        """Put the last observations of episodes in the place of resets' first ones."""
        final = None if info is None else info.get("final_obs")
        lanes = np.flatnonzero(ended & np.asarray((info or {}).get("_final_obs", True)))
        if final is None or len(lanes) < np.count_nonzero(ended):
            missing = np.flatnonzero(ended)[0] if final is None else np.setdiff1d(
                np.flatnonzero(ended), lanes
            )[0]  # fmt: skip
            raise ValueError(
                f"lane {missing} ended, and info has no final_obs for it: under "
                "autoreset_mode='same_step', next_obs is the next episode's first observation, "
                "and the last one is in info. Pass the step's info, or the environment's "
                "autoreset_mode ('disabled' if you call reset yourself)"
            )
        replaced = []
        for stacks, values in zip(self._stacks, after, strict=True):
            layout = stacks.layout
            if isinstance(final, np.ndarray) and final.dtype == object:
                rows = np.stack([np.asarray(_entry(final[k], layout, "final_obs")) for k in lanes])
            else:
                rows = np.asarray(_entry(final, layout, "final_obs"))[lanes]
            values = values.copy()
            values[lanes] = layout.checked(rows, len(lanes), "final_obs")
            replaced.append(values)
        return replaced

    def _settle(self, live: Bools) -> None:
        """Decode what was drawn and reads frames that may go with the transitions added now."""
        if not len(self._drawn):
            return
        oldest = np.maximum(self._transitions.counts + live - self._transitions.n_slots, 0)
        # Frames that are given go with the environment's next step, before the next `add`.
        oldest += any(isinstance(stacks, FrameIndices) for stacks in self._stacks)
        for drawn in list(self._drawn):
            if drawn.reads_before(oldest):
                drawn.result()

    def _discard(self) -> None:
        """Let go of the frames that no transition needs."""
        oldest = self._transitions.oldest
        if not oldest.any():
            return
        cells = np.arange(self.n_envs) * self._transitions.n_slots
        cells += oldest % self._transitions.n_slots
        for stacks in self._stacks:
            if hasattr(stacks.frames, "discard"):
                held = self._transitions.counts > 0
                stacks.frames.discard(stacks.oldest_counts(cells, held))

    # -- sampling ----------------------------------------------------------------------------

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
            used again wherever it fits, and what it holds is lost.

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
        """
        _checked_int("batch_size", batch_size, 1)
        ahead = _checked_int("lookahead", lookahead, 0)
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
            size = _checked_int("batch_size", batch_size, 1)
            n_steps = _checked_int("length", length, 1)
            if n_steps > self._transitions.n_slots:
                raise ValueError(
                    f"length={n_steps} is more than the {self._transitions.n_slots} transitions "
                    "that a lane keeps"
                )
            windows = self._sequences_of(n_steps)
            if not len(windows):
                raise ValueError(
                    f"no sequence of length={n_steps} can be drawn from {len(self)} transitions "
                    f"in {self._transitions.n_episodes} episodes: add more, or draw shorter ones"
                )
            starts = self._choose_uniformly(windows, size, replace)
            cells = self._transitions.windows_of(starts, n_steps)
            steps = self._transitions.steps(cells)
            action = self._actions.given_back(self._transitions.actions[cells])
            names = self._transitions.names(cells.reshape(-1)).reshape(cells.shape)
            readers = [_SequenceReader(stacks, cells) for stacks in self._stacks]

            def decode() -> SequenceBatch:
                obs, next_obs = self._observations(readers, None)
                deliver = self._output.deliver
                return SequenceBatch(
                    obs,
                    deliver(action),
                    deliver(steps.reward),
                    next_obs,
                    deliver(steps.terminated),
                    deliver(steps.truncated),
                    deliver(steps.is_first),
                    names,
                )

            drawn = self._register(Drawn(names[:, 0], decode))
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
            tree = self._windows.tree
            if not self.prioritized:
                raise ValueError("this buffer has no priorities; build it with prioritized=True")
            names = np.asarray(index)
            values = _as_floats(priorities)
            if names.shape != values.shape:
                raise ValueError(f"index has shape {names.shape}, priorities have {values.shape}")
            if names.size and names.dtype.kind not in "iu":
                raise IndexError(f"index holds {names.dtype}; it must hold integers")
            names, values = names.reshape(-1).astype(np.int64), values.reshape(-1)
            wrong = ~((values >= 0) & (values < np.inf))
            if wrong.any():
                place = int(np.argmax(wrong))
                raise ValueError(
                    f"priority {values[place]} at position {place} must be finite and not "
                    "negative; pass the absolute value of errors"
                )
            counts, lanes = np.divmod(names, self.n_envs)
            unknown = (names < 0) | (counts >= self._transitions.counts[lanes])
            if unknown.any():
                raise IndexError(f"transition {names[np.argmax(unknown)]} was never added")
            n_slots = self._transitions.n_slots
            cells = lanes * n_slots + counts % n_slots
            known = (counts >= self._transitions.oldest[lanes]) & self._windows.holds(cells)
            cells = cells[known]
            scaled = (values[known] + self.epsilon) ** self.alpha
            if not len(cells):
                return
            replaced = tree.leaves[cells]
            tree.update(cells, scaled)
            if not 0 < tree.total < np.inf:
                total = tree.total
                tree.update(cells[::-1], replaced[::-1])
                raise ValueError(
                    f"these priorities would bring the sum of all to {total}, of which nothing "
                    "can be drawn in proportion; nothing was changed. Use epsilon > 0"
                )
            tree.top = max(tree.top, float(scaled.max()))

    def _draw(
        self, batch_size: int, replace: bool, beta: float | None, out: Batch | None
    ) -> Drawn[Batch]:
        with self._lock:
            size = _checked_int("batch_size", batch_size, 1)
            cells, weight = self._choose(size, replace, self.beta if beta is None else beta)
            returns = self._transitions.sums(cells, self._powers)
            action = self._actions.given_back(self._transitions.actions[cells])
            names = self._transitions.names(cells)
            readers = [
                _StepReader(stacks, cells, returns.last, self.n_step) for stacks in self._stacks
            ]

            def decode() -> Batch:
                obs, next_obs = self._observations(readers, out)
                deliver = self._output.deliver
                return Batch(
                    obs,
                    deliver(action),
                    deliver(returns.reward),
                    next_obs,
                    deliver(returns.terminated),
                    deliver(returns.discount),
                    names,
                    deliver(weight),
                )

            return self._register(Drawn(names, decode))

    def _register(self, drawn: Drawn[Any]) -> Drawn[Any]:
        self._drawn.add(drawn)
        return drawn

    def _choose(
        self, size: int, replace: bool, beta: float
    ) -> tuple[Int64s, npt.NDArray[np.float32]]:
        windows = self._windows
        if not len(windows):
            raise ValueError(
                f"nothing can be drawn: the buffer holds {len(self)} transitions, and none has "
                f"all of its n_step={self.n_step} steps yet"
            )
        if not self.prioritized:
            return self._choose_uniformly(windows, size, replace), np.ones(size, np.float32)
        self._refuse_more(windows, size, replace)
        cells, probabilities = windows.tree.draw(self._rng.random(size), replace)
        if len(cells) < size:
            raise ValueError(
                f"batch_size={size} transitions without replacement, and only {len(cells)} have a "
                "priority above zero; use epsilon > 0"
            )
        weight = (len(windows) * probabilities) ** -beta
        return cells, (weight / weight.max()).astype(np.float32)

    def _choose_uniformly(self, windows: Windows, size: int, replace: bool) -> Int64s:
        self._refuse_more(windows, size, replace)
        if replace:
            return windows.select(self._rng.integers(0, len(windows), size))
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
            windows.rebuild(self._transitions.counts, self._transitions.flags)
        self._sequences[length] = windows  # the last one is the one used last
        if len(self._sequences) > _MOST_LENGTHS:
            del self._sequences[next(iter(self._sequences))]
        return windows

    @property
    def _all_windows(self) -> list[Windows]:
        return [self._windows, *self._sequences.values()]

    def _observations(self, readers: list[Any], out: Batch | None) -> tuple[Any, Any]:
        """Decode, and put a Dict's entries together."""
        pairs = []
        for reader in readers:
            key = reader.stacks.layout.key
            kept = None
            if out is not None:
                kept = self._kept(out.obs if key is None else out.obs[key], reader)
            pairs.append(reader.read(self._output, kept))
        if not self._is_dict:
            return pairs[0]
        keys = [reader.stacks.layout.key for reader in readers]
        return (
            dict(zip(keys, (obs for obs, _ in pairs), strict=True)),
            dict(zip(keys, (after for _, after in pairs), strict=True)),
        )

    def _kept(self, obs: Any, reader: _StepReader) -> Any:
        base = self._output.base_of(obs)
        if base is None or len(obs) != reader.n:
            raise ValueError(
                f"out must be a batch that sample({reader.n}) of this buffer returned, and its "
                f"observations are {type(obs).__name__} of shape {tuple(np.shape(obs))}"
            )
        return base

    # -- accounts ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._transitions)

    @property
    def capacity(self) -> int:
        """Transitions that fit."""
        return self.n_envs * self._transitions.n_slots

    @property
    def n_samplable(self) -> int:
        """Transitions that may be drawn now."""
        return len(self._windows)

    @property
    def prioritized(self) -> bool:
        """Whether drawing follows priorities."""
        return len(self._windows.tree.leaves) > 0

    @property
    def frames(self) -> Any:
        """The `DiffFrameArray` that holds the pixels; a dict of them for several images."""
        images = {
            stacks.layout.key: stacks.frames for stacks in self._stacks if stacks.layout.is_image
        }
        return next(iter(images.values())) if len(images) == 1 else images

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent: every transition's two observations, and the rest."""
        observation = sum(
            prod((stacks.layout.stack_size, *stacks.layout.frame_shape))
            * stacks.layout.frame_dtype.itemsize
            for stacks in self._stacks
        )
        action = prod(self._actions.shape) * self._actions.dtype.itemsize
        # reward float32, terminated, truncated
        return self.capacity * (2 * observation + action + 6)

    @property
    def nbytes_stored(self) -> int:
        """Bytes truly held: frames, everything beside them, tables and slack."""
        return sum(self._bytes_by_part().values())

    @property
    def compression_ratio(self) -> float:
        """``nbytes / nbytes_stored``."""
        return self.nbytes / self.nbytes_stored

    def stats(self) -> dict[str, Any]:
        """Report what is held.

        Returns
        -------
        dict
            ``transitions``, ``samplable``, ``episodes`` (of which a transition is held),
            ``frames`` (in the images' frame arrays), ``nbytes``, ``nbytes_stored``,
            ``compression_ratio`` and ``nbytes_by_part``.
        """
        with self._lock:
            images = [each.frames for each in self._stacks if each.layout.is_image]
            return {
                "transitions": len(self),
                "samplable": self.n_samplable,
                "episodes": self._transitions.n_episodes,
                "frames": sum(int(each.stats()["frames_held"]) for each in images),  # type: ignore[attr-defined]
                "nbytes": self.nbytes,
                "nbytes_stored": self.nbytes_stored,
                "compression_ratio": self.compression_ratio,
                "nbytes_by_part": self._bytes_by_part(),
            }

    def _bytes_by_part(self) -> dict[str, int]:
        images = [each for each in self._stacks if each.layout.is_image]
        vectors = [each for each in self._stacks if not each.layout.is_image]
        return {
            "frames": sum(each.frames.nbytes_stored for each in images),
            "vectors": sum(each.frames.nbytes_stored for each in vectors),
            "stacks": sum(each.nbytes for each in self._stacks),
            "transitions": self._transitions.nbytes,
            "starts": sum(each.nbytes for each in self._all_windows),
            "priorities": self._windows.tree.nbytes,
        }

    def _bytes_beside_frames(self) -> int:
        parts = self._bytes_by_part()
        return parts["stacks"] + parts["transitions"] + parts["starts"] + parts["priorities"]

    def __repr__(self) -> str:
        return (
            f"ReplayBuffer({len(self):,} of {self.capacity:,} transitions, n_envs={self.n_envs}, "
            f"n_step={self.n_step}, nbytes_stored={self.nbytes_stored:,})"
        )

    # -- copying -----------------------------------------------------------------------------

    def copy(self) -> ReplayBuffer:
        """Return a buffer of its own with the same content, frames and random state included."""
        return copying.deepcopy(self)

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplayBuffer:
        twin = object.__new__(ReplayBuffer)
        with self._lock:
            twin.__setstate__(copying.deepcopy(self.__getstate__(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__.copy()
        del state["_lock"], state["_drawn"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        self._claim()


class _StepReader:
    """Reads the observations of transitions, and those that their windows lead to."""

    def __init__(self, stacks: Stacks, cells: Int64s, last: Int64s, n_step: int) -> None:
        self.stacks = stacks
        self.n = len(cells)
        self.is_window = n_step == 1 and stacks.are_regular(cells)
        if self.is_window:
            self.indices = stacks.window_indices(cells[:, None])
        else:
            self.indices = np.empty((2, self.n, stacks.layout.stack_size), np.int64)
            stacks.stack_indices(cells, False, self.indices[0])
            stacks.stack_indices(last, True, self.indices[1])

    def read(self, output: Any, kept: Any) -> tuple[Any, Any]:
        """Decode both, in one gather."""
        layout = self.stacks.layout
        frames = _gather(self.stacks, self.indices, output, kept)
        if self.is_window:
            return layout.to_sample(frames[:, :-1], 1), layout.to_sample(frames[:, 1:], 1)
        return layout.to_sample(frames[0], 1), layout.to_sample(frames[1], 1)


class _SequenceReader:
    """Reads the observations of runs of steps, and that after each."""

    def __init__(self, stacks: Stacks, cells: Int64s) -> None:
        self.stacks = stacks
        size = stacks.layout.stack_size
        self.is_window = stacks.are_regular(cells)
        if self.is_window:
            self.indices = stacks.window_indices(cells)
        else:
            n, length = cells.shape
            observations = np.empty((n * length, size), np.int64)
            stacks.stack_indices(cells.reshape(-1), False, observations)
            last = np.empty((n, size), np.int64)
            stacks.stack_indices(cells[:, -1].copy(), True, last)
            self.indices = np.concatenate(
                [observations.reshape(n, length, size), last[:, None]], axis=1
            )

    def read(self, output: Any, kept: Any) -> tuple[Any, Any]:
        """Decode all, in one gather."""
        layout = self.stacks.layout
        stacks = _gather(self.stacks, self.indices, output, kept)
        if self.is_window:
            stacks = _sliding(stacks, layout.stack_size)
        return layout.to_sample(stacks[:, :-1], 2), layout.to_sample(stacks[:, 1:], 2)


def _gather(stacks: Stacks, indices: Int64s, output: Any, kept: Any) -> Any:
    layout = stacks.layout
    memory = output.memory(indices.shape + layout.frame_shape, layout.frame_dtype, kept)
    stacks.frames.gather(indices, out=memory, stream=stacks.stream)
    return output.deliver(memory, kept)


def _sliding(frames: Any, size: int) -> Any:
    """View ``(B, n, ...)`` as all runs of ``size`` frames, ``(B, n - size + 1, size, ...)``."""
    if hasattr(frames, "unfold"):
        return frames.unfold(1, size, 1).movedim(-1, 2)
    runs = np.lib.stride_tricks.sliding_window_view(frames, size, axis=1, writeable=True)  # type: ignore[call-overload]
    return np.moveaxis(runs, -1, 2)


# -- checks ----------------------------------------------------------------------------------


def _entry(observations: Any, layout: Layout, what: str) -> Any:
    if layout.key is None:
        return observations
    try:
        return observations[layout.key]
    except (KeyError, TypeError, IndexError):
        raise ValueError(
            f"{what} has no entry {layout.key!r}; observation_space is a Dict with one"
        ) from None


def _checked_int(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be a whole number") from None
    if number < least:
        raise ValueError(f"{name}={number} must be at least {least}")
    return number


def _checked_number(name: str, value: Any, low: float, high: float = np.inf) -> float:
    number = float(value)
    if not low <= number <= high or number == np.inf:
        limit = "finite" if high == np.inf else f"at most {high}"
        raise ValueError(f"{name}={value} must be at least {low} and {limit}")
    return number


def _checked_mode(mode: Any) -> Literal["same_step", "next_step", "disabled"]:
    name = str(getattr(mode, "value", mode)).lower()
    for known in _MODES:
        if name.replace("_", "") == known.replace("_", ""):
            return known  # type: ignore[return-value]
    raise ValueError(f"autoreset_mode={mode!r} must be one of {', '.join(map(repr, _MODES))}")


def _checked_rewards(reward: Any, live: Bools) -> npt.NDArray[np.float32]:
    values = np.asarray(reward)
    if values.shape != live.shape:
        raise ValueError(f"reward has shape {values.shape}; {len(live)} lanes need {live.shape}")
    if values.dtype.kind not in "fiub":
        raise TypeError(f"reward has dtype {values.dtype}; it must be real numbers")
    with np.errstate(over="ignore"):
        rewards = values.astype(np.float32)
    wrong = live & ~np.isfinite(rewards)
    if wrong.any():
        lane = int(np.argmax(wrong))
        raise ValueError(
            f"reward {values[lane]} of lane {lane} is not finite as float32; check the environment"
        )
    return rewards


def _checked_bools(name: str, flags: Any, n: int) -> Bools:
    values = np.asarray(flags)
    if values.shape != (n,):
        raise ValueError(f"{name} has shape {values.shape}; {n} lanes need {(n,)}")
    if values.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {values.dtype}; it must be bool")
    return values


def _as_floats(values: Any) -> npt.NDArray[np.float64]:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"priorities hold {array.dtype}; they must be real numbers")
    return array.astype(np.float64)


def _padding_frame(padding_type: Any, layout: Layout) -> AnyArray | None:
    if isinstance(padding_type, str) and padding_type in ("reset", "zero"):
        if padding_type == "reset":
            return None
        return np.zeros(layout.frame_shape, layout.frame_dtype)
    frame = np.asarray(padding_type)
    if frame.shape != layout.frame_shape or frame.dtype != layout.frame_dtype:
        raise ValueError(
            f"padding_type={padding_type!r} must be 'reset', 'zero' or a frame of shape "
            f"{layout.frame_shape} and dtype {layout.frame_dtype}"
        )
    return frame


def _check_shared(frames: DiffFrameArray, n_envs: int, n_slots: int, layouts: list[Layout]) -> None:
    if not isinstance(frames, DiffFrameArray):
        raise TypeError(  # type: ignore[unreachable]
            f"frames={type(frames).__name__} must be the DiffFrameArray of an IndexedFrameStack"
        )
    if frames.n_lanes != n_envs:
        raise ValueError(
            f"frames has {frames.n_lanes} lanes and n_envs={n_envs}: pass the frames of the "
            "wrapper around these very environments"
        )
    stack_size = next(layout.stack_size for layout in layouts if layout.feed == "indices")
    needed = 2 * n_slots + stack_size
    if frames.shape[0] < needed:
        raise ValueError(
            f"frames keeps {frames.shape[0]} frames a lane, and {n_slots} transitions may need "
            f"{needed}: build the wrapper with capacity={needed} (2 * transitions + stack_size). "
            "It takes address space; what is not needed is let go"
        )
