"""What ``ReplayBuffer`` refuses, or warns of once, instead of sampling what nobody saw."""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from compressarray import DiffFrameArray, ReplayBuffer, StaleStreamError
from compressarray.array.frames import _Frames as Frames
from tests.diary import SHAPE, Diary, read
from tests.naive import assert_same
from tests.replay_worlds import FRAME, Setting, World, assert_batch, assert_same_content

gym.register_envs(ale_py)

STACKS = Box(0, 255, (3, *FRAME), np.uint8)
NO, YES = np.array([False]), np.array([True])
SAME_STEP = AutoresetMode.SAME_STEP


def stack(*values: int) -> np.ndarray:
    """One lane's stack of frames that are all of one value."""
    return np.array([[np.full(FRAME, value, np.uint8) for value in values]])


def build(space: Any = STACKS, actions: Any = None, **arguments: Any) -> ReplayBuffer:
    return ReplayBuffer(30, space, actions or Discrete(4), **{"seed": 0, **arguments})


def numbered(buffer: ReplayBuffer) -> list[tuple[Any, Any]]:
    """The first pixels of all observations and successors, in the order in which they came."""
    batch = buffer.sample(buffer.n_samplable, replace=False)
    order = np.argsort(batch.index)
    return [(batch.obs[k, :, 0, 0].tolist(), batch.next_obs[k, :, 0, 0].tolist()) for k in order]


# -- resets ----------------------------------------------------------------------------------


def test_clear_after_an_end_forgets_no_reset_that_is_to_come() -> None:
    buffer = build(autoreset_mode="next_step")
    buffer.add(stack(1, 2, 3), [0], [0.0], YES, NO, stack(2, 3, 4))
    buffer.clear()
    buffer.add(stack(2, 3, 4), [1], [0.0], NO, NO, stack(9, 9, 9))  # the reset
    buffer.add(stack(9, 9, 9), [2], [0.0], NO, NO, stack(9, 9, 5))
    assert numbered(buffer) == [([9, 9, 9], [9, 9, 5])]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_reset_from_outside_after_an_end_drops_no_step(loaded: bool) -> None:
    frame = Box(0, 255, FRAME, np.uint8)
    buffer = build(frame, stack_size=3, autoreset_mode="next_step")
    shown = [np.full((1, *FRAME), value, np.uint8) for value in (1, 2, 50, 51, 52)]
    buffer.add(shown[0], [0], [0.0], YES, NO, shown[1])
    if loaded:
        buffer = pickle.loads(pickle.dumps(buffer))
    buffer.add(shown[2], [1], [0.0], NO, NO, shown[3])
    buffer.add(shown[3], [1], [0.0], NO, NO, shown[4])
    assert numbered(buffer) == [
        ([1, 1, 1], [1, 1, 2]),
        ([50, 50, 50], [50, 50, 51]),
        ([50, 50, 51], [50, 51, 52]),
    ]
    sequences = buffer.sample_sequences(3, 1, replace=False)
    assert sorted(zip(sequences.index[:, 0], sequences.is_first[:, 0], strict=True)) == [
        (0, 1), (1, 1), (2, 0),
    ]  # fmt: skip


def test_newest_frames_go_on_after_clear_as_the_agent_s_stacks_do() -> None:
    buffer = build(Box(0, 255, FRAME, np.uint8), stack_size=3, autoreset_mode="disabled")
    shown = [np.full((1, *FRAME), value, np.uint8) for value in range(1, 8)]
    for t in range(4):
        buffer.add(shown[t], [0], [0.0], NO, NO, shown[t + 1])
    buffer.clear()
    assert len(buffer) == 0
    buffer.add(shown[4], [0], [0.0], NO, NO, shown[5])
    assert numbered(buffer) == [([3, 4, 5], [4, 5, 6])]
    buffer.clear()
    buffer.cut()  # and now the environment is reset
    buffer.add(shown[5], [0], [0.0], NO, NO, shown[6])
    assert numbered(buffer) == [([6, 6, 6], [6, 6, 7])]


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_a_lost_life_that_the_user_tells_of(mode: str) -> None:
    buffer = build(
        Box(0, 255, FRAME, np.uint8), stack_size=3, autoreset_mode=mode, n_step=2, gamma=0.5
    )
    shown = [np.full((1, *FRAME), value, np.uint8) for value in range(1, 8)]
    for t in range(5):
        ends = YES if t == 2 else NO
        garbage = {"final_obs": np.full((1, *FRAME), 99, np.uint8)} if mode == "same_step" else {}
        buffer.add(shown[t], [0], [1.0], ends, NO, shown[t + 1], garbage, was_reset=NO)
    batch = buffer.sample(4, replace=False)
    rows = {name: row for row, name in enumerate(batch.index.tolist())}
    assert sorted(rows) == [0, 1, 2, 3]  # the window of the fifth is not complete
    expected = {0: ([1, 1, 1], [1, 2, 3]), 1: ([1, 1, 2], [2, 3, 4]),
                2: ([1, 2, 3], [2, 3, 4]), 3: ([2, 3, 4], [4, 5, 6])}  # fmt: skip
    for name, (obs, next_obs) in expected.items():
        row = rows[name]
        assert batch.obs[row, :, 0, 0].tolist() == obs
        assert batch.next_obs[row, :, 0, 0].tolist() == next_obs
        assert batch.terminated[row] == (name in (1, 2))
        assert batch.discount[row] == (0.5 if name == 2 else 0.25)


