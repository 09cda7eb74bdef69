"""What a buffer consists of: its settings, its rings, its generator, its locks."""

from __future__ import annotations

import copy as copying
import os
import threading
import weakref
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from compressarray.array import DiffFrameArray
from compressarray.checkpoints import CheckpointLog
from compressarray.replay.actions import Actions
from compressarray.replay.attributes import Adjustable, Fixed
from compressarray.replay.checks import (
    checked_generator,
    checked_int,
    checked_mode,
    checked_number,
)
from compressarray.replay.drawing import Drawn
from compressarray.replay.fields import Fields
from compressarray.replay.following import Followed
from compressarray.replay.integers import Integers
from compressarray.replay.observations import Claims, Observations
from compressarray.replay.outputs import NumpyOutput, worker_seed
from compressarray.replay.plain_draws import PlainDraws
from compressarray.replay.plain_indices import PlainIndices
from compressarray.replay.plain_steps import PlainSteps
from compressarray.replay.priorities import SumTree
from compressarray.replay.resets import Mode, Resets
from compressarray.replay.steps import Parts
from compressarray.replay.transitions import Transitions
from compressarray.replay.windows import Windows
from compressarray.snapshots import Snapshot
from compressarray.writing import Writer

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

B = TypeVar("B")

_CLAIMS = Claims()


@dataclass(frozen=True)
class Settings:
    """The arguments of a `ReplayBuffer` that its file keeps, as they were given."""

    capacity: Any
    observation_space: Any
    action_space: Any
    n_envs: Any
    n_step: Any
    gamma: Any
    full_windows: Any
    autoreset_mode: Any
    prioritized: Any
    alpha: Any
    beta: Any
    epsilon: Any
    stack_size: Any
    stack_axis: Any
    frame_channels: Any
    padding_type: Any
    fields: Any
    is_single: Any


