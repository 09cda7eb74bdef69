"""``wrappers.dm_control`` beside dm_control's own pixels, rewards and ends of episodes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from packaging.version import Version

from tests.naive import assert_same
from wrappers import dm_control as dmc
from wrappers import vector

dmc.choose_gl()  # before dm_control is imported, which chooses for good

from dm_control import manipulation, suite  # noqa: E402
from dm_control.mujoco import Physics  # noqa: E402
from dm_control.suite import common  # noqa: E402
from dm_control.suite.wrappers import action_scale  # noqa: E402
from lxml import etree  # noqa: E402

SIZE = 84
CAMERA = {"quadruped": 2}
# Among them: another camera, bounds that are not -1 and 1, DrQ-v2's short name, an underscore.
TASKS = {
    "walker_walk": ("walker", "walk"),
    "quadruped_walk": ("quadruped", "walk"),
    "cup_catch": ("ball_in_cup", "catch"),
    "point_mass_easy": ("point_mass", "easy"),
    "cartpole_swingup_sparse": ("cartpole", "swingup_sparse"),
}

SPARSE = {"cup_catch", "point_mass_easy", "cartpole_swingup_sparse"}


def actions(env: gym.Env, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, *env.action_space.shape)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def repeated(env: Any, action: np.ndarray, repeats: int) -> tuple[Any, float]:
    """Take an action several times in a dm_control environment; the last step and the rewards."""
    rewards = []
    for _ in range(repeats):
        step = env.step(action)
        rewards.append(step.reward)
        if step.last():
            break
    return step, sum(rewards)


@pytest.mark.parametrize("task", TASKS)
def test_pixels_and_rewards_of_the_suite(task: str) -> None:
    domain, name = TASKS[task]
    theirs = suite.load(domain, name, task_kwargs={"random": 3})
    theirs = action_scale.Wrapper(theirs, -1.0, 1.0)
    ours = dmc.make_dm_control(task)
    assert ours.observation_space == gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
    assert ours.action_space == gym.spaces.Box(-1, 1, theirs.action_spec().shape, np.float32)

    def view() -> np.ndarray:
        return theirs.physics.render(SIZE, SIZE, camera_id=CAMERA.get(domain, 0))

    theirs.reset()
    assert_same(ours.reset(seed=3)[0], view())
    rewards = []
    for episode in range(2):
        for action in actions(ours, 12, episode):
            observation, reward, terminated, truncated, info = ours.step(action)
            step, expected = repeated(theirs, action, 2)
            assert_same(observation, view())
            assert reward == expected
            assert not terminated
            assert not truncated
            assert info[dmc.DISCOUNT] == step.discount == 1
            rewards.append(reward)
        theirs.reset()
        assert_same(ours.reset()[0], view())
    assert len(set(rewards)) > 1 or task in SPARSE
    ours.close()
    theirs.close()


def test_pixels_and_rewards_of_manipulation() -> None:
    theirs = manipulation.load("reach_duplo_vision", seed=3)
    ours = dmc.make_dm_control("reach_duplo")
    scaled = action_scale.Wrapper(theirs, -1.0, 1.0)
    ours.reset(seed=3)  # draws as dm_control does, given the same generator
    ours.unwrapped.np_random = np.random.RandomState(3)
    theirs.random_state.set_state(np.random.RandomState(3).get_state())
    assert_same(ours.reset()[0], scaled.reset().observation["front_close"][0])
    for action in actions(ours, 6):
        observation, reward, *_ = ours.step(action)
        step, expected = repeated(scaled, action, 2)
        assert_same(observation, step.observation["front_close"][0])
        assert reward == expected
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("repeats", "lengths"), [(300, [300, 300, 300, 100]), (500, [500, 500])])
def test_an_episode_ends_as_dm_controls_does(repeats: int, lengths: list[int]) -> None:
    theirs = suite.load("cartpole", "balance", task_kwargs={"random": 1})
    ours = dmc.make_dm_control("cartpole_balance", size=16, action_repeat=repeats)
    ours.reset(seed=1)
    theirs.reset()
    for number, (action, length) in enumerate(zip(actions(ours, 4), lengths, strict=False)):
        _, reward, terminated, truncated, info = ours.step(action)
        step, expected = repeated(theirs, action, length)
        assert reward == pytest.approx(expected, rel=1e-12)
        assert not terminated
        assert truncated == step.last() == (number == len(lengths) - 1)
        assert info[dmc.DISCOUNT] == 1
    ours.close()
    theirs.close()


def test_max_episode_steps_counts_agent_steps() -> None:
    env = dmc.make_dm_control("cartpole_balance", size=8, max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(action)[2:4] for action in actions(env, 3)]
    assert ends == [(False, False), (False, False), (False, True)]
    env.close()


class Countdown(gym.Env):
    """Rewards of 1 and discounts of a half, and the episode terminates after five steps."""

    observation_space = gym.spaces.Discrete(9)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        self.steps = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        info = {dmc.DISCOUNT: 0.5, "steps": self.steps}
        return self.steps, 1.0, self.steps == 5, False, info


def test_action_repeat_discounts_and_stops() -> None:
    env = dmc.ActionRepeat(Countdown(), 3)
    env.reset()
    assert env.step(0) == (3, 1.75, False, False, {dmc.DISCOUNT: 0.125, "steps": 3})
    assert env.step(0) == (5, 1.5, True, False, {dmc.DISCOUNT: 0.25, "steps": 5})


def test_actions_without_bounds_go_through() -> None:
    env = dmc.ScaledAction(suite_env("lqr-lqr_2_1"))
    assert env.action_space == gym.spaces.Box(-1, 1, (1,), np.float32)
    assert env.action(np.float32([0.25])) == [0.25]
    env.close()


def suite_env(name: str) -> gym.Env:
    dmc.find_task("walker_walk")  # registers Shimmy's ids
    return gym.make(f"dm_control/{name}-v0", render_mode="rgb_array", disable_env_checker=True)


def test_gray_is_the_papers() -> None:
    color = dmc.make_dm_control("walker_run")
    gray = dmc.make_dm_control("walker_run", gray=True)
    assert gray.observation_space == gym.spaces.Box(0, 255, (SIZE, SIZE), np.uint8)
    images = [env.reset(seed=5)[0] for env in (color, gray)]
    for action in actions(color, 5):
        expected = np.dot(images[0][..., :3], [0.2989, 0.5870, 0.1140]).astype(np.uint8)
        assert_same(images[1], expected)
        images = [env.step(action)[0] for env in (color, gray)]
    color.close()
    gray.close()


def black_floor_by_xml(domain: str) -> Physics:
    """Load a domain's model with its floor changed as the paper's code does: in the XML."""
    module = __import__(f"dm_control.suite.{domain}", fromlist=["get_model_and_assets"])
    if domain == "quadruped":
        size = module._DEFAULT_TIME_LIMIT * module._WALK_SPEED
        xml, assets = module.make_model(floor_size=size), common.ASSETS
    else:
        xml, assets = module.get_model_and_assets()
    model = etree.fromstring(xml)
    floor = model.find("./worldbody/geom")
    floor.set("material", "")
    floor.set("rgba", "0 0 0 1")
    return module.Physics.from_xml_string(etree.tostring(model), assets)


@pytest.mark.parametrize("domain", ["walker", "quadruped", "humanoid"])
def test_black_floor_gives_the_papers_pixels(domain: str) -> None:
    env = dmc.make_dm_control(f"{domain}_walk", black_floor=True)
    physics = black_floor_by_xml(domain)
    as_shipped = dmc.make_dm_control(f"{domain}_walk").reset(seed=2)[0]
    for seed in (2, None):  # the model outlives a reset
        images = [env.reset(seed=seed)[0]]
        states = [env.unwrapped.physics.get_state()]
        for action in actions(env, 3):
            images.append(env.step(action)[0])
            states.append(env.unwrapped.physics.get_state())
        for image, state in zip(images, states, strict=True):
            with physics.reset_context():
                physics.set_state(state)
            assert_same(image, physics.render(SIZE, SIZE, camera_id=CAMERA.get(domain, 0)))
        assert (images[0] == 0).mean() > (as_shipped == 0).mean()
    env.close()


@pytest.mark.parametrize("camera", [1, "back", -1])
def test_any_camera_and_size(camera: Any) -> None:
    env = dmc.make_dm_control("walker_stand", size=32, camera=camera)
    image, _ = env.reset(seed=4)
    assert_same(image, env.unwrapped.physics.render(32, 32, camera_id=camera))
    env.close()


# Before 1.4 Gymnasium's AddRenderObservation records an argument that it does not take.
builds_from_spec = pytest.mark.skipif(
    Version(gym.__version__) < Version("1.4"), reason="Gymnasium's own wrapper does not"
)


@builds_from_spec
def test_equal_seeds_and_specs_give_equal_episodes() -> None:
    env = dmc.make_dm_control("walker_walk", size=24, gray=True, black_floor=True)
    again = gym.make(env.spec)
    for seed in (1, 2):
        assert_same(again.reset(seed=seed)[0], env.reset(seed=seed)[0])
        for action in actions(env, 3):
            assert_same(again.step(action)[0], env.step(action)[0])
    again.close()
    env.close()


@builds_from_spec
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
def test_gymnasiums_checker() -> None:
    env = dmc.make_dm_control("reacher_easy", size=16)
    check_env(env, skip_render_check=True)
    env.close()


def test_frames_by_index_in_a_vector_environment() -> None:
    def make() -> gym.Env:
        return dmc.make_dm_control("walker_walk", size=20, gray=True, max_episode_steps=2)

    mode = gym.vector.AutoresetMode.SAME_STEP
    plain, envs = (gym.vector.SyncVectorEnv([make, make], autoreset_mode=mode) for _ in range(2))
    indexed = vector.IndexedFrameStack(envs, stack_size=3, capacity=20)
    expected, _ = plain.reset(seed=1)
    stacks, _ = indexed.reset(seed=1)
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2, 6)).astype(np.float32):
        assert_same(indexed.frames.gather(stacks)[:, -1], expected)
        expected, *_ = plain.step(action)
        stacks, *_ = indexed.step(action)
    plain.close()
    indexed.close()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"task": "walker_wlak"}, "Did you mean walker_walk"),
        ({"task": "wakler_walk"}, "Did you mean walker_walk"),
        ({"task": ""}, "Did you mean walker_walk"),
        ({"task": "reach_dulpo"}, "reach_duplo"),
        ({"camera": 7}, r"camera=7 does not exist; there are 0 \(side\), 1 \(back\) and -1"),
        ({"camera": "top"}, "camera='top' does not exist"),
        ({"size": 0}, "size=0 must be from 1 to 480"),
        ({"size": 500}, "size=500 must be from 1 to 480"),
        ({"action_repeat": 0}, "action_repeat=0 must be at least 1"),
        ({"task": "cheetah_run", "black_floor": True}, "cheetah_run is none of them"),
        ({"task": "reach_duplo", "black_floor": True}, "reach_duplo is none of them"),
    ],
)
def test_one_clear_line(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        dmc.make_dm_control(**{"task": "walker_walk", **kwargs})
    assert "\n" not in str(error.value)


def test_wrappers_refuse_what_they_cannot_wrap() -> None:
    with pytest.raises(TypeError, match="Box actions"):
        dmc.ScaledAction(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="RGB observations"):
        dmc.GrayObservation(gym.make("CartPole-v1"))
    env = suite_env("finger-spin")
    with pytest.raises(ValueError, match="'ground' and not a floor"):
        dmc.BlackFloor(env)
    env.close()


@pytest.mark.parametrize("module", ["dm_control", "shimmy", "imageio"])
def test_a_package_is_missing(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(ModuleNotFoundError, match=rf"{module.replace('_', '-')}: pip install"):
        dmc.make_dm_control("walker_walk")


def test_a_mujoco_that_dm_control_cannot_work_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "4.0.1")
    with pytest.raises(ImportError, match=r"mujoco 4\.0\.1 is installed.*'mujoco<4'"):
        dmc.make_dm_control("walker_walk")


def test_a_mujoco_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "1.9" if name == "mujoco" else version(name)
    )
    with pytest.raises(ImportError, match=r"mujoco 1\.9 is installed, .* needs 3[\d.]* or later"):
        dmc.make_dm_control("walker_walk")


@pytest.mark.parametrize(("version", "numbers"), [("3.4", [3, 4, 0]), ("3.10.1rc2", [3, 10, 1])])
def test_versions_are_compared_by_number(version: str, numbers: list[int]) -> None:
    assert dmc._numbers(version) == numbers


def test_a_task_without_a_limit_of_time_ends() -> None:
    env = dmc.make_dm_control("lqr_lqr_2_1", size=8, action_repeat=300)
    env.reset(seed=0)
    ends = [env.step(action)[2:4] for action in actions(env, 4)]
    assert ends == [(False, False)] * 3 + [(False, True)]
    env.close()


# ---------------------------------------------------------------- OpenGL


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if dm_control had not been imported yet, which chooses for good."""
    monkeypatch.delitem(sys.modules, "dm_control._render")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    return monkeypatch


