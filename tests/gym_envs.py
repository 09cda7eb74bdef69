"""Environments that the tests of the wrappers share."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import TransformObservation

gym.register_envs(ale_py)

# Discrete observations. CliffWalking was v0 in older versions of Gymnasium.
GRID_WORLDS = ["FrozenLake-v1", max(name for name in gym.registry if "CliffWalking-v" in name)]


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


def atari_dict(**kwargs: Any) -> gym.Env:
    """Build a game whose observation is a Dict of its image and of what is no image."""
    env = atari(**kwargs)
    image = env.observation_space
    assert isinstance(image, Box)
    space = Dict({"mean": Box(0, 255, (1,), np.float32), "image": image, "row": image_row(image)})
    return TransformObservation(
        env,
        lambda screen: {
            "mean": np.array([screen.mean()], np.float32),
            "image": screen,
            "row": screen[20].copy(),
        },
        space,
    )


def image_row(image: Box) -> Box:
    """Return the space of one row of an image."""
    return Box(0, 255, image.shape[1:], np.uint8)


class Ramp(gym.Env):
    """Count up from `start` by halves, in a Box of any bounds, for `length` steps."""

    def __init__(self, low: Any, high: Any, start: float = 0.0, length: int = 5) -> None:
        bounds = np.asarray(low, np.float32), np.asarray(high, np.float32)
        self.observation_space = Box(*bounds, dtype=np.float32)
        self.action_space = gym.spaces.Discrete(2)
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
