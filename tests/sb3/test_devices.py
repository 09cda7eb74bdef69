"""Other devices than the CPU: what goes there, without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from compressarray import sb3
from compressarray.sb3 import contrib
from tests.sb3.test_buffers import PIXELS, VECTORS, World, infos_of
from tests.sb3.test_her import Fed, goal_space, host_env

ACTION = spaces.Box(-1, 1, (2,), np.float64)  # as the actions of many simulators
DICT = spaces.Dict({"a": PIXELS, "b": VECTORS[0]})
N_ENVS = 2


@pytest.fixture
def sent(monkeypatch):
    """A device like Apple's, which takes no float64; lists the dtypes of what went there."""
    dtypes: list[Any] = []
    real = {name: getattr(th, name) for name in ("tensor", "as_tensor")}

    def send(name: str, value: Any, device: Any = None, **kwargs: Any) -> Any:
        made = real[name](value, **kwargs)
        if device is not None and th.device(device).type == "mps":
            if made.dtype == th.float64:
                # the words of torch itself
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            dtypes.append(made.dtype)
        return made

    for name in real:
        monkeypatch.setattr(
            th, name, lambda *args, _name=name, **kwargs: send(_name, *args, **kwargs)
        )
    return dtypes


def replay(kind: Any, space: Any, **kwargs: Any) -> Any:
    buffer = kind(20, space, ACTION, device="mps", n_envs=N_ENVS, **kwargs)
    assert buffer.device.type == "mps"
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    worlds = {key: World(part, N_ENVS, 1) for key, part in parts.items()}
    rng = np.random.default_rng(0)
    for _ in range(15):
        drawn = {key: world.step() for key, world in worlds.items()}
        _, _, done, cut = next(iter(drawn.values()))
        obs, nexts = ({key: each[i] for key, each in drawn.items()} for i in (0, 1))
        if "" in obs:
            obs, nexts = obs[""], nexts[""]
        action = rng.uniform(-1, 1, (N_ENVS, 2))
        buffer.add(obs, nexts, action, rng.normal(size=N_ENVS), done, infos_of(cut))
    return buffer


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        (sb3.CompressedReplayBuffer, PIXELS),
        (sb3.CompressedDictReplayBuffer, DICT),
        (sb3.CompressedNStepReplayBuffer, PIXELS),
        (sb3.CompressedPrioritizedReplayBuffer, PIXELS),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
@pytest.mark.parametrize("normalized", [False, True])
def test_no_float64_goes_there(kind, space, normalized, sent):
    buffer = replay(kind, space)
    env = VecNormalize(host_env(), norm_obs=False) if normalized else None
    samples = buffer.sample(8, env=env)
    assert len(sent) >= 5
    assert samples.rewards.dtype == samples.actions.dtype == th.float32


@pytest.mark.usefixtures("sent")
def test_what_goes_there_is_looked_at():
    """Observations of float64 stay so, and are refused there, as Stable-Baselines3's own are."""
    doubles = spaces.Box(-np.inf, np.inf, (2, 5, 6), np.float64)
    for kind in (ReplayBuffer, sb3.CompressedReplayBuffer):
        with pytest.raises(TypeError, match="float64"):
            replay(kind, doubles).sample(4)


def test_no_float64_of_hindsight(sent):
    space = goal_space(PIXELS)
    buffer = sb3.CompressedHerReplayBuffer(
        40, space, ACTION, device="mps", n_envs=N_ENVS, env=host_env()
    )
    fed = Fed(space, N_ENVS, 0)
    for _ in range(20):
        buffer.add(*fed.step())
    buffer.sample(8)
    assert len(sent) > 10


def beside(kind: Any) -> dict[str, Any]:
    if "Recurrent" in kind.__name__:
        drawn = [th.zeros(1, N_ENVS, 3) for _ in range(4)]
        return {"lstm_states": RNNStates((drawn[0], drawn[1]), (drawn[2], drawn[3]))}
    return {}


@pytest.mark.parametrize(
    "kind",
    [
        sb3.CompressedRolloutBuffer,
        sb3.CompressedDictRolloutBuffer,
        contrib.CompressedMaskableRolloutBuffer,
        contrib.CompressedRecurrentRolloutBuffer,
    ],
    ids=lambda kind: kind.__name__,
)
def test_no_float64_of_rollouts(kind, sent):
    is_dict, discrete = "Dict" in kind.__name__, spaces.Discrete(3)
    space = DICT if is_dict else PIXELS
    shape = {"hidden_state_shape": (6, 1, N_ENVS, 3)} if "Recurrent" in kind.__name__ else {}
    buffer = kind(6, space, discrete, device="mps", n_envs=N_ENVS, **shape)
    zeros = np.zeros(N_ENVS)
    worlds = {key: World(part, N_ENVS, 1) for key, part in DICT.items()}
    for _ in range(6):
        obs: Any = {key: world.step()[0] for key, world in worlds.items()}
        value = th.zeros(N_ENVS)
        obs = obs if is_dict else obs["a"]
        buffer.add(obs, zeros[:, None], zeros, zeros, value, value, **beside(kind))
    buffer.compute_returns_and_advantage(th.zeros(N_ENVS), zeros)
    assert len(list(buffer.get(4))) == 3
    assert len(sent) >= 18
