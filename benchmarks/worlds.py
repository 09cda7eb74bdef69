"""Frames of worlds that scroll, turn, flicker or are noisy, collected once and cached.

Each recorder yields frames for good, episodes one after another, from a random policy that keeps to
an action for some steps. A world whose package is not installed is left out, by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.frames import CACHE, KEEP_ACTION

Frame = npt.NDArray[np.uint8]
GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601's weights of red, green and blue
NOISE = 2.0  # standard deviation of the sensor's noise, in steps of 256


class World(NamedTuple):
    """Where frames come from.

    Attributes
    ----------
    title : str
    needs : tuple of str
        The modules that have to be there.
    play : callable
        Takes a seed and yields frames, all of one shape.
    """

    title: str
    needs: tuple[str, ...]
    play: Callable[[int], Iterator[Frame]]


def world_frames(name: str, n_frames: int, seed: int = 0) -> Frame:
    """The first frames of a world, ``(n_frames, height, width[, 3])``."""
    path = CACHE / f"world-{name}-{seed}-{n_frames}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        played = islice(WORLDS[name].play(seed), n_frames)
        frames = np.stack(list(tqdm(played, desc=name, total=n_frames, unit="frame", leave=False)))
        np.save(path, frames)
    loaded: Frame = np.load(path)
    return loaded


def missing(name: str) -> list[str]:
    """The modules that a world needs and that are not installed."""
    return [module for module in WORLDS[name].needs if find_spec(module) is None]


# -- environments ------------------------------------------------------------------------------


def _steps(env: Any, seed: int, image: Callable[[Any], Frame]) -> Iterator[Frame]:
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    action = env.action_space.sample()
    try:
        while True:
            yield np.array(image(observation), np.uint8)
            if rng.random() > KEEP_ACTION:
                action = env.action_space.sample()
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                observation, _ = env.reset()
    finally:
        env.close()


def _car_racing(seed: int) -> Iterator[Frame]:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    return _steps(gym.make("CarRacing-v3"), seed, lambda observation: observation)


def _miniworld(seed: int) -> Iterator[Frame]:
    import pyglet

    pyglet.options["headless"] = True  # before miniworld opens a window
    import miniworld  # noqa: F401 - registers its worlds

    return _steps(gym.make("MiniWorld-MazeS3-v0"), seed, lambda observation: observation)


def _minigrid(seed: int) -> Iterator[Frame]:
    from minigrid.wrappers import RGBImgPartialObsWrapper

    env = RGBImgPartialObsWrapper(gym.make("MiniGrid-FourRooms-v0"), tile_size=8)
    return _steps(env, seed, lambda observation: observation["image"])


def _crafter(seed: int) -> Iterator[Frame]:
    import crafter  # has gym's older interface

    env = crafter.Env(seed=seed)
    rng = np.random.default_rng(seed)
    frame = env.reset()
    action = 0
    while True:
        yield frame
        if rng.random() > KEEP_ACTION:
            action = int(rng.integers(env.action_space.n))
        frame, _, done, _ = env.step(action)
        if done:
            frame = env.reset()


def _doom(seed: int, scenario: str) -> Iterator[Frame]:
    import vizdoom

    game = vizdoom.DoomGame()
    game.load_config(os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg"))
    game.set_window_visible(False)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_seed(seed)
    game.init()
    rng = np.random.default_rng(seed)
    n_buttons = game.get_available_buttons_size()
    action = [0] * n_buttons
    try:
        while True:
            if game.is_episode_finished():
                game.new_episode()
            yield game.get_state().screen_buffer.copy()
            if rng.random() > KEEP_ACTION:
                chosen = int(rng.integers(n_buttons))
                action = [int(i == chosen) for i in range(n_buttons)]
            game.make_action(action, 4)  # of 35 tics a second, as agents are trained
    finally:
        game.close()


def _doom_small(seed: int, height: int, width: int, gray: bool) -> Iterator[Frame]:
    """As agents see it: the game's 320x240 made smaller, each pixel the mean of what it covers."""
    from PIL import Image

    for frame in _doom(seed, "health_gathering"):
        seen = np.rint(frame @ GRAY).astype(np.uint8) if gray else frame
        yield np.asarray(Image.fromarray(seen).resize((width, height), Image.Resampling.BOX))


# -- generated ---------------------------------------------------------------------------------


def _texture(rng: np.random.Generator, side: int) -> npt.NDArray[np.float64]:
    """Blobs of all sizes, the larger the stronger, as in nature: from 0 to 255, and it tiles.

    A spectrum that falls as the frequency's power of 1.7.
    """
    across = np.fft.fftfreq(side)
    frequency = np.hypot(across[:, None], across[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((side, side, 3)), axes=(0, 1))
    image = np.fft.ifft2(spectrum * frequency[..., None] ** -1.7, axes=(0, 1)).real
    return 255 * (image - image.min()) / np.ptp(image)


def _panned(seed: int, noise: float) -> Iterator[Frame]:
    """A camera that pans over a texture by whole pixels, with or without a sensor's noise."""
    rng = np.random.default_rng(seed)
    texture = _texture(rng, 512)
    place = np.array([200, 200])
    step = np.array([1, 2])
    while True:
        rows, columns = (np.arange(84) + place[:, None]) % len(texture)
        clean = texture[rows][:, columns]
        noisy = clean + noise * rng.standard_normal(clean.shape) if noise else clean
        yield np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        if rng.random() > KEEP_ACTION:
            step = rng.integers(-3, 4, 2)
        place = place + step


WORLDS = {
    "car_racing": World("CarRacing-v3, 96x96 RGB", ("Box2D", "pygame"), _car_racing),
    "doom": World(
        "ViZDoom health_gathering, 160x120 RGB",
        ("vizdoom", "PIL"),
        partial(_doom_small, height=120, width=160, gray=False),
    ),
    "doom_gray": World(
        "ViZDoom health_gathering, 84x84 gray",
        ("vizdoom", "PIL"),
        partial(_doom_small, height=84, width=84, gray=True),
    ),
    "miniworld": World("MiniWorld maze, 80x60 RGB", ("miniworld",), _miniworld),
    "minigrid": World("MiniGrid FourRooms, 56x56 RGB", ("minigrid",), _minigrid),
    "crafter": World("Crafter, 64x64 RGB", ("crafter",), _crafter),
    "panned": World("a panned texture, 84x84 RGB", (), partial(_panned, noise=0.0)),
    "panned_noise": World(
        f"a panned texture with noise (sigma {NOISE:g}), 84x84 RGB",
        (),
        partial(_panned, noise=NOISE),
    ),
}
