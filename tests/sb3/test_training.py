"""The same seed ends in the same weights, bit for bit, whichever buffer an algorithm has."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from compressarray.sb3 import (
    CompressedDictReplayBuffer,
    CompressedDictRolloutBuffer,
    CompressedNStepReplayBuffer,
    CompressedPrioritizedReplayBuffer,
    CompressedReplayBuffer,
    CompressedRolloutBuffer,
    compressed,
)
from tests.sb3.worlds import Dot

pytestmark = pytest.mark.filterwarnings("default")  # the host's own are not ours to mend


@pytest.fixture(autouse=True)
def one_thread():
    before = th.get_num_threads()
    th.set_num_threads(1)  # networks this small only wait for a second one
    yield
    th.set_num_threads(before)


class Flat(BaseFeaturesExtractor):
    """A few averages of the pixels, so that a training takes a second."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 64)
        self.out = th.nn.Sequential(
            th.nn.Conv2d(space.shape[0], 4, 8, 8), th.nn.Flatten(), th.nn.LazyLinear(64)
        )
        self.out(th.zeros(1, *space.shape))

    def forward(self, pixels: Any) -> Any:
        return self.out(pixels)


def env(n_envs: int = 1, normalize: bool = False, kind: Any = Dot, **arguments: Any) -> Any:
    made: Any = DummyVecEnv([partial(kind, **arguments)] * n_envs)
    made.seed(3)
    if not arguments.get("as_dict"):
        made = VecFrameStack(made, 4)
    if normalize:  # beneath it, since the host stores what was there before normalizing
        made = VecNormalize(VecTransposeImage(made), norm_obs=False)
    return made


def weights_of(model: Any) -> dict[str, Any]:
    found = {}
    for name, module in model.__dict__.items():
        if isinstance(module, th.nn.Module):
            found.update({f"{name}.{k}": v for k, v in module.state_dict().items()})
    assert found
    return found


def assert_same_weights(one: Any, other: Any) -> None:
    these, those = weights_of(one), weights_of(other)
    assert these.keys() == those.keys()
    for name in these:
        assert th.equal(these[name], those[name]), name


SMALL = {"features_extractor_class": Flat, "net_arch": [16]}
OFF: dict[str, Any] = {
    "buffer_size": 150,  # turns twice
    "learning_starts": 40,
    "batch_size": 16,
    "seed": 1,
    "device": "cpu",
    "policy_kwargs": SMALL,
}
ON: dict[str, Any] = {"seed": 1, "device": "cpu", "policy_kwargs": SMALL}


def off_policy(algorithm: Any, buffer: Any, buffer_kwargs: Any = None, **kwargs: Any) -> Any:
    n_envs, normalize = kwargs.pop("n_envs", 2), kwargs.pop("normalize", False)
    continuous = algorithm is sb3.SAC
    model = algorithm(
        "CnnPolicy",
        env(n_envs, normalize, continuous=continuous),
        replay_buffer_class=buffer,
        replay_buffer_kwargs=buffer_kwargs,
        **copy.deepcopy({**OFF, **kwargs}),
    )
    return model.learn(340)


@pytest.mark.parametrize("algorithm", [sb3.DQN, sb3_contrib.QRDQN, sb3.SAC])
def test_off_policy(algorithm):
    kwargs = {"train_freq": 4} if algorithm is not sb3.SAC else {"train_freq": 8}
    dense = off_policy(algorithm, ReplayBuffer, **kwargs)
    ours = off_policy(algorithm, CompressedReplayBuffer, **kwargs)
    assert ours.replay_buffer.full
    assert ours._n_updates > 10
    assert_same_weights(dense, ours)


def test_n_step_and_normalized_rewards():
    steps = {"n_steps": 3, "gamma": 0.97}
    dense = off_policy(sb3.DQN, NStepReplayBuffer, steps, normalize=True)
    ours = off_policy(sb3.DQN, CompressedNStepReplayBuffer, steps, normalize=True)
    assert ours.replay_buffer.n_steps == 3
    assert_same_weights(dense, ours)


