"""What benchmarks share: where results go, what the machine is, what memory a process has."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

# Elsewhere where benchmarks are only tried: `python -m benchmarks.tables --quick`.
RESULTS = Path(os.environ.get("BENCH_RESULTS") or Path(__file__).parent / "results").resolve()


def machine() -> str:
    """Name the processor."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="ascii") as info:
            name = next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


T = TypeVar("T")


def by_turns(systems: Sequence[T], turn: int) -> list[T]:
    """The systems, each turn beginning with another one."""
    first = turn % len(systems)
    return [*systems[first:], *systems[:first]]


def flags(args: Any) -> str:
    """Return what is not as usual in a benchmark's arguments, as one would type it."""
    usual, typed = vars(type(args)()), []
    for name, value in vars(args).items():
        if value != usual[name] and name not in ("cache", "out"):
            given = (
                ""
                if value is True
                else " ".join(map(str, value))
                if isinstance(value, tuple)
                else value
            )
            typed.append(f"--{name.replace('_', '-')} {given}".strip())
    return " ".join(typed)


def make_command(target: str, args: Any) -> str:
    """Return the command that runs a benchmark with these arguments."""
    said = flags(args)
    return f'make {target} BENCH_ARGS="{said}"' if said else f"make {target}"


def geometric_mean(values: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))


def resident_bytes(*, files: bool = True) -> int:
    """Return the process's resident memory; without `files`, less what is mapped from files."""
    gc.collect()
    trim = getattr(ctypes.pythonapi, "malloc_trim", None)
    if trim is not None:
        trim(0)  # what glibc's allocator has kept of memory freed before is nobody's
    with open("/proc/self/statm", encoding="ascii") as statm:
        _, resident, shared, *_ = map(int, statm.read().split())
    return (resident if files else resident - shared) * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Return the memory that new processes can have, the cache of files counted in."""
    with open("/proc/meminfo", encoding="ascii") as info:
        kib = next(line.split()[1] for line in info if line.startswith("MemAvailable"))
    return 1024 * int(kib)
