"""The vector-environment twins of the wrappers."""

from __future__ import annotations

from wrappers.vector.frame_stack import IndexedFrameStack

__all__ = ["IndexedFrameStack"]
