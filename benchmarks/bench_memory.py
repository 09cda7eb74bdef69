"""Growth of resident memory beside `nbytes_stored`, at 100,000 and 1,000,000 appended frames.

Each measurement runs in a process of its own: it warms up on an array like the one measured, then
appends frames of a game (84x84; played anew in a loop, a pixel of each round marked so that no
two rounds are alike) or noise (84x84 at 100,000, 28x28 at 1,000,000, which would not fit).

    python -m benchmarks.bench_memory [--games Pong Enduro] [--help]

Writes `benchmarks/results/memory.md`.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, machine, resident_bytes
from benchmarks.frames import game_frames
from compressarray import DiffFrameArray
from compressarray.store.gop_schedule import wait_until_idle

N_PLAYED = 12288
WARM_UP = 32768
BATCH = 256


@dataclass
class Args:
    games: tuple[str, ...] = ("Pong", "Enduro")
    """which games"""
    codecs: tuple[str, ...] = ("delta", "delta-huffman", "raw")
    """which codecs"""
    counts: tuple[int, ...] = (100_000, 1_000_000)
    """frames to append"""


def fill(array: DiffFrameArray, frames: np.ndarray | None, n: int) -> None:
    rng = np.random.default_rng(0)
    side = array.frame_shape[0]
    batch = np.empty((BATCH, side, side), np.uint8)
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        if frames is None:
            batch[:size] = rng.integers(0, 256, (size, side, side), np.uint8)
        else:
            at = np.arange(start, start + size)
            np.take(frames, at % len(frames), axis=0, out=batch[:size])
            batch[:size, 0, 0] = (at // len(frames)) % 251
        array.append(batch[:size])


def measure_here(codec: str, kind: str, n: int) -> None:
    """Print what the array says and what the system says, in a fresh process."""
    frames = None if kind == "noise" else game_frames(kind, N_PLAYED)
    side = 28 if kind == "noise" and n > 100_000 else 84
    # long enough for everything to have happened once, training a dictionary too
    fill(DiffFrameArray((WARM_UP, side, side), codec=codec), frames, WARM_UP + WARM_UP // 4)
    wait_until_idle()
    before = resident_bytes()
    array = DiffFrameArray((n, side, side), codec=codec)
    fill(array, frames, n)
    wait_until_idle()
    print(array.nbytes_stored, resident_bytes() - before, side * side)


def main(args: Args) -> None:
    for game in args.games:
        game_frames(game, N_PLAYED)
    lines = [
        "| frames | codec | appended | nbytes_stored, MB | growth of resident memory, MB | ratio |",
        "|---|---|---|---|---|---|",
    ]
    cases = [
        (kind, codec, n)
        for n in args.counts
        for kind in (*args.games, "noise")
        for codec in args.codecs
        if not (codec == "raw" and kind != "noise" and n > 100_000)  # 7 GB: as dense
    ]
    for kind, codec, n in tqdm(cases, unit="process"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.bench_memory", "--measure", codec, kind, str(n)],
            capture_output=True,
            text=True,
            check=True,
        )
        stored, grown, frame_bytes = map(int, done.stdout.split())
        lines.append(
            f"| {kind}, {frame_bytes:,} bytes | {codec} | {n:,} | {stored / 1e6:,.2f} | "
            f"{grown / 1e6:,.2f} | {grown / stored:.3f} |"
        )
        tqdm.write(lines[-1])
    text = "\n".join(lines) + f"\n\nGames under random play. Measured on {machine()}.\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.md").write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure_here(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(tyro.cli(Args, description=__doc__))