def test_memory_optimized_is_accepted_and_loses_nothing():
    dense = off_policy(sb3.DQN, ReplayBuffer)
    ours = off_policy(sb3.DQN, CompressedReplayBuffer, optimize_memory_usage=True)
    assert_same_weights(dense, ours)


def test_prioritized_trains():
    model = off_policy(sb3.DQN, CompressedPrioritizedReplayBuffer, {"alpha": 0.5})
    assert model._n_updates > 10


@pytest.mark.parametrize("algorithm", [sb3.PPO, sb3.A2C])
def test_on_policy(algorithm):
    trained = []
    for buffer in (None, CompressedRolloutBuffer):
        kwargs = {**ON, "n_steps": 32} | ({"batch_size": 16} if algorithm is sb3.PPO else {})
        model = algorithm("CnnPolicy", env(2), rollout_buffer_class=buffer, **copy.deepcopy(kwargs))
        trained.append(model.learn(200))
    assert isinstance(trained[1].rollout_buffer, CompressedRolloutBuffer)
    assert_same_weights(*trained)


def test_dicts():
    trained = []
    for buffer in (DictReplayBuffer, CompressedDictReplayBuffer):
        kwargs = {**OFF, "policy_kwargs": {"net_arch": [16]}, "train_freq": 16}
        model = sb3.DQN(
            "MultiInputPolicy", env(2, as_dict=True), replay_buffer_class=buffer, **kwargs
        )
        trained.append(model.learn(340))
    assert_same_weights(*trained)
    trained = []
    for buffer in (None, CompressedDictRolloutBuffer):
        model = sb3.PPO(
            "MultiInputPolicy",
            env(2, as_dict=True),
            rollout_buffer_class=buffer,
            n_steps=32,
            batch_size=32,
            n_epochs=2,
            seed=1,
            device="cpu",
            policy_kwargs={"net_arch": [16]},
        )
        trained.append(model.learn(128))
    assert_same_weights(*trained)


def test_saved_and_gone_on_with(tmp_path):
    """Saved in the middle, by a callback too, and loaded: on with the same weights as dense."""
    ended = []
    for buffer in (ReplayBuffer, CompressedReplayBuffer):
        path = tmp_path / buffer.__name__
        callback = CheckpointCallback(90, str(path), save_replay_buffer=True)
        kwargs = {**OFF, "train_freq": 4, "replay_buffer_class": buffer}
        model = sb3.DQN("CnnPolicy", env(2), **copy.deepcopy(kwargs)).learn(200, callback=callback)
        held = model.replay_buffer
        saved = next(path.glob("*replay_buffer*180*"))
        model.save_replay_buffer(path / "whole")
        model.load_replay_buffer(path / "whole")
        assert type(model.replay_buffer) is buffer
        assert model.replay_buffer is not held
        assert np.array_equal(
            np.asarray(model.replay_buffer.observations), np.asarray(held.observations)
        )
        ended.append(model.learn(100, reset_num_timesteps=False))
    assert_same_weights(*ended)
    assert saved.stat().st_size < 200_000  # of 3 MB
    ended[1].load_replay_buffer(saved)


def test_a_dense_file_is_taken_over(tmp_path):
    model = off_policy(sb3.DQN, ReplayBuffer)
    model.save_replay_buffer(tmp_path / "dense")
    other = off_policy(sb3.DQN, CompressedReplayBuffer)
    other.load_replay_buffer(tmp_path / "dense")
    other.replay_buffer = compressed(other.replay_buffer)
    assert isinstance(other.replay_buffer, CompressedReplayBuffer)
    np.random.seed(2)
    want = model.replay_buffer.sample(64)
    np.random.seed(2)
    got = other.replay_buffer.sample(64)
    assert all(th.equal(a, b) for a, b in zip(want[:5], got[:5], strict=True))
