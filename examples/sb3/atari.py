"""Stable-Baselines3 on Atari with compressed buffers: train, evaluate, watch, report.

    python examples/sb3/atari.py train --preset pong-ppo
    python examples/sb3/atari.py evaluate --preset pong-ppo
    python examples/sb3/atari.py watch --preset pong-ppo
    python examples/sb3/atari.py report

The settings are those of the examples of sb3-extra-buffers (Trenza1ore/sb3-extra-buffers,
examples/), with other buffers: PPO on Pong without a stack, PPO and DQN on MsPacman. A whole
training is 10 million steps: a day on a GPU, several on a CPU. `--steps` makes it shorter, and
`--buffer dense` trains with Stable-Baselines3's own buffers, to the same weights.

Needs `pip install "compressarray[examples]"`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

from compressarray.sb3 import CompressedReplayBuffer, CompressedRolloutBuffer, compile_kernels
from compressarray.sb3.recording import RecordBuffer
from compressarray.sb3.training import evaluate as evaluate_model
from compressarray.sb3.training import evaluate_saved, make_env

Preset = Literal["pong-ppo", "mspacman-ppo", "mspacman-dqn"]


def falling_to_zero(first: float) -> Callable[[float], float]:
    """A schedule that is linear in the progress that remains."""
    return lambda remaining: remaining * first


PPO_ARGUMENTS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "ent_coef": 0.01,
    "learning_rate": falling_to_zero(2.5e-4),
    "clip_range": falling_to_zero(0.1),
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
DQN_ARGUMENTS: dict[str, Any] = {
    "buffer_size": 100_000,
    "batch_size": 32,
    "learning_starts": 100_000,
    "target_update_interval": 1_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "learning_rate": 1e-4,
    "exploration_fraction": 0.1,
    "exploration_final_eps": 0.01,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "pong-ppo": {
        "env_id": "PongNoFrameskip-v4",
        "framestack": 1,
        "n_envs": 8,
        "seed": 4089164106,
        "arguments": {**PPO_ARGUMENTS, "gae_lambda": 0.9},
    },
    "mspacman-ppo": {
        "env_id": "MsPacmanNoFrameskip-v4",
        "framestack": 4,
        "n_envs": 8,
        "seed": 1970626835,
        "arguments": PPO_ARGUMENTS,
    },
    "mspacman-dqn": {
        "env_id": "MsPacmanNoFrameskip-v4",
        "framestack": 4,
        "n_envs": 1,
        "seed": 1809550766,
        "arguments": DQN_ARGUMENTS,
    },
}


def algorithm_of(preset: str) -> Any:
    return DQN if preset.endswith("dqn") else PPO


def envs_of(preset: str, n_envs: int, seed: int) -> VecEnv:
    chosen = SETTINGS[preset]
    return make_env(chosen["env_id"], n_envs, framestack=chosen["framestack"], seed=seed)


@dataclass
class Train:
    """Train a model, and save the best one and the last one."""

    preset: Preset = "pong-ppo"
    steps: int = 10_000_000
    """steps of all environments together"""
    buffer: Literal["compressed", "dense"] = "compressed"
    """whose buffer holds the observations"""
    learning_starts: int = 0
    """of DQN; 0 for the published 100,000"""
    n_eval_envs: int = 8
    """environments that the best model is found by; 0 for none"""
    device: str = "auto"
    """where the network is"""
    folder: Path = Path("runs/sb3")
    """where models and results go"""

    def __call__(self) -> None:
        chosen, place = SETTINGS[self.preset], self.folder / self.preset
        arguments = dict(chosen["arguments"])
        is_dqn = algorithm_of(self.preset) is DQN
        if self.learning_starts and is_dqn:
            arguments["learning_starts"] = self.learning_starts
        if self.buffer == "compressed":
            compile_kernels()  # before environments fork
            kind = CompressedReplayBuffer if is_dqn else CompressedRolloutBuffer
            arguments["replay_buffer_class" if is_dqn else "rollout_buffer_class"] = kind
        env = envs_of(self.preset, chosen["n_envs"], chosen["seed"])
        model = algorithm_of(self.preset)(
            "CnnPolicy", env, seed=chosen["seed"], device=self.device, **arguments
        )
        callback = None
        if self.n_eval_envs:
            callback = EvalCallback(
                envs_of(self.preset, self.n_eval_envs, chosen["seed"] + 1),
                n_eval_episodes=20,
                eval_freq=8_192,
                best_model_save_path=str(place),
                verbose=0,
            )
        start = time.perf_counter()
        model.learn(self.steps, callback=callback, progress_bar=False)
        seconds = time.perf_counter() - start
        place.mkdir(parents=True, exist_ok=True)
        model.save(place / "final_model")
        held = model.replay_buffer if is_dqn else model.rollout_buffer
        dense = held.observations.nbytes * (2 if is_dqn else 1)  # and next observations
        result = {
            "preset": self.preset,
            "buffer": self.buffer,
            "steps": model.num_timesteps,
            "steps_a_second": round(model.num_timesteps / seconds),
            "buffer_bytes": int(getattr(held, "nbytes_stored", dense)),
            "dense_observation_bytes": int(dense),
        }
        (place / f"train-{self.buffer}.json").write_text(json.dumps(result, indent=1))
        print(json.dumps(result, indent=1))
        env.close()


@dataclass
class Evaluate:
    """Evaluate the best model and the last one, and record the last one's games."""

    preset: Preset = "pong-ppo"
    episodes: int = 10_000
    """of each model, as published"""
    n_envs: int = 50
    """that play at once"""
    record_steps: int = 100_000
    """of the last model, that are kept"""
    device: str = "auto"
    """where the network is"""
    folder: Path = Path("runs/sb3")
    """where models and results are"""

    def __call__(self) -> None:
        place = self.folder / self.preset
        compile_kernels()
        env = envs_of(self.preset, self.n_envs, 1)
        names = [n for n in ("best_model", "final_model") if (place / f"{n}.zip").is_file()]
        if not names:
            raise SystemExit(f"error: there is no model in {place}; train one first")
        algorithm = algorithm_of(self.preset)
        results = evaluate_saved(
            algorithm, place, env, self.episodes, names=names, device=self.device
        )
        for name, result in results.items():
            print(f"{name}: {result}")
        record = RecordBuffer(
            self.record_steps, env.observation_space, env.action_space, self.n_envs
        )
        model = algorithm.load(place / "final_model", device=self.device)
        evaluate_model(model, env, self.n_envs, buffers=record)
        record.save(place / "record")
        (place / "evaluation.json").write_text(
            json.dumps(
                {
                    "preset": self.preset,
                    "models": {name: str(result) for name, result in results.items()},
                    "recorded_steps": len(record),
                    "record_bytes": record.buffer.nbytes_stored,
                },
                indent=1,
            )
        )
        env.close()


@dataclass
class Watch:
    """Write the longest recorded game as a video."""

    preset: Preset = "pong-ppo"
    ending: Literal["gif", "mp4"] = "gif"
    folder: Path = Path("runs/sb3")
    """where the record is"""

    def __call__(self) -> None:
        place = self.folder / self.preset
        if not (place / "record").is_file():
            raise SystemExit(f"error: there is no record in {place}; evaluate a model first")
        record = RecordBuffer.load(place / "record")
        longest = max(record.episodes(), key=lambda episode: len(episode.index))
        path = place / f"game.{self.ending}"
        record.save_video(path, longest, fps=15, scale=3)
        print(f"{path}: {len(longest.index)} steps of environment {longest.lane}")


@dataclass
class Report:
    """Print what was trained and evaluated."""

    folder: Path = Path("runs/sb3")
    """where results are"""

    def __call__(self) -> None:
        found = sorted(self.folder.glob("*/*.json"))
        if not found:
            raise SystemExit(f"error: there are no results in {self.folder}; train a model first")
        for path in found:
            print(f"{path.relative_to(self.folder)}")
            for key, value in json.loads(path.read_text()).items():
                print(f"    {key}: {value}")


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)

if __name__ == "__main__":
    tyro.cli(Command)()
