"""The DeepMind Control Suite from pixels, as DrQ-v2 and the work after it run it.

:func:`make_dm_control` builds an environment of the suite or one of its manipulation tasks. Shimmy
gives it Gymnasium's interface and Gymnasium's ``AddRenderObservation`` the pixels. The wrappers
here are what those two lack, and work around any environment that Shimmy made.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import AddRenderObservation, TimeLimit
from numpy.typing import NDArray

# Where Shimmy puts dm_control's discount of a step.
DISCOUNT = "timestep.discount"

# The domains whose floor the paper paints black (Differentially Encoded Observation Spaces).
BLACK_FLOOR_DOMAINS = ("walker", "quadruped", "humanoid")

# DrQ-v2 looks at these from closer by; every other domain is seen by camera 0.
CAMERAS = {"quadruped": 2}
MANIPULATION_CAMERA = "front_close"

# The domain without a limit of time: its episodes end where a state is near enough to 0, if ever.
ENDLESS_DOMAIN, ENDLESS_STEPS = "lqr", 1000

# Bounds that MuJoCo writes where there are none (mjMAXVAL).
UNLIMITED = 1e10

_INSTALL = "pip install 'compressarray[dmc]'"
_INSTALL_GL = (
    "install EGL (Debian, Ubuntu: apt-get install libegl1 libgl1-mesa-dri) or OSMesa (apt-get "
    "install libosmesa6)"
)


class ActionRepeat(gym.Wrapper, RecordConstructorArgs):
    """Take every action `repeats` times, or until the episode ends.

    Rewards are summed, each weighted by the discounts of the steps before it, and
    ``info["timestep.discount"]`` is the product of the discounts: DrQ-v2's rule. In the suite they
    are 1 as long as an episode goes on. Observations in between are neither looked at nor, with a
    wrapper for pixels outside this one, rendered.

    Parameters
    ----------
    env : gymnasium.Env
    repeats : int
        Steps of `env` per action, at least 1.

    Raises
    ------
    ValueError
        If `repeats` is below 1.
    """

    def __init__(self, env: gym.Env, repeats: int) -> None:
        if repeats < 1:
            raise ValueError(
                f"action_repeat={repeats} must be at least 1; use 1 for no repetition."
            )
        RecordConstructorArgs.__init__(self, repeats=repeats)
        gym.Wrapper.__init__(self, env)
        self.repeats = repeats

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step until the repeats are over or the episode is."""
        total, discount = 0.0, 1.0
        for _ in range(self.repeats):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward) * discount
            discount *= info.get(DISCOUNT, 1.0)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, DISCOUNT: discount}


class ScaledAction(gym.ActionWrapper, RecordConstructorArgs):
    """Take ``float32`` actions in [-1, 1] and spread them over the environment's own bounds.

    Gymnasium's ``RescaleAction`` does nearly this. It keeps the environment's ``float64``, which
    would double a replay buffer's actions, and rounds otherwise than dm_control's own
    ``action_scale``, whose trajectories this wrapper follows bit for bit. Actions without bounds
    (the ``lqr`` domain) go through as they are.
    """

    def __init__(self, env: gym.Env) -> None:
        space = env.action_space
        if not isinstance(space, Box):
            raise TypeError(f"ScaledAction scales Box actions, but the action space is {space}.")
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        unlimited = (space.low <= -UNLIMITED) | (space.high >= UNLIMITED)
        self._low = np.where(unlimited, -1.0, space.low)
        self._scale = (np.where(unlimited, 1.0, space.high) - self._low) / 2
        self.action_space = Box(-1.0, 1.0, space.shape, np.float32)

    def action(self, action: Any) -> NDArray[np.float64]:
        """Return the action within the environment's bounds."""
        return self._low + self._scale * (np.asarray(action, np.float64) + 1.0)


