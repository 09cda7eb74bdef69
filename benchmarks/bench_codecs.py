"""Bytes per frame and microseconds to append and gather, per codec, on ten Atari games.

Rings of `--capacity` frames are filled and an eighth of them again; then batches of 32 and 256
stacks of 4 frames are read at fresh random places, in runs of ten batches, every system in turn:
ours, a dense numpy array of stacks, and a numpy ring of frames read by fancy indexing and by
`np.take` into kept memory.

    python -m benchmarks.bench_codecs [--games Pong Qbert] [--repeats 8] [--help]

Writes `benchmarks/results/codecs.json` and `codecs.md`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.common import RESULTS, geometric_mean, machine
from benchmarks.frames import GAMES, game_frames
from compressarray import DiffFrameArray

CODECS = ("raw", "sparse", "delta", "delta-huffman", "zstd")
STACK = 4
STACK_BYTES = STACK * 84 * 84  # one dense observation: 28,224
BATCHES = (32, 256)
BATCHES_AT_ONCE = 10


@dataclass
class Args:
    games: tuple[str, ...] = GAMES
    """which of the ten games"""
    capacity: int = 32768
    """frames of a ring"""
    repeats: int = 8
    """runs of ten batches of each size for each system, by turns"""
    appends: int = 2048
    """frames whose appending is timed, in rows of one lane and of eight"""


def microseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - start)


def measure(frames: np.ndarray, args: Args) -> dict[str, dict[str, float]]:
    capacity = args.capacity
    content = frames[: capacity + capacity // 8]
    arrays = {codec: DiffFrameArray((capacity, 84, 84), codec=codec) for codec in CODECS}
    for array in arrays.values():
        for start in range(0, len(content), 64):
            array.append(content[start : start + 64])
    ring = np.empty((capacity, 84, 84), np.uint8)
    for i, frame in enumerate(content):
        ring[i % capacity] = frame
    newest = np.arange(len(content) - capacity + STACK - 1, len(content))
    stacks = np.stack([ring[(newest - k) % capacity] for k in range(STACK - 1, -1, -1)], axis=1)
    results: dict[str, dict[str, float]] = {
        codec: {"bytes": array.nbytes_stored / capacity} for codec, array in arrays.items()
    }
    results["dense stacks"] = {"bytes": float(STACK_BYTES)}
    results["ring, fancy"] = results["ring, take"] = {"bytes": float(ring.nbytes / capacity)}
    results = {name: dict(values) for name, values in results.items()}

    rng = np.random.default_rng(0)
    for batch in BATCHES:
        kept = np.empty((batch, STACK, 84, 84), np.uint8)
        kept_frames = kept.reshape(-1, 84, 84)
        # Each takes which stacks, their frames' indices, and their slots.
        readers: dict[tuple[str, bool], Callable[..., object]] = {
            ("dense stacks", False): lambda pick, _index, _slots: stacks[pick],
            ("ring, fancy", False): lambda _pick, _index, slots: ring[slots],
            ("ring, take", True): lambda _pick, _index, slots, o=kept_frames: np.take(
                ring, slots.reshape(-1), axis=0, out=o, mode="clip"
            ),
        }
        for codec, array in arrays.items():
            readers[codec, False] = lambda _pick, index, _slots, a=array: a.gather(index)
            readers[codec, True] = lambda _pick, index, _slots, a=array, o=kept: a.gather(index, o)
        taken: dict[tuple[str, bool], list[float]] = {reader: [] for reader in readers}
        turns = list(readers)
        for turn in range(args.repeats):
            rng.shuffle(turns)
            for name, into_kept in turns:
                for _ in range(BATCHES_AT_ONCE):
                    pick = rng.integers(0, len(newest), batch)
                    index = newest[pick][:, None] - np.arange(STACK - 1, -1, -1)
                    slots = index % capacity
                    start = time.perf_counter()
                    result = readers[name, into_kept](pick, index, slots)
                    taken[name, into_kept].append(1e6 * (time.perf_counter() - start))
                if turn == 0 and name in arrays:
                    assert np.array_equal(np.asarray(result), ring[slots]), name
                del result
        for (name, into_kept), times in taken.items():
            column = f"gather {batch}, kept output" if into_kept else f"gather {batch}"
            results[name][column] = statistics.median(times)

    for lanes in (1, 8):
        rows = content[: args.appends].reshape(-1, lanes, 84, 84)
        fresh = {
            codec: DiffFrameArray((max(len(rows) // 2, 1), lanes, 84, 84), codec=codec)
            for codec in CODECS
        }
        dense = np.empty((max(len(rows) // 2, 1), lanes, STACK, 84, 84), np.uint8)
        times = dict.fromkeys((*CODECS, "dense stacks"), 0.0)
        for i, row in enumerate(rows):
            for codec, array in fresh.items():
                times[codec] += microseconds(lambda a=array, r=row: a.append(r))
            times["dense stacks"] += microseconds(
                lambda d=dense, i=i, r=row: d.__setitem__(i % len(d), r[:, None])
            )
        for name, total in times.items():
            results[name][f"append {lanes}"] = total / args.appends
    return results


def table(games: dict[str, dict[str, dict[str, float]]], args: Args) -> str:
    columns = ["bytes", *(f"gather {b}" for b in BATCHES)]
    columns += [*(f"gather {b}, kept output" for b in BATCHES), "append 1", "append 8"]
    lines = [
        "| system | bytes per frame | times smaller than dense stacks (28,224 bytes) | "
        "worst game | 32 stacks, us | 256 stacks, us | 32 into kept output | "
        "256 into kept output | append, us per frame | in rows of 8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in next(iter(games.values())):
        cells = []
        for column in columns:
            values = [game[name][column] for game in games.values() if column in game[name]]
            cells.append(f"{geometric_mean(values):,.1f}" if values else "-")
        sizes = {game: values[name]["bytes"] for game, values in games.items()}
        worst = max(sizes, key=lambda game: sizes[game])
        ratio = STACK_BYTES / geometric_mean(sizes.values())
        cells[1:1] = [f"{ratio:,.1f}", f"{worst} {STACK_BYTES / sizes[worst]:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Geometric means over {len(games)} games under random play; rings of "
        f"{args.capacity:,} frames, filled and an eighth of them again; medians of batches at "
        "fresh random places, in runs of ten, "
        f"all systems by turns, one thread. Measured on {machine()}.",
        "",
        "| game | " + " | ".join(CODECS) + " |",
        "|---|" + "---|" * len(CODECS),
    ]
    for game, values in games.items():
        sizes_of_game = (f"{values[codec]['bytes']:,.0f}" for codec in CODECS)
        lines.append(f"| {game}, bytes per frame | {' | '.join(sizes_of_game)} |")
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    numba.config.NUMBA_NUM_THREADS = 1  # as the table says
    games: dict[str, dict[str, dict[str, float]]] = {}
    n_frames = args.capacity + args.capacity // 8
    for game in tqdm(args.games, unit="game"):
        games[game] = measure(game_frames(game, n_frames), args)
        sizes = ", ".join(f"{c} {games[game][c]['bytes']:,.0f}" for c in CODECS)
        times = ", ".join(
            f"{n} {v['gather 32']:,.0f}" for n, v in games[game].items() if "gather 32" in v
        )
        tqdm.write(f"{game}: bytes per frame {sizes}; us per 32 stacks {times}")
    text = table(games, args)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "codecs.md").write_text(text)
    record = {"machine": machine(), "capacity": args.capacity, "games": games}
    (RESULTS / "codecs.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
