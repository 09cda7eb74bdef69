"""SBX, Stable-Baselines3 in JAX: the same weights, whichever buffer it has."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import sbx
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from compressarray.sb3 import (
    CompressedNStepReplayBuffer,
    CompressedReplayBuffer,
    CompressedRolloutBuffer,
)
from tests.sb3.worlds import Dot


def env() -> Any:
    made = DummyVecEnv([partial(Dot)] * 2)
    made.seed(3)
    return VecFrameStack(made, 4)


def weights_of(model: Any) -> list[Any]:
    found: list[Any] = []
    for name, state in sorted(vars(model.policy).items()):
        if name.endswith("_state") and hasattr(state, "params"):
            found += jax.tree_util.tree_leaves(state.params)
    assert found
    return [np.asarray(each) for each in found]


def assert_same_weights(one: Any, other: Any) -> None:
    for these, those in zip(weights_of(one), weights_of(other), strict=True):
        assert these.tobytes() == those.tobytes()


def trained(buffer: Any, kwargs: Any = None, **rest: Any) -> Any:
    model = sbx.DQN(
        "CnnPolicy",
        env(),
        replay_buffer_class=buffer,
        replay_buffer_kwargs=kwargs,
        buffer_size=120,
        learning_starts=40,
        batch_size=8,
        train_freq=8,
        gradient_steps=3,  # drawn in one call
        seed=1,
        policy_kwargs={"net_arch": [16]},
        **rest,
    )
    return model.learn(160)


def test_dqn(tmp_path):
    dense, ours = trained(ReplayBuffer), trained(CompressedReplayBuffer, {"codec": "delta"})
    assert type(ours.replay_buffer) is CompressedReplayBuffer
    assert ours.replay_buffer.full
    assert ours._n_updates > 10
    assert_same_weights(dense, ours)
    for model in (dense, ours):
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")
        model.set_random_seed(5)
        model.learn(40, reset_num_timesteps=False)
    assert_same_weights(dense, ours)
    assert type(ours.replay_buffer) is CompressedReplayBuffer


def test_dqn_of_n_steps():
    steps = {"n_steps": 3, "gamma": 0.97}
    ours = trained(CompressedNStepReplayBuffer, steps)
    assert_same_weights(trained(NStepReplayBuffer, steps), ours)


def test_ppo():
    models = []
    for buffer in (None, CompressedRolloutBuffer):
        model = sbx.PPO(
            "CnnPolicy", env(), n_steps=16, batch_size=16, n_epochs=2, seed=1,
            rollout_buffer_class=buffer, policy_kwargs={"net_arch": [16]},
        )  # fmt: skip
        models.append(model.learn(64))
    assert isinstance(models[1].rollout_buffer, CompressedRolloutBuffer)
    assert_same_weights(*models)