def ale_info(*began: int, t: int = 0) -> dict[str, Any]:
    """What ALE's vector environment counts of games that began with some emulator frames."""
    of_episode = np.full(len(began), 40 + 4 * t, np.int32)
    return {
        "frame_number": np.array(began, np.int32) + of_episode,
        "episode_frame_number": of_episode,
    }


def test_an_end_of_which_ale_s_counters_say_nothing() -> None:
    """The first step after a reset: a lost life, or a game that was over in one step."""
    arguments = stack(1, 1, 1), [0], [0.0], YES, NO, stack(1, 1, 2)
    buffer = build()
    info = {**ale_info(0), "final_obs": stack(7, 7, 7)}
    for _ in range(3):
        with pytest.raises(ValueError, match=r"first step after a reset.*Pass was_reset"):
            buffer.add(*arguments, info)
    assert len(buffer) == 0
    buffer.add(*arguments, info, was_reset=NO)
    assert numbered(buffer) == [([1, 1, 1], [1, 1, 2])]
    # From there on the counters tell.
    buffer.add(stack(1, 1, 2), [0], [0.0], YES, NO, stack(1, 2, 3), info)
    buffer.add(stack(1, 2, 3), [0], [0.0], YES, NO, stack(0, 0, 9), {**info, **ale_info(48, t=1)})
    assert numbered(buffer)[1:] == [([1, 1, 2], [1, 2, 3]), ([1, 2, 3], [7, 7, 7])]
    # What is truncated is a game.
    buffer.add(stack(0, 0, 9), [0], [0.0], NO, YES, stack(0, 0, 5), {**info, **ale_info(52, t=1)})
    assert numbered(buffer)[3:] == [([0, 0, 9], [7, 7, 7])]


def test_counters_of_single_environments_are_not_ale_s() -> None:
    """A wrapper inside may reset without a new game, and Gymnasium resets after every end."""
    buffer = build(autoreset_mode="next_step")
    info = {**ale_info(0), "_frame_number": YES, "_episode_frame_number": YES}
    buffer.add(stack(1, 1, 1), [0], [0.0], NO, NO, stack(1, 1, 2), info)
    buffer.add(stack(1, 1, 2), [0], [0.0], YES, NO, stack(1, 2, 3), info)
    buffer.add(stack(1, 2, 3), [0], [0.0], NO, NO, stack(8, 8, 8), info)  # the reset
    buffer.add(stack(8, 8, 8), [0], [0.0], NO, NO, stack(8, 8, 9), info)
    assert [obs for obs, _ in numbered(buffer)] == [[1, 1, 1], [1, 1, 2], [8, 8, 8]]


def test_the_mask_is_one_flag_for_each_lane() -> None:
    arguments = stack(1, 1, 1), [0], [0.0], NO, NO, stack(1, 1, 2)
    with pytest.raises(TypeError, match="was_reset has dtype int64; it must be bool"):
        build().add(*arguments, was_reset=[0])
    with pytest.raises(ValueError, match=r"was_reset has shape \(\)"):
        build().add(*arguments, was_reset=False)


# -- info and modes --------------------------------------------------------------------------


def makes(p_end: float = 0.4) -> list[Any]:
    return [partial(Diary, lane, p_end) for lane in range(2)]


@pytest.mark.parametrize("mode", ["next_step", "disabled"])
def test_a_mode_that_info_contradicts_is_refused(mode: str) -> None:
    envs = SyncVectorEnv(makes(), autoreset_mode=SAME_STEP)
    space = envs.single_observation_space
    buffer = build(space, envs.single_action_space, n_envs=2, autoreset_mode=mode)
    obs, _ = envs.reset(seed=0)
    n_refused = 0
    for t in range(30):
        next_obs, *outcome, info = envs.step(np.zeros(2, int))
        if "final_obs" in info:
            with pytest.raises(ValueError, match=rf"SAME_STEP.*autoreset_mode='{mode}'"):
                buffer.add(obs, [0, 0], *outcome, next_obs, info)
            n_refused += 1
        elif not n_refused:
            buffer.add(obs, [0, 0], *outcome, next_obs, info)
            assert len(buffer) == 2 * t + 2
        obs = next_obs
    assert n_refused > 5


