"""sb3-contrib's rollout buffers: ours beside its own."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable import buffers as maskable
from sb3_contrib.common.recurrent import buffers as recurrent
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer

from compressarray.sb3 import CompressedRolloutBuffer, compressed, contrib
from tests.effort import examples
from tests.sb3.test_buffers import ACTIONS, IMAGES, PIXELS, VECTORS, World, assert_equal
from tests.sb3.test_training import ON, SMALL, assert_same_weights, env
from tests.sb3.worlds import Dot

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is gained")
MASKED = [spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]


def histories(actions: Any) -> Any:
    return st.fixed_dictionaries(
        {
            "space": st.sampled_from(IMAGES + VECTORS),
            "action_space": st.sampled_from(actions),
            "n_envs": st.integers(1, 3),
            "rows": st.integers(1, 20),
            "seed": st.integers(0, 2**16),
            "as_dict": st.booleans(),
            "batch": st.sampled_from([None, 1, 5, 7]),
            "codec": st.sampled_from(["delta", "delta", "raw"]),
            "turn": st.sampled_from(["none", "pickle", "copy"]),
        }
    )


def play(history: Any, dense: Any, ours: Any, beside: Any) -> None:
    """Two rollouts of two epochs each; ``beside`` draws what `add` takes beyond the host's."""
    n_envs, rows = history["n_envs"], history["rows"]
    rng = np.random.default_rng(history["seed"])
    space = dense.observation_space
    parts = space.spaces if history["as_dict"] else {"": space}
    worlds = {
        key: World(part, n_envs, history["seed"] + i) for i, (key, part) in enumerate(parts.items())
    }
    for _ in range(2):
        for row in range(rows):
            obs: Any = {key: world.step()[0] for key, world in worlds.items()}
            obs = obs if history["as_dict"] else obs[""]
            action = np.array([history["action_space"].sample() for _ in range(n_envs)])
            rest = (rng.normal(size=n_envs), rng.random(n_envs) < 0.2)
            value, log_prob = th.tensor(rng.normal(size=n_envs)), th.tensor(rng.normal(size=n_envs))
            more = beside(rng)
            for buffer in (dense, ours):
                buffer.add(copy.deepcopy(obs), action, *rest, value, log_prob, **more)
            if row == rows // 2 and history["turn"] != "none":
                turn = copy.deepcopy if history["turn"] == "copy" else _pickled
                ours = turn(ours)
        for buffer in (dense, ours):
            buffer.compute_returns_and_advantage(th.zeros(n_envs), np.zeros(n_envs))
        for _ in range(2):  # epochs
            np.random.seed(4)
            wanted = list(dense.get(history["batch"]))
            np.random.seed(4)
            for got, want in zip(ours.get(history["batch"]), wanted, strict=True):
                assert type(got) is type(want)
                for name in want._fields:
                    assert_same_part(getattr(got, name), getattr(want, name))
        dense.reset()
        ours.reset()


def _pickled(buffer: Any) -> Any:
    return pickle.loads(pickle.dumps(buffer))


def assert_same_part(got: Any, want: Any) -> None:
    if isinstance(want, tuple):  # the states of LSTMs
        for one, other in zip(got, want, strict=True):
            assert_same_part(one, other)
    else:
        assert_equal(got, want)


def space_of(history: Any) -> Any:
    if history["as_dict"]:
        return spaces.Dict({"a": history["space"], "b": VECTORS[0]})
    return history["space"]


@given(histories(MASKED))
@settings(max_examples=examples(30), deadline=None)
def test_masked_rollouts_are_contribs(history):
    classes = (maskable.MaskableRolloutBuffer, contrib.CompressedMaskableRolloutBuffer)
    if history["as_dict"]:
        classes = (maskable.MaskableDictRolloutBuffer, contrib.CompressedMaskableDictRolloutBuffer)
    args = (history["rows"], space_of(history), history["action_space"], "cpu", 0.9, 0.8)
    dense = classes[0](*args, n_envs=history["n_envs"])
    ours = classes[1](*args, n_envs=history["n_envs"], codec=history["codec"])

    def masks(rng: Any) -> dict[str, Any]:
        if rng.random() < 0.3:
            return {}
        return {"action_masks": rng.random((history["n_envs"], dense.mask_dims)) < 0.5}

    play(history, dense, ours, masks)


@given(histories([*ACTIONS, MASKED[1]]))
@settings(max_examples=examples(30), deadline=None)
def test_recurrent_rollouts_are_contribs(history):
    classes = (recurrent.RecurrentRolloutBuffer, contrib.CompressedRecurrentRolloutBuffer)
    if history["as_dict"]:
        classes = (
            recurrent.RecurrentDictRolloutBuffer,
            contrib.CompressedRecurrentDictRolloutBuffer,
        )
    n_envs = history["n_envs"]
    shape = (history["rows"], 2, n_envs, 3)
    args = (history["rows"], space_of(history), history["action_space"], shape, "cpu", 0.9, 0.8)
    dense = classes[0](*args, n_envs=n_envs)
    ours = classes[1](*args, n_envs=n_envs, codec=history["codec"])

    def states(rng: Any) -> dict[str, Any]:
        drawn = [th.tensor(rng.normal(size=shape[1:]), dtype=th.float32) for _ in range(4)]
        return {"lstm_states": RNNStates((drawn[0], drawn[1]), (drawn[2], drawn[3]))}

    play(history, dense, ours, states)


