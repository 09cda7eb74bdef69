"""Replay memory for off-policy learning, on top of a `DiffFrameArray`."""

from __future__ import annotations

from compressarray.replay.batches import Batch, SequenceBatch, Transition
from compressarray.replay.buffer import ReplayBuffer
from compressarray.replay.ensemble import ReplayEnsemble

__all__ = ["Batch", "ReplayBuffer", "ReplayEnsemble", "SequenceBatch", "Transition"]
