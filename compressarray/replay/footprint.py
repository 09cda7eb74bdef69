"""What buffers take: an estimate before there are frames, and the memory there is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

# Bytes stored for each byte of a frame: the geometric means over ten games in
# benchmarks/results/codecs.md, by `make bench-codecs`. numcodecs' codecs stand by zstd.
_STORED_PART = {
    "raw": 6024 / 7056,
    "sparse": 2410 / 7056,
    "delta": 121 / 7056,
    "delta-huffman": 78 / 7056,
}
_STORED_PART_ALONE = 533 / 7056

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def expected_part(codec: str | None) -> float:
    """Return the part of a frame's bytes that a codec is expected to store; all without one."""
    if codec is None:
        return 1.0
    return _STORED_PART.get(codec, _STORED_PART_ALONE)


def memory_bytes(limits: Iterable[Path] = _CGROUP_LIMITS) -> int | None:
    """Return the bytes of memory that this process may have, None where the system won't say.

    Physical memory, or the control group's limit where that is lower.
    """
    known = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in limits:
        try:
            known.append(int(path.read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(known, default=None)