@pytest.mark.parametrize("kind", list(contrib.KINDS), ids=lambda kind: kind.__name__)
def test_taking_the_place_of_contribs(kind):
    space = spaces.Dict({"a": PIXELS, "b": VECTORS[0]}) if "Dict" in kind.__name__ else PIXELS
    shape = {"hidden_state_shape": (8, 1, 2, 5)} if "Recurrent" in kind.__name__ else {}
    dense = kind(8, space, ACTIONS[0], device="cpu", gae_lambda=0.5, gamma=0.7, n_envs=2, **shape)
    ours = compressed(dense, codec="raw")
    assert type(ours) is contrib.KINDS[kind]
    assert isinstance(ours, kind)
    assert (ours.gae_lambda, ours.gamma, ours.n_envs, ours.codec) == (0.5, 0.7, 2, "raw")
    assert compressed(ours) is ours
    beside = sum(
        each.nbytes
        for name, each in vars(ours).items()
        if isinstance(each, np.ndarray) and name != "observations"
    )
    assert ours.nbytes_stored > beside > 0


def test_what_is_neither():
    class Other(RolloutBuffer):
        pass

    with pytest.raises(TypeError, match=r"a Other is none of .*CompressedX|a Other is none of"):
        compressed(Other(8, PIXELS, ACTIONS[0], device="cpu"))
    with pytest.raises(TypeError, match="CompressedDictRolloutBuffer"):
        contrib.CompressedMaskableRolloutBuffer(8, spaces.Dict({"a": PIXELS}), ACTIONS[0])
    with pytest.raises(ValueError, match="Unsupported action space"):
        contrib.CompressedMaskableRolloutBuffer(8, PIXELS, ACTIONS[1])
    plain = compressed(RolloutBuffer(8, PIXELS, ACTIONS[0], device="cpu"))
    assert type(plain) is CompressedRolloutBuffer


MISSING = """
import sys
sys.modules["sb3_contrib"] = None
import compressarray.sb3
assert not any(name.startswith("sb3_contrib.") for name in sys.modules)
try:
    import compressarray.sb3.contrib
except ModuleNotFoundError as error:
    print(error)
"""


def test_without_contrib():
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MISSING], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == (
        "compressarray.sb3.contrib needs sb3-contrib, which is not installed: "
        'pip install "sb3-contrib>=2.9"'
    )


# -- trainings, to the same weights ----------------------------------------------------------------


class Masked(Dot):
    """Some actions are not allowed, other ones at each step."""

    def action_masks(self) -> Any:
        return (np.arange(4) + self.t) % 3 > 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("as_dict", [False, True])
def test_maskable_ppo(as_dict):
    trained = []
    ours = contrib.CompressedMaskableRolloutBuffer
    if as_dict:
        ours = contrib.CompressedMaskableDictRolloutBuffer
    for buffer in (None, ours):
        kwargs = {**ON, "policy_kwargs": {"net_arch": [16]}} if as_dict else ON
        policy = "MultiInputPolicy" if as_dict else "CnnPolicy"
        model = MaskablePPO(
            policy,
            env(2, kind=Masked, as_dict=as_dict),
            rollout_buffer_class=buffer,
            rollout_buffer_kwargs={"codec": "delta"} if buffer else None,
            n_steps=32,
            batch_size=16,
            n_epochs=3,
            **copy.deepcopy(kwargs),
        )
        trained.append(model.learn(128))
    assert type(trained[1].rollout_buffer) is ours
    assert (trained[1].rollout_buffer.action_masks == 0).any()
    assert_same_weights(*trained)


class CompressedRecurrentPPO(RecurrentPPO):
    """As the documentation has it."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer = compressed(self.rollout_buffer)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("as_dict", [False, True])
def test_recurrent_ppo(as_dict, tmp_path):
    small = {"lstm_hidden_size": 8, "net_arch": [16]} | ({} if as_dict else SMALL)
    policy = "MultiInputLstmPolicy" if as_dict else "CnnLstmPolicy"
    trained = []
    for how in ("dense", "assigned", "subclass"):
        kind = CompressedRecurrentPPO if how == "subclass" else RecurrentPPO
        model = kind(
            policy,
            env(2, as_dict=as_dict),
            n_steps=32,
            batch_size=16,
            n_epochs=2,
            **{**ON, "policy_kwargs": copy.deepcopy(small)},
        )
        if how == "assigned":
            model.rollout_buffer = compressed(model.rollout_buffer)
        is_ours = isinstance(model.rollout_buffer, CompressedRolloutBuffer)
        assert is_ours == (how != "dense")
        trained.append(model.learn(128))
    assert_same_weights(trained[0], trained[1])
    assert_same_weights(trained[0], trained[2])
    trained[2].save(tmp_path / "model")
    loaded = CompressedRecurrentPPO.load(tmp_path / "model", env=env(2, as_dict=as_dict))
    assert isinstance(loaded.rollout_buffer, CompressedRolloutBuffer)
    loaded.learn(64)
