"""Which Stable-Baselines3 there must be, and the spaces that its buffers are for."""

from __future__ import annotations

import re
from typing import Any

import stable_baselines3
from gymnasium import spaces

# 2.9 is the first whose samples carry discounts and whose rollout buffers keep the dtype.
OLDEST = (2, 9)


def check_version(version: str | None = None) -> None:
    """Refuse a Stable-Baselines3 whose buffers have another interface.

    Raises
    ------
    ImportError
        If it is older than `OLDEST`.
    """
    version = stable_baselines3.__version__ if version is None else version
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"stable-baselines3 {version} is older than {oldest}, which compressarray.sb3 needs: "
            f'pip install "stable-baselines3>={oldest}"'
        )


class SpaceError(TypeError, AssertionError):
    """A buffer is not for such a space. Stable-Baselines3's own classes assert that."""


def check_space(buffer: object, space: spaces.Space[Any], is_for_dicts: bool, other: str) -> None:
    """Refuse an observation space that is none for a buffer.

    Parameters
    ----------
    buffer : object
        Whose class is named in the error.
    space : Space
    is_for_dicts : bool
    other : str
        The name of the class to use instead.

    Raises
    ------
    SpaceError
        If it is a Dict and the buffer is not for them, or the other way round.
    """
    name = type(buffer).__name__
    if is_for_dicts and not isinstance(space, spaces.Dict):
        raise SpaceError(f"{name} must be used with Dict obs space only, not {space}; use {other}")
    if not is_for_dicts and isinstance(space, spaces.Dict):
        raise SpaceError(f"{name} takes no Dict observation space; use {other}")