class BlackFloor(gym.Wrapper, RecordConstructorArgs):
    """Paint the floor of a walker, quadruped or humanoid task black.

    The floor is the first geometry of the world; it loses its material (the checkerboard) and is
    given a black colour in the loaded model, so nothing else in the picture changes. The edit
    lasts: the suite's resets keep the model.

    Raises
    ------
    ValueError
        If the environment has no such floor.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        model = env.unwrapped.physics.model  # type: ignore[attr-defined]
        floor = int(np.flatnonzero(model.geom_bodyid == 0)[0])
        name = model.id2name(floor, "geom")
        if name != "floor" or model.geom_matid[floor] < 0:
            raise ValueError(
                f"black_floor: the world's first geometry is {name!r} and not a floor with a "
                f"pattern. Use it with tasks of {', '.join(BLACK_FLOOR_DOMAINS)}."
            )
        model.geom_matid[floor] = -1
        model.geom_rgba[floor] = 0.0, 0.0, 0.0, 1.0


class GrayObservation(gym.ObservationWrapper, RecordConstructorArgs):
    """Turn RGB observations, ``(H, W, 3)``, into the paper's gray, ``(H, W)``.

    0.2989 R + 0.5870 G + 0.1140 B, truncated. Gymnasium's ``GrayscaleObservation`` has other
    weights.
    """

    WEIGHTS = np.array([0.2989, 0.5870, 0.1140])

    def __init__(self, env: gym.Env) -> None:
        shape = env.observation_space.shape
        if shape is None or len(shape) != 3 or shape[2] != 3:
            raise ValueError(
                f"GrayObservation takes RGB observations, (H, W, 3), but the observation space is "
                f"{env.observation_space}."
            )
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = Box(0, 255, shape[:2], np.uint8)

    def observation(self, observation: Any) -> NDArray[np.uint8]:
        """Return the gray image."""
        gray: NDArray[np.uint8] = np.dot(observation, self.WEIGHTS).astype(np.uint8)
        return gray


def make_dm_control(
    task: str,
    *,
    size: int = 84,
    camera: int | str | None = None,
    action_repeat: int = 2,
    gray: bool = False,
    black_floor: bool = False,
    max_episode_steps: int | None = None,
) -> gym.Env:
    """Build a task of the DeepMind Control Suite whose observations are pixels.

    Parameters
    ----------
    task : str
        ``domain_task`` of the suite (``"walker_walk"``, ``"ball_in_cup_catch"`` or, as DrQ-v2 has
        it, ``"cup_catch"``), or a manipulation task without its ``_features`` or ``_vision``
        (``"reach_duplo"``).
    size : int
        Height and width of the images in pixels.
    camera : int or str, optional
        Number or name of a camera; -1 is the free one. By default camera 2 for quadruped,
        ``"front_close"`` for manipulation and 0 for all else, as in DrQ-v2.
    action_repeat : int
        Steps of the simulation's controller per action, see :class:`ActionRepeat`.
    gray : bool
        Images ``(size, size)`` and not ``(size, size, 3)``, see :class:`GrayObservation`.
    black_floor : bool
        For walker, quadruped and humanoid, see :class:`BlackFloor`.
    max_episode_steps : int, optional
        Agent steps after which an episode is truncated, where the task's own limit (1,000
        controller steps in most of the suite, and here in lqr, which has none) comes later.

    Returns
    -------
    gymnasium.Env
        With uint8 images as observations and float32 actions in [-1, 1]. ``reset(seed=...)`` gives
        the episodes that dm_control gives for that ``random``, but in lqr, whose springs are drawn
        when it is built. Close it: an OpenGL context hangs on it.

    Raises
    ------
    ImportError
        If a package is missing, or installed in a version that dm_control cannot work with.
    RuntimeError
        If no OpenGL library is there to render with, see :func:`choose_gl`.
    ValueError
        If the task, camera, size or an option is not there to be had.
    """
    require_packages()
    choose_gl()
    domain, env_id = find_task(task)
    if black_floor and domain not in BLACK_FLOOR_DOMAINS:
        raise ValueError(
            f"black_floor is for {', '.join(BLACK_FLOOR_DOMAINS)}, and {task} is none of them; "
            "leave it out."
        )
    if camera is None:
        camera = MANIPULATION_CAMERA if domain is None else CAMERAS.get(domain, 0)
    render = {"height": size, "width": size, "camera_id": camera}
    env = gym.make(env_id, render_mode="rgb_array", render_kwargs=render, disable_env_checker=True)
    try:
        _check_view(env, size, camera)
        if black_floor:
            env = BlackFloor(env)
        env = ScaledAction(ActionRepeat(env, action_repeat))
        if max_episode_steps is None and domain == ENDLESS_DOMAIN:
            max_episode_steps = -(-ENDLESS_STEPS // action_repeat)
        if max_episode_steps is not None:
            env = TimeLimit(env, max_episode_steps)
        env = AddRenderObservation(env, render_only=True)
        return GrayObservation(env) if gray else env
    except BaseException:
        env.close()
        raise


def find_task(task: str) -> tuple[str | None, str]:
    """Return the domain of `task`, None for manipulation, and the id that Shimmy gave it.

    Raises
    ------
    ValueError
        If there is no such task; the message has similar names.
    """
    import shimmy
    from dm_control import manipulation, suite

    gym.register_envs(shimmy)
    tasks: dict[str, tuple[str | None, str]] = {
        f"{domain}_{name}": (domain, f"dm_control/{domain}-{name}-v0")
        for domain, name in suite.ALL_TASKS
    }
    # Some tasks come with pixels as "_vision" only as far as their observations go. Rendering
    # those of "_features" gives the same pixels, once per action and in any size.
    for name in manipulation.ALL:
        base = name.removesuffix("_features")
        if base != name:
            tasks[base] = (None, f"dm_control/{name}-v0")
    found = tasks.get(task) or tasks.get(task.replace("cup_", "ball_in_cup_", 1))
    if found is None:
        near = difflib.get_close_matches(task, tasks, n=3, cutoff=0.5) or ["walker_walk"]
        raise ValueError(
            f"{task!r} is no task of the DeepMind Control Suite (domain_task) nor one of its "
            f"manipulation tasks. Did you mean {' or '.join(near)}?"
        )
    return found


def require_packages() -> None:
    """Raise an ``ImportError`` that says what to install where a package is not as needed."""
    missing = [
        package
        for module, package in {
            "dm_control": "dm-control",
            "mujoco": "mujoco",
            "shimmy": "shimmy",
            "imageio": "imageio",  # without it Shimmy's ids silently do not exist
        }.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing and sys.version_info >= (3, 13):
        raise ModuleNotFoundError(
            f"the DeepMind Control Suite needs {' and '.join(missing)}, and dm_control has no "
            "build for Python 3.13 and later: use Python 3.10 to 3.12"
        )
    if missing:
        raise ModuleNotFoundError(
            f"the DeepMind Control Suite needs {' and '.join(missing)}: {_INSTALL}"
        )
    mujoco = importlib.metadata.version("mujoco")
    if int(mujoco.partition(".")[0]) >= 4:
        raise ImportError(
            f"mujoco {mujoco} is installed, and dm_control cannot work with 4 and later: "
            "pip install 'mujoco<4'"
        )
    needed = next(
        (
            found[1]
            for line in importlib.metadata.requires("dm-control") or []
            if (found := re.match(r"mujoco\s*>=\s*([\d.]+)", line))
        ),
        "0",
    )
    if _numbers(mujoco) < _numbers(needed):
        raise ImportError(
            f"mujoco {mujoco} is installed, and dm_control "
            f"{importlib.metadata.version('dm-control')} needs {needed} or later: "
            f"pip install 'mujoco>={needed},<4'"
        )


def _numbers(version: str) -> list[int]:
    """The first three numbers of a version: 3.4 is 3.4.0."""
    return [*map(int, re.findall(r"\d+", version)), 0, 0, 0][:3]


def choose_gl() -> str:
    """Choose the OpenGL library that dm_control renders with, without a display.

    The environment variable ``MUJOCO_GL`` is used where it is set; otherwise EGL or, where that
    does not work, OSMesa, and ``MUJOCO_GL`` is set to it. dm_control chooses once, when it is
    imported, and cannot choose again, so a library is tried in a process of its own (0.4 s).

    Returns
    -------
    str
        The library's name for ``MUJOCO_GL``.

    Raises
    ------
    RuntimeError
        If none can be loaded; the message says why and what to install.
    """
    chosen = sys.modules.get("dm_control._render")
    if chosen is not None:
        if chosen.BACKEND not in ("egl", "osmesa"):
            _try_what_was_chosen(chosen)
        return str(chosen.BACKEND)
    asked = os.environ.get("MUJOCO_GL")
    # On other systems GLFW needs no display, and is what dm_control itself would choose.
    choices = [asked] if asked else ["egl", "osmesa"] if sys.platform == "linux" else ["glfw"]
    reasons = []
    for name in choices:
        reason = _gl_failure(name)
        if reason is None:
            os.environ["MUJOCO_GL"] = name
            return name
        reasons.append(f"{name}: {reason}")
    advice = f"unset MUJOCO_GL, or {_INSTALL_GL}" if asked else _INSTALL_GL
    raise RuntimeError(f"no OpenGL library to render with ({'; '.join(reasons)}): {advice}")


def _try_what_was_chosen(render: Any) -> None:
    """Refuse a library that was chosen by whoever imported dm_control, if it cannot render."""
    try:
        render.Renderer(8, 8).free()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RuntimeError(
            f"no OpenGL library to render with: dm_control was imported before and chose "
            f"{render.BACKEND} ({reason}). Set MUJOCO_GL to egl or osmesa before the import, or "
            "call make_dm_control first"
        ) from error


def _gl_failure(name: str) -> str | None:
    """Try to make an OpenGL context with `name`; return None or what was in the way."""
    code = "from dm_control import _render; _render.Renderer(8, 8).free()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUJOCO_GL": name},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    said = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
    return said[-1] if said else f"exit status {done.returncode}"


def _check_view(env: gym.Env, size: int, camera: int | str) -> None:
    """Refuse what dm_control would refuse in words of its own, at the first image."""
    model = env.unwrapped.physics.model  # type: ignore[attr-defined]
    names = [model.id2name(number, "camera") for number in range(model.ncam)]
    known = camera in names if isinstance(camera, str) else -1 <= camera < model.ncam
    if not known:
        listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ValueError(f"camera={camera!r} does not exist; there are {listed} and -1 (free).")
    largest = min(model.vis.global_.offwidth, model.vis.global_.offheight)
    if not 1 <= size <= largest:
        raise ValueError(f"size={size} must be from 1 to {largest}, this task's largest image.")