def test_the_other_autoreset_than_disabled_is_warned_of_once() -> None:
    envs = SyncVectorEnv(makes(), autoreset_mode=AutoresetMode.NEXT_STEP)
    space = envs.single_observation_space
    buffer = build(space, envs.single_action_space, n_envs=2, autoreset_mode="disabled")
    obs, _ = envs.reset(seed=0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = None
        ends = np.zeros(2, bool)
        for t in range(40):
            next_obs, reward, terminated, truncated, info = envs.step(np.zeros(2, int))
            buffer.add(obs, [0, 0], reward, terminated, truncated, next_obs, info)
            if ends.any() and first is None:
                first = t
                assert len(told) == 1, "not at the first step that shows it"
            obs, ends = next_obs, terminated | truncated
    assert first is not None
    assert len(told) == 1
    assert "autoreset_mode must be 'next_step'" in str(told[0].message)
    assert told[0].filename == __file__


@pytest.mark.parametrize("info", [[{}], ({},), "info", 3])
def test_info_of_another_kind_is_refused_at_the_first_step(info: Any) -> None:
    buffer = build()
    with pytest.raises(TypeError, match=rf"info is a {type(info).__name__}.*terminal_observation"):
        buffer.add(stack(1, 1, 1), [0], [0.0], NO, NO, stack(1, 1, 2), info)
    assert len(buffer) == 0


@pytest.mark.parametrize("mode", ["same_step", "next_step", "disabled"])
def test_info_of_an_older_gymnasium_is_refused(mode: str) -> None:
    buffer = build(autoreset_mode=mode)
    info = {"final_observation": np.array([stack(1, 1, 2)[0], None], object)}
    with pytest.raises(ValueError, match=r"'final_observation'.*before 1\.0"):
        buffer.add(stack(1, 1, 1), [0], [0.0], YES, NO, stack(5, 5, 5), info)


@pytest.mark.parametrize(
    ("info", "match"),
    [
        ({"final_obs": stack(1, 2, 3), "_final_obs": [True, False]}, r"_final_obs'\] has shape"),
        ({"final_obs": stack(1, 2, 3)[:0]}, "final_obs has 0 rows; it must have one for each of 1"),
        ({"final_obs": 3}, "final_obs has 0 rows"),
        ({"final_obs": [None]}, "final_obs of lane 0 has shape"),
        ({"final_obs": [stack(1, 2)[0]]}, r"final_obs of lane 0 has shape \(2, 3, 5\)"),
    ],
)
def test_final_observations_that_are_none(info: Any, match: str) -> None:
    buffer = build()
    with pytest.raises(ValueError, match=match):
        buffer.add(stack(1, 1, 1), [0], [0.0], YES, NO, stack(5, 5, 5), info)
    assert len(buffer) == 0


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_dict", [False, True])
def test_environments_that_hand_out_one_buffer_are_refused(is_dict: bool) -> None:
    space: Any = Box(0, 255, SHAPE, np.uint8)
    buffer = build(Dict(page=space, other=Discrete(3)) if is_dict else space, n_envs=2)
    envs = SyncVectorEnv(makes(), autoreset_mode=SAME_STEP, copy=False)

    def given(page: np.ndarray) -> Any:
        # The other entry is fresh, and what is given is a view, as wrappers give it.
        return {"page": page[:], "other": np.zeros(2, np.int64)} if is_dict else page

    obs, _ = envs.reset(seed=0)
    next_obs, *outcome, info = envs.step(np.zeros(2, int))
    with pytest.raises(ValueError, match=r"obs.*and next_obs.*are one memory.*copy=True"):
        buffer.add(given(obs), [0, 0], *outcome, given(next_obs), info)
    assert len(buffer) == 0


def test_one_tensor_for_both_is_refused() -> None:
    torch = pytest.importorskip("torch")
    shown = torch.zeros((1, 3, *FRAME), dtype=torch.uint8)
    with pytest.raises(ValueError, match="obs and next_obs are one memory"):
        build().add(shown, [0], [0.0], NO, NO, shown)


class OneArray(gym.Wrapper):
    """Writes all observations into one array, as renderers like to."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.array = np.zeros(SHAPE, np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        self.array[:], info = self.env.reset(**kwargs)
        return self.array, info

    def step(self, action: Any) -> Any:
        self.array[:], *outcome = self.env.step(action)
        return self.array, *outcome


def test_last_observations_that_the_reset_has_overwritten_are_told_of() -> None:
    """In the vector environment the steps are copied, and only ``final_obs`` is not."""
    envs = SyncVectorEnv([lambda: OneArray(Diary(0, 0.3))], autoreset_mode=SAME_STEP)
    buffer = build(envs.single_observation_space, envs.single_action_space)
    obs, _ = envs.reset(seed=0)
    ended = False
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(30):
            next_obs, *outcome, info = envs.step(np.zeros(1, int))
            buffer.add(obs, [0], *outcome, next_obs, info)
            assert bool(told) == ended
            ended |= bool(outcome[1] | outcome[2])
            obs = next_obs
    assert len(told) == 1
    assert "next obs is what it ended with, though it was reset" in str(told[0].message)
    assert "obs.copy()" in str(told[0].message)
    assert told[0].filename == __file__


def test_stacks_that_overlap_in_memory_are_not_one() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, *FRAME), np.uint8)
    buffer = build(autoreset_mode="disabled")
    for t in range(6):
        buffer.add(frames[None, t : t + 3], [0], [0.0], NO, NO, frames[None, t + 1 : t + 4])
    batch = buffer.sample(6, replace=False)
    for row, t in enumerate(batch.index.tolist()):
        assert_same(np.array(batch.obs[row]), frames[t : t + 3])


# -- spaces ----------------------------------------------------------------------------------


def rgb_steps(n: int) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Stacks of four RGB frames of a real game, each a list of frames."""
    env = gym.make("ALE/Breakout-v5", obs_type="rgb", disable_env_checker=True)
    env.action_space.seed(0)
    first = env.reset(seed=0)[0][::5, ::4].copy()
    frames, steps = [first] * 4, []
    for _ in range(n):
        shown = env.step(env.action_space.sample())[0][::5, ::4].copy()
        steps.append((frames, [*frames[1:], shown]))
        frames = steps[-1][1]
    env.close()
    return steps


def planes_first(frames: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.moveaxis(frame, -1, 0) for frame in frames])[None]