def test_gl_chosen_once_stays() -> None:
    assert dmc.choose_gl() == sys.modules["dm_control._render"].BACKEND


@pytest.mark.parametrize("name", ["glfw", "disabled", None])
def test_gl_that_somebody_chose_and_that_does_not_work(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError("no display\nand more")

    chosen = SimpleNamespace(BACKEND=name, Renderer=fail)
    monkeypatch.setitem(sys.modules, "dm_control._render", chosen)
    with pytest.raises(RuntimeError, match=rf"chose {name} \(no display\)\. Set MUJOCO_GL"):
        dmc.choose_gl()


@pytest.mark.parametrize("name", ["nosuch", "disabled"])
def test_gl_asked_for_that_does_not_load(name: str, undecided: pytest.MonkeyPatch) -> None:
    undecided.setenv("MUJOCO_GL", name)
    with pytest.raises(
        RuntimeError, match=rf"\({name}: .*unset MUJOCO_GL, or install EGL"
    ) as error:
        dmc.choose_gl()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="GLFW is the choice elsewhere")
def test_gl_falls_back_and_gives_up(undecided: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(name: str) -> str | None:
        tried.append(name)
        return None if name == "osmesa" else "it does not load"

    undecided.setattr(dmc, "_gl_failure", fail)
    assert dmc.choose_gl() == "osmesa"
    assert tried == ["egl", "osmesa"]
    undecided.delenv("MUJOCO_GL")
    undecided.setattr(dmc, "_gl_failure", lambda name: f"no lib{name}")
    with pytest.raises(RuntimeError, match=r"egl: no libegl; osmesa: no libosmesa.*apt-get"):
        dmc.choose_gl()


@pytest.mark.skipif(sys.platform != "linux", reason="GLFW is the choice elsewhere")
def test_gl_that_cannot_be_loaded_says_why(undecided: pytest.MonkeyPatch) -> None:
    # Each library refuses the other one's setting, as it would refuse to be missing.
    undecided.setenv("PYOPENGL_PLATFORM", "nosuch")
    with pytest.raises(RuntimeError, match=r"egl: .*nosuch.*osmesa: .*nosuch"):
        dmc.choose_gl()
