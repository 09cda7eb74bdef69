"""Playing without learning: how good a model is, and buffers that it fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
    VecTransposeImage,
)

from compressarray.sb3.recording import VecRecorder

_WARM_UP_PART = 0.9  # of a buffer, as in sb3-extra-buffers' `warm_up`
_EPISODES_TO_MEASURE = 2  # of each environment, where nobody says how long they are


@dataclass(frozen=True)
class Evaluation:
    """What a model has reached in some episodes.

    Attributes
    ----------
    returns : ndarray, (n_episodes,) float64
    lengths : ndarray, (n_episodes,) int64
        Steps of the environment.
    seconds_adding : tuple of float
        That each of the buffers has taken.
    """

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    seconds_adding: tuple[float, ...] = field(default=())

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns, of the population."""
        return float(self.returns.std())

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the returns."""
        first, second, third = np.quantile(self.returns, [0.25, 0.5, 0.75]).tolist()
        return first, second, third

    @property
    def relative_iqr(self) -> float:
        """Third quartile less first, over the median's size; NaN where that is 0."""
        first, second, third = self.quartiles
        return (third - first) / abs(second) if second else float("nan")

    def __str__(self) -> str:
        first, second, third = self.quartiles
        return (
            f"{len(self.returns)} episodes, mean return {self.mean:.1f} +/- {self.std:.2f}, "
            f"quartiles {first:g}, {second:g}, {third:g}, relative IQR {self.relative_iqr:.2f}, "
            f"least {self.returns.min():g}, most {self.returns.max():g}"
        )


def evaluate(
    model: Any,
    env: VecEnv,
    n_episodes: int = 100,
    *,
    buffers: Sequence[Any] | Any = (),
    deterministic: bool = True,
) -> Evaluation:
    """Let a model play, and fill buffers meanwhile.

    Parameters
    ----------
    model : BaseAlgorithm or BasePolicy
        Whatever has ``predict``.
    env : VecEnv
        With a `Monitor` in each environment (`make_env` has), whole games are counted where lost
        lives end episodes. It stays open.
    n_episodes : int
        Shared out to the environments beforehand, so that short episodes don't count more often
        than long ones.
    buffers : buffer or sequence of buffers
        Records, or replay buffers, of ``model.observation_space`` and of as many environments as
        `env` has. They are given all steps: those, too, that environments make while others still
        play.
    deterministic : bool

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If the model is of another space, or a buffer of another number of environments.
    TypeError
        If a buffer is none that steps alone can fill.
    """
    many = list(buffers) if isinstance(buffers, (list, tuple)) else [buffers]
    env = _as_seen_by(model, env)
    for each in many:
        _refuse_rollouts(each)
    if n_episodes < 1:
        raise ValueError(f"n_episodes={n_episodes} must be at least 1")
    recorder = VecRecorder(env, many, _scaling_of(model))
    returns, lengths = evaluate_policy(
        model,
        recorder,
        n_episodes,
        deterministic=deterministic,
        return_episode_rewards=True,
        warn=False,
    )
    return Evaluation(
        np.array(returns, np.float64), np.array(lengths, np.int64), tuple(recorder.seconds)
    )


def evaluate_saved(
    algorithm: Any,
    folder: str | Path,
    env: VecEnv,
    n_episodes: int = 100,
    *,
    names: Sequence[str] = ("best_model", "final_model"),
    device: Any = "auto",
) -> dict[str, Evaluation]:
    """Evaluate models that a training has saved, such as its best one and its last one.

    Parameters
    ----------
    algorithm : type
        The class that loads them, such as `stable_baselines3.DQN`.
    folder : str or Path
        Where ``<name>.zip`` are.
    env, n_episodes
        As for `evaluate`.
    names : sequence of str
    device : str or torch.device

    Returns
    -------
    dict of str to Evaluation

    Raises
    ------
    FileNotFoundError
        If one of them is not there; before any of them plays.
    """
    paths = {name: Path(folder) / f"{name}.zip" for name in names}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"there is no model {str(path)!r}")
    return {
        name: evaluate(algorithm.load(path, device=device), env, n_episodes)
        for name, path in paths.items()
    }