def planes_last(frames: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(frames, axis=-1)[None]


def newest(frames: list[np.ndarray]) -> np.ndarray:
    return frames[-1][None]


@pytest.mark.parametrize(
    ("arrange", "arguments", "fix"),
    [
        (planes_first, {}, "stack_axis=0 and frame_channels=3"),
        (planes_first, {"stack_axis": None}, "stack_axis=0 and frame_channels=3"),
        (planes_last, {}, "stack_axis=2 and frame_channels=3"),
        (planes_last, {"stack_axis": -1}, "stack_axis=2 and frame_channels=3"),
        (newest, {}, "stack_axis=None, which reads them as single frames"),
        (planes_first, {"frame_channels": 3}, None),
        (planes_last, {"stack_axis": -1, "frame_channels": 3}, None),
        (newest, {"stack_axis": None}, None),
    ],
)
def test_a_space_that_is_read_wrongly_is_warned_of(
    arrange: Any, arguments: dict[str, Any], fix: str | None
) -> None:
    steps = rgb_steps(60)
    shape = arrange(steps[0][0]).shape[1:]
    space = Box(0, 255, shape, np.uint8)
    buffer = ReplayBuffer(60, space, Discrete(4), autoreset_mode="disabled", **arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for before, after in steps:
            buffer.add(arrange(before), [0], [0.0], NO, NO, arrange(after))
    assert len(told) == (fix is not None)
    if fix is not None:
        assert fix in str(told[0].message)
        assert "observation_space of shape" in str(told[0].message)
    batch = buffer.sample(20)  # right in any case
    for row, t in enumerate(batch.index.tolist()):
        assert_same(np.array(batch.next_obs[row]), arrange(steps[t][1])[0])


@pytest.mark.parametrize(
    ("space", "arguments", "match"),
    [
        (STACKS, {"padding_type": "zero"}, "padding_type='zero' is of stacks that are made here"),
        (Box(0, 255, FRAME, np.uint8), {"frame_channels": 3}, "has none: leave them out"),
        (Box(0, 255, FRAME, np.uint8), {"stack_axis": 1}, "stack_axis=1.*has none"),
        (Box(0, 255, (5,), np.uint8), {"codec": "raw"}, "codec='raw'.*are of images"),
        (Discrete(4), {"gop_length": 4}, "gop_length=4 are of images"),
        (
            Box(0, 255, FRAME, np.uint8),
            {"stack_size": 3, "frame_channels": 3},
            "stack_size=3 says that they are single frames",
        ),
        (STACKS, {"stack_axis": None, "frame_channels": 3}, "stack_axis=None says that there is"),
        (STACKS, {"stack_axis": "last"}, "stack_axis='last' must be a whole number or None"),
        (Dict(), {}, "has no entries"),
        (Dict(state=Box(0, 1, (5,), np.float32)), {"stack_size": 3}, "stack_size=3 is of images"),
    ],
)
def test_arguments_that_would_be_ignored(space: Any, arguments: Any, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        build(space, **arguments)


def test_exponents_without_priorities_are_warned_of() -> None:
    for arguments in ({"alpha": 0.7}, {"beta": 0.5}, {"epsilon": 0.01}):
        name = next(iter(arguments))
        with pytest.warns(UserWarning, match=f"{name}=.*without prioritized=True") as told:
            build(**arguments)
        assert told[0].filename == __file__
        build(**arguments, prioritized=True)


# -- frame indices ---------------------------------------------------------------------------

INDICES = Box(0, 2**63 - 2, (3,), np.int64)


def of_indices(pad: str | np.ndarray | None, **arguments: Any) -> tuple[ReplayBuffer, Any]:
    """Build a buffer of given frames, and the arguments of a first step that is padded."""
    frames = DiffFrameArray((70, 1, *FRAME), stack_axis=None)
    first, second = frames.append(np.full((2, 1, *FRAME), 3, np.uint8))[:, 0].tolist()
    before = first if pad is None else int(frames.pin(np.asarray(pad)))
    obs, next_obs = np.array([[before, before, first]]), np.array([[before, first, second]])
    buffer = build(INDICES, frames=frames, **arguments)
    return buffer, (obs, [0], [0.0], NO, NO, next_obs)


BLACK, GRAY = np.zeros(FRAME, np.uint8), np.full(FRAME, 7, np.uint8)


@pytest.mark.parametrize(
    ("pad", "padding_type", "fits"),
    [
        (None, "reset", True),
        (None, "zero", False),
        (None, GRAY, False),
        (BLACK, "zero", True),
        (BLACK, "reset", False),
        (BLACK, GRAY, False),
        (GRAY, GRAY, True),
        (GRAY, "zero", False),
        (GRAY, None, True),
        (None, None, True),
    ],
)
def test_padding_that_is_not_the_wrapper_s_is_refused(
    pad: Any, padding_type: Any, fits: bool
) -> None:
    buffer, arguments = of_indices(pad, padding_type=padding_type)
    if fits:
        buffer.add(*arguments)
        expected = np.full(FRAME, 3, np.uint8) if pad is None else pad
        assert_same(np.array(buffer.sample(1).obs[0, 0]), expected)
        return
    for _ in range(3):
        with pytest.raises(ValueError, match="padding_type of the buffer is not how"):
            buffer.add(*arguments)
    assert len(buffer) == 0


def test_padding_that_is_none_of_the_frames_is_refused() -> None:
    buffer, (obs, *rest, next_obs) = of_indices(GRAY)
    pin = obs[0, 0]
    with pytest.raises(ValueError, match=f"begin with the pinned frame {pin - 1}, which is none"):
        buffer.add(np.where(obs == pin, pin - 1, obs), *rest,
                   np.where(next_obs == pin, pin - 1, next_obs))  # fmt: skip
    buffer.add(obs, *rest, next_obs)
    assert_same(np.array(buffer.sample(1).obs[0, 0]), GRAY)


def test_a_codec_that_is_not_that_of_the_frames_is_refused() -> None:
    of_indices(None, codec="delta")
    with pytest.raises(ValueError, match=r"codec='raw'.*by codec='delta'"):
        of_indices(None, codec="raw")
    with pytest.raises(ValueError, match="gop_length=4 do not change"):
        of_indices(None, gop_length=4)


def test_padding_of_zeros_is_the_frame_closest_to_them() -> None:
    """As Gymnasium's own padding, where black is not in the space."""
    space = Box(np.float32(2), np.float32(9), FRAME, np.float32)
    buffer = build(space, stack_size=2, padding_type="zero", autoreset_mode="disabled")
    frames = np.full((2, 1, *FRAME), 5, np.float32)
    frames[1] = 6
    buffer.add(frames[0], [0], [0.0], NO, NO, frames[1])
    assert buffer.sample(1).obs[0, :, 0, 0].tolist() == [2, 5]


# -- numbers that may be set, and others -----------------------------------------------------


def test_gamma_and_beta_take_effect_when_they_are_set() -> None:
    worlds = [World(Setting(n_step=3, prioritized=True, n_slots=20)) for _ in range(2)]
    for world in worlds:
        for _ in range(20):
            world.step()
        names = world.buffer.sample(20).index
        world.buffer.update_priorities(names, np.linspace(0.1, 5, 20))
    one, other = (world.buffer for world in worlds)
    one.gamma, one.beta = 0.5, 1.0
    worlds[0].oracle.gamma = 0.5
    assert_same_content(one, worlds[0].oracle)
    other.sample(len(worlds[1].oracle.samplable()), replace=False)
    assert (one.gamma, one.beta) == (0.5, 1.0)
    assert_same(one.sample(8).weight, other.sample(8, beta=1.0).weight)
    twin = pickle.loads(pickle.dumps(one))
    assert (twin.gamma, twin.beta, twin.n_step) == (0.5, 1.0, 3)
    one.epsilon = 0.0  # for the updates that come
    one.update_priorities([int(one.sample(1).index[0])], [2.0])
    for name, value in (("gamma", 1.5), ("gamma", np.nan), ("beta", -3), ("epsilon", np.inf)):
        with pytest.raises(ValueError, match=f"{name}={value} must be at least"):
            setattr(one, name, value)
    with pytest.raises(TypeError, match="gamma='high' must be a number"):
        one.gamma = "high"  # type: ignore[assignment]
    assert (one.gamma, one.beta, one.epsilon) == (0.5, 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_step", 1), ("n_envs", 3), ("alpha", 0.5), ("prioritized", False),
        ("full_windows", True), ("autoreset_mode", "disabled"),
    ],
)  # fmt: skip
def test_what_cannot_change_refuses_assignment(name: str, value: Any) -> None:
    buffer = build(n_step=3, prioritized=True)
    before = getattr(buffer, name)
    with pytest.raises(
        AttributeError, match=rf"{name} of a ReplayBuffer cannot be changed.*{name}="
    ):
        setattr(buffer, name, value)
    assert getattr(buffer, name) == before
    for fixed in ("capacity", "frames", "n_samplable", "nbytes"):
        with pytest.raises(AttributeError):
            setattr(buffer, fixed, value)


# -- actions and priorities ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_outside_a_box_are_refused(dtype: Any) -> None:
    space = Box(np.array([-1, 0], dtype), np.array([1, np.inf], dtype), dtype=dtype)
    buffer = build(actions=space, autoreset_mode="disabled")
    above = np.nextafter(dtype(1), dtype(2))
    for wrong in ([above, 0], [-1.5, 0], [0, -1], [-np.inf, 0]):
        with pytest.raises(ValueError, match=r"of lane 0 is outside the action space.*clip it"):
            buffer.add(stack(1, 1, 1), np.array([wrong], dtype), [0.0], NO, NO, stack(1, 1, 2))
    with pytest.raises(ValueError, match="action of lane 0 holds NaN"):
        buffer.add(stack(1, 1, 1), np.array([[0, np.nan]], dtype), [0.0], NO, NO, stack(1, 1, 2))
    assert len(buffer) == 0
    for t, right in enumerate(([1, 0], [-1, 1e30], [0, np.inf])):
        before, after = stack(t, t + 1, t + 2), stack(t + 1, t + 2, t + 3)
        buffer.add(before, np.array([right], dtype), [0.0], NO, NO, after)
    batch = buffer.sample(3, replace=False)
    assert_same(
        batch.action[np.argsort(batch.index)], np.array([[1, 0], [-1, 1e30], [0, np.inf]], dtype)
    )


def prioritized(**arguments: Any) -> ReplayBuffer:
    buffer = build(prioritized=True, autoreset_mode="disabled", **arguments)
    for t in range(20):
        buffer.add(stack(t, t + 1, t + 2), [0], [float(t)], NO, NO, stack(t + 1, t + 2, t + 3))
    return buffer


def test_priorities_that_overflow_are_refused() -> None:
    buffer = prioritized(alpha=2.0)
    buffer.update_priorities([0, 1], [3.0, 4.0])
    before = pickle.dumps(buffer)
    # Each of them would fit, and 30 of the largest, which new transitions get, would not.
    for value in (1e200, 4e153, np.finfo(np.float64).max):
        with pytest.raises(ValueError, match=r"alpha=2.0, is over .* overflow. Clip"):
            buffer.update_priorities([2, 3], [1.0, value])
    assert pickle.dumps(buffer) == before
    buffer.update_priorities([2], [2e153])
    for t in range(20, 60):
        buffer.add(stack(t, t + 1, t + 2), [0], [float(t)], NO, NO, stack(t + 1, t + 2, t + 3))
    assert np.isfinite(buffer.sample(30).weight).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, 1e3, 1e300])
