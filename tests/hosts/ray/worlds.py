"""Small environments of pixels, episodes drawn from them, and what it means to be the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

SIDE = 16


class Dot(gymnasium.Env[Any, Any]):
    """A dot that wanders over noise that never changes; episodes end, or are cut off.

    Parameters
    ----------
    config : dict, optional
        ``stack``, how many frames an observation has, default 1; ``dtype``; ``as_dict``.
    """

    def __init__(self, config: Any = None) -> None:
        config = dict(config or {})
        self.dtype = np.dtype(config.get("dtype", np.uint8))
        self.stack, self.as_dict = config.get("stack", 1), config.get("as_dict", False)
        pixels = spaces.Box(0, 255, (SIDE, SIDE, self.stack), self.dtype.type)
        self.observation_space: Any = pixels
        if self.as_dict:
            place = spaces.Box(-20, 20, (3,), np.float32)
            self.observation_space = spaces.Dict({"pixels": pixels, "place": place})
        self.action_space = spaces.Discrete(4)
        self.ground = np.random.default_rng(5).integers(0, 99, (SIDE, SIDE), np.uint8)

    def _look(self) -> Any:
        frame = self.ground.copy()
        y, x = self.at
        frame[y : y + 3, x : x + 3] = 255
        self.frames = [*self.frames, frame.astype(self.dtype)][-self.stack :]
        frames = [self.frames[0]] * (self.stack - len(self.frames)) + self.frames
        pixels = np.stack(frames, -1)
        place = np.array([y, x, self.t], np.float32) / 7
        return {"pixels": pixels, "place": place} if self.as_dict else pixels

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.frames = 0, []
        self.at = self.np_random.integers(0, SIDE - 3, 2)
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        move = [(0, 1), (1, 0), (0, -1), (-1, 0)][int(action)]
        self.at = np.clip(self.at + np.array(move), 0, SIDE - 3)
        terminated = bool(self.np_random.random() < 0.05)
        infos = {"t": self.t} if self.t % 3 == 0 else {}
        return self._look(), float(self.at.sum()) / 50, terminated, self.t >= 23, infos


def chunks(
    env: Any, seed: int, lengths: list[int], lookback: int = 0, to_numpy: bool = True
) -> Iterator[Any]:
    """Play one episode, and yield it in chunks of some lengths, as RLlib's runners do."""
    rng = np.random.default_rng(seed)
    episode = SingleAgentEpisode(
        id_=f"{seed}",
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    obs, infos = env.reset(seed=seed)
    episode.add_env_reset(obs, infos)
    for length in lengths:
        for _ in range(length):
            action = int(rng.integers(4))
            obs, reward, terminated, truncated, infos = env.step(action)
            episode.add_env_step(
                obs, action, reward, infos, terminated=terminated, truncated=truncated,
                extra_model_outputs={"q": rng.random(2, np.float32)},
            )  # fmt: skip
            if episode.is_done:
                break
        after = None if episode.is_done else episode.cut(len_lookback_buffer=lookback)
        yield episode.to_numpy() if to_numpy else episode
        if after is None:
            return
        episode = after


def assert_same(ours: Any, theirs: Any) -> None:
    """Ours is what theirs is: types, dtypes, shapes, and every bit; clocks may differ."""
    if isinstance(theirs, SingleAgentEpisode):
        assert isinstance(ours, SingleAgentEpisode)
        one, other = ours.get_state(), theirs.get_state()
        for state in (one, other):
            del state["_start_time"], state["_last_step_time"]
            if len(state["id_"]) > 8:  # drawn at random where RLlib makes a new episode
                state["id_"] = "random"
        assert_same(one, other)
        return
    assert type(ours) is type(theirs), (type(ours), type(theirs))
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if theirs.dtype.hasobject:
            assert_same(list(ours.ravel()), list(theirs.ravel()))
        else:
            assert ours.tobytes() == theirs.tobytes()
            assert ours.flags.writeable
    elif isinstance(theirs, np.generic):
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)
