"""Replay memory for off-policy learning, on top of a `DiffFrameArray`."""

from __future__ import annotations

from compressarray.replay.batches import Batch, SequenceBatch, Transition
from compressarray.replay.buffer import ReplayBuffer

__all__ = ["Batch", "ReplayBuffer", "SequenceBatch", "Transition"]
