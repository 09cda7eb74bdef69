"""Replay memory over many processes, whatever carries the messages between them.

Environment runners write into buffers of their own and send what is new, compressed (`EnvRunner`);
a learner holds a replica of each and draws from all of them (`JointReplay`), at a rate that
`SamplesPerInsert` keeps. `compressarray.ray` carries it by Ray.
"""

from __future__ import annotations

from compressarray.distributed.joint import JointReplay, Request
from compressarray.distributed.limiting import SamplesPerInsert
from compressarray.distributed.runner import Delivery, EnvRunner

__all__ = ["Delivery", "EnvRunner", "JointReplay", "Request", "SamplesPerInsert"]