def warm_up(
    buffer: Any,
    model: Any,
    env: VecEnv,
    n_episodes: int | None = None,
    *,
    mean_ep_len: float | None = None,
    deterministic: bool = True,
) -> Evaluation:
    """Fill a replay buffer by a policy before training begins.

    Parameters
    ----------
    buffer : ReplayBuffer or record
        Of as many environments as `env` has, or of a part of that number: then `env`'s are its
        own, one part after the other, in each step.
    model : BaseAlgorithm or BasePolicy
    env : VecEnv
    n_episodes : int, optional
        Left out, what fills nine tenths of the buffer.
    mean_ep_len : float, optional
        Steps of an episode, for that; left out, it is measured, and what was played for it is in
        the buffer, too.
    deterministic : bool

    Returns
    -------
    Evaluation
        What the policy has reached.

    Raises
    ------
    ValueError
        If the environments are no multiple of the buffer's, or the model is of another space.
    TypeError
        If it is a rollout buffer.
    """
    _refuse_rollouts(buffer)
    filled = _in_parts(buffer, env.num_envs)
    play: Callable[[int], Evaluation] = lambda n: evaluate(  # noqa: E731
        model, env, n, buffers=filled, deterministic=deterministic
    )
    if n_episodes is not None:
        return play(n_episodes)
    first = None
    if mean_ep_len is None:
        first = play(_EPISODES_TO_MEASURE * env.num_envs)
        mean_ep_len = float(first.lengths.mean())
    wanted = round(_capacity_of(buffer) * _WARM_UP_PART / mean_ep_len)
    left = wanted - (0 if first is None else len(first.returns))
    if first is not None and left < 1:
        return first
    rest = play(max(left, 1))
    if first is None:
        return rest
    return Evaluation(
        np.concatenate([first.returns, rest.returns]),
        np.concatenate([first.lengths, rest.lengths]),
        tuple(a + b for a, b in zip(first.seconds_adding, rest.seconds_adding, strict=True)),
    )


def make_env(
    env_id: str,
    n_envs: int,
    vec_env_cls: Any = SubprocVecEnv,
    framestack: int = 4,
    seed: int | None = None,
    **env_kwargs: Any,
) -> VecEnv:
    """Make Atari environments as Stable-Baselines3's own examples do; needs OpenCV and ale-py.

    Parameters
    ----------
    env_id : str
        Such as ``"PongNoFrameskip-v4"``.
    n_envs : int
        One is made in this process, whatever the class.
    vec_env_cls : type of VecEnv
    framestack : int
        Frames of an observation; 1 for no stack.
    seed : int, optional
    **env_kwargs
        Of the environment.

    Returns
    -------
    VecEnv
        Observations are ``(framestack, 84, 84)`` uint8.
    """
    env = make_atari_env(
        partial(_make_atari, env_id),
        n_envs,
        seed,
        env_kwargs=env_kwargs or None,
        vec_env_cls=DummyVecEnv if n_envs == 1 else vec_env_cls,
    )
    if framestack > 1:
        env = VecFrameStack(env, framestack)
    return VecTransposeImage(env)


def _make_atari(env_id: str, **arguments: Any) -> gymnasium.Env[Any, Any]:
    """Make an environment in whatever process it shall run."""
    import ale_py

    gymnasium.register_envs(ale_py)
    return gymnasium.make(env_id, **arguments)


class _Parts:
    """Gives a buffer the steps of more environments than it has, a part after the other."""

    def __init__(self, buffer: Any, n_envs: int) -> None:
        self._buffer = buffer
        self.n_envs = n_envs

    def add(
        self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: Any,
    ) -> None:  # fmt: skip
        step = self._buffer.n_envs
        for start in range(0, self.n_envs, step):
            part = slice(start, start + step)
            cut = (_rows(each, part) for each in (obs, next_obs, action, reward, done))
            self._buffer.add(*cut, infos[part])


def _rows(values: Any, part: slice) -> Any:
    if isinstance(values, dict):
        return {key: each[part] for key, each in values.items()}
    return values[part]


def _in_parts(buffer: Any, n_envs: int) -> Any:
    inner = getattr(buffer, "buffer", buffer)
    own = getattr(inner, "n_envs", n_envs)
    if own == n_envs:
        return buffer
    is_apart = isinstance(buffer, ReplayBuffer) and not isinstance(buffer, NStepReplayBuffer)
    if n_envs % own or not is_apart:
        wanted = f"{own} or a multiple of that" if is_apart else f"{own}"
        raise ValueError(
            f"{n_envs} environments are to fill a {type(buffer).__name__} of {own}; there must be "
            f"{wanted}"
        )
    return _Parts(buffer, n_envs)


def _capacity_of(buffer: Any) -> int:
    if isinstance(buffer, ReplayBuffer):
        return int(buffer.buffer_size * buffer.n_envs)
    inner = getattr(buffer, "buffer", None)
    if inner is None:
        raise TypeError(f"a {type(buffer).__name__} is never full: say n_episodes")
    return int(inner.capacity)


def _refuse_rollouts(buffer: Any) -> None:
    if isinstance(buffer, RolloutBuffer) or not hasattr(buffer, "add"):
        raise TypeError(
            f"a {type(buffer).__name__} cannot be filled by playing; it takes a replay buffer or a "
            "record (a rollout needs values of the policy that learns)"
        )


def _as_seen_by(model: Any, env: VecEnv) -> VecEnv:
    """The environment in the model's layout of images, which Stable-Baselines3 may have changed."""
    seen: Any = getattr(model, "observation_space", None)
    if seen is None:
        return env
    if seen != env.observation_space and is_image_space(env.observation_space):
        transposed = VecTransposeImage(env)
        if transposed.observation_space == seen:
            return transposed
    check_for_correct_spaces(env, seen, model.action_space)
    return env


def _scaling_of(model: Any) -> Any:
    if isinstance(model, OffPolicyAlgorithm) and isinstance(model.action_space, spaces.Box):
        return model.policy.scale_action
    return None
