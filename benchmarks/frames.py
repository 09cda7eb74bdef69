"""Frames of real games, collected once with a fixed seed and cached."""

from __future__ import annotations

from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

# The games of Differentially Encoded Observation Spaces, arXiv 2310.01767, Table II.
GAMES = (
    "Asteroids",
    "BeamRider",
    "Breakout",
    "Enduro",
    "MsPacman",
    "Pong",
    "Qbert",
    "RoadRunner",
    "Seaquest",
    "SpaceInvaders",
)
CACHE = Path(__file__).parent / ".cache"
# A random policy that keeps to an action for four steps in the mean reaches further into a game
# than one that trembles.
KEEP_ACTION = 0.75


def game_frames(game: str, n_frames: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Consecutive frames of one environment, ``(n_frames, 84, 84)``, episodes one after another."""
    path = CACHE / f"{game}-{seed}-{n_frames}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        np.save(path, _collect(game, n_frames, seed))
    frames: npt.NDArray[np.uint8] = np.load(path)
    return frames


def _collect(game: str, n_frames: int, seed: int) -> npt.NDArray[np.uint8]:
    gym.register_envs(ale_py)
    envs = gym.make_vec(
        f"ALE/{game}-v5",
        num_envs=1,
        stack_num=1,
        repeat_action_probability=0.0,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    rng = np.random.default_rng(seed)
    frames = np.empty((n_frames, 84, 84), np.uint8)
    observation, _ = envs.reset(seed=seed)
    action = np.zeros(1, np.int64)
    for i in tqdm(range(n_frames), desc=f"playing {game}", unit="frame", leave=False):
        frames[i] = observation.reshape(84, 84)
        if rng.random() > KEEP_ACTION:
            action[0] = rng.integers(envs.single_action_space.n)
        observation, *_ = envs.step(action)
    envs.close()
    return frames
