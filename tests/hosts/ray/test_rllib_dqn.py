"""DQN on pixels comes to the same weights, whichever buffer it has."""

from __future__ import annotations

import pickle
import random
from typing import Any

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.env.wrappers.atari_wrappers import wrap_atari_for_new_api_stack
from ray.tune.registry import register_env

from compressarray.ray.rllib import (
    CompressedEpisodeReplayBuffer,
    CompressedPrioritizedEpisodeReplayBuffer,
)
from tests.hosts.ray.worlds import Dot, assert_same

OURS = {
    "EpisodeReplayBuffer": "compressarray.ray.rllib.CompressedEpisodeReplayBuffer",
    "PrioritizedEpisodeReplayBuffer": (
        "compressarray.ray.rllib.CompressedPrioritizedEpisodeReplayBuffer"
    ),
}


def pong(config: Any) -> Any:
    gymnasium.register_envs(ale_py)
    env = gymnasium.make("ALE/Pong-v5", frameskip=1)
    return wrap_atari_for_new_api_stack(env, dim=42, framestack=4)


def built(env: Any, kind: str, n_envs: int = 2) -> Any:
    alpha_beta = {"alpha": 0.6, "beta": 0.4} if "Prioritized" in kind else {}
    config = (
        DQNConfig()
        .environment(env, env_config={"dtype": "float32", "stack": 2} if env is Dot else {})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=n_envs)
        .debugging(seed=4)
        .training(
            num_steps_sampled_before_learning_starts=60,
            train_batch_size=8,
            training_intensity=2,
            target_network_update_freq=50,
            replay_buffer_config={"type": kind, "capacity": 70, **alpha_beta},
        )
        .rl_module(
            model_config={"conv_filters": [[8, 4, 4], [16, 4, 2]], "head_fcnet_hiddens": [16]}
        )
        .reporting(min_sample_timesteps_per_iteration=80)
    )
    algo = config.build_algo()
    algo.local_replay_buffer.rng = np.random.default_rng(7)  # RLlib gives it no seed
    return algo


def weights_of(algo: Any) -> dict[str, Any]:
    return dict(algo.get_module().state_dict())


def assert_same_weights(one: Any, other: Any) -> None:
    these, those = weights_of(one), weights_of(other)
    assert these.keys() == those.keys()
    for name in these:
        assert torch.equal(these[name], those[name]), name


def trained(algo: Any, n: int = 2) -> Any:
    # Runners of this process explore with everybody's generators.
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = {name: value.clone() for name, value in weights_of(algo).items()}
    results = [algo.train() for _ in range(n)]
    after = weights_of(algo)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    return results


@pytest.mark.parametrize("kind", sorted(OURS))
def test_dqn(kind, tmp_path):
    """Through evictions, and on from a checkpoint, whose buffer is pickled beside it."""
    algos = [built(Dot, kind), built(Dot, OURS[kind])]
    results = [trained(algo) for algo in algos]
    theirs, ours = (algo.local_replay_buffer for algo in algos)
    assert type(ours) in (CompressedEpisodeReplayBuffer, CompressedPrioritizedEpisodeReplayBuffer)
    assert ours.get_num_episodes_evicted() > 2
    assert ours.get_sampled_timesteps() > 100
    assert_same_weights(*algos)
    assert_same(list(ours.episodes), list(theirs.episodes))
    assert "replay_buffer" in results[1][-1]
    assert_same(sorted(results[1][-1]["replay_buffer"]), sorted(results[0][-1]["replay_buffer"]))
    for i, algo in enumerate(algos):
        algo.save_to_path(tmp_path / str(i))
        (tmp_path / f"{i}.pickle").write_bytes(pickle.dumps(algo.local_replay_buffer.get_state()))
    for i, algo in enumerate(algos):
        algos[i] = DQN.from_checkpoint(tmp_path / str(i))
        # RLlib leaves the buffer out of its checkpoints.
        buffer = algos[i].local_replay_buffer
        assert type(buffer) is type(algo.local_replay_buffer)
        assert not buffer.get_num_timesteps()
        buffer.set_state(pickle.loads((tmp_path / f"{i}.pickle").read_bytes()))
        buffer.rng = np.random.default_rng(8)
        algo.stop()
    assert_same_weights(*algos)
    for algo in algos:
        trained(algo, 1)
    assert_same_weights(*algos)
    for algo in algos:
        algo.stop()


def test_restoring_into_a_running_algorithm_keeps_its_buffer(tmp_path):
    algo = built(Dot, OURS["EpisodeReplayBuffer"])
    trained(algo, 1)
    algo.save_to_path(tmp_path)
    n = algo.local_replay_buffer.get_num_timesteps()
    algo.restore_from_path(tmp_path)
    assert algo.local_replay_buffer.get_num_timesteps() == n > 0
    trained(algo, 1)
    algo.stop()


def test_atari():
    """Pong through RLlib's own wrappers, whose stacks are of float32."""
    register_env("pong", pong)
    algos = [
        built("pong", kind, 1) for kind in ("EpisodeReplayBuffer", OURS["EpisodeReplayBuffer"])
    ]
    for algo in algos:
        trained(algo, 2)
    theirs, ours = (algo.local_replay_buffer for algo in algos)
    assert_same(list(ours.episodes), list(theirs.episodes))
    assert_same_weights(*algos)
    stats = ours.stats()
    assert stats["nbytes"] == sum(each.observations.data.nbytes for each in theirs.episodes)
    assert stats["compression_ratio"] > 10
    for algo in algos:
        algo.stop()
