"""Replay batches on a GPU: time until one is there, and memory, of five ways to keep the frames.

    python -m benchmarks.bench_cuda record              ten games' frames, where ale-py is
    python -m benchmarks.bench_cuda run [--games Pong]  on a machine with a GPU, without ale-py
    python -m benchmarks.bench_cuda scripts             the training scripts by their storages

`run` writes `benchmarks/results/cuda.json`. Batches are of ``obs`` and ``next_obs``, 65,536
transitions of 16 environments that each play one recording from another place on; wall-clock from
the call until the GPU has it, median of as many batches as two tenths of a second take. Every way's
first batch is compared with the pixels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import geometric_mean
from compressarray import DiffFrameArray, ReplayBuffer

ROOT = Path(__file__).resolve().parents[1]
FRAMES = ROOT / "build" / "cuda-frames"
RESULT = ROOT / "benchmarks" / "results" / "cuda.json"
GAMES = (
    *("Asteroids", "BeamRider", "Breakout", "Enduro", "MsPacman"),
    *("Pong", "Qbert", "RoadRunner", "Seaquest", "SpaceInvaders"),
)
N_RECORDED, N_ENVS, N_STEPS, STACK = 16_384, 16, 4096, 4
N_STACKS = 8192  # that the dense buffer of stacks holds: all would take 3.7 GB
SIZES = (32, 256, 1024)
SECONDS = 0.2


def record(games: tuple[str, ...]) -> None:
    from benchmarks.frames import game_frames  # needs ale-py

    FRAMES.mkdir(parents=True, exist_ok=True)
    for game in games:
        frames = DiffFrameArray((N_RECORDED, 84, 84), codec="delta-huffman")
        frames.append(game_frames(game, N_RECORDED))
        frames.save(FRAMES / game)
        print(f"{game}: {(FRAMES / game).stat().st_size:,} bytes", flush=True)


def played(frames: np.ndarray) -> np.ndarray:
    """What 16 environments saw, ``(steps + 1, envs)``: where in the recording each was."""
    starts = np.arange(N_ENVS) * (len(frames) // N_ENVS)
    return (starts + np.arange(N_STEPS + 1)[:, None]) % len(frames)


def filled(frames: np.ndarray, **arguments: Any) -> ReplayBuffer:
    from gymnasium.spaces import Box, Discrete

    space = Box(0, 255, (STACK, 84, 84), np.uint8)
    buffer = ReplayBuffer(N_ENVS * N_STEPS, space, Discrete(6), n_envs=N_ENVS, seed=1, **arguments)
    seen = played(frames)
    stack = np.repeat(frames[seen[0]][:, None], STACK, axis=1)
    no, actions = np.zeros(N_ENVS, bool), np.zeros(N_ENVS, np.int64)
    for step in range(1, N_STEPS + 1):
        after = np.concatenate([stack[:, 1:], frames[seen[step]][:, None]], axis=1)
        buffer.add(stack, actions, no.astype(np.float32), no, no, after)
        stack = after
    return buffer


def ways(frames: np.ndarray) -> dict[str, tuple[Callable[[int], Any], int]]:
    """Each way to draw a batch, and bytes of the GPU's memory that it holds."""
    ours = filled(frames, device="cuda")
    ours.sample(4)
    copied = filled(frames, device="cuda", decode_on="cpu")
    seen = played(frames)
    rng = np.random.default_rng(0)
    ring = frames[seen]  # (steps + 1, envs, 84, 84)
    flat = ring.reshape(-1, 84, 84)
    on_gpu = torch.from_numpy(flat).to("cuda")
    stacks = np.stack([flat[i : i + N_STACKS] for i in range(STACK + 1)], axis=1)
    obs, next_obs = stacks[:, :-1].copy(), stacks[:, 1:].copy()
    pinned: dict[int, torch.Tensor] = {}

    def windows(size: int) -> np.ndarray:
        steps = rng.integers(N_STEPS - STACK, size=(size, 1)) + np.arange(STACK + 1)
        return steps * N_ENVS + rng.integers(N_ENVS, size=(size, 1))

    def stacked(size: int) -> Any:
        rows = rng.integers(N_STACKS, size=size)
        return tuple(torch.from_numpy(each[rows]).to("cuda") for each in (obs, next_obs))

    def taken(size: int) -> Any:
        if size not in pinned:
            shape = (size, STACK + 1, 84, 84)
            pinned[size] = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        np.take(flat, windows(size), axis=0, out=pinned[size].numpy(), mode="clip")
        return pinned[size].to("cuda", non_blocking=True)

    def selected(size: int) -> Any:
        where = torch.from_numpy(windows(size).reshape(-1)).to("cuda")
        return on_gpu.index_select(0, where).view(size, STACK + 1, 84, 84)

    a, b = ours.sample(1024), copied.sample(1024)
    assert torch.equal(a.obs, b.obs), "pixels differ"
    assert torch.equal(a.next_obs, b.next_obs), "pixels differ"
    assert ours.stats()["decode_on"] == "device", "ours is not decoded on the GPU"
    return {
        "ours, decoded on the GPU": (ours.sample, ours.stats()["nbytes_on_device"]),
        "ours, decoded on the CPU, copied": (copied.sample, 0),
        "dense stacks, indexed twice, copied": (stacked, 0),
        "numpy ring, np.take, pinned copy": (taken, 0),
        "dense ring in GPU memory, index_select": (selected, on_gpu.numel()),
    }


