"""`ReplayBuffer`: transitions for off-policy learning, each frame stored once."""

from __future__ import annotations

import contextlib
import copy as copying
import os
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray import checkpoints
from compressarray.array import DiffFrameArray
from compressarray.array import files as array_files
from compressarray.checkpoints import CheckpointLog
from compressarray.errors import CorruptFrameError, FrameEvictedError, StaleStreamError
from compressarray.format import container
from compressarray.format.messages import Items, Message
from compressarray.replay import files, resizing
from compressarray.replay.actions import Actions
from compressarray.replay.attributes import Adjustable, Fixed
from compressarray.replay.checks import (
    checked_bools,
    checked_generator,
    checked_info,
    checked_int,
    checked_lanes,
    checked_mode,
    checked_number,
    checked_priorities,
    checked_rewards,
    scaled_priorities,
)
from compressarray.replay.drawing import Batches, Drawn
from compressarray.replay.following import Followed, TakeStep
from compressarray.replay.footprint import expected_part, memory_bytes
from compressarray.replay.integers import Integers
from compressarray.replay.observations import Claims, Observations
from compressarray.replay.outputs import NumpyOutput, make_output, worker_seed
from compressarray.replay.priorities import SumTree
from compressarray.replay.resets import NOT_RESET, Mode, Resets, Told
from compressarray.replay.stacks import FrameIndices
from compressarray.replay.steps import AddStep, ClearStep, CutStep, Parts, Rows
from compressarray.replay.transitions import Transitions, first_not_finite
from compressarray.replay.windows import Windows
from compressarray.snapshots import Snapshot, array_of, int_of, part_of
from compressarray.writing import Writer

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")
# What an argument is that nobody gave.
_ALPHA, _BETA, _EPSILON = 0.6, 0.4, 1e-6
# Lengths of sequences whose starts are kept track of at once, three to six bits a transition each.
_MOST_LENGTHS = 3
_CLAIMS = Claims()


