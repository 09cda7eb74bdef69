"""RLlib itself is there, with Atari's games."""

from __future__ import annotations

import ale_py
import gymnasium
import numpy as np
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack


def test_rllib_makes_ataris_environments():
    gymnasium.register_envs(ale_py)
    env = wrap_atari_for_new_api_stack(gymnasium.make("ALE/Pong-v5", frameskip=1), dim=64)
    obs, _ = env.reset(seed=1)
    assert obs.shape[:2] == (64, 64)
    assert np.asarray(obs).dtype == env.observation_space.dtype
    env.close()
