"""Ways to hold transitions that are measured beside each other, each in a process of its own."""

from __future__ import annotations

from benchmarks.peers.base import System
from benchmarks.peers.cpprb import Cpprb
from benchmarks.peers.dopamine import Dopamine
from benchmarks.peers.frame_rings import Blosc2, FrameRing
from benchmarks.peers.ours import Delta, DeltaZstd, Raw, Sparse
from benchmarks.peers.sb3 import Dense, Igzip, Lz4, OptimizedMemory, RunLength, Zstd
from benchmarks.peers.tianshou import Tianshou
from benchmarks.peers.torchrl import CompressedList, LazyTensor

# In the order of the table. Modules import what they measure when it is built, so that a peer that
# is not installed can be named.
SYSTEMS: dict[str, type[System]] = {
    system.name: system
    for system in (
        Delta,
        DeltaZstd,
        Sparse,
        Raw,
        Dense,
        OptimizedMemory,
        RunLength,
        Zstd,
        Lz4,
        Igzip,
        Cpprb,
        Tianshou,
        LazyTensor,
        CompressedList,
        Dopamine,
        Blosc2,
        FrameRing,
    )
}
# What all others are compared with, and the way to draw from it.
BASES = {Dense.name: "", FrameRing.name: "np.take into kept outputs"}
