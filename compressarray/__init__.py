"""Losslessly compressed frame memory for pixel-based reinforcement learning."""

from __future__ import annotations

from compressarray.array import DiffFrameArray
from compressarray.errors import CorruptFrameError, FrameEvictedError, StaleStreamError

__all__ = ["CorruptFrameError", "DiffFrameArray", "FrameEvictedError", "StaleStreamError"]
