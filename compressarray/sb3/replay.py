"""Replay buffers of Stable-Baselines3 whose observations are compressed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import (
    BaseBuffer,
    DictReplayBuffer,
    NStepReplayBuffer,
    ReplayBuffer,
)
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from compressarray.planes import Planes
from compressarray.sb3.codecs import check_foreign, choose_codec
from compressarray.sb3.columns import StoredObservations
from compressarray.sb3.host import check_space
from compressarray.sb3.rows import CLEAR_EVERY, FrameRows
from compressarray.sb3.steps import Settled, Undo
from compressarray.writing import Writer

AnyArray = npt.NDArray[Any]


class _Part:
    """Observations and next observations of one space: frames, or plain arrays of vectors."""

    def __init__(
        self, n_rows: int, n_envs: int, shape: tuple[int, ...], space: spaces.Space[Any], codec: Any
    ) -> None:
        self.reshapes = isinstance(space, spaces.Discrete)
        self.lead_shape = (n_envs, *shape)
        planes = Planes.of(shape)
        self.rows: FrameRows | None = None
        self.observations: Any
        self.next_observations: Any
        if planes is not None:
            self.rows = FrameRows(n_rows, n_envs, planes, np.dtype(space.dtype), codec)
            self.observations = StoredObservations(self.rows, 0)
            self.next_observations = StoredObservations(self.rows, 1)
        else:
            self.observations = np.zeros((n_rows, n_envs, *shape), space.dtype)
            self.next_observations = np.zeros((n_rows, n_envs, *shape), space.dtype)

    def checked(self, given: Any) -> AnyArray:
        """Return observations of all environments as they will be stored, or raise."""
        values = np.asarray(given)
        if self.reshapes:  # numpy cannot broadcast (n,) to (n, 1)
            values = values.reshape(self.lead_shape)
        if values.shape == self.lead_shape:
            return values.astype(self.observations.dtype, copy=False)
        return _assigned(values, self.lead_shape, self.observations.dtype)

    def put(self, slot: int, obs: AnyArray, next_obs: AnyArray, undo: Undo) -> None:
        """Write a row of what `checked` gave, as a part of the write that runs."""
        if self.rows is None:
            undo.keep(slot, self.observations, self.next_observations)
            self.observations[slot] = obs
            self.next_observations[slot] = next_obs
        else:
            split = self.rows.planes.split
            self.rows.put(slot, split(obs), split(next_obs), undo)

    def write_with(self, writer: Writer) -> None:
        """Make the writing of frames a part of what a writer does."""
        if self.rows is not None:
            self.rows.frames._write_with(writer)

    def pair(self, rows: AnyArray, envs: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Return observations and next observations."""
        if self.rows is None:
            return self.observations[rows, envs], self.next_observations[rows, envs]
        return self.rows.read_pair(rows, envs)

    @property
    def nbytes_stored(self) -> int:
        """Bytes held."""
        if self.rows is None:
            return int(self.observations.nbytes + self.next_observations.nbytes)
        return self.rows.nbytes_stored


class _OldFrames:
    """The frames that no transition of a buffer needs any more."""

    def __init__(self, buffer: CompressedReplayBuffer) -> None:
        self._buffer = buffer

    def tidy(self) -> None:
        """Let go of them."""
        buffer = self._buffer
        if buffer.full:  # the next row to be written is the oldest
            for part in buffer._parts.values():
                if part.rows is not None:
                    part.rows.let_go(buffer.pos)


def _assigned(value: Any, shape: tuple[int, ...], dtype: Any) -> AnyArray:
    """Return what a row of this shape holds once a value was assigned to it, as numpy does that."""
    row = np.empty(shape, dtype)
    row[...] = np.array(value)
    return row


