"""Gymnasium wrappers that store frames once and emit their indices, and tasks to wrap.

``wrappers.IndexedFrameStack`` is for one environment, ``wrappers.vector.IndexedFrameStack`` for a
vector environment. ``wrappers.make_dm_control`` builds tasks of the DeepMind Control Suite with
pixels for observations; what it is made of lies in ``wrappers.dm_control``.
"""

from __future__ import annotations

from wrappers import dm_control, vector
from wrappers.dm_control import make_dm_control
from wrappers.frame_stack import IndexedFrameStack

__all__ = ["IndexedFrameStack", "dm_control", "make_dm_control", "vector"]
