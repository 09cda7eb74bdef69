"""A tiny environment of pixels, and observations drawn as Stable-Baselines3 would hand them on."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SIDE = 36  # the smallest that NatureCNN takes


class Dot(gymnasium.Env[Any, Any]):
    """A dot that wanders over noise that never changes; episodes end, or are cut off."""

    def __init__(self, continuous: bool = False, as_dict: bool = False, channels: int = 1) -> None:
        pixels = spaces.Box(0, 255, (SIDE, SIDE, channels), np.uint8)
        self.as_dict = as_dict
        self.observation_space: Any = pixels
        if as_dict:
            vector = spaces.Box(-10, 10, (3,), np.float32)
            self.observation_space = spaces.Dict({"pixels": pixels, "place": vector})
        self.action_space: Any = spaces.Box(-1, 1, (2,), np.float32)
        if not continuous:
            self.action_space = spaces.Discrete(4)
        self.channels = channels
        self.ground = np.random.default_rng(5).integers(0, 99, (SIDE, SIDE, channels), np.uint8)

    def _look(self) -> Any:
        pixels = self.ground.copy()
        y, x = self.at
        pixels[y : y + 3, x : x + 3] = 255
        pixels[0, 0] = self.t
        place = np.array([y, x, self.t], np.float32) / 7
        return {"pixels": pixels, "place": place} if self.as_dict else pixels

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.at = self.np_random.integers(0, SIDE - 3, 2)
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        step = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        move = np.rint(action) if np.ndim(action) else step[int(action)]
        self.at = np.clip(self.at + np.asarray(move, int), 0, SIDE - 3)
        terminated = bool(self.np_random.random() < 0.05)
        return self._look(), float(self.at.sum()) / 50, terminated, self.t >= 23, {}


class Reach(Dot):
    """A dot that has to be where another one is; both are images, and goals."""

    def __init__(self) -> None:
        super().__init__(continuous=True)
        pixels = self.observation_space
        self.observation_space = spaces.Dict(
            {"observation": pixels, "achieved_goal": pixels, "desired_goal": pixels}
        )

    def _where(self, at: Any) -> Any:
        goal = np.zeros((SIDE, SIDE, 1), np.uint8)
        y, x = np.asarray(at) // 6 * 6
        goal[y : y + 6, x : x + 6] = 255
        return goal

    def _look(self) -> Any:
        achieved, desired = self._where(self.at), self._where(self.goal)
        return {
            "observation": super()._look(), "achieved_goal": achieved, "desired_goal": desired
        }  # fmt: skip

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.goal = np.array([9, 9])
        _, infos = super().reset(seed=seed)
        self.goal = self.np_random.integers(0, SIDE - 3, 2)
        return self._look(), infos

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, _, truncated, infos = super().step(np.asarray(action) * 3)
        infos["far"] = float(np.abs(self.at - self.goal).sum())
        reward = self.compute_reward(obs["achieved_goal"][None], obs["desired_goal"][None], [infos])
        return obs, float(reward[0]), bool(reward[0] == 0), truncated, infos

    def compute_reward(self, achieved: Any, desired: Any, infos: Any) -> Any:
        """-1 where it has not come to the goal, and something for what infos say."""
        differs = np.asarray(achieved) != desired
        away = differs.any(tuple(range(1, differs.ndim)))
        far = np.array([each.get("far", 0) for each in infos])
        return -away.astype(np.float64) - np.where(away, far / 64, 0)