class BufferParts:
    """What a buffer consists of, and what its methods of every kind need."""

    n_envs = Fixed[int]()
    n_step = Fixed[int]()
    alpha = Fixed[float]()
    prioritized = Fixed[bool]()
    full_windows = Fixed[bool]()
    autoreset_mode = Fixed[Mode]()
    gamma = Adjustable(0, 1)
    beta = Adjustable(0)
    epsilon = Adjustable(0)

    _output: NumpyOutput
    _rng: np.random.Generator
    _position: Any  # how far this has come, as a replica
    _has_own_priorities: bool  # as a replica, of which its writer knows nothing

    def _build(
        self,
        settings: Settings,
        frames: DiffFrameArray | None,
        codec: Any = "delta",
        gop_length: Any = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """Check arguments, and be an empty buffer of them; ``snapshot`` has the frames, if any."""
        self.n_envs = checked_int("n_envs", settings.n_envs, 1)
        n_slots = checked_int("capacity", settings.capacity, self.n_envs) // self.n_envs
        self.n_step = checked_int("n_step", settings.n_step, 1)
        if self.n_step > n_slots:
            raise ValueError(
                f"n_step={settings.n_step} is more than the {n_slots} transitions that a lane "
                f"keeps (capacity={settings.capacity}, n_envs={settings.n_envs}): no window would "
                "ever be complete"
            )
        self.gamma = settings.gamma
        self.alpha = checked_number("alpha", settings.alpha, 0)
        self.beta = settings.beta
        self.epsilon = settings.epsilon
        self.prioritized = bool(settings.prioritized)
        self.full_windows = bool(settings.full_windows)
        self.autoreset_mode = checked_mode(settings.autoreset_mode)
        self._actions = Actions(settings.action_space)
        self._resets = Resets(self.n_envs, self.autoreset_mode)
        self._has_warned_of_no_reset = False
        Fields(settings.fields, 1)  # refuses what is none
        self._is_single = bool(settings.is_single)
        # What a pickle has to say of the spaces; all else can be read off the buffer.
        self._given = {
            "observation_space": settings.observation_space,
            "action_space": settings.action_space,
            "stack_size": settings.stack_size,
            "stack_axis": settings.stack_axis,
            "frame_channels": settings.frame_channels,
            "padding_type": copying.deepcopy(settings.padding_type),
            "fields": dict(settings.fields or {}),
        }
        try:
            self._observations = Observations(
                settings.observation_space,
                self.n_envs,
                n_slots,
                frames=frames,
                stack_size=None
                if settings.stack_size is None
                else checked_int("stack_size", settings.stack_size, 1),
                stack_axis=settings.stack_axis,
                frame_channels=checked_int("frame_channels", settings.frame_channels, 1),
                padding_type=settings.padding_type,
                codec=codec,
                gop_length=None if gop_length is None else checked_int("gop_length", gop_length, 1),
                snapshot=snapshot,
            )
            self._begin(n_slots)
        except (MemoryError, OverflowError) as error:
            raise MemoryError(
                f"capacity={settings.capacity} transitions are more than this system has address "
                f"space for; give a smaller one ({error})"
            ) from error

    def _begin(self, n_slots: int) -> None:
        n_cells = self.n_envs * n_slots
        self._transitions = Transitions(
            self.n_envs,
            n_slots,
            self._actions.shape,
            self._actions.stored_dtype,
            self._given["fields"],
        )
        self._tree = SumTree(n_cells if self.prioritized else 0)
        self._windows = Windows(n_cells, self.n_step, self.full_windows, self._tree)
        # Starts of sequences by their kind, the one used last at the end.
        self._sequences: dict[Any, Windows] = {}

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
        self._has_own_priorities = False
        self._plain_steps: PlainSteps | PlainIndices | None = None  # made once there is one
        self._has_plain_steps = True  # as far as is known
        self._plain_draws: PlainDraws | None = None
        self._draws_plainly = True
        self._discount: tuple[float, npt.NDArray[np.float64]] = np.nan, np.zeros(0)
        self._log: tuple[str, CheckpointLog] | None = None
        self._restored = "", 0  # the checkpoint that this was restored from
        _CLAIMS.claim(self._observations)

    def __len__(self) -> int:
        self._writer.settle()
        return len(self._transitions)

    @property
    def capacity(self) -> int:
        """Transitions that fit."""
        return self.n_envs * self._transitions.n_slots

    @property
    def _lock(self) -> threading.RLock:
        return self._writer.lock

    @property
    def _parts(self) -> Parts:
        return Parts(self._observations, self._transitions, self._resets, self._all_windows)

    def _refuse_mapped(self) -> None:
        if self._is_mapped:
            raise ValueError(
                "this buffer is read-only: it was loaded with mmap_mode='r'. Add to a copy of it, "
                "or load it without"
            )

    def _settle(self, live: Bools | Int64s | int) -> None:
        """Decode what was drawn and reads frames that go with the transitions added now."""
        if len(self._drawn):
            oldest = self._oldest_after(live)
            for drawn in list(self._drawn):
                if drawn.reads_before(oldest):
                    drawn.decode()

    def _note(self, drawn: Drawn[B]) -> Drawn[B]:
        """Keep in mind what was drawn, for as long as its frames must stay."""
        self._drawn.add(drawn)
        if self._observations.are_given and drawn.reads_before(self._oldest_after(0)):
            drawn.decode()
        return drawn

    def _oldest_after(self, added: Any) -> Int64s:
        """The oldest transition of each lane whose frames stay when so many are added."""
        # Frames that are given may go with the environment's next step, before the next `add`.
        ahead = self._transitions.counts + added + self._observations.are_given
        return np.maximum(ahead - self._transitions.n_slots, 0)  # type: ignore[no-any-return]

    @property
    def _all_windows(self) -> list[Windows]:
        return [self._windows, *self._sequences.values()]

    @property
    def _followed(self) -> Followed:
        return Followed(
            self._observations, self._transitions, self._resets, self._all_windows, self._tree
        )
