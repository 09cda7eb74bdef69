"""Resident memory of this process, for tests that hold the array to its own accounts."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess


def resident_bytes() -> int:
    """Bytes of this process that are in memory right now."""
    gc.collect()
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if trim is not None:
        trim(0)  # what glibc's allocator has kept of memory freed before is nobody's
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no procfs: ask ps, which knows kibibytes
        said = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
        )
        return int(said.stdout) * 1024
