"""Frame stacking by index for vector environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import logger
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Dict
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from compressarray import DiffFrameArray
from wrappers import _indexed


class IndexedFrameStack(VectorWrapper, RecordConstructorArgs):
    """Stack each lane's last frames as frame indices; the pixels are stored once, compressed.

    The vector twin of ``wrappers.IndexedFrameStack``, applied outside the vector environment (in
    its workers the learner could not read the frames). ``envs.frames.gather(obs)`` is bit for bit
    what ``gymnasium.wrappers.FrameStackObservation`` inside each sub-environment would have given.
    What this wrapper emits is an ``int64`` array of shape ``(num_envs, stack_size)``, oldest frame
    first, a fresh one every step.

    Parameters
    ----------
    env : gymnasium.vector.VectorEnv
        Its single observations are a Box of any shape and dtype, a Discrete, or a Dict of which
        `key` names one such entry.
    stack_size : int
        Frames in a stack.
    capacity : int
        Frames kept per lane. An episode that ends costs a lane two frames in one SAME_STEP step,
        so 2 * T + stack_size always holds the last T steps. At least `stack_size`, under SAME_STEP
        one more: there ``final_obs`` is emitted beside the next episode's first frame.
    padding_type : {"reset", "zero"} or frame
        What stands before the first frame of an episode: that frame repeated, the frame of the
        observation space that is closest to zero, or the given one. Padding frames are stored once
        and never evicted, under indices at the top of int64. ALE's own stacks are padded by "zero".
    codec : str, dict or numcodecs codec
        How :attr:`frames` stores frames, see ``DiffFrameArray``.
    gop_length : int, optional
        Frames per group of pictures, see ``DiffFrameArray``.
    key : str, optional
        Of a Dict observation, the entry to store and stack. The observation stays a Dict whose
        `key` holds the indices; every other entry passes through as the environment gave it, not
        stacked.
    squeeze : bool
        Leave out a frame's axes of length 1: what ALE's vector environment gives as ``(1, 84, 84)``
        under ``stack_num=1`` is stored and gathered as ``(84, 84)``, so that stacks have the shape
        of ALE's own.

    Attributes
    ----------
    frames : DiffFrameArray
        Of shape ``(capacity, num_envs, *frame_shape)``.

    Raises
    ------
    TypeError, ValueError
        If the observation space, the environment or an argument does not fit; the message says
        what does.

    Notes
    -----
    **Autoreset.** All three modes are followed. NEXT_STEP: the step after an episode's end starts a
    new stack. SAME_STEP: the frames of ``info["final_obs"]`` are stored too, and its entries become
    stacks of indices, in the form they came in: Gymnasium's object array keeps its
    ``_final_obs`` mask and its None; a dense array without a mask, as ALE's vector environment
    gives it, becomes a dense ``(num_envs, stack_size)`` array, in which the rows of lanes that go
    on repeat the observation (ALE leaves garbage there). DISABLED: only ``reset`` starts a stack.
    The mode is the one that the vector environment itself names, else that of its metadata.

    **Resets.** ``reset(seed=...)`` begins a new stream: numbering restarts, older frames are
    forgotten and ``frames.stream`` changes. A reset without a seed goes on counting, and so does
    any reset with ``options["reset_mask"]``, seeded or not, since the other lanes' frames must
    stay; it stores one frame in the lanes of the mask, while the others keep their stack and store
    nothing.

    **Life losses.** Gymnasium's vector environments reset every lane that terminates or truncates.
    ALE's does not: with ``life_loss_info=True`` a lost life sets ``terminated`` and the game goes
    on. There an ended lane starts a new stack only if its game really started anew, which is when
    ``info["frame_number"] - info["episode_frame_number"]``, the frame on which the episode began,
    has changed. (A falling ``episode_frame_number`` alone would miss an episode that was shorter
    than the no-ops after it.) The stack runs on through a lost life, as ALE's own does, and its
    row of ``final_obs`` equals the observation.

    **Cost.** One append a step, a second one where an episode ended in SAME_STEP.

    Examples
    --------
    >>> import gymnasium as gym
    >>> from wrappers.vector import IndexedFrameStack
    >>> envs = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    >>> envs = IndexedFrameStack(envs, stack_size=3, capacity=1000, padding_type="zero")
    >>> obs, _ = envs.reset(seed=123)
    >>> obs[:, -1]
    array([0, 1])
    >>> envs.frames.gather(obs).shape
    (2, 3, 4)
    >>> envs.close()
    """

    frames: DiffFrameArray

    def __init__(
        self,
        env: VectorEnv,
        stack_size: int = 4,
        capacity: int = _indexed.DEFAULT_CAPACITY,
        padding_type: Any = "reset",
        *,
        codec: Any = "delta",
        gop_length: int | None = None,
        key: str | None = None,
        squeeze: bool = False,
    ) -> None:
        recorded = _indexed.recorded_arguments(
            stack_size=stack_size,
            capacity=capacity,
            padding_type=padding_type,
            codec=codec,
            gop_length=gop_length,
            key=key,
            squeeze=squeeze,
        )
        RecordConstructorArgs.__init__(self, **recorded)
        if isinstance(env, gym.Env):  # type: ignore[unreachable]
            raise TypeError(
                f"{env} is a single environment; use wrappers.IndexedFrameStack for it."
            )
        VectorWrapper.__init__(self, env)

        space = _indexed.frame_space(env.single_observation_space, key)
        batched = env.observation_space if key is None else env.observation_space[key]  # type: ignore[index]
        shape = _indexed.frame_shape(space, squeeze=False)
        if batched.shape != (env.num_envs, *shape):
            raise ValueError(
                f"The observation space {batched} must hold a frame of shape {shape} for each of "
                f"the {env.num_envs} lanes; an environment that steps a part of its lanes at a "
                "time (batch_size < num_envs) is not supported."
            )
        shape = _indexed.frame_shape(space, squeeze)
        self.autoreset_mode = _autoreset_mode(env)
        self.stack_size = _indexed.check_stack_size(stack_size)
        self.padding_type = padding_type if isinstance(padding_type, str) else "custom"
        self.key = key
        _indexed.padding_frame(padding_type, space)  # refuse a wrong one before storage exists
        least, why = self.stack_size, f"a stack holds stack_size={self.stack_size} frames"
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            least += 1
            why += ", and SAME_STEP emits final_obs beside the next episode's first frame"
        capacity = _indexed.check_capacity(capacity, least, why)
        self.frames = DiffFrameArray(
            (capacity, env.num_envs, *shape),
            space.dtype,
            frame_ndim=len(shape),
            codec=codec,
            stack_axis=None,
            gop_length=gop_length,
        )
        self._padding = _indexed.padding_indices(self.frames, padding_type, space, batched)

        indices = _indexed.index_space(self.stack_size)
        batched_indices = batch_space(indices, env.num_envs)
        single, whole = env.single_observation_space, env.observation_space
        if key is None:
            self.single_observation_space = indices
            self.observation_space = batched_indices
        else:
            assert isinstance(single, Dict)
            assert isinstance(whole, Dict)
            self.single_observation_space = _indexed.with_entry(single, key, indices)
            self.observation_space = _indexed.with_entry(whole, key, batched_indices)
        self._dtype = np.dtype(space.dtype)
        self._squeezed = shape if squeeze else None
        self._stacks: NDArray[np.int64] | None = None
        self._goes_on = False  # the next reset, seeded or not, in the stream that there is
        # Lanes that NEXT_STEP may reset in the coming step.
        self._ended = np.zeros(env.num_envs, np.bool_)
        self._life_loss_possible = _is_ale(env.unwrapped)
        self._episode_starts = np.zeros(env.num_envs, np.int64)

    def go_on_from(self, frames: DiffFrameArray) -> None:
        """Store into frames that were saved, from the next reset on, instead of :attr:`frames`.

        For training that goes on with a `ReplayBuffer` that was loaded: ``envs.go_on_from(
        buffer.frames)``. The first reset after it goes on counting, whether it has a seed or not.

        Parameters
        ----------
        frames : DiffFrameArray
            Of the same frames and lanes; kept, not copied. Its codec and capacity stay its own.

        Raises
        ------
        TypeError, ValueError
            If it is not such an array; the wrapper is then as before.
        """
        least = self.stack_size + (self.autoreset_mode is AutoresetMode.SAME_STEP)
        self.frames, self._padding = _indexed.taken_over(frames, self.frames, self._padding, least)
        self._stacks = None
        self._goes_on = True

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | NDArray[Any] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all lanes, or those of ``options["reset_mask"]``, and emit padded stacks."""
        # Read before the reset: Gymnasium's vector environments pop it from `options`.
        mask = None if options is None else options.get("reset_mask")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        frames = self._frames_of(observations)
        if mask is None:
            if _is_seeded(seed) and not self._goes_on:
                self.frames.clear()
            mask = np.ones(self.num_envs, np.bool_)
            self._stacks = np.empty((self.num_envs, self.stack_size), np.int64)
            self._stacks[:, -1] = self.frames.append(frames)
        else:
            mask = np.asarray(mask, np.bool_)
            if self._stacks is None:
                if not mask.all():
                    raise ResetNeeded(
                        "IndexedFrameStack: the first reset must reset every lane, but "
                        f"reset_mask={mask}."
                    )
                self._stacks = np.empty((self.num_envs, self.stack_size), np.int64)
            lanes = np.flatnonzero(mask)
            if lanes.size:
                self._stacks[lanes, -1] = self.frames.append(frames[lanes], lanes=lanes)
        self._goes_on = False
        self._ended[mask] = False
        self._pad(self._stacks, mask)
        if self._life_loss_possible:
            self._episode_starts = _episode_starts(infos)
        return self._emit(observations, self._stacks), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all lanes, store their new frames and emit the stacks that end with them."""
        stacks = self._stacks
        if stacks is None:
            raise ResetNeeded("IndexedFrameStack.step was called before reset.")
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = np.logical_or(terminations, truncations)
        restarted: NDArray[np.bool_] | None = None
        final: tuple[NDArray[np.intp], NDArray[np.int64]] | None = None
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            if self._ended.any():
                restarted = self._restarted(self._ended, infos)
            self._ended = ended
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            restarted = self._restarted(ended, infos)
            if "final_obs" in infos:
                final = self._store_final(stacks, infos, restarted)

        indices = self.frames.append(self._frames_of(observations))
        stacks[:, :-1] = stacks[:, 1:]
        stacks[:, -1] = indices
        if restarted is not None:
            self._pad(stacks, restarted)
            if final is not None:
                infos = {**infos, "final_obs": self._final_obs(infos["final_obs"], stacks, *final)}
        return self._emit(observations, stacks), rewards, terminations, truncations, infos

    def _frames_of(self, observations: Any) -> NDArray[Any]:
        return self._as_frames(observations if self.key is None else observations[self.key])

    def _as_frames(self, batch: Any) -> NDArray[Any]:
        frames = _indexed.as_frames(batch, self._dtype)
        if self._squeezed is None:
            return frames
        return frames.reshape((len(frames), *self._squeezed))

    def _emit(self, observations: Any, stacks: NDArray[np.int64]) -> Any:
        return stacks.copy() if self.key is None else {**observations, self.key: stacks.copy()}

    def _pad(self, stacks: NDArray[np.int64], lanes: NDArray[np.bool_]) -> None:
        """Put padding before the newest frame of each of `lanes`."""
        padding = stacks[:, -1] if self._padding is None else self._padding
        stacks[lanes, :-1] = padding[lanes, None]

    def _restarted(self, ended: NDArray[np.bool_], infos: dict[str, Any]) -> NDArray[np.bool_]:
        """Those of the `ended` lanes whose environment was reset."""
        if not self._life_loss_possible:
            return ended
        starts = _episode_starts(infos)
        restarted: NDArray[np.bool_] = ended & (starts != self._episode_starts)
        self._episode_starts = starts
        return restarted

    def _store_final(
        self, stacks: NDArray[np.int64], infos: dict[str, Any], restarted: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Store the last frames of the episodes that ended; return their lanes and stacks."""
        final_obs = infos["final_obs"]
        lanes = np.flatnonzero(infos.get("_final_obs", restarted))
        if _is_object_array(final_obs):
            entries = [final_obs[lane] for lane in lanes]
            if self.key is not None:
                entries = [entry[self.key] for entry in entries]
            frames = np.stack(entries) if entries else None
        else:
            frames = (final_obs if self.key is None else final_obs[self.key])[lanes]
        final_stacks = np.empty((lanes.size, self.stack_size), np.int64)
        if lanes.size:
            final_stacks[:, :-1] = stacks[lanes, 1:]
            final_stacks[:, -1] = self.frames.append(self._as_frames(frames), lanes=lanes)
        return lanes, final_stacks

    def _final_obs(
        self,
        final_obs: Any,
        stacks: NDArray[np.int64],
        lanes: NDArray[np.intp],
        final_stacks: NDArray[np.int64],
    ) -> Any:
        """`final_obs` in the form it came in, with stacks of indices for frames."""
        if _is_object_array(final_obs):
            replaced = final_obs.copy()
            for lane, stack in zip(lanes, final_stacks, strict=True):
                entry = stack.copy()
                replaced[lane] = entry if self.key is None else {**final_obs[lane], self.key: entry}
            return replaced
        dense = stacks.copy()
        dense[lanes] = final_stacks
        return dense if self.key is None else {**final_obs, self.key: dense}


