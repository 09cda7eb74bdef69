"""Environments that the tests of the wrappers share."""

from __future__ import annotations

import re
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import TransformObservation

gym.register_envs(ale_py)

# Discrete observations. CliffWalking was v0 in older versions of Gymnasium.
GRID_WORLDS = ["FrozenLake-v1", max(filter(re.compile("CliffWalking-v").match, gym.registry))]


class EpisodicLife(gym.Wrapper):
    """End the episode at a lost life and play on at reset, as CleanRL and Stable-Baselines3 do."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.lives = 0
        self.game_over = True

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        if self.game_over or kwargs.get("seed") is not None:
            observation, info = self.env.reset(**kwargs)
            self.game_over = False
        else:
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(**kwargs)
        self.lives = info["lives"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.game_over = terminated or truncated
        terminated = terminated or info["lives"] < self.lives
        self.lives = info["lives"]
        return observation, reward, terminated, truncated, info


def atari(
    game: str = "Breakout",
    *,
    time_limit: int | None = None,
    episodic_life: bool = False,
    rgb: bool = False,
) -> gym.Env:
    """Build a real game, its screen thinned to 42x40 so that comparing thousands is quick."""
    env = gym.make(
        f"ALE/{game}-v5",
        obs_type="rgb" if rgb else "grayscale",
        max_episode_steps=time_limit,
        disable_env_checker=True,
    )
    if episodic_life:
        env = EpisodicLife(env)
    shape = (42, 40, 3) if rgb else (42, 40)
    space = Box(0, 255, shape, np.uint8)
    return TransformObservation(env, lambda screen: screen[::5, ::4].copy(), space)


class Frames(VectorWrapper):
    """Keeps what the environment gave, beneath the wrapper that makes indices of it."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.shown: Any = None
        self.infos: Any = None

    def reset(self, **kwargs: Any) -> Any:
        self.shown, self.infos = self.env.reset(**kwargs)
        return self.shown, self.infos

    def step(self, actions: Any) -> Any:
        self.shown, *outcome, self.infos = self.env.step(actions)
        return self.shown, *outcome, self.infos


class Play(gym.Wrapper):
    """Keeps all that the environment answers, for :class:`Replay` to answer again."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.answers: list[tuple[Any, ...]] = []

    def reset(self, **kwargs: Any) -> Any:
        self.answers.append(self.env.reset(**kwargs))
        return self.answers[-1]

    def step(self, action: Any) -> Any:
        self.answers.append(self.env.step(action))
        return self.answers[-1]


class Replay(gym.Env):
    """A game that was played, once more from memory.

    An emulator takes a tenth of a second to start, so a game is played once for all the wrappers
    that are to see it. They must call it as it was called then.
    """

    def __init__(self, play: Play) -> None:
        self.observation_space = play.observation_space
        self.action_space = play.action_space
        self.answers = iter(play.answers)

    def _answer(self) -> tuple[Any, ...]:
        observation, *outcome, info = next(self.answers)
        return observation.copy(), *outcome, dict(info)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self._answer()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._answer()
        return observation, reward, terminated, truncated, info


class Ramp(gym.Env):
    """Count up from `start` by halves, in a Box of any bounds, for `length` steps."""

    def __init__(self, low: Any, high: Any, start: float = 0.0, length: int = 5) -> None:
        bounds = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.observation_space = Box(*bounds, dtype=np.float32)
        self.action_space = Discrete(2)
        self.start, self.length, self.steps = start, length, 0

    def _observation(self) -> np.ndarray:
        shape = self.observation_space.shape
        return np.full(shape, self.start + self.steps / 2, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 0.0, self.steps >= self.length, False, {}


def ramp_dict(length: int) -> gym.Env:
    """Build an environment whose observation is a Dict of an image and of what is no image."""
    image = Box(0, 255, (6, 5), np.uint8)
    row = Box(0, 255, (5,), np.float32)
    return TransformObservation(
        Ramp(np.zeros(5), np.full(5, 99.0), length=length),
        lambda obs: {"row": obs, "image": np.tile(2 * obs, (6, 1)).astype(np.uint8), "step": 7},
        Dict({"row": row, "image": image, "step": Discrete(9)}),
    )
