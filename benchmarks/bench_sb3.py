"""Stable-Baselines3's replay buffer, sb3-extra-buffers' and ours, on the same frames of MsPacman.

Bytes per transition that a process truly holds, seconds to save and load, microseconds to add and
to draw 32. Each buffer is filled in a process of its own, the systems in another order each turn;
times are those of the thread, the least of the turns.

    python -m benchmarks.bench_sb3 [--quick] [--help]

Writes `benchmarks/results/sb3.md` and `sb3.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.common import RESULTS, by_turns, machine, make_command, resident_bytes
from benchmarks.frames import game_frames

SYSTEMS = ("Stable-Baselines3", "sb3-extra-buffers zstd-3", "sb3-extra-buffers zstd1", "ours")
QUICK_SLOTS = 2_000


@dataclass
class Args:
    game: str = "MsPacman"
    """which game"""
    slots: int = 40_000
    """rows of the buffer"""
    n_envs: int = 4
    """environments"""
    turns: int = 3
    """how often each is measured"""
    quick: bool = False
    """2,000 rows, one turn"""
    system: str = ""
    """measure this one here, and print JSON"""


def make_buffer(system: str, size: int, n_envs: int) -> Any:
    from gymnasium import spaces

    pixels, actions = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(9)
    common: dict[str, Any] = {"device": "cpu", "n_envs": n_envs}
    if system == "ours":
        from compressarray.sb3 import CompressedReplayBuffer

        return CompressedReplayBuffer(size, pixels, actions, **common)
    if system == "Stable-Baselines3":
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(size, pixels, actions, **common)
    from sb3_extra_buffers.compressed import CompressedReplayBuffer as Extra
    from sb3_extra_buffers.compressed import find_buffer_dtypes

    dtypes = find_buffer_dtypes(pixels.shape)
    method = system.rpartition(" ")[2]
    return Extra(size, pixels, actions, **common, dtypes=dtypes, compression_method=method)


def fill(buffer: Any, frames: Any, n_steps: int, n_envs: int) -> float:
    """Add stacks of four; return the thread's seconds for adding alone."""
    offsets = np.arange(n_envs) * (len(frames) // n_envs)
    obs = np.zeros((n_envs, 4, 84, 84), np.uint8)
    zeros, infos, spent = np.zeros(n_envs), [{}] * n_envs, 0.0
    for step in range(n_steps):
        new = frames[(offsets + step) % len(frames)]
        next_obs = np.concatenate([obs[:, 1:], new[:, None]], 1)
        before = time.thread_time()
        buffer.add(obs, next_obs, zeros, zeros, zeros, infos)
        spent += time.thread_time() - before
        obs = next_obs
    return spent


def measure(args: Args) -> dict[str, float]:
    import torch as th
    from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

    th.set_num_threads(1)  # its threads' waiting for a busy core would be most of a draw

    frames = game_frames(args.game, min(args.slots * args.n_envs, 12288))
    small = make_buffer(args.system, 200 * args.n_envs, args.n_envs)
    fill(small, frames, 220, args.n_envs)  # compiled, and imported, before memory is measured
    small.sample(32)
    del small
    before = resident_bytes()
    buffer = make_buffer(args.system, args.slots * args.n_envs, args.n_envs)
    adding = fill(buffer, frames, args.slots, args.n_envs)
    held = resident_bytes() - before
    np.random.seed(0)  # noqa: NPY002 - what the buffers draw from
    start = time.thread_time()
    for _ in range(200):
        buffer.sample(32)
    sampling = (time.thread_time() - start) / 200
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "buffer.pkl"
        start = time.thread_time()
        save_to_pkl(path, buffer)
        saving = time.thread_time() - start
        size = path.stat().st_size
        del buffer
        start = time.thread_time()
        load_from_pkl(path)
        loading = time.thread_time() - start
    transitions = args.slots * args.n_envs
    return {
        "resident_bytes_per_transition": held / transitions,
        "file_bytes_per_transition": size / transitions,
        "add_us": adding / args.slots * 1e6,
        "sample_32_us": sampling * 1e6,
        "save_s": saving,
        "load_s": loading,
    }


def main() -> None:
    args = tyro.cli(Args)
    if args.system:
        print(json.dumps(measure(args)))
        return
    slots, turns = (QUICK_SLOTS, 1) if args.quick else (args.slots, args.turns)
    found: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    for turn in range(turns):
        for system in by_turns(SYSTEMS, turn):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.bench_sb3"]
            command += ["--game", args.game, "--slots", str(slots), "--n-envs", str(args.n_envs)]
            done = subprocess.run(
                [*command, "--system", system], check=True, stdout=subprocess.PIPE, text=True
            )
            found[system].append(json.loads(done.stdout.splitlines()[-1]))
    best = {
        system: {name: min(each[name] for each in runs) for name in runs[0]}
        for system, runs in found.items()
    }
    names = list(best["ours"])
    lines = [
        f"{args.game}, {slots:,} rows of {args.n_envs} environments; {machine()}; "
        f"`{make_command('bench-sb3', args)}`",
        "",
        "| | " + " | ".join(name.replace("_", " ") for name in names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    for system, row in best.items():
        lines.append(f"| {system} | " + " | ".join(f"{row[name]:,.4g}" for name in names) + " |")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sb3.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "sb3.json").write_text(json.dumps({"machine": machine(), "best": best}, indent=1))


if __name__ == "__main__":
    main()