class CompressedReplayBuffer(ReplayBuffer):
    """Stable-Baselines3's `ReplayBuffer` in about a hundredth of its memory.

    Same arguments, attributes and draws: with the same seed its samples are the same bit for bit.

    Parameters
    ----------
    buffer_size, observation_space, action_space, device, n_envs, handle_timeout_termination
        As the parent's.
    optimize_memory_usage : bool, default False
        Accepted, and without effect: frames are stored once in any case, and the observation
        that ends an episode is kept.
    codec : str or object, default "delta"
        What `compressarray.DiffFrameArray` takes.
    compression_method, compression_kwargs : optional
        sb3-extra-buffers' arguments; see `compressarray.sb3.codecs.choose_codec`.
    dtypes, decompression_kwargs, normalize_images, output_dtype
        sb3-extra-buffers' arguments, which change nothing.

    Raises
    ------
    ValueError
        For an unknown codec or compression method.
    TypeError
        For a Dict space, which is `CompressedDictReplayBuffer`'s.

    Examples
    --------
    >>> import numpy as np
    >>> from gymnasium import spaces
    >>> from compressarray.sb3 import CompressedReplayBuffer
    >>> pixels = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    >>> buffer = CompressedReplayBuffer(1_000, pixels, spaces.Discrete(6), device="cpu")
    >>> obs = np.zeros((1, 4, 84, 84), np.uint8)
    >>> buffer.add(obs, obs, np.array([2]), np.array([1.0]), np.array([False]), [{}])
    >>> buffer.sample(8).observations.shape
    torch.Size([8, 4, 84, 84])
    """

    pos: Any = Settled()
    full: Any = Settled()
    observations: Any = Settled()
    next_observations: Any = Settled()
    actions: Any = Settled()
    rewards: Any = Settled()
    dones: Any = Settled()
    timeouts: Any = Settled()

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        codec: Any = "delta",
        compression_method: str | None = None,
        compression_kwargs: dict[str, Any] | None = None,
        decompression_kwargs: dict[str, Any] | None = None,
        dtypes: dict[str, Any] | None = None,
        normalize_images: bool = False,
        output_dtype: str = "raw",
    ) -> None:
        del optimize_memory_usage, decompression_kwargs, normalize_images
        self._writer = Writer(rank=0)
        # Not the parent's own: that one allocates every observation, dense, twice.
        BaseBuffer.__init__(
            self, buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        check_foreign(dtypes, output_dtype)
        self.codec = choose_codec(codec, compression_method, compression_kwargs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self._make_observations()
        self._write_together()
        if not any(part.rows is not None for part in self._parts.values()):
            warnings.warn(
                f"{type(self).__name__} compresses images, and {observation_space} has none: "
                "everything works, and nothing is gained over Stable-Baselines3's own buffer",
                stacklevel=2,
            )
        cells = (self.buffer_size, self.n_envs)
        self.actions = np.zeros(
            (*cells, self.action_dim), self._maybe_cast_dtype(action_space.dtype)
        )
        self.rewards = np.zeros(cells, np.float32)
        self.dones = np.zeros(cells, np.float32)
        self.timeouts = np.zeros(cells, np.float32)

    def _make_observations(self) -> None:
        check_space(self, self.observation_space, False, "CompressedDictReplayBuffer")
        part = _Part(
            self.buffer_size, self.n_envs, self.obs_shape, self.observation_space, self.codec
        )
        self._parts = {"": part}
        self.observations = part.observations
        self.next_observations = part.next_observations

    def _write_together(self) -> None:
        for part in self._parts.values():
            part.write_with(self._writer)

    def __getstate__(self) -> dict[str, Any]:
        with self._writer.lock:
            self._writer.settle()
            state = vars(self).copy()
            del state["_writer"]  # which holds locks
            return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._writer = Writer(rank=0)
        vars(self).update(state)
        self._write_together()

    @property
    def nbytes_stored(self) -> int:
        """Bytes held, transitions included."""
        small = (self.actions, self.rewards, self.dones, self.timeouts)
        parts = sum(part.nbytes_stored for part in self._parts.values())
        return int(parts + sum(each.nbytes for each in small))

    def reset(self) -> None:
        """Forget every transition."""
        self._writer.run(self._forget)

    def _forget(self) -> None:
        undo = Undo()
        undo.keep_attributes(self, "pos", "full")
        self._writer.steps.append(undo)
        for part in self._parts.values():
            if part.rows is not None:
                part.rows.clear(undo)
        super().reset()

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: AnyArray,
        reward: AnyArray,
        done: AnyArray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one transition of each environment, as the parent does.

        An error, an interrupt too, leaves the buffer with all of the transition or none of it.
        """
        whole = not isinstance(self.observation_space, spaces.Dict)
        given = ({"": obs}, {"": next_obs}) if whole else (obs, next_obs)
        checked = {
            key: (part.checked(given[0][key]), part.checked(given[1][key]))
            for key, part in self._parts.items()
        }
        lanes = (self.n_envs,)
        actions = np.asarray(action).reshape(self.n_envs, self.action_dim)
        actions = actions.astype(self.actions.dtype, copy=False)
        rewards = _assigned(reward, lanes, np.float32)
        dones = _assigned(done, lanes, np.float32)
        timeouts: Any = None
        if self.handle_timeout_termination:
            cut = [info.get("TimeLimit.truncated", False) for info in infos]
            timeouts = _assigned(cut, lanes, np.float32)
        small = {"actions": actions, "rewards": rewards, "dones": dones}
        if timeouts is not None:
            small["timeouts"] = timeouts
        self._writer.run(self._write, checked, small)

    def _write(
        self, observed: dict[str, tuple[AnyArray, AnyArray]], small: dict[str, AnyArray]
    ) -> None:
        """Write a row, as a part of the write that runs."""
        held = vars(self)
        slot = held["pos"]
        undo = Undo()
        undo.keep_attributes(self, "pos", "full")
        self._writer.steps.append(undo)
        for key, part in self._parts.items():
            part.put(slot, *observed[key], undo)
        undo.keep(slot, *(held[name] for name in small))
        for name, values in small.items():
            held[name][slot] = values
        held["pos"] = (slot + 1) % self.buffer_size
        held["full"] = held["full"] or slot + 1 == self.buffer_size
        if slot % CLEAR_EVERY == 0:
            self._writer.untidy.append(_OldFrames(self))

    def _get_samples(self, batch_inds: AnyArray, env: VecNormalize | None = None) -> Any:
        # Stable-Baselines3 draws from numpy's global state, this second, so that seeds agree.
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))  # noqa: NPY002
        return self._samples_at(batch_inds, env_indices, env)

    def _samples_at(self, rows: AnyArray, envs: AnyArray, env: VecNormalize | None) -> Any:
        """Return the transitions of some cells, as the parent does."""
        obs, next_obs = self._parts[""].pair(rows, envs)
        return ReplayBufferSamples(
            observations=self.to_torch(self._normalize_obs(obs, env)),  # type: ignore[arg-type]
            next_observations=self.to_torch(self._normalize_obs(next_obs, env)),  # type: ignore[arg-type]
            **self._small_at(rows, envs, env),
        )

    def _small_at(self, rows: AnyArray, envs: AnyArray, env: VecNormalize | None) -> dict[str, Any]:
        """Return actions, dones and rewards of some cells."""
        ended = self.dones[rows, envs] * (1 - self.timeouts[rows, envs])
        rewards = self._normalize_reward(self.rewards[rows, envs].reshape(-1, 1), env)
        return {
            "actions": self.to_torch(self.actions[rows, envs]),
            "dones": self.to_torch(ended.reshape(-1, 1)),
            "rewards": self.to_torch(rewards),
        }


class CompressedDictReplayBuffer(CompressedReplayBuffer, DictReplayBuffer):
    """Stable-Baselines3's `DictReplayBuffer`, its images compressed; vectors stay as they are.

    Parameters are those of `CompressedReplayBuffer`.
    """

    def _make_observations(self) -> None:
        check_space(self, self.observation_space, True, "CompressedReplayBuffer")
        shapes: Any = self.obs_shape
        self._parts = {
            key: _Part(
                self.buffer_size, self.n_envs, shapes[key], self.observation_space[key], self.codec
            )
            for key in shapes
        }
        self.observations = {key: part.observations for key, part in self._parts.items()}
        self.next_observations = {key: part.next_observations for key, part in self._parts.items()}

    def _samples_at(self, rows: AnyArray, envs: AnyArray, env: VecNormalize | None) -> Any:
        pairs = {key: part.pair(rows, envs) for key, part in self._parts.items()}
        obs: Any = self._normalize_obs({key: pair[0] for key, pair in pairs.items()}, env)
        next_obs: Any = self._normalize_obs({key: pair[1] for key, pair in pairs.items()}, env)
        return DictReplayBufferSamples(
            observations={key: self.to_torch(each) for key, each in obs.items()},
            next_observations={key: self.to_torch(each) for key, each in next_obs.items()},
            **self._small_at(rows, envs, env),
        )


class CompressedNStepReplayBuffer(NStepReplayBuffer, CompressedReplayBuffer):
    """Stable-Baselines3's `NStepReplayBuffer`, compressed.

    Give ``n_steps`` and ``gamma`` in ``replay_buffer_kwargs``: an algorithm's own ``n_steps``
    does not reach a buffer class that was chosen by hand.

    Parameters
    ----------
    n_steps : int, default 3
    gamma : float, default 0.99
    *args, **kwargs
        Those of `CompressedReplayBuffer`.
    """

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps={n_steps} must be at least 1; 1 is the plain buffer")
        super().__init__(*args, n_steps=n_steps, gamma=gamma, **kwargs)

    def _get_samples(self, batch_inds: AnyArray, env: VecNormalize | None = None) -> Any:
        # The parent marks the newest row as cut off while it looks. Should that be interrupted,
        # the mark is taken back like what a write has left.
        return self._writer.run(self._marked_samples, batch_inds, env)

    def _marked_samples(self, batch_inds: AnyArray, env: VecNormalize | None) -> Any:
        undo = Undo()
        undo.keep(self.pos - 1, self.timeouts)
        self._writer.steps.append(undo)
        return super()._get_samples(batch_inds, env)
