"""Replay memory for off-policy learning, on top of a `DiffFrameArray`."""

from __future__ import annotations

from compressarray.replay.buffer import Batch, ReplayBuffer, SequenceBatch

__all__ = ["Batch", "ReplayBuffer", "SequenceBatch"]
