"""Models are evaluated without bias, and buffers filled by them as their algorithms would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.buffers import ReplayBuffer as HostsReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from compressarray.sb3 import (
    CompressedNStepReplayBuffer,
    CompressedReplayBuffer,
    CompressedRolloutBuffer,
)
from compressarray.sb3.recording import CountingRecordBuffer, RecordBuffer
from compressarray.sb3.training import evaluate, evaluate_saved, make_env, warm_up
from tests.sb3.worlds import Dot


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower with more, beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Counted(gymnasium.Env[Any, Any]):
    """Pays the number of the step; its k-th episode takes ``lengths[k % len]`` steps."""

    observation_space = spaces.Box(0, 255, (4, 4, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.n_episodes = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_episodes += 1
        self.t = 0
        return self._look(), {}

    def _look(self) -> Any:
        return np.full((4, 4, 1), self.t, np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        ends = self.t == self.lengths[self.n_episodes % len(self.lengths)]
        return self._look(), float(self.t), ends, False, {}


class Still:
    """A policy of no model."""

    def predict(self, obs: Any, *_: Any, **__: Any) -> tuple[Any, None]:
        return np.zeros(len(obs), np.int64), None


def counted(*lengths: tuple[int, ...]) -> VecEnv:
    return make_vec_env_of([lambda each=each: Counted(each) for each in lengths])


def make_vec_env_of(makers: list[Any]) -> VecEnv:
    from stable_baselines3.common.monitor import Monitor

    return DummyVecEnv([lambda make=make: Monitor(make()) for make in makers])


def dots(n_envs: int = 2, **arguments: Any) -> VecEnv:
    return make_vec_env(Dot, n_envs, seed=3, env_kwargs=arguments)


def test_short_episodes_count_no_more_than_long_ones() -> None:
    """Whoever takes the first episodes to end has three of one step for each of three steps."""
    env = counted((1,), (3,))
    result = evaluate(Still(), env, 10)
    assert sorted(result.lengths.tolist()) == [1] * 5 + [3] * 5
    assert sorted(result.returns.tolist()) == [1.0] * 5 + [6.0] * 5
    assert (result.mean, result.std) == (3.5, 2.5)
    assert result.quartiles == (1.0, 3.5, 6.0)
    assert result.relative_iqr == pytest.approx(5 / 3.5)
    assert str(result) == (
        "10 episodes, mean return 3.5 +/- 2.50, quartiles 1, 3.5, 6, relative IQR 1.43, "
        "least 1, most 6"
    )


def test_no_buffer_is_the_default_and_any_number_is_filled() -> None:
    """sb3-extra-buffers 0.5.0 fails without a buffer, and with one that records."""
    env = counted((2, 5))
    assert evaluate(Still(), env, 3).seconds_adding == ()
    record = RecordBuffer(100, env.observation_space, env.action_space)
    replay = CompressedReplayBuffer(100, env.observation_space, env.action_space, "cpu")
    counting = CountingRecordBuffer()
    result = evaluate(Still(), env, 4, buffers=[record, replay, counting])
    assert len(result.seconds_adding) == 3
    assert counting.n_episodes == 4
    assert len(record) == replay.size() == counting.n_steps == result.lengths.sum()


def test_ends_have_their_last_observation() -> None:
    """sb3-extra-buffers 0.5.0 adds the reset's."""
    env = counted((4, 6))
    ours = CompressedReplayBuffer(100, env.observation_space, env.action_space, "cpu")
    hosts = HostsReplayBuffer(100, env.observation_space, env.action_space, "cpu")
    evaluate(Still(), env, 6, buffers=[ours, hosts])
    assert ours.size() == hosts.size() >= 24
    ends = np.flatnonzero(hosts.dones[: hosts.size(), 0])
    assert len(ends) == 6
    for buffer in (ours, hosts):
        before = np.array([buffer.observations[int(t)][0].flat[0] for t in ends])
        after = np.array([buffer.next_observations[int(t)][0].flat[0] for t in ends])
        assert (after == before + 1).all()


@pytest.mark.parametrize("continuous", [False, True])
def test_a_model_plays_as_the_host_has_it_play(continuous: bool) -> None:
    env = dots(continuous=continuous)
    kind: Any = SAC if continuous else DQN
    model = kind("CnnPolicy", env, buffer_size=100, seed=1, device="cpu")
    env.seed(5)
    ours = evaluate(model, env, 3)
    env.seed(5)
    theirs, lengths = evaluate_policy(model, env, 3, return_episode_rewards=True)
    assert ours.returns.tolist() == theirs
    assert ours.lengths.tolist() == lengths


