"""Which Stable-Baselines3 there must be."""

from __future__ import annotations

import re

import stable_baselines3

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
