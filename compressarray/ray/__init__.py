"""Replay memory over a cluster, carried by Ray; needs the extra ``ray``.

Environment runners are Ray actors (`start_runners`), and a learner, which is the driver or an actor
of its own, draws from a `RayReplay`. `compressarray.ray.rllib` has RLlib's buffers.
"""

from __future__ import annotations

from compressarray.ray.cluster import connect
from compressarray.ray.replay import RayReplay
from compressarray.ray.runners import RayEnvRunner, start_runners

__all__ = ["RayEnvRunner", "RayReplay", "connect", "start_runners"]
