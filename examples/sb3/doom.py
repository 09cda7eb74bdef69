"""Stable-Baselines3's PPO on ViZDoom with compressed buffers: pictures, or what they show.

    python examples/sb3/doom.py --see screen
    python examples/sb3/doom.py --see labels

The policy sees the screen in colour, or ViZDoom's labels buffer: a mask that says of each pixel
whether it is of something in the game, and of which. Both are 120 by 160 pixels, four steps of the
game apart. Half a million steps, an hour on a CPU, are enough for health gathering to be learnt
in part; `--steps` makes it shorter. At the end a game is recorded and written as a video.

Needs `pip install "compressarray[examples]" vizdoom`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import tyro
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from compressarray.sb3 import CompressedRolloutBuffer
from compressarray.sb3.recording import RecordBuffer
from compressarray.sb3.training import evaluate


class Seen(gymnasium.ObservationWrapper[np.ndarray, Any, Any]):
    """One of the pictures that ViZDoom gives, ``(120, 160, channels)`` uint8."""

    def __init__(self, env: gymnasium.Env[Any, Any], key: str) -> None:
        super().__init__(env)
        self._key = key
        channels = 3 if key == "screen" else 1
        self.observation_space = spaces.Box(0, 255, (120, 160, channels), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """Every second pixel, both ways: labels must not be mixed."""
        picture = np.asarray(observation[self._key])[::2, ::2]
        return picture.reshape(self.observation_space.shape)


def make_doom(env_id: str, see: str) -> Callable[[], gymnasium.Env[Any, Any]]:
    try:
        from vizdoom import gymnasium_wrapper  # noqa: F401 - it registers the environments
    except ImportError:
        sys.exit("error: ViZDoom is not installed: pip install vizdoom")

    def make() -> gymnasium.Env[Any, Any]:
        options = {"labels_buffer_enabled": True} if see == "labels" else {}
        env = gymnasium.make(env_id, frame_skip=4, max_buttons_pressed=1, **options)
        return Seen(env, see)

    return make


@dataclass
class Args:
    env_id: str = "VizdoomHealthGathering-v1"
    """which scenario"""
    see: Literal["screen", "labels"] = "screen"
    """colours, or a mask of what there is"""
    steps: int = 500_000
    """of all environments together"""
    n_envs: int = 4
    """that play at once"""
    n_steps: int = 128
    """of a rollout"""
    episodes: int = 20
    """to evaluate the trained model by"""
    device: str = "auto"
    """where the network is"""
    folder: Path = Path("runs/vizdoom")
    """where the model, the record and the video go"""


def main(args: Args) -> None:
    env = make_vec_env(
        make_doom(args.env_id, args.see), args.n_envs, seed=1, vec_env_cls=DummyVecEnv
    )
    env = VecTransposeImage(env)
    model = PPO(
        "CnnPolicy",
        env,
        n_steps=args.n_steps,
        batch_size=128,
        learning_rate=1e-4,
        ent_coef=0.01,
        rollout_buffer_class=CompressedRolloutBuffer,
        device=args.device,
        seed=1,
    )
    start = time.perf_counter()
    model.learn(args.steps)
    seconds = time.perf_counter() - start
    place = args.folder / args.see
    place.mkdir(parents=True, exist_ok=True)
    model.save(place / "final_model")
    rollout = model.rollout_buffer
    print(
        f"{model.num_timesteps} steps, {model.num_timesteps / seconds:.0f} a second; a rollout "
        f"takes {rollout.nbytes_stored:,} bytes, its observations as an array "
        f"{rollout.observations.nbytes:,}"
    )
    record = RecordBuffer(20_000, env.observation_space, env.action_space, args.n_envs)
    print(evaluate(model, env, args.episodes, buffers=record))
    record.save(place / "record")
    longest = max(record.episodes(), key=lambda episode: len(episode.index))
    record.save_video(place / "game.gif", longest, fps=9, scale=2)
    picture_bytes = int(np.prod(env.observation_space.shape))
    print(
        f"recorded {len(record)} steps in {record.buffer.nbytes_stored:,} bytes; as arrays of "
        f"observations and next observations {2 * len(record) * picture_bytes:,}; see "
        f"{place / 'game.gif'}"
    )
    env.close()


if __name__ == "__main__":
    main(tyro.cli(Args))
