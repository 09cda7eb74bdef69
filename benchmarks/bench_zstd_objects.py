"""How much memory the objects take that zstd's bindings for Python return.

A binding has to ask for memory before it knows how small the result is. One that does not give the
rest back returns a short `bytes` that keeps the worst case, and `len` and `sys.getsizeof` do not
tell. For each binding, in a process of its own: stacks of an Atari game under random play are
compressed, and the results kept, as they came and then as copies.

    python -m benchmarks.bench_zstd_objects [--quick] [--help]

Writes `benchmarks/results/zstd-objects.md` and `.json` (`-quick` with `--quick`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import tyro

from benchmarks.common import RESULTS, machine, make_command, resident_bytes
from benchmarks.frames import STACK, game_frames

METHOD, LEVEL = "zstd-3", -3  # what sb3-extra-buffers calls it, and what it is


@dataclass
class Args:
    game: str = "MsPacman"
    """which of Atari's games"""
    stacks: int = 4_000
    """how many are compressed, each by itself"""
    quick: bool = False
    """a tenth of them"""
    binding: str = ""
    """measure this one here, and print JSON"""


def sb3_extra_buffers() -> Callable[[Any], Any]:
    """Return what sb3-extra-buffers' buffers compress with, given `compression_method=METHOD`."""
    import numpy as np
    from gymnasium import spaces
    from sb3_extra_buffers.compressed import CompressedReplayBuffer, find_buffer_dtypes

    space = spaces.Box(0, 255, (STACK, 84, 84), np.uint8)
    dtypes = find_buffer_dtypes(space.shape, np.uint8, METHOD)
    buffer = CompressedReplayBuffer(
        1,
        space,
        spaces.Discrete(2),
        device="cpu",
        dtypes=dtypes,
        compression_method=METHOD,
    )
    zero = np.zeros(1)

    def compress(stack: Any) -> Any:
        buffer.add(stack[None], stack[None], zero, zero, zero, [{}])
        return buffer.observations.ravel()[0]

    return compress


def zstd() -> Callable[[Any], Any]:
    import zstd

    return lambda stack: zstd.compress(stack.tobytes(), LEVEL)


def numcodecs() -> Callable[[Any], Any]:
    from numcodecs import Zstd

    return Zstd(LEVEL).encode


# By the name of the package, as pip knows it.
BINDINGS = {
    "sb3-extra-buffers": sb3_extra_buffers,
    "zstd": zstd,
    "numcodecs": numcodecs,
}


def measure(args: Args) -> dict[str, float]:
    """Bytes an object, by `len` and by the growth of the process, as returned and copied."""
    compress = BINDINGS[args.binding]()
    frames = game_frames(args.game, args.stacks + STACK - 1)
    stacks = [frames[start : start + STACK] for start in range(args.stacks)]
    compress(stacks[0])
    found = {}
    for how, keep in (
        ("returned", lambda data: data),
        ("copied", lambda data: bytes(bytearray(data))),
    ):
        before = resident_bytes(files=False)
        kept = [keep(compress(stack)) for stack in stacks]
        found[how] = (resident_bytes(files=False) - before) / len(kept)
        found["len"] = sum(map(len, kept)) / len(kept)
        found["sizeof"] = sum(map(sys.getsizeof, kept)) / len(kept)
        del kept
    return found  # fmt: skip


def main(args: Args) -> None:
    if args.binding:
        print(json.dumps(measure(args)))
        return
    stacks = args.stacks // 10 if args.quick else args.stacks
    game_frames(args.game, stacks + STACK - 1)
    found: dict[str, Any] = {}
    for name in BINDINGS:
        try:
            versions = version(name)
        except PackageNotFoundError:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_zstd_objects", "--binding", name,
             "--game", args.game, "--stacks", str(stacks)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"bench_zstd_objects.py: error: {name} failed:\n{done.stderr}")
        found[name] = {"version": versions, **json.loads(done.stdout.splitlines()[-1])}
    rows = [
        f"| {name} {row['version']} | {row['len']:,.0f} | {row['sizeof']:,.0f} "
        f"| {row['returned']:,.0f} | {row['copied']:,.0f} |"
        for name, row in found.items()
    ]
    missing = [name for name in BINDINGS if name not in found]
    absent = f" Not installed: {', '.join(missing)}." if missing else ""
    text = "\n".join(
        [
            "# What zstd's bindings return",
            "",
            f"Made by `{make_command('bench-zstd-objects', args)}` on {machine()}. {stacks:,} "
            f"stacks of {args.game} under random play, {STACK * 84 * 84:,} bytes each, compressed "
            f"one by one at level {LEVEL}; mean bytes an object. Growth is that of the process's "
            f"resident memory, with the objects kept as they were returned and as copies.{absent}",
            "",
            "| binding | `len` | `sys.getsizeof` | growth, as returned | growth, copied |",
            "| --- | --: | --: | --: | --: |",
            *rows,
        ]
    )
    stem = "zstd-objects-quick" if args.quick else "zstd-objects"
    (RESULTS / f"{stem}.md").write_text(text + "\n")
    made = {"machine": machine(), "stacks": stacks, "bindings": found}
    (RESULTS / f"{stem}.json").write_text(json.dumps(made, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