def test_replay_buffers_keep_scaled_actions_and_records_what_was_done() -> None:
    class Wide(Dot):
        def __init__(self) -> None:
            super().__init__(continuous=True)
            self.action_space = spaces.Box(-4, 4, (2,), np.float32)

    env = make_vec_env(Wide, 2, seed=1)
    model = SAC("CnnPolicy", env, buffer_size=100, seed=1, device="cpu")
    seen = model.observation_space  # channels first, as the host has it
    record = RecordBuffer(200, seen, env.action_space, 2)
    replay = CompressedReplayBuffer(200, seen, env.action_space, "cpu", n_envs=2)
    with pytest.raises(ValueError, match="build it of that space"):
        evaluate(model, env, 2, buffers=RecordBuffer(9, env.observation_space, env.action_space, 2))
    evaluate(model, env, 2, buffers=[record, replay], deterministic=False)
    done = record.buffer.get(record.buffer.newest(20)).action
    kept = replay.actions[: replay.pos].reshape(-1, 2)[-20:]
    assert np.abs(done).max() > 1
    np.testing.assert_allclose(kept * 4, done, atol=1e-6)


@pytest.mark.parametrize("mean_ep_len", [None, 14])
def test_a_buffer_is_warmed_up(mean_ep_len: float | None) -> None:
    env = dots(2)
    buffer = CompressedReplayBuffer(600, env.observation_space, env.action_space, "cpu", n_envs=2)
    result = warm_up(buffer, Still(), env, mean_ep_len=mean_ep_len)
    assert 0.5 * 600 < 2 * buffer.size() <= 600
    if mean_ep_len is not None:
        assert len(result.returns) == round(600 * 0.9 / 14)


def test_more_environments_warm_up_a_buffer_of_fewer() -> None:
    env = dots(4)
    buffer = CompressedReplayBuffer(400, env.observation_space, env.action_space, "cpu", n_envs=2)
    warm_up(buffer, Still(), env, 8)
    assert buffer.size() > 20
    for t in range(buffer.size()):
        obs, reached = buffer.observations[t], buffer.next_observations[t]
        assert (reached[:, 0, 0] == obs[:, 0, 0] + 1).all()  # the step's number


def _random_model(env: VecEnv) -> Any:
    return DQN("CnnPolicy", env, buffer_size=10, seed=0, device="cpu", exploration_initial_eps=1.0)


def test_the_best_model_and_the_last_one(tmp_path: Path) -> None:
    env = dots(2)
    model = _random_model(env)
    model.save(tmp_path / "best_model")
    with pytest.raises(FileNotFoundError, match=r"there is no model .*final_model.zip"):
        evaluate_saved(DQN, tmp_path, env, 2)
    model.save(tmp_path / "final_model")
    results = evaluate_saved(DQN, tmp_path, env, 2, device="cpu")
    assert list(results) == ["best_model", "final_model"]
    assert all(len(result.returns) == 2 for result in results.values())


def test_bad_input_is_told() -> None:
    env = dots(3)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        evaluate(_random_model(dots(1, channels=3)), env, 3)
    with pytest.raises(ValueError, match="n_episodes=0 must be at least 1"):
        evaluate(Still(), env, 0)
    two = CompressedReplayBuffer(100, env.observation_space, env.action_space, "cpu", n_envs=2)
    with pytest.raises(
        ValueError, match="3 environments are to fill a CompressedReplayBuffer of 2"
    ):
        warm_up(two, Still(), env, 3)
    n_step = CompressedNStepReplayBuffer(
        100, env.observation_space, env.action_space, "cpu", n_envs=1
    )
    with pytest.raises(ValueError, match=r"of 1; there must be 1$"):
        warm_up(n_step, Still(), env, 3)
    rollout = CompressedRolloutBuffer(10, env.observation_space, env.action_space, "cpu", n_envs=3)
    with pytest.raises(TypeError, match="a CompressedRolloutBuffer cannot be filled by playing"):
        warm_up(rollout, Still(), env, 3)
    with pytest.raises(TypeError, match="a CountingRecordBuffer is never full: say n_episodes"):
        warm_up(CountingRecordBuffer(), _random_model(env), env)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_atari_as_the_host_has_it(n_envs: int) -> None:
    env = make_env("PongNoFrameskip-v4", n_envs, SubprocVecEnv, framestack=4, seed=1)
    try:
        assert env.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
        record = RecordBuffer(400, env.observation_space, env.action_space, n_envs)
        recorder_steps = evaluate_steps(env, record)
        assert len(record) == recorder_steps * n_envs
        assert record.buffer.compression_ratio > 5
    finally:
        env.close()


def evaluate_steps(env: VecEnv, record: RecordBuffer, n: int = 40) -> int:
    from compressarray.sb3.recording import VecRecorder

    recorder = VecRecorder(env, [record])
    recorder.reset()
    for _ in range(n):
        recorder.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))
    return n
