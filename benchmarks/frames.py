"""Frames and transitions of real games, collected once with a fixed seed and cached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
STACK = 4
SIDE = 84


def game_frames(game: str, n_frames: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Consecutive frames of one environment, ``(n_frames, 84, 84)``, episodes one after another."""
    path = CACHE / f"{game}-{seed}-{n_frames}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        frames = np.empty((n_frames, SIDE, SIDE), np.uint8)
        for i, step in zip(_progress(game, n_frames), _play(game, seed), strict=False):
            frames[i] = step.obs
        np.save(path, frames)
    loaded: npt.NDArray[np.uint8] = np.load(path)
    return loaded


@dataclass(frozen=True)
class PlayThrough:
    """Transitions of one environment as an agent saw them, episodes one after another.

    Attributes
    ----------
    path : Path
        Where it lies; `load` takes it.
    frames : (n_frames, 84, 84) uint8
        Each frame once, in order, the last of each episode included; mapped from the file.
    newest : (n,) int64
        Of each transition the newest frame of its observation; `next_obs` has the one after.
    first : (n,) int64
        The first frame of its episode, which pads stacks on their left.
    action : (n,) int64
    terminated, truncated : (n,) bool
    n_actions : int
    """

    path: Path
    frames: npt.NDArray[np.uint8]
    newest: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    action: npt.NDArray[np.int64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    n_actions: int

    def __len__(self) -> int:
        return len(self.newest)

    @classmethod
    def load(cls, path: Path) -> PlayThrough:
        frames = np.memmap(path, np.uint8, "r").reshape(-1, SIDE, SIDE)
        with np.load(path.with_suffix(".npz")) as file:
            fields = {name: file[name] for name in file.files}
        n_actions = int(fields.pop("n_actions"))
        return cls(path=path, frames=frames, n_actions=n_actions, **fields)

    def obs(self, transitions: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Stacks that the agent acted on, ``(n, 4, 84, 84)``."""
        return self._stacks(transitions, 0)

    def next_obs(self, transitions: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Stacks that its actions led to, where an episode ends too."""
        return self._stacks(transitions, 1)

    def _stacks(self, transitions: npt.ArrayLike, later: int) -> npt.NDArray[np.uint8]:
        which = np.asarray(transitions)[..., None]
        index = self.newest[which] + np.arange(later - STACK + 1, later + 1)
        return self.frames[np.maximum(index, self.first[which])]


def play_through(game: str, n: int, seed: int = 0, cache: Path = CACHE) -> PlayThrough:
    """Play `n` transitions, or find them in the cache."""
    path = cache / f"{game}-{seed}-{n}.frames"
    if not path.with_suffix(".npz").exists():
        cache.mkdir(exist_ok=True)
        newest, first, action, terminated, truncated = [], [], [], [], []
        n_frames = begun = n_actions = 0
        # One frame at a time: a hundred thousand are 0.8 GB.
        with path.open("wb") as file:
            for i, step in zip(_progress(game, n), _play(game, seed), strict=False):
                step.obs.tofile(file)
                n_frames += 1
                newest.append(n_frames - 1)
                first.append(begun)
                action.append(step.action)
                terminated.append(step.terminated)
                truncated.append(step.truncated)
                n_actions = step.n_actions
                if i == n - 1 or step.terminated or step.truncated:
                    step.next_obs.tofile(file)
                    n_frames += 1
                    begun = n_frames
        np.savez(
            path.with_suffix(".npz"),
            newest=np.array(newest),
            first=np.array(first),
            action=np.array(action),
            terminated=np.array(terminated),
            truncated=np.array(truncated),
            n_actions=n_actions,
        )
    return PlayThrough.load(path)


def _progress(game: str, n: int) -> Iterable[int]:
    return tqdm(range(n), desc=f"playing {game}", unit="frame", leave=False)


@dataclass(frozen=True)
class _Step:
    """A step of the game; observations are single frames."""

    obs: npt.NDArray[np.uint8]
    action: int
    next_obs: npt.NDArray[np.uint8]
    terminated: bool
    truncated: bool
    n_actions: int


def _play(game: str, seed: int) -> Iterator[_Step]:
    """Play for good."""
    gym.register_envs(ale_py)
    envs = gym.make_vec(
        f"ALE/{game}-v5",
        num_envs=1,
        stack_num=1,
        repeat_action_probability=0.0,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    rng = np.random.default_rng(seed)
    observation, _ = envs.reset(seed=seed)
    action = np.zeros(1, np.int64)
    n_actions = int(envs.single_action_space.n)
    try:
        while True:
            before = observation.reshape(SIDE, SIDE).copy()
            if rng.random() > KEEP_ACTION:
                action[0] = rng.integers(n_actions)
            observation, _, terminated, truncated, infos = envs.step(action)
            ended = bool(terminated[0]), bool(truncated[0])
            after = infos["final_obs"][0] if any(ended) else observation
            yield _Step(before, int(action[0]), after.reshape(SIDE, SIDE).copy(), *ended, n_actions)
    finally:
        envs.close()
