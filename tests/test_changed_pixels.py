"""The N of the compression paper's equation 3, as every script counts it."""

from __future__ import annotations

import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch

from cleanrl_scripts import ppo_atari


@pytest.mark.parametrize("script", ["ppo_atari", "qrdqn_atari", "medqn_atari", "drqv2_dmc"])
def test_against_a_loop(script):
    """N of equation 3 from every frame that was seen, group by group."""
    if script == "drqv2_dmc":
        pytest.importorskip("dm_control", exc_type=ImportError)
    counter = importlib.import_module(f"cleanrl_scripts.{script}").ChangedPixels
    lanes, kept, group = 2, 6, 4
    rng = np.random.default_rng(0)
    seen = []

    class Games(gym.vector.VectorEnv):
        num_envs = lanes

        def reset(self, *, seed=None, options=None):
            return self.step(None)[0], {}

        def step(self, actions):
            frames = np.zeros((lanes, 4, 84, 84), np.uint8)
            for lane in range(lanes):
                changed = rng.integers(0, 1500)  # of two such, more than a quarter at times
                frames[lane, -1].ravel()[rng.choice(84 * 84, changed, replace=False)] = 1
            seen.append(frames[:, -1])
            none = np.zeros(lanes, bool)
            return frames, np.zeros(lanes), none, none, {}

    games = counter(Games(), kept, group)
    games.reset()
    sizes, totals = [], []
    for step in range(25):
        sizes.append(0)
        for lane in range(lanes if step % group else 0):
            differs = (seen[step][lane] != seen[step - step % group][lane]).sum()
            sizes[-1] += min(differs, 84 * 84 // 4)
        totals.append(sum(sizes[-kept:]))
        assert (games.now, games.largest) == (totals[-1], max(totals))
        if step == 11:  # where a group ends, a checkpoint goes on as if nothing had been
            again = counter(Games(), kept, group)
            again.restore(games.state())
            games = again
        games.step(None)
    assert len({size for size in sizes if 84 * 84 // 4 < size < 84 * 84 // 2}) > 3
    assert max(sizes) == 84 * 84 // 2  # both frames at the limit
    assert games.largest > totals[-1]


def test_ppo_counts_a_rollout_and_learns_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--quiet", "--torch-threads", "1", "--env-id", "ALE/Breakout-v5", "--num-envs", "2"]
    flags += ["--num-steps", "16", "--total-timesteps", "96", "--update-epochs", "1"]

    def train(*more):
        return ppo_atari.train(ppo_atari.parse_args([*flags, *more]))

    plain, counted = train(), []
    for storage in ("dense", "indexed"):
        result = train("--count-changed-pixels", "--obs-storage", storage)
        for name, weights in plain["agent"].state_dict().items():
            assert torch.equal(result["agent"].state_dict()[name], weights)
        state = result["history"]["changed_pixels"]
        assert state["counts"].shape == (16, 2)
        assert state["counts"].sum().item() == state["now"]
        assert state["seen"] == 48 + 1
        assert 0 < state["now"] <= state["largest"] < 32 * 3 / 4 * 84 * 84 / 4
        counted.append([state["now"], state["largest"], *state["counts"].ravel().tolist()])
    assert counted[0] == counted[1]
