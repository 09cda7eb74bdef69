"""Frame stacking by index for single environments."""

from __future__ import annotations

import os
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Dict
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from compressarray import DiffFrameArray
from wrappers import _indexed


class IndexedFrameStack(gym.Wrapper, RecordConstructorArgs):
    """Stack the last frames as frame indices; the pixels are stored once, compressed.

    Stands where ``gymnasium.wrappers.FrameStackObservation`` would: ``env.frames.gather(obs)`` is
    bit for bit the stack that it would have given. Each observation of the wrapped environment is
    one frame, stored in :attr:`frames`; what this wrapper emits is an ``int64`` array of shape
    ``(stack_size,)``, oldest frame first, a fresh one every step.

    Parameters
    ----------
    env : gymnasium.Env
        Its observations are a Box of any shape and dtype, a Discrete, or a Dict of which `key`
        names one such entry.
    stack_size : int
        Frames in a stack.
    capacity : int
        Frames kept, at least `stack_size`. The newest ones stay readable, older ones raise
        ``FrameEvictedError``. An episode of n steps stores n + 1 frames, so 2 * T + stack_size
        always holds the last T steps.
    padding_type : {"reset", "zero"} or frame
        What stands before the first frame of an episode: that frame repeated, the frame of the
        observation space that is closest to zero, or the given one. Padding frames are stored once
        and never evicted, under indices at the top of int64.
    codec : str, dict or numcodecs codec
        How :attr:`frames` stores frames, see ``DiffFrameArray``.
    gop_length : int, optional
        Frames per group of pictures, see ``DiffFrameArray``.
    key : str, optional
        Of a Dict observation, the entry to store and stack. The observation stays a Dict whose
        `key` holds the indices; every other entry passes through as the environment gave it, not
        stacked.
    squeeze : bool
        Leave out a frame's axes of length 1: what the environment gives as ``(84, 84, 1)`` is
        stored and gathered as ``(84, 84)``.

    Attributes
    ----------
    frames : DiffFrameArray
        Of shape ``(capacity, *frame_shape)``. Also found through outer wrappers, by
        ``env.get_wrapper_attr("frames")``.

    Raises
    ------
    TypeError, ValueError
        If the observation space or an argument does not fit; the message says what does.
    RuntimeError
        By ``reset`` in a worker process of a vector environment (Gymnasium's ``AsyncVectorEnv``,
        Stable-Baselines3's ``SubprocVecEnv``), whose frames the learner could not read. Apply
        ``wrappers.vector.IndexedFrameStack`` to the vector environment instead.

    Notes
    -----
    ``reset(seed=...)`` begins a new stream: numbering restarts at 0, older frames are forgotten
    and ``frames.stream`` changes, so that equal seeds give equal observations. ``reset()`` goes on
    counting.

    A wrapper that resets by itself has to be outside for its resets to be seen, just as with
    ``FrameStackObservation``.

    Examples
    --------
    >>> import gymnasium as gym
    >>> from wrappers import IndexedFrameStack
    >>> env = IndexedFrameStack(gym.make("CartPole-v1"), stack_size=3, capacity=1000)
    >>> obs, _ = env.reset(seed=123)
    >>> obs
    array([0, 0, 0])
    >>> obs, *_ = env.step(1)
    >>> obs
    array([0, 0, 1])
    >>> env.frames.gather(obs).shape
    (3, 4)
    """

    frames: DiffFrameArray

    def __init__(
        self,
        env: gym.Env,
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
        if isinstance(env, VectorEnv):  # type: ignore[unreachable]
            raise TypeError(
                f"{env} is a vector environment; use wrappers.vector.IndexedFrameStack for it."
            )
        gym.Wrapper.__init__(self, env)

        space = _indexed.frame_space(env.observation_space, key)
        shape = _indexed.frame_shape(space, squeeze)
        self.stack_size = _indexed.check_stack_size(stack_size)
        self.padding_type = padding_type if isinstance(padding_type, str) else "custom"
        self.key = key
        _indexed.padding_frame(padding_type, space)  # refuse a wrong one before storage exists
        capacity = _indexed.check_capacity(
            capacity, self.stack_size, f"a stack holds stack_size={self.stack_size} frames"
        )
        self.frames = DiffFrameArray(
            (capacity, *shape),
            space.dtype,
            frame_ndim=len(shape),
            codec=codec,
            stack_axis=None,
            gop_length=gop_length,
        )
        self._padding = _indexed.padding_indices(self.frames, padding_type, space)

        indices = _indexed.index_space(self.stack_size)
        if key is None:
            self.observation_space = indices
        else:
            assert isinstance(env.observation_space, Dict)
            self.observation_space = _indexed.with_entry(env.observation_space, key, indices)
        self._dtype = np.dtype(space.dtype)
        self._squeezed = shape if squeeze else None
        self._stack: NDArray[np.int64] | None = None
        self._goes_on = False  # the next reset, seeded or not, in the stream that there is
        self._checked_process: int | None = None

    def go_on_from(self, frames: DiffFrameArray) -> None:
        """Store into frames that were saved, from the next reset on, instead of :attr:`frames`.

        For training that goes on with a `ReplayBuffer` that was loaded: ``env.go_on_from(
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
        self.frames, self._padding = _indexed.taken_over(
            frames, self.frames, self._padding, self.stack_size
        )
        self._stack = None
        self._goes_on = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, store its first frame and emit a padded stack."""
        if self._checked_process != os.getpid():
            _indexed.refuse_worker_process(type(self).__name__)
            self._checked_process = os.getpid()
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None and not self._goes_on:
            self.frames.clear()
        self._goes_on = False
        index = self._store(observation)
        stack = np.empty(self.stack_size, np.int64)
        stack[:-1] = index if self._padding is None else self._padding
        stack[-1] = index
        self._stack = stack
        return self._emit(observation, stack), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment, store the new frame and emit the stack that ends with it."""
        stack = self._stack
        if stack is None:
            raise ResetNeeded("IndexedFrameStack.step was called before reset.")
        observation, reward, terminated, truncated, info = self.env.step(action)
        index = self._store(observation)
        stack[:-1] = stack[1:]
        stack[-1] = index
        return self._emit(observation, stack), reward, terminated, truncated, info

    def _store(self, observation: Any) -> NDArray[np.int64]:
        frame = observation if self.key is None else observation[self.key]
        frame = _indexed.as_frames(frame, self._dtype)
        return self.frames.append(
            frame if self._squeezed is None else frame.reshape(self._squeezed)
        )

    def _emit(self, observation: Any, stack: NDArray[np.int64]) -> Any:
        return stack.copy() if self.key is None else {**observation, self.key: stack.copy()}