class Batch(NamedTuple):
    """Transitions that were drawn; numpy arrays, or tensors where the buffer has a device.

    Attributes
    ----------
    obs, next_obs : (B, *observation shape)
        Of a Dict space, a dict of such. They are views of one memory, and with ``n_step=1`` of
        the same frames, windows of ``(B, stack_size + 1, ...)``: do not write.
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
    padding_type : {"reset", "zero"} or frame, optional
        With `stack_size`, what stands before an episode's first frame: that frame repeated (the
        default), the frame of the space that is closest to zero, or a given one. With `frames` the
        wrapper pads, and what is given here is compared with it. ALE's own stacks need "zero".
    codec, gop_length
        How frames are stored, see `DiffFrameArray`.
    n_step : int, default 1
        Steps whose rewards are summed. An episode's end cuts them short; until then the newest
        ``n_step - 1`` transitions cannot be drawn.
    gamma : float
        Discount per step. May be set later, and counts for what is drawn then.
    full_windows : bool, default False
        Draw only what has `n_step` steps (DrQ-v2's rule).
    autoreset_mode : {"same_step", "next_step", "disabled"} or gymnasium.vector.AutoresetMode
        What the vector environment does where an episode ends; see `add`.
    prioritized : bool
        Draw in proportion to priorities.
    alpha, beta, epsilon : float
        ``(priority + epsilon) ** alpha`` is what drawing is in proportion to; weights are
        ``(n * probability) ** -beta``, divided by the batch's largest. `beta` and `epsilon` may
        be set later.
    device : str or torch.device, optional
        Given: samples are tensors there. May be set later.
    seed : int or numpy.random.Generator, optional

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, or would change nothing; the message says what does.
    MemoryError
        If there is not enough address space for `capacity`.
    AttributeError
        If an attribute is set that can no longer change, such as `n_step`.

    Warns
    -----
    UserWarning
        If the dense equivalent would not fit in memory: with its bytes, and those expected here.
        If `alpha`, `beta` or `epsilon` are given without priorities. `add` warns, too.

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
    for the index of starts, and for each length of sequences that was asked for lately; priorities
    take nine more. Methods may be called from several threads; pickle while none of them adds.
    What a pickle brings is checked, and `CorruptFrameError` raised where no buffer has pickled it.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium.spaces import Box, Discrete
    >>> from compressarray import ReplayBuffer
    >>> stacks = Box(0, 255, (4, 84, 84), np.uint8)
    >>> buffer = ReplayBuffer(1000, stacks, Discrete(6), n_envs=2, seed=1)
    >>> obs, last, reset = np.zeros((3, 2, 4, 84, 84), np.uint8)
    >>> last[:, -1] = 9
    >>> no, ends = np.zeros(2, bool), np.ones(2, bool)
    >>> buffer.add(obs, [0, 5], [0.5, 1.0], ends, no, reset, {"final_obs": last})
    >>> batch = buffer.sample(32)
    >>> batch.next_obs.shape, batch.discount[0]
    ((32, 4, 84, 84), np.float32(0.99))
    """

    n_envs = Fixed[int]()
    n_step = Fixed[int]()
    alpha = Fixed[float]()
    prioritized = Fixed[bool]()
    full_windows = Fixed[bool]()
    autoreset_mode = Fixed[Mode]()
    gamma = Adjustable(0, 1)
    beta = Adjustable(0)
    epsilon = Adjustable(0)

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
        padding_type: Any = None,
        codec: Any = "delta",
        gop_length: int | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        full_windows: bool = False,
        autoreset_mode: Any = "same_step",
        prioritized: bool = False,
        alpha: float = _ALPHA,
        beta: float = _BETA,
        epsilon: float = _EPSILON,
        device: Any = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        self._output = make_output(device)
        self._rng = checked_generator(seed)
        self._build(
            capacity=capacity,
            observation_space=observation_space,
            action_space=action_space,
            n_envs=n_envs,
            n_step=n_step,
            gamma=gamma,
            full_windows=full_windows,
            autoreset_mode=autoreset_mode,
            prioritized=prioritized,
            alpha=alpha,
            beta=beta,
            epsilon=epsilon,
            stack_size=stack_size,
            stack_axis=stack_axis,
            frame_channels=frame_channels,
            padding_type=padding_type,
            frames=frames,
            codec=codec,
            gop_length=gop_length,
        )
        self._open()
        if not prioritized and (alpha, beta, epsilon) != (_ALPHA, _BETA, _EPSILON):
            warnings.warn(
                f"alpha={alpha}, beta={beta} and epsilon={epsilon} are of priorities, and change "
                "nothing without prioritized=True",
                stacklevel=2,
            )
        self._warn_if_dense_would_not_fit()

    def _build(
        self,
        *,
        capacity: Any,
        observation_space: Any,
        action_space: Any,
        n_envs: Any,
        n_step: Any,
        gamma: Any,
        full_windows: Any,
        autoreset_mode: Any,
        prioritized: Any,
        alpha: Any,
        beta: Any,
        epsilon: Any,
        stack_size: Any,
        stack_axis: Any,
        frame_channels: Any,
        padding_type: Any,
        frames: DiffFrameArray | None,
        codec: Any = "delta",
        gop_length: Any = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """Check arguments, and be an empty buffer of them; ``snapshot`` has the frames, if any."""
        self.n_envs = checked_int("n_envs", n_envs, 1)
        n_slots = checked_int("capacity", capacity, self.n_envs) // self.n_envs
        self.n_step = checked_int("n_step", n_step, 1)
        if self.n_step > n_slots:
            raise ValueError(
                f"n_step={n_step} is more than the {n_slots} transitions that a lane keeps "
                f"(capacity={capacity}, n_envs={n_envs}): no window would ever be complete"
            )
        self.gamma = gamma
        self.alpha = checked_number("alpha", alpha, 0)
        self.beta = beta
        self.epsilon = epsilon
        self.prioritized = bool(prioritized)
        self.full_windows = bool(full_windows)
        self.autoreset_mode = checked_mode(autoreset_mode)
        self._actions = Actions(action_space)
        self._resets = Resets(self.n_envs, self.autoreset_mode)
        self._has_warned_of_no_reset = False
        # What a pickle has to say of the spaces; all else can be read off the buffer.
        self._given = {
            "observation_space": observation_space,
            "action_space": action_space,
            "stack_size": stack_size,
            "stack_axis": stack_axis,
            "frame_channels": frame_channels,
            "padding_type": copying.deepcopy(padding_type),
        }
        try:
            self._observations = Observations(
                observation_space,
                self.n_envs,
                n_slots,
                frames=frames,
                stack_size=None if stack_size is None else checked_int("stack_size", stack_size, 1),
                stack_axis=stack_axis,
                frame_channels=checked_int("frame_channels", frame_channels, 1),
                padding_type=padding_type,
                codec=codec,
                gop_length=None if gop_length is None else checked_int("gop_length", gop_length, 1),
                snapshot=snapshot,
            )
            self._begin(n_slots)
        except (MemoryError, OverflowError) as error:
            raise MemoryError(
                f"capacity={capacity} transitions are more than this system has address space "
                f"for; give a smaller one ({error})"
            ) from error

    def _begin(self, n_slots: int) -> None:
        n_cells = self.n_envs * n_slots
        self._transitions = Transitions(
            self.n_envs, n_slots, self._actions.shape, self._actions.stored_dtype
        )
        self._tree = SumTree(n_cells if self.prioritized else 0)
        self._windows = Windows(n_cells, self.n_step, self.full_windows, self._tree)
        # Starts of sequences by their length, the one used last at the end.
        self._sequences: dict[int, Windows] = {}

    def seed(self, seed: int | np.random.Generator | None = None) -> None:
        """Draw from now on as a buffer would that was built with this `seed`.

        Workers of a ``torch.utils.data.DataLoader`` need none: each draws batches of its own, and
        others in each epoch, which follow from the buffer's seed and from torch's.

        Raises
        ------
        TypeError, ValueError
            If it is no seed; the buffer goes on as before.
        """
        rng = checked_generator(seed)
        with self._lock:
            self._draw_with(rng)
            self._drew_in = os.getpid()

    def _draw_with(self, rng: np.random.Generator) -> None:
        self._rng, self._integers = rng, Integers(rng)

    def _know_process(self) -> None:
        """Draw other batches than all the copies of this buffer in a DataLoader's workers.

        Forked or spawned, they all begin with the random state of the process that loads.
        """
        if self._drew_in == os.getpid():
            return
        seed = worker_seed()
        if seed is not None:
            words = self._rng.integers(0, 2**32, 4, np.uint32)
            self._draw_with(np.random.default_rng([*words.tolist(), seed]))
        self._drew_in = os.getpid()

    def _open(self) -> None:
        self._writer = Writer(rank=0)
        self._observations.write_with(self._writer)
        self._draw_with(self._rng)
        self._drew_in = 0  # the process that drew last
        self._drawn: weakref.WeakSet[Drawn[Any]] = weakref.WeakSet()
        self._is_mapped = self._observations.are_mapped
        self._position = None
        self._log: tuple[str, CheckpointLog] | None = None
        self._restored = "", 0  # the checkpoint that this was restored from
        _CLAIMS.claim(self._observations)

    @property
    def _lock(self) -> threading.RLock:
        return self._writer.lock

    @property
    def _parts(self) -> Parts:
        return Parts(self._observations, self._transitions, self._resets, self._all_windows)

    def _warn_if_dense_would_not_fit(self) -> None:
        there = memory_bytes()
        if there is None or self.nbytes <= there:
            return
        expected = sum(size for part, size in self._bytes_by_part().items() if part != "frames")
        for entry in self._observations.entries:
            codec = getattr(entry.frames, "codec", None)  # a plain ring has none
            expected += int(self.capacity * entry.layout.frame_bytes * expected_part(codec))
        warnings.warn(
            f"a dense buffer of {self.capacity:,} transitions would take {self.nbytes / 1e9:,.1f} "
            f"GB, and there are {there / 1e9:,.1f} GB of memory; this one is expected to take "
            f"{expected / 1e9:,.2f} GB when it is full, if its frames are like those of ten Atari "
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
        info: Mapping[str, Any] | None = None,
        *,
        was_reset: Any = None,
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
        info : mapping, optional
            The step's. Looked at are ``final_obs`` and ``_final_obs``, and what ALE's vector
            environment counts: ``frame_number`` and ``episode_frame_number``.
        was_reset : (n_envs,) bool, optional
            Lanes that the environment has reset in this step; under "disabled", those that you have
            reset before it. Needed where not every end is followed by a reset, as with ALE's
            ``life_loss_info``, and nothing else tells: see Notes.

        Raises
        ------
        TypeError, ValueError
            For wrong shapes and dtypes, NaN, actions outside their space, or no final observation;
            for `obs` and `next_obs` in one memory, and an `info` of another kind or of another
            autoreset mode.
        FrameEvictedError, StaleStreamError
            IndexErrors: for frame indices that are not held, or of another stream.

        Warns
        -----
        UserWarning
            Once each: if stacks do not go on as the space was read, if none of a lane's steps goes
            on from the one before it, if an episode begins with what the last one ended with.

        Notes
        -----
        After an error nothing of the step is in the buffer.

        An observation that is not what the lane's last step led to is a reset's, whenever it comes,
        and after `clear` and loading, too; stacks of newest frames begin anew with it. Under
        NEXT_STEP, the row after an end in which the environment resets itself begins with what the
        end led to; it is passed over.

        A lost life that ends an episode, but not the game, is no reset: the step after it counts,
        stacks run on, and there is no ``final_obs``. ALE's counters in `info` say so by themselves,
        but for an end with the first step after a reset, which is refused without `was_reset`. In
        other environments every end is followed by a reset unless `was_reset` says otherwise.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            observations, transitions, resets = self._observations, self._transitions, self._resets
            n = transitions.n_lanes
            said = checked_info(info, self.autoreset_mode)
            before = observations.checked(obs, "obs")
            after = observations.checked(next_obs, "next_obs")
            observations.refuse_one_memory(before, after)
            actions = self._actions.stored(action, n)
            rewards = checked_rewards(reward, n)
            ends = checked_bools("terminated", terminated, n)
            cuts = checked_bools("truncated", truncated, n)
            marked = None if was_reset is None else checked_bools("was_reset", was_reset, n)
            told = resets.told(said, marked)
            course = resets.follow(
                told, ends, cuts, lambda lanes: observations.repeat(before, lanes)
            )
            live, begins = course.live, course.begins
            bad = first_not_finite(rewards, live)
            if bad >= 0:
                raise ValueError(
                    f"reward {np.asarray(reward)[bad]} of lane {bad} is not finite as float32; "
                    "check the environment"
                )
            remarks: list[str] = []
            if course.n_replaced:
                after = observations.with_final(after, course.replaced, said)
            if not course.n_live:
                resets.commit(course, told)
                return
            breaks = observations.plan(before, after, live, begins, transitions, remarks)
            if not resets.all_run:
                remarks += self._remarks_on_no_reset(told)
            for remark in remarks:
                warnings.warn(remark, stacklevel=2)
            self._settle(live)
            rows = Rows(*map(np.array, (actions, rewards, ends, cuts)))
            step = AddStep(self._parts, after, rows, course, told, breaks)
            self._writer.run(self._write, step, before, after)

    def _refuse_mapped(self) -> None:
        if self._is_mapped:
            raise ValueError(
                "this buffer is read-only: it was loaded with mmap_mode='r'. Add to a copy of it, "
                "or load it without"
            )

    def _write(self, step: AddStep, before: list[Any], after: list[Any]) -> None:
        self._writer.steps.append(step)
        self._observations.store(before, after)
        self._writer.untidy.append(step)

    def _remarks_on_no_reset(self, told: Told) -> list[str]:
        """Say, once, that a lane seems to go on from where its episode ended."""
        anew = self._resets.begin_anew()
        if self._has_warned_of_no_reset or not len(anew):
            return []
        goes_on = anew[self._observations.same[anew] & (told.resets[anew] != NOT_RESET)]
        if not len(goes_on):
            return []
        self._has_warned_of_no_reset = True
        beginning = f"lane {goes_on[0]} ended, and its next obs is what it ended with"
        if self.autoreset_mode == "disabled":
            return [
                f"{beginning}, though autoreset_mode='disabled' says that you reset it: if the "
                "environment resets itself in the next step, this step is no transition, and "
                "autoreset_mode must be 'next_step'; if its life was lost and the game goes on, "
                "pass was_reset"
            ]
        return [
            f"{beginning}, though it was reset: if the environment writes all its observations "
            "into one array, the reset has overwritten final_obs. Let it return obs.copy(); if a "
            "life was lost and the game goes on, pass was_reset"
        ]

    def cut(self, lanes: npt.ArrayLike | None = None) -> None:
        """Say that lanes were reset from outside, all of them by default.

        Needed only where a reset's first observation may equal what the last step returned, bit
        for bit; any other one is noticed.
        """
        with self._lock:
            named = np.zeros(self.n_envs, np.bool_)
            named[checked_lanes(lanes, self.n_envs)] = True
            self._writer.settle()
            self._writer.run(self._writer.steps.append, CutStep(self._parts, named))

    def clear(self) -> None:
        """Forget all transitions, whose names start over, and all frames that were not given.

        Environments go on as they stand: what is added next is known to follow on what their last
        steps led to, or not. Batches that were drawn ahead are gone.
        """
        with self._lock:
            self._writer.settle()
            self._refuse_mapped()
            for drawn in list(self._drawn):
                # A `sample` in another thread gets what it has drawn. Frames that were given may
                # be of a stream that has ended: whoever asks for that batch will hear of it.
                with contextlib.suppress(FrameEvictedError, StaleStreamError):
                    drawn.result()
                drawn.is_gone = True
            self._drawn.clear()
            self._writer.run(self._clear)

    def _clear(self) -> None:
        self._writer.steps.append(
            ClearStep(self, ("_transitions", "_tree", "_windows", "_sequences"))
        )
        self._observations.clear()
        self._begin(self._transitions.n_slots)

    def _settle(self, live: Bools | Int64s) -> None:
        """Decode what was drawn and reads frames that go with the transitions added now."""
        if len(self._drawn):
            oldest = self._oldest_after(live)
            for drawn in list(self._drawn):
                if drawn.reads_before(oldest):
                    drawn.result()

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

    def _note(self, drawn: Drawn[B]) -> Drawn[B]:
        """Keep in mind what was drawn, for as long as its frames must stay."""
        self._drawn.add(drawn)
        if self._observations.are_given and drawn.reads_before(self._oldest_after(0)):
            drawn.result()
        return drawn

    def _oldest_after(self, added: Any) -> Int64s:
        """The oldest transition of each lane whose frames stay when so many are added."""
        # Frames that are given may go with the environment's next step, before the next `add`.
        ahead = self._transitions.counts + added + self._observations.are_given
        return np.maximum(ahead - self._transitions.n_slots, 0)  # type: ignore[no-any-return]

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

    @property
    def _all_windows(self) -> list[Windows]:
        return [self._windows, *self._sequences.values()]

    # -- accounts ----------------------------------------------------------------------------

    def __len__(self) -> int:
        self._writer.settle()
        return len(self._transitions)

    @property
    def device(self) -> Any:
        """Where samples go: None for numpy, else a torch.device. May be set.

        A buffer that was pickled beside a GPU goes on without one once this is set.
        """
        return self._output.device

    @device.setter
    def device(self, device: Any) -> None:
        self._output = make_output(device)

    @property
    def capacity(self) -> int:
        """Transitions that fit."""
        return self.n_envs * self._transitions.n_slots

    @property
    def n_samplable(self) -> int:
        """Transitions that may be drawn now."""
        self._writer.settle()
        return len(self._windows)

    @property
    def frames(self) -> Any:
        """The `DiffFrameArray` of the pixels; of several images a dict of them."""
        images = {entry.layout.key: entry.frames for entry in self._observations.images}
        return next(iter(images.values())) if len(images) == 1 else images

    @property
    def nbytes(self) -> int:
        """Bytes of the dense equivalent: two observations a transition, and the rest."""
        per_transition = 2 * self._observations.dense_bytes + self._actions.nbytes
        return self.capacity * (per_transition + 4 + 1 + 1)  # reward, terminated, truncated

    @property
    def nbytes_stored(self) -> int:
        """Bytes truly held: frames, everything beside them, tables and slack.

        Batches apart, and the memory that those of them which are gone leave to the next ones, at
        most 64 MiB.
        """
        return sum(self._bytes_by_part().values())

    @property
    def compression_ratio(self) -> float:
        """``nbytes / nbytes_stored``; it counts for a full buffer."""
        return self.nbytes / self.nbytes_stored

    def stats(self) -> dict[str, Any]:
        """Report what is held.

        Returns
        -------
        dict
            ``transitions``, ``samplable``, ``episodes`` (of which a transition is held),
            ``frames`` (in all images), ``nbytes``, ``nbytes_stored``, ``compression_ratio`` and
            ``nbytes_by_part``.
        """
        with self._lock:
            self._writer.settle()
            return {
                "transitions": len(self),
                "samplable": self.n_samplable,
                "episodes": self._transitions.n_episodes,
                "frames": self._observations.n_frames,
                "nbytes": self.nbytes,
                "nbytes_stored": self.nbytes_stored,
                "compression_ratio": self.compression_ratio,
                "nbytes_by_part": self._bytes_by_part(),
            }

    def _bytes_by_part(self) -> dict[str, int]:
        return {
            **self._observations.nbytes_by_part,
            "transitions": self._transitions.nbytes + self._resets.nbytes,
            "starts": sum(windows.nbytes for windows in self._all_windows),
            "priorities": self._tree.nbytes,
        }

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
        twin = object.__new__(type(self))
        with self._lock:
            twin.__setstate__(copying.deepcopy(self.__getstate__(), memo))
        return twin

    # -- replicas, see `compressarray.feed` ----------------------------------------------------

    _kind = files.KIND
    _position: Any  # how far this has come, as a replica

    @property
    def _followed(self) -> Followed:
        return Followed(
            self._observations, self._transitions, self._resets, self._all_windows, self._tree
        )

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold all writes off."""
        with self._lock, contextlib.ExitStack() as locks:
            for entry in self._observations.images:
                locks.enter_context(entry.frames._frames.writer.lock)  # type: ignore[attr-defined]
            self._writer.settle()
            yield

    def _file_tree(self) -> Snapshot:
        """What a file holds, for who holds writes off until it is written."""
        return files.tree_of(self.__getstate__())

    def _mark(self) -> Any:
        return self._followed.mark(), self._drawing_state()

    def _drawing_state(self) -> tuple[bytes, tuple[float, ...]]:
        return files.bytes_of(self._rng), (self.gamma, self.beta, self.epsilon)

    def _put_changes(self, message: Message, mark: Any) -> bool:
        known, drawing = mark
        if not self._followed.put_changes(message, known):
            return False
        rng, numbers = self._drawing_state()
        message.put_bytes(b"" if rng == drawing[0] else rng)
        message.put_bytes(np.array([] if numbers == drawing[1] else numbers))
        message.put_ints([self._has_warned_of_no_reset])
        return True

    def _follow(self, position: Any) -> None:
        for entry in self._observations.images:
            frames = entry.frames
            assert isinstance(frames, DiffFrameArray)
            frames._write_with(self._writer)
            frames._frames.follow(None)
        self._position = position

    def _end_following(self) -> None:
        self._position = None
        for entry in self._observations.images:
            if isinstance(entry, FrameIndices):  # whose frames others may write
                entry.frames._write_with(Writer(rank=1))

    def _came_to(self) -> Any:
        """How far this has come, as a replica; None if it is none."""
        self._writer.settle()
        return self._position

    def _take(self, items: Items, position: Any) -> None:
        with self._lock:
            self._writer.run(self._take_within, items, position)

    def _take_within(self, items: Items, position: Any) -> None:
        step = TakeStep(self, self._followed, position)
        self._writer.steps.append(step)
        self._settle(step.read_rows(items, self._actions.refuse_foreign))
        step.read_rest(items)
        state, numbers = items.octets(), items.octets().view(np.float64)
        rng = files.rng_from(state) if len(state) else None
        if len(numbers) not in (0, 3) or not np.isfinite(numbers).all():
            raise CorruptFrameError("a message has no discount, or no exponents")
        has_warned = bool(items.number(0, 1))
        items.end()
        step.begin(rng, numbers.tolist(), has_warned)

    def _have_drawing(
        self, rng: np.random.Generator | None, numbers: list[float], has_warned: bool
    ) -> None:
        if rng is not None:
            self._draw_with(rng)
        if numbers:
            self.gamma, self.beta, self.epsilon = numbers
        self._has_warned_of_no_reset = has_warned

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save to a file all that `load` brings back, frames that were given and seeds included.

        The file is there whole or not at all, and what was there before stays until then.
        Takes a few mebibytes beside the buffer, and a copy of all but the pixels. See
        ``docs/format.md``.

        Raises
        ------
        OSError
            If the directory is not there, or the disk is full.
        TypeError
            If the codec is an object that numcodecs could not build again.
        """
        with self._held():
            container.save(path, files.KIND, self._file_tree())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: Any = files.AS_SAVED,
        capacity: int | None = None,
        seed: int | np.random.Generator | None = None,
        mmap_mode: Literal["r"] | None = None,
    ) -> ReplayBuffer:
        """Return the buffer that was saved; everything is checked, and nothing is run.

        Parameters
        ----------
        path : str or path
        device : str, torch.device or None, optional
            Where samples go; left out, as it was.
        capacity : int, optional
            Another one than it had: the newest transitions stay, under their names. That stores
            their frames anew, some ten microseconds each, and does not go with `mmap_mode`. Frames
            that were given are kept in an array of their own, which has room for `capacity`.
        seed : int or numpy.random.Generator, optional
            Left out, it goes on drawing as the saved one would have.
        mmap_mode : {None, "r"}
            "r": the compressed frames stay in the file, are read and checked where they are drawn,
            and nothing can be added. The file must not be cut off meanwhile; one that is saved over
            it leaves this buffer as it was.

        Raises
        ------
        OSError
            If the file cannot be read.
        CorruptFrameError
            A ValueError: if it is damaged, or none that this library saves.
        ValueError
            If it is of a newer version of the format, of something else than a buffer, or of a
            codec or device that is not there.
        """
        lazily = array_files.is_mapped(mmap_mode)
        if lazily and capacity is not None:
            raise ValueError(
                f"capacity={capacity} and mmap_mode='r' were both given: of another capacity, "
                "frames are stored anew. Leave one of them out"
            )
        tree = container.load(path, files.KIND, lazily=lazily)
        return cls._from_tree(tree, device, seed, capacity)

    @classmethod
    def _from_tree(
        cls, tree: Any, device: Any = files.AS_SAVED, seed: Any = None, capacity: Any = None
    ) -> ReplayBuffer:
        rng = None if seed is None else checked_generator(seed)
        state = files.state_from(tree, device, rng)
        buffer = object.__new__(cls)
        buffer.__setstate__(state if capacity is None else resizing.resized(state, capacity))
        return buffer

    def checkpoint(self, path: str | os.PathLike[str]) -> int:
        """Write a checkpoint: everything at first, and then only what has changed.

        Parameters
        ----------
        path : str or path
            A directory for the checkpoints of this buffer alone.

        Returns
        -------
        int
            The checkpoint's number, for `restore`: keep it beside the weights that belong to it.
            The last two numbers can be restored at any time, and perhaps some before.

        Raises
        ------
        OSError
            If the directory that `path` is to be made in is not there, the disk is full, or
            somebody else writes checkpoints there.
        ValueError
            If there are checkpoints that this buffer was not restored from.

        Notes
        -----
        What is there is synced before this returns, and stays whole if the process is killed at
        any moment. See ``docs/format.md``.

        Examples
        --------
        >>> import tempfile
        >>> from gymnasium.spaces import Box, Discrete
        >>> from compressarray import ReplayBuffer
        >>> buffer = ReplayBuffer(1000, Box(0, 255, (4, 84, 84)), Discrete(6), seed=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     number = buffer.checkpoint(f"{folder}/replay")
        ...     again = ReplayBuffer.restore(f"{folder}/replay", at=number)
        >>> number, again.capacity
        (1, 1000)
        """
        place = os.path.realpath(path)
        with self._lock:
            if self._log is None or self._log[0] != place:
                place_restored, number = self._restored
                self._log = None  # first: two of one path would keep each other out
                log = CheckpointLog(path, number if place_restored == place else 0)
                self._log = place, log
            log = self._log[1]
        return log.write(self)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        at: int | None = None,
        *,
        device: Any = files.AS_SAVED,
        seed: int | np.random.Generator | None = None,
    ) -> ReplayBuffer:
        """Return the buffer as it was at a checkpoint; everything is checked, and nothing is run.

        Parameters
        ----------
        path : str or path
            Where `checkpoint` wrote to.
        at : int, optional
            The number that it returned; left out, the newest one.
        device, seed
            As for `load`.

        Raises
        ------
        FileNotFoundError
            If there are no checkpoints.
        LookupError
            If there is none of that number.
        CorruptFrameError
            A ValueError: if they are damaged.
        ValueError
            If they are of a newer version of the format, or of something else than a buffer.
        """

        def begin(tree: Any) -> ReplayBuffer:
            buffer = cls._from_tree(tree, device, None)
            buffer._follow(None)
            return buffer

        def go_on(buffer: ReplayBuffer, changes: Any) -> None:
            buffer._take(Items(changes), None)

        buffer, number = checkpoints.restore(path, files.KIND, at, begin, go_on)
        buffer._end_following()
        buffer._restored = os.path.realpath(path), number
        if seed is not None:
            buffer.seed(seed)
        return buffer  # type: ignore[no-any-return]

    def __getstate__(self) -> Snapshot:
        with self._lock:
            self._writer.settle()
            return {
                "arguments": {
                    "capacity": self.capacity,
                    "n_envs": self.n_envs,
                    "n_step": self.n_step,
                    "gamma": self.gamma,
                    "full_windows": self.full_windows,
                    "autoreset_mode": self.autoreset_mode,
                    "prioritized": self.prioritized,
                    "alpha": self.alpha,
                    "beta": self.beta,
                    "epsilon": self.epsilon,
                    **self._given,
                },
                "rng": self._rng,
                "output": self._output,
                "transitions": self._transitions.snapshot(),
                "priorities": self._tree.snapshot(),
                "resets": self._resets.snapshot(),
                "observations": self._observations.snapshot(),
                "has_warned_of_no_reset": int(self._has_warned_of_no_reset),
            }

    def __setstate__(self, state: Snapshot) -> None:
        arguments = part_of(state, "arguments")
        held, transitions = part_of(state, "observations"), part_of(state, "transitions")
        # Nothing is allocated that is larger than what came.
        capacity = int_of(arguments, "capacity", 1)
        if capacity % int_of(arguments, "n_envs", 1, capacity):
            raise CorruptFrameError(f"stored capacity is {capacity}, not the same for each lane")
        array_of(transitions, "rewards", np.float32, (capacity,), copy=False)
        frames = Observations.given_frames(held)
        self._rng = _part_of_type(state, "rng", np.random.Generator)
        self._output = _part_of_type(state, "output", NumpyOutput)
        try:
            self._build(**arguments, frames=frames, snapshot=held)
        except CorruptFrameError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CorruptFrameError(f"stored arguments are not a buffer's: {error}") from error
        self._transitions.restore(transitions)
        held_cells = np.flatnonzero(self._transitions.is_held)
        self._actions.refuse_foreign(self._transitions.actions[held_cells])
        held_ones = self._transitions
        self._windows.rebuild(held_ones.oldest, held_ones.counts, held_ones.flags)
        starts = held_cells[self._windows.holds(held_cells)]
        self._tree.restore(part_of(state, "priorities"), starts, np.finfo(float).max / capacity)
        self._resets.restore(part_of(state, "resets"))
        self._observations.restore(held, self._transitions)
        self._has_warned_of_no_reset = bool(int_of(state, "has_warned_of_no_reset", 0, 1))
        self._open()


def _part_of_type(snapshot: Snapshot, name: str, kind: type[B]) -> B:
    value = part_of(snapshot, name)
    if not isinstance(value, kind):
        raise CorruptFrameError(f"stored {name} is a {type(value).__name__}, no {kind.__name__}")
    return value
