"""What a system under measurement looks like to the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from benchmarks.frames import SIDE, STACK, PlayThrough

UInt8s = npt.NDArray[np.uint8]
FRAMES = gym.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
STACKS = gym.spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
OBS_BYTES = STACK * SIDE * SIDE  # 28,224
DENSE_BYTES = 2 * OBS_BYTES  # obs and next_obs: 56,448 a transition


class Step(NamedTuple):
    """What a training loop knows when it adds a transition."""

    obs: UInt8s  # (4, 84, 84)
    next_obs: UInt8s
    action: int
    reward: float  # the transition's number, which a sample is known by
    terminated: bool
    truncated: bool
    begins: bool  # the first of its episode


class Drawn(NamedTuple):
    """A sample, as the check wants it."""

    number: npt.NDArray[np.int64]  # (B,)
    obs: UInt8s  # (B, 4, 84, 84)
    next_obs: UInt8s


class System:
    """One way to hold transitions.

    Subclasses build an empty ring for so many transitions and say how it is fed and drawn from in
    the best way that the library offers.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""  # as pip knows it; empty for what comes with this project
    needs: ClassVar[tuple[str, ...]] = ()  # modules
    # False where pixels are wrong, and neither size nor time depends on them: one game will do
    every_game: ClassVar[bool] = True
    slow: ClassVar[bool] = False  # compresses stacks one by one: a smaller ring will do
    bytes_expected: ClassVar[int] = 8_000  # a transition's, to tell what fits into memory

    def __init__(self, capacity: int, n_actions: int) -> None:
        raise NotImplementedError

    def warm_up(self) -> None:
        """Load what a full ring runs and a small one may not."""
        return

    def add(self, step: Step) -> None:
        raise NotImplementedError

    def ways(self) -> dict[str, Callable[[int], Any]]:
        """Ways to draw so many transitions; the usual one has no name."""
        return {"": self.sample}

    def sample(self, batch_size: int) -> Any:
        raise NotImplementedError

    def drawn(self, sample: Any) -> Drawn:
        """Look into what `sample`, or another way, returned."""
        raise NotImplementedError

    def held(self) -> int:
        """Transitions that may be drawn."""
        raise NotImplementedError

    def own_bytes(self) -> int | None:
        """What the system says it holds, where it does."""
        return None

    @classmethod
    def missing(cls) -> list[str]:
        return [module for module in cls.needs if find_spec(module) is None]


def steps(play: PlayThrough, start: int, stop: int) -> Iterator[Step]:
    """Transitions of a play-through, numbered from its beginning."""
    for number in range(start, stop):
        yield Step(
            obs=play.obs(number),
            next_obs=play.next_obs(number),
            action=int(play.action[number]),
            reward=float(number),
            terminated=bool(play.terminated[number]),
            truncated=bool(play.truncated[number]),
            begins=bool(play.newest[number] == play.first[number]),
        )


def numbers(rewards: Any) -> npt.NDArray[np.int64]:
    """Return the numbers of transitions that come with these rewards."""
    return np.asarray(rewards).reshape(-1).astype(np.int64)