def until_there(draw: Callable[[int], Any], size: int) -> float:
    """Microseconds until a batch can be used."""
    for _ in range(3):
        draw(size)
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        batch = draw(size)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del batch
    return 1e6 * statistics.median(times)


def run(games: tuple[str, ...]) -> int:
    names = [game for game in games if (FRAMES / game).is_file()]
    if not names:
        print(f"no frames in {FRAMES}: make record-cuda, where ale-py is", file=sys.stderr)
        return 2
    print(torch.cuda.get_device_name(), "torch", torch.__version__, flush=True)
    rows: dict[str, Any] = {}
    begun = time.perf_counter()
    for game in names:
        if time.perf_counter() - begun > 180:
            print(f"{game} and what follows are left out: three minutes are over")
            break
        frames = np.asarray(DiffFrameArray.load(FRAMES / game))
        rows[game] = {
            way: {"nbytes": n_bytes, **{str(size): until_there(draw, size) for size in SIZES}}
            for way, (draw, n_bytes) in ways(frames).items()
        }
        print(game, {way: round(row["256"], 1) for way, row in rows[game].items()}, flush=True)
        torch.cuda.empty_cache()
    means = {
        way: {
            key: geometric_mean([max(row[way][key], 1) for row in rows.values()])
            for key in ("nbytes", *map(str, SIZES))
        }
        for way in next(iter(rows.values()))
    }
    given = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    RESULT.write_text(json.dumps({**given, "games": rows, "means": means}, indent=1) + "\n")
    print(f"\nmicroseconds until there, geometric means of {len(rows)} games")
    for way, mean in means.items():
        each = "".join(f"{mean[str(size)]:>10,.0f}" for size in SIZES)
        print(f"{way:40}{each}{mean['nbytes'] / 2**20:>10,.1f} MiB")
    ours, _, _, ring, dense = means.values()
    print(f"256 in 100 us or less: {ours['256'] <= 100}")
    print(f"ten times faster than np.take: {ring['256'] / ours['256']:.1f}")
    print(f"beside the dense ring on the GPU: {ours['256'] / dense['256']:.2f} of its time, "
          f"1/{dense['nbytes'] / ours['nbytes']:.0f} of its memory")  # fmt: skip
    return 0


SCRIPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "ppo_atari": (("dense", "compressed", "indexed"), (), 12_288),
    "qrdqn_atari": (
        ("dense", "compressed"), ("--learning-starts", "1000", "--buffer-size", "6000"), 6000,
    ),
    "drqv2_dmc": (
        ("dense", "compressed"),
        ("--env-id", "cartpole_balance", "--buffer-size", "3000", "--learning-starts", "500",
         "--random-steps", "500"), 2000,
    ),
}  # fmt: skip


def scripts() -> int:
    """Train with each storage, one after the other: steps a second, and the weights they reach."""
    failed = 0
    for script, (storages, flags, n_steps) in SCRIPTS.items():
        weights: dict[str, dict[str, Any]] = {}
        if script == "drqv2_dmc" and importlib.util.find_spec("dm_control") is None:
            print(f"{script}: left out, dm_control is not installed")
            continue
        for storage in storages:
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable, str(ROOT / "cleanrl_scripts" / f"{script}.py"),
                    "--obs-storage", storage, "--total-timesteps", str(n_steps), "--save-model",
                    "--seed", "1", *flags,
                ]  # fmt: skip
                begun = time.perf_counter()
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, check=False
                )
                seconds = time.perf_counter() - begun
                if done.returncode:
                    print(f"{script} {storage}: left out: {done.stderr.strip()[-200:]}")
                    failed += 1
                    continue
                (model,) = Path(folder).rglob("*.cleanrl_model")
                weights[storage] = torch.load(model, map_location="cpu", weights_only=True)
            print(f"{script} {storage}: {n_steps / seconds:,.0f} steps a second, start-up included",
                  flush=True)  # fmt: skip
        same = all(same_weights(each, next(iter(weights.values()))) for each in weights.values())
        failed += not same
        print(f"{script}: weights are {'equal' if same else 'NOT equal'}")
    print("all passed" if not failed else f"{failed} failed")
    return min(failed, 1)


def same_weights(one: Any, other: Any) -> bool:
    """Whether two trees of tensors are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return set(one) == set(other) and all(same_weights(one[key], other[key]) for key in one)
    return bool(one == other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("record", "run", "scripts"))
    parser.add_argument("--games", nargs="+", default=GAMES, choices=GAMES)
    args = parser.parse_args()
    if args.what == "record":
        record(tuple(args.games))
        return 0
    if not torch.cuda.is_available():
        print("torch finds no GPU: this is for a machine that has one", file=sys.stderr)
        return 2
    return run(tuple(args.games)) if args.what == "run" else scripts()


if __name__ == "__main__":
    sys.exit(main())
