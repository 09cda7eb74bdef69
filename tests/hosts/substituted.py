"""A plugin of pytest that puts our buffers in the place of Stable-Baselines3's and sb3-contrib's.

For their own tests, from a checkout: `make test-hosts-sb3-own`. Most of those have vectors, which
our buffers keep as they are; here they are taken for images of one row, so that they go through
the ring of frames.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from typing import Any

import pytest
import sb3_contrib
import stable_baselines3
from stable_baselines3.common import buffers
from stable_baselines3.her import her_replay_buffer

from compressarray.planes import Planes, Shape
from compressarray.sb3 import contrib, tools

OURS: dict[Any, Any] = tools.KINDS | contrib.KINDS
# Where the parents themselves are, and name one another.
THEIRS = {buffers.__name__, her_replay_buffer.__name__} | {kind.__module__ for kind in OURS}

_planes_of = Planes.of


def _planes_of_any(shape: Shape) -> Planes | None:
    if len(shape) == 1 and shape[0]:
        return Planes(shape, 1, (1, shape[0]), False)
    return _planes_of(shape)


def _substitute(names: dict[str, Any]) -> None:
    for name, value in list(names.items()):
        if isinstance(value, type) and value in OURS:
            names[name] = OURS[value]


def pytest_configure() -> None:
    """Let the algorithms have ours by default."""
    Planes.of = staticmethod(_planes_of_any)  # type: ignore[method-assign, assignment]
    for package in (stable_baselines3, sb3_contrib):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            with contextlib.suppress(ImportError):  # one that plots needs pandas
                importlib.import_module(module.name)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("stable_baselines3", "sb3_contrib") and name not in THEIRS:
            _substitute(vars(module))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests have ours, in what they import and in their parameters."""
    for item in items:
        assert isinstance(item, pytest.Function)
        _substitute(vars(item.module))
        if hasattr(item, "callspec"):
            _substitute(item.callspec.params)
