"""Losslessly compressed frame memory for pixel-based reinforcement learning."""

from __future__ import annotations

from compressarray.array import DiffFrameArray
from compressarray.attached import attach
from compressarray.errors import (
    CorruptFrameError,
    DeviceError,
    FrameEvictedError,
    StaleStreamError,
)
from compressarray.replay import Batch, ReplayBuffer, ReplayEnsemble, SequenceBatch, Transition

__all__ = [
    "Batch",
    "CorruptFrameError",
    "DeviceError",
    "DiffFrameArray",
    "FrameEvictedError",
    "ReplayBuffer",
    "ReplayEnsemble",
    "SequenceBatch",
    "StaleStreamError",
    "Transition",
    "attach",
]