def test_weights_never_overflow(beta: float) -> None:
    buffer = prioritized(alpha=1.0, epsilon=0.0)
    buffer.update_priorities(np.arange(20), np.logspace(-250, 40, 20))
    for _ in range(5):
        weight = buffer.sample(20, replace=False, beta=beta).weight
        assert np.isfinite(weight).all()
        assert weight.max() == 1
        assert weight.min() >= 0
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"beta={wrong} must be at least 0"):
            buffer.sample(4, beta=wrong)
        with pytest.raises(ValueError, match=f"beta={wrong} must be at least 0"):
            buffer.batches(4, beta=wrong)


# -- what n steps need -----------------------------------------------------------------------


def add_dicts(buffer: ReplayBuffer, is_known: bool, n: int = 60) -> None:
    """Steps whose observations have a number that the step before may not know yet."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (n + 3, *FRAME), np.uint8)
    numbers = rng.random((n + 1, 1, 1), np.float32)
    for t in range(n):
        later = numbers[t + 1] if is_known else np.zeros_like(numbers[t])
        buffer.add(
            {"image": frames[None, t : t + 3], "log_prob": numbers[t]},
            [0], [1.0], NO, NO,
            {"image": frames[None, t + 1 : t + 4], "log_prob": later},
        )  # fmt: skip


def test_successors_that_lack_what_observations_have_are_told_of() -> None:
    space = Dict(image=STACKS, log_prob=Box(0, 1, (1,), np.float32))
    known = build(space, n_step=3, autoreset_mode="disabled")
    add_dicts(known, True)
    assert known.stats()["episodes"] == 1
    buffer = build(space, n_step=3, autoreset_mode="disabled")
    with pytest.warns(UserWarning, match="3 steps in a row of lane 0.*'log_prob'") as told:
        add_dicts(buffer, False)
    assert len(told) == 1
    assert "'image'" not in str(told[0].message)
    assert told[0].filename == __file__
    with pytest.raises(ValueError, match=r"next_obs has no entry 'log_prob'"):
        buffer.add(
            {"image": stack(1, 1, 1), "log_prob": np.zeros((1, 1), np.float32)},
            [0], [1.0], NO, NO, {"image": stack(1, 1, 2)},
        )  # fmt: skip


def test_resets_in_next_step_are_known_by_their_images() -> None:
    """What is not known before the next step does not make a reset's row a transition."""
    envs = SyncVectorEnv(makes(0.3), autoreset_mode=AutoresetMode.NEXT_STEP)
    number = Box(0, 1, (1,), np.float32)
    space = Dict(page=envs.single_observation_space, number=number)
    buffer = ReplayBuffer(
        400, space, envs.single_action_space, 2, autoreset_mode="next_step", seed=0
    )
    rng = np.random.default_rng(0)
    obs, _ = envs.reset(seed=0)
    played = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "3 steps in a row")
        for _ in range(100):
            next_obs, *outcome, info = envs.step(np.zeros(2, int))
            played += sum(
                read(new).follows(read(old)) for old, new in zip(obs, next_obs, strict=True)
            )
            before, after = ({"page": each, "number": rng.random((2, 1), np.float32)}
                             for each in (obs, next_obs))  # fmt: skip
            buffer.add(before, [0, 0], *outcome, after, info)
            obs = next_obs
    assert 100 < len(buffer) == played < 200


