"""Hindsight goals: ours beside Stable-Baselines3's own."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from compressarray import sb3
from tests.effort import examples
from tests.sb3.test_buffers import IMAGES, PIXELS, VECTORS, World, assert_equal, infos_of
from tests.sb3.test_training import OFF, assert_same_weights
from tests.sb3.worlds import Reach

ACTION = spaces.Box(-1, 1, (2,), np.float64)
SLOW = pytest.mark.filterwarnings("default")  # the host's own warnings are not ours to mend


def goal_space(goal: Any) -> spaces.Dict:
    return spaces.Dict({"observation": PIXELS, "achieved_goal": goal, "desired_goal": goal})


def host_env(n_envs: int = 1) -> Any:
    return DummyVecEnv([Reach] * n_envs)


def both(rows: int, space: Any, env: Any, n_envs: int, **kwargs: Any) -> Any:
    codec = kwargs.pop("codec", "delta")
    common = (rows * n_envs + n_envs // 2, space, ACTION)
    rest = {"device": "cpu", "n_envs": n_envs, "env": env, **kwargs}
    return HerReplayBuffer(*common, **rest), sb3.CompressedHerReplayBuffer(
        *common, codec=codec, **rest
    )


def histories() -> Any:
    return st.fixed_dictionaries(
        {
            "goal": st.sampled_from([*IMAGES[:6], *VECTORS[:1], VECTORS[2]]),
            "n_envs": st.integers(1, 3),
            "rows": st.integers(2, 20),
            "steps": st.integers(1, 60),
            "seed": st.integers(0, 2**16),
            "strategy": st.sampled_from(["future", "final", "episode"]),
            "n_sampled_goal": st.integers(0, 4),
            "copy_info_dict": st.booleans(),
            "handle_timeout_termination": st.booleans(),
            "codec": st.sampled_from(["delta", "delta", "raw"]),
            "turn": st.sampled_from(["none", "pickle", "pickle and end", "copy"]),
        }
    )


class Fed:
    """The same steps for every buffer; the desired goal stays for an episode."""

    def __init__(self, space: Any, n_envs: int, seed: int) -> None:
        self.n_envs, self.rng = n_envs, np.random.default_rng(seed)
        self.worlds = {
            key: World(part, n_envs, seed + i) for i, (key, part) in enumerate(space.items())
        }
        self.goal: Any = None

    def step(self) -> tuple[Any, ...]:
        drawn = {key: world.step() for key, world in self.worlds.items()}
        _, _, done, cut = drawn["observation"]
        goals = drawn["desired_goal"][1]
        if self.goal is None:
            self.goal = goals
        obs = {key: each[0] for key, each in drawn.items()} | {"desired_goal": self.goal}
        nexts = {key: each[1] for key, each in drawn.items()} | {"desired_goal": self.goal}
        self.goal = np.array(
            [new if d else old for new, old, d in zip(goals, self.goal, done, strict=True)]
        )
        infos = [info | {"far": float(self.rng.integers(9))} for info in infos_of(cut)]
        action = self.rng.uniform(-1, 1, (self.n_envs, 2))
        return obs, nexts, action, self.rng.normal(size=self.n_envs), done, infos


def assert_same_samples(dense: Any, ours: Any, seed: int, env: Any = None) -> None:
    if not (dense.ep_length > 0).any():
        with pytest.raises(RuntimeError, match="before the end of the first episode"):
            ours.sample(3)
        return
    np.random.seed(seed)
    want = dense.sample(11, env=env)
    np.random.seed(seed)
    got = ours.sample(11, env=env)
    assert type(got) is type(want)
    for name in want._fields:
        assert_equal(getattr(got, name), getattr(want, name))


def assert_same_episodes(dense: Any, ours: Any) -> None:
    assert (ours.pos, ours.full) == (dense.pos, dense.full)
    names = ("ep_start", "ep_length", "_current_ep_start", "dones", "timeouts", "actions")
    for name in (*names, "rewards"):
        assert_equal(getattr(ours, name), getattr(dense, name))


@given(histories())
@settings(max_examples=examples(40), deadline=None)
def test_her_is_the_hosts(history):
    n_envs, space, env = history["n_envs"], goal_space(history["goal"]), host_env()
    dense, ours = both(
        history["rows"], space, env, n_envs, codec=history["codec"],
        n_sampled_goal=history["n_sampled_goal"], copy_info_dict=history["copy_info_dict"],
        goal_selection_strategy=history["strategy"],
        handle_timeout_termination=history["handle_timeout_termination"],
    )  # fmt: skip
    fed = Fed(space, n_envs, history["seed"])
    for step in range(history["steps"]):
        given_ = fed.step()
        dense.add(*copy.deepcopy(given_))
        ours.add(*copy.deepcopy(given_))
        if step == history["steps"] // 2 and history["turn"] != "none":
            if history["turn"] == "copy":
                ours = copy.deepcopy(ours)
            else:
                ours = pickle.loads(pickle.dumps(ours, pickle.HIGHEST_PROTOCOL))
            assert ours.env is None
            ours.set_env(env)
            with pytest.raises(ValueError, match="already initialized"):
                ours.set_env(env)
            if history["turn"] == "pickle and end":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    dense.truncate_last_trajectory()
                    ours.truncate_last_trajectory()
        assert_same_episodes(dense, ours)
        if step % 7 == 0 or step == history["steps"] - 1:
            assert_same_samples(dense, ours, step)
    for name in ("observations", "next_observations"):
        for key in space:
            assert_equal(np.asarray(getattr(ours, name)[key]), getattr(dense, name)[key])


def filled(steps: int = 90, **kwargs: Any) -> Any:
    space, env = goal_space(IMAGES[1]), host_env()
    dense, ours = both(30, space, env, 2, **kwargs)
    fed = Fed(space, 2, 4)
    for _ in range(steps):
        given_ = fed.step()
        dense.add(*copy.deepcopy(given_))
        ours.add(*copy.deepcopy(given_))
    return dense, ours


def test_normalized_as_the_host_does():
    env = VecNormalize(host_env(), norm_obs=False)
    env.ret_rms.var = np.array(4.0)
    assert_same_samples(*filled(), 3, env=env)


def test_a_reset_forgets_episodes():
    _, ours = filled(copy_info_dict=True)
    ours.reset()
    assert not ours.ep_length.any()
    assert not any(info for row in ours.infos for info in row)
    with pytest.raises(RuntimeError, match="before the end of the first episode"):
        ours.sample(3)
    with pytest.raises(AssertionError, match="must initialize HerReplayBuffer with a VecEnv"):
        _sampled_without_an_env()


def _sampled_without_an_env() -> None:
    _, ours = filled()
    pickle.loads(pickle.dumps(ours)).sample(8)


def test_infos_take_no_memory_unless_they_are_copied():
    space, env = goal_space(VECTORS[0]), host_env()
    _, ours = both(20_000, space, env, 1)
    assert len({id(each) for each in ours.infos[:, 0]}) == 1
    _, copied = both(2_000, space, env, 1, copy_info_dict=True)
    assert len({id(each) for each in copied.infos[:, 0]}) == 2_000
    assert copied.nbytes_stored > 2_000 * 64


@pytest.mark.parametrize("steps", [0, 20, 90])
def test_taking_over_a_dense_one(steps):
    dense, _ = filled(steps, copy_info_dict=True)
    ours = sb3.compressed(dense)
    assert type(ours) is sb3.CompressedHerReplayBuffer
    assert_same_episodes(dense, ours)
    assert_same_samples(dense, ours, 5)


def test_bad_arguments():
    space, env = goal_space(VECTORS[0]), host_env()
    make = partial(sb3.CompressedHerReplayBuffer, 8)
    with pytest.raises(TypeError, match="CompressedReplayBuffer"):
        make(PIXELS, ACTION, env=env)
    with pytest.raises(KeyError, match="best"):
        make(space, ACTION, env=env, goal_selection_strategy="best")
    with pytest.raises(ValueError, match="compression_method='zip'"):
        make(space, ACTION, env=env, compression_method="zip")
    with pytest.raises(TypeError, match="colour"):
        make(space, ACTION, env=env, colour=1)


@SLOW
def test_sac_with_her_on_images(tmp_path):
    """Bit-identical weights, with a save and a load in the middle."""
    trained = []
    for buffer in (HerReplayBuffer, sb3.CompressedHerReplayBuffer):
        env = host_env(2)
        env.seed(3)
        model = SAC(
            "MultiInputPolicy",
            env,
            replay_buffer_class=buffer,
            replay_buffer_kwargs={"n_sampled_goal": 2, "copy_info_dict": True},
            train_freq=16,
            **{**OFF, "learning_starts": 60, "policy_kwargs": {"net_arch": [16]}},
        )
        model.learn(260)
        model.save_replay_buffer(tmp_path / buffer.__name__)
        model.load_replay_buffer(tmp_path / buffer.__name__)
        assert type(model.replay_buffer) is buffer
        trained.append(model.learn(120, reset_num_timesteps=False))
    assert trained[1]._n_updates > 10
    assert_same_weights(*trained)