def _autoreset_mode(env: VectorEnv) -> AutoresetMode:
    # The environment's own attribute comes first: ALE's writes its mode into a metadata dict that
    # all its instances share, where the latest one built wins.
    mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
    if mode is None:
        logger.warn(
            "%s does not say its autoreset mode (metadata['autoreset_mode']); assuming NEXT_STEP.",
            env,
        )
        return AutoresetMode.NEXT_STEP
    return AutoresetMode(mode)


def _is_ale(env: VectorEnv) -> bool:
    return any(cls.__module__.partition(".")[0] == "ale_py" for cls in type(env).__mro__)


def _is_seeded(seed: int | Sequence[int | None] | NDArray[Any] | None) -> bool:
    if isinstance(seed, (Sequence, np.ndarray)):
        return any(lane_seed is not None for lane_seed in seed)
    return seed is not None


def _is_object_array(final_obs: Any) -> bool:
    return isinstance(final_obs, np.ndarray) and final_obs.dtype == object


def _episode_starts(infos: Mapping[str, Any]) -> NDArray[np.int64]:
    """Return the emulator frame on which each lane's episode began; only a reset changes it."""
    starts: NDArray[np.int64] = np.subtract(
        infos["frame_number"], infos["episode_frame_number"], dtype=np.int64
    )
    return starts