# -- batches that were drawn ahead -----------------------------------------------------------


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("feed", ["stacks", "newest", "indices"])
def test_batches_of_before_are_gone_after_clear(feed: str, thread: bool) -> None:
    world = World(Setting(feed, n_slots=20, seed=1, resets=30))
    for _ in range(10):
        world.step()
    with world.buffer.batches(8, lookahead=3, thread=thread) as batches:
        next(batches)
        world.clear()
        with pytest.raises(ValueError, match="nothing can be drawn"):
            next(batches)
        for _ in range(12):
            world.step()
        for _ in range(6):
            assert_batch(next(batches), world.oracle.samplable())


@pytest.mark.parametrize("thread", [False, True])
def test_what_was_drawn_comes_before_an_error(thread: bool) -> None:
    world = World(Setting(n_slots=20, seed=1, prioritized=True))
    for _ in range(10):
        world.step()
    buffer = world.buffer
    expected = world.oracle.samplable()
    with buffer.batches(4, lookahead=2, thread=thread) as batches:
        assert_batch(next(batches), expected)
        buffer._tree.leaves[:] = buffer._tree.sums[:] = 0  # as all may become by leaving
        assert_batch(next(batches), expected)
        assert_batch(next(batches), expected)
        for _ in range(2):
            with pytest.raises(ValueError, match="all priorities are zero"):
                next(batches)


