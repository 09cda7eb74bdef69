"""Gymnasium wrappers that store frames once and emit their indices.

``wrappers.IndexedFrameStack`` is for one environment, ``wrappers.vector.IndexedFrameStack`` for a
vector environment.
"""

from __future__ import annotations

from wrappers import vector
from wrappers.frame_stack import IndexedFrameStack

__all__ = ["IndexedFrameStack", "vector"]
