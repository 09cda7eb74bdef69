"""RL Zoo's own command, with a buffer of ours named in its files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.buffers import ReplayBuffer

from compressarray.sb3 import CompressedReplayBuffer

ROOT = Path(__file__).parents[2]

YAML = """
Dot-v0:
  policy: "CnnPolicy"
  n_timesteps: 160
  frame_stack: 4
  n_envs: 2
  buffer_size: 120
  learning_starts: 40
  batch_size: 8
  train_freq: 8
  policy_kwargs: "dict(net_arch=[16])"
"""
# `docs/sb3.md` has these two lines
OURS = """
  replay_buffer_class: "importlib.import_module('compressarray.sb3').CompressedReplayBuffer"
  replay_buffer_kwargs: "dict(codec='delta')"
"""
PYTHON = """
from compressarray.sb3 import CompressedRolloutBuffer
hyperparams = {"Dot-v0": dict(
    policy="CnnPolicy", n_timesteps=64, frame_stack=4, n_envs=2, n_steps=16, batch_size=16,
    n_epochs=2, policy_kwargs=dict(net_arch=[16]),
)}
"""


def train(folder: Path, algorithm: str, config: str, *more: str) -> Any:
    """Run the command; return the folder of what it has trained, and the model."""
    folder.mkdir(exist_ok=True)
    path = folder / ("config.py" if config.startswith("\nfrom") else "config.yml")
    path.write_text(config.strip() + "\n")
    said = subprocess.run(
        [
            *(sys.executable, "-m", "rl_zoo3.train", "--algo", algorithm, "--env", "Dot-v0"),
            *("--gym-packages", "tests.hosts.dots", "--conf-file", str(path)),
            *("--log-folder", str(folder), "--seed", "1", "--eval-freq", "-1"),
            *("--device", "cpu", "--num-threads", "1", *more),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr[-2000:]
    run = max((folder / algorithm).glob("Dot-v0_*"))
    return run, ALGOS[algorithm].load(run / "Dot-v0.zip", device="cpu")


def assert_same_weights(one: Any, other: Any) -> None:
    these, those = one.policy.state_dict(), other.policy.state_dict()
    assert these.keys() == those.keys()
    assert all(th.equal(these[name], those[name]) for name in these)


def test_dqn_by_strings_in_a_yaml(tmp_path):
    runs, models = zip(
        *(
            train(tmp_path / name, "dqn", config, "--save-replay-buffer")
            for name, config in (("dense", YAML), ("ours", YAML + OURS))
        ),
        strict=True,
    )
    assert_same_weights(*models)
    files = [run / "replay_buffer.pkl" for run in runs]
    kinds = [type(pickle.loads(file.read_bytes())) for file in files]
    assert kinds == [ReplayBuffer, CompressedReplayBuffer]
    assert files[1].stat().st_size < files[0].stat().st_size / 5
    # on from there, with the buffer that was saved
    agents = [str(run / "Dot-v0.zip") for run in runs]
    _, dense = train(tmp_path / "dense on", "dqn", YAML, "-i", agents[0])
    _, ours = train(tmp_path / "ours on", "dqn", YAML + OURS, "-i", agents[1])
    assert_same_weights(dense, ours)


def test_ppo_by_a_python_file(tmp_path):
    """Strings for rollout buffers are not evaluated; a Python file has the class itself."""
    ours = PYTHON + 'hyperparams["Dot-v0"]["rollout_buffer_class"] = CompressedRolloutBuffer\n'
    _, dense_model = train(tmp_path / "dense", "ppo", PYTHON)
    _, our_model = train(tmp_path / "ours", "ppo", ours)
    assert our_model.rollout_buffer_class.__name__ == "CompressedRolloutBuffer"
    assert_same_weights(dense_model, our_model)