def test_decoded_batches_outlive_the_stream_of_given_frames() -> None:
    world = World(Setting("indices", n_slots=20, seed=1, resets=30))
    for _ in range(10):
        world.step()
    expected = world.oracle.samplable()
    with world.buffer.batches(4, lookahead=2, thread=False) as batches:
        assert_batch(next(batches), expected)
        assert world.frames is not None
        world.frames.clear()  # a reset with a seed
        assert_batch(next(batches), expected)
        assert_batch(next(batches), expected)
        with pytest.raises(StaleStreamError):
            next(batches)


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"capacity": 10**16}, MemoryError, "capacity=10000000000000000 transitions"),
        ({"capacity": 2**62}, MemoryError, "capacity=4611686018427387904 transitions"),
        ({"seed": "x"}, TypeError, "seed='x' is none"),
        ({"seed": -1}, ValueError, "seed=-1 is none"),
        ({"gop_length": "a"}, TypeError, "gop_length='a' must be a whole number"),
        ({"gamma": None}, TypeError, "gamma=None must be a number"),
    ],
)
def test_errors_of_building_name_the_argument(arguments: Any, error: Any, match: str) -> None:
    given = {"capacity": 30, "seed": 0, **arguments}
    with pytest.raises(error, match=match):
        ReplayBuffer(observation_space=STACKS, action_space=Discrete(4), **given)


