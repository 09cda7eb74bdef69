"""Environments whose frames say what they are, so that a sample can be judged by itself.

A frame is a page of a diary: which lane, which of its episodes, which step, the action that led to
it, and what the step was worth. Nothing of the library is imported.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

SHAPE = (6, 8)
N_ACTIONS = 7
NO_ACTION = 255  # of the page that a reset shows
BLACK = np.zeros(SHAPE, np.uint8)


class Page(NamedTuple):
    lane: int
    episode: int
    step: int
    action: int
    reward: int
    terminated: bool
    truncated: bool

    @property
    def ends(self) -> bool:
        return self.terminated or self.truncated

    def follows(self, other: Page) -> bool:
        """Whether a step led from the other page to this one."""
        return (self.lane, self.episode, self.step) == (other.lane, other.episode, other.step + 1)


def write(page: Page) -> np.ndarray:
    """Draw a page; no two are equal, and none is black."""
    frame = np.full(SHAPE, 9, np.uint8)
    frame[0] = (
        page.lane, page.episode // 256, page.episode % 256, page.step // 256, page.step % 256,
        page.action, page.reward, 1 + page.terminated + 2 * page.truncated,
    )  # fmt: skip
    frame[1:, page.step % SHAPE[1]] = page.episode % 251  # something that moves
    return frame


def read(frame: Any) -> Page:
    """Read a page back; nothing but what `write` draws is one."""
    lane, high, low, step_high, step_low, action, reward, ends = np.asarray(frame)[0].tolist()
    page = Page(
        lane, 256 * high + low, 256 * step_high + step_low, action, reward,
        bool((ends - 1) & 1), bool((ends - 1) & 2),
    )  # fmt: skip
    assert np.array_equal(write(page), frame), f"no page of the diary:\n{frame}"
    return page


class Diary(gym.Env):
    """Ends with any step, at random; its seed decides when."""

    def __init__(self, lane: int, p_end: float) -> None:
        self.observation_space = Box(0, 255, SHAPE, np.uint8)
        self.action_space = Discrete(N_ACTIONS)
        self.lane, self.p_end = lane, p_end
        self.episode = self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return write(Page(self.lane, self.episode, 0, NO_ACTION, 0, False, False)), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        terminated, truncated = (self.np_random.random(2) < self.p_end / 2).tolist()
        reward = int(self.np_random.integers(0, 9))
        page = Page(self.lane, self.episode, self.steps, int(action), reward, terminated, truncated)
        return write(page), float(reward), terminated, truncated, {}