@pytest.mark.parametrize("name", ["obs", "action", "reward", "terminated", "next_obs"])
def test_errors_of_adding_name_the_argument(name: str) -> None:
    arguments = {
        "obs": stack(1, 1, 1), "action": [0], "reward": [0.0], "terminated": NO, "truncated": NO,
        "next_obs": stack(1, 1, 2),
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"^{name} is no array: .*inhomogeneous"):
        build().add(**{**arguments, name: [[1], [1, 2]]})


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "nonsense"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    torch = pytest.importorskip("torch")
    if device != "nonsense" and torch.cuda.is_available():
        pytest.skip("it is there")
    buffer = build()
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        build(device=device)
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        buffer.device = device
    assert buffer.device is None


@pytest.mark.parametrize(
    ("feed", "n_written"),
    [
        ("stacks", 0),
        ("stacks", 1),
        ("stacks", 3),
        ("newest", 0),
        ("newest", 1),
        ("dict", 2),
        ("dict of newest", 1),
        ("two images", 1),
        ("two images", 4),
        ("two images", 6),
    ],
)
def test_many_adds_that_fail_change_nothing(
    feed: str, n_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a failed `add` had stored, the next one takes it back."""
    space: Any = Box(0, 255, FRAME if "newest" in feed else (3, *FRAME), np.uint8)
    if feed == "two images":
        space = Dict(left=space, right=space)
    elif "dict" in feed:
        space = Dict(image=space, vector=Box(0, 1e6, (1,), np.float32))
    stacking = {"stack_size": 3} if "newest" in feed else {}
    buffer = ReplayBuffer(12, space, Discrete(4), autoreset_mode="disabled", seed=0, **stacking)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (900, *FRAME), np.uint8)

    def shown(t: int) -> Any:
        image = frames[None, t + 2] if "newest" in feed else frames[None, t : t + 3].copy()
        if feed == "two images":
            return {"left": image, "right": image[:, :, ::-1].copy()}
        return (
            {"image": image, "vector": np.full((1, 1), t, np.float32)} if "dict" in feed else image
        )

    def add(t: int) -> None:
        buffer.add(shown(t), [0], [float(t)], NO, NO, shown(t + 1))

    def held() -> list[bytes]:
        batch = buffer.sample(12, replace=False)
        rows = []
        for row in np.argsort(batch.index):
            for each in (batch.obs, batch.next_obs):
                entries = each.values() if isinstance(each, dict) else [each]
                rows.append(b"".join(entry[row].tobytes() for entry in entries))
        return rows

    for t in range(30):
        add(t)
    before, bytes_before = held(), buffer.nbytes_stored
    real = Frames.append_within
    n_calls = 0

    def fails(self: Frames, lanes: Any, n_rows: int, entries: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > n_written:
            raise MemoryError("no memory")
        return real(self, lanes, n_rows, entries)

    monkeypatch.setattr(Frames, "append_within", fails)
    for t in range(100, 400):  # each time another episode begins, of which all is to be stored
        n_calls = 0
        with pytest.raises(MemoryError, match="no memory"):
            add(2 * t)
    monkeypatch.setattr(Frames, "append_within", real)
    assert held() == before
    assert buffer.nbytes_stored < bytes_before + 20_000
    for t in range(30, 42):
        add(t)
    batch = buffer.sample(12, replace=False)
    assert sorted(batch.reward.tolist()) == list(range(30, 42))
    for row, t in enumerate(batch.reward.astype(int)):
        obs = batch.obs
        if isinstance(obs, dict):
            obs = obs.get("image", obs.get("left"))
        got = obs[row][-1]
        assert_same(np.array(got), frames[t + 2])
