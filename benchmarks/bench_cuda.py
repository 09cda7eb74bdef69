"""Replay batches on a GPU: time until one is there, and memory, of five ways to keep the frames.

    python -m benchmarks.bench_cuda record              ten games' frames, where ale-py is
    python -m benchmarks.bench_cuda run [--games Pong]  on a machine with a GPU, without ale-py
    python -m benchmarks.bench_cuda scripts             the training scripts by their storages

`run` writes `benchmarks/results/cuda.md` and `cuda.json`, `scripts` `cuda_scripts.md` and
`cuda_scripts.json`. Batches are of ``obs`` and ``next_obs``, 65,536 transitions of 16 environments
that each play one recording from another place on; wall-clock from the call until the GPU has it,
median of as many batches as two tenths of a second take. What ours decodes on the GPU is compared
with what it decodes on the CPU.
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
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import RESULTS, geometric_mean, machine
from compressarray import DiffFrameArray, ReplayBuffer
from compressarray.store.gop_schedule import wait_until_idle

ROOT = Path(__file__).resolve().parents[1]
FRAMES = ROOT / "build" / "cuda-frames"
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


class Player:
    """Steps of the environments, added to a buffer."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames
        self._seen = played(frames)
        self._stack = np.repeat(frames[self._seen[0]][:, None], STACK, axis=1)
        self._step = 0
        self._no, self._actions = np.zeros(N_ENVS, bool), np.zeros(N_ENVS, np.int64)

    def add_to(self, buffer: ReplayBuffer) -> None:
        no, stack = self._no, self._stack
        self._step = self._step % N_STEPS + 1
        newest = self._frames[self._seen[self._step]][:, None]
        self._stack = np.concatenate([stack[:, 1:], newest], axis=1)
        buffer.add(stack, self._actions, no.astype(np.float32), no, no, self._stack)


def filled(player: Player, **arguments: Any) -> ReplayBuffer:
    from gymnasium.spaces import Box, Discrete

    space = Box(0, 255, (STACK, 84, 84), np.uint8)
    buffer = ReplayBuffer(N_ENVS * N_STEPS, space, Discrete(6), n_envs=N_ENVS, seed=1, **arguments)
    for _ in range(N_STEPS):
        player.add_to(buffer)
    return buffer


class Way(NamedTuple):
    """How batches are drawn, and bytes of the GPU's memory that are held for it."""

    draw: Callable[[int], Any]
    n_bytes: int
    before: Callable[[], Any] = lambda: None  # each batch, and not counted


OURS, RING, DENSE = (
    "ours, decoded on the GPU",
    "numpy ring, `np.take`, pinned copy",
    "dense ring in the GPU's memory, `index_select`",
)


def ways(frames: np.ndarray) -> dict[str, Way]:
    """Each way to draw a batch."""
    player = Player(frames)
    ours = filled(player, device="cuda")
    copied = filled(Player(frames), device="cuda", decode_on="cpu")
    small = filled(Player(frames), device="cuda", codec="delta-huffman")
    for size in (4, 1024):
        batches = [each.sample(size) for each in (ours, copied, small)]
        for batch in batches[1:]:
            assert torch.equal(batches[0].obs, batch.obs), "pixels differ"
            assert torch.equal(batches[0].next_obs, batch.next_obs), "pixels differ"
    for each in (ours, small):
        assert each.stats()["decode_on"] == "device", "ours is not decoded on the GPU"
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

    wait_until_idle()  # what still learns from the frames takes its part of Python's time
    held = ours.stats()["nbytes_on_device"]
    return {
        OURS: Way(ours.sample, held),
        f"{OURS}, after a step of {N_ENVS}": Way(
            ours.sample, held, lambda: player.add_to(ours)
        ),
        "ours, `delta-huffman`, decoded on the GPU": Way(
            small.sample, small.stats()["nbytes_on_device"]
        ),
        "ours, decoded on the CPU, copied": Way(copied.sample, 0),
        "dense stacks, indexed twice, copied": Way(stacked, 0),
        RING: Way(taken, 0),
        DENSE: Way(selected, on_gpu.numel()),
    }  # fmt: skip


def until_there(way: Way, size: int) -> float:
    """Microseconds until a batch can be used."""
    for _ in range(3):
        way.before()
        way.draw(size)
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        way.before()
        start = time.perf_counter()
        batch = way.draw(size)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del batch
    return 1e6 * statistics.median(times)


def run(games: tuple[str, ...]) -> int:
    names = [game for game in games if (FRAMES / game).is_file()]
    if not names:
        print(f"no frames in {FRAMES}: make record-cuda, where ale-py is", file=sys.stderr)
        return 2
    print(given_by(), flush=True)
    rows: dict[str, Any] = {}
    begun = time.perf_counter()
    for game in names:
        if time.perf_counter() - begun > 180:
            print(f"{game} and what follows are left out: three minutes are over")
            break
        frames = np.asarray(DiffFrameArray.load(FRAMES / game))
        rows[game] = {
            name: {"nbytes": way.n_bytes, **{str(size): until_there(way, size) for size in SIZES}}
            for name, way in ways(frames).items()
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
    ours, ring, dense = means[OURS], means[RING], means[DENSE]
    text = "\n".join(
        [
            "# Batches on a GPU",
            "",
            f"Made by `make bench-cuda` on {given_by()}.",
            f"Microseconds until a batch of `obs` and `next_obs` is on the GPU, geometric means of "
            f"{len(rows)} games,\n{N_ENVS * N_STEPS:,} transitions, and MiB of its memory.",
            "",
            "| frames | 32 | 256 | 1,024 | MiB on the GPU |",
            "| :-- | --: | --: | --: | --: |",
            *(
                f"| {way} | "
                + " | ".join(f"{mean[str(size)]:,.0f}" for size in SIZES)
                + f" | {mean['nbytes'] / 2**20 if mean['nbytes'] > 1 else 0:,.1f} |"
                for way, mean in means.items()
            ),
            "",
            f"Of 256, ours takes {ours['256'] / ring['256']:.2f} times what `np.take` and a copy "
            f"take, and {ours['256'] / dense['256']:.1f} times\nthe dense ring on the GPU, in "
            f"1/{dense['nbytes'] / ours['nbytes']:.0f} of its memory.",
            "",
            "Of 256, game by game:",
            "",
            "| game | " + " | ".join(means) + " | MiB of ours |",
            "| :-- |" + " --: |" * (len(means) + 1),
            *(
                f"| {game} | "
                + " | ".join(f"{row[way]['256']:,.0f}" for way in means)
                + f" | {row[OURS]['nbytes'] / 2**20:,.1f} |"
                for game, row in rows.items()
            ),
        ]
    )
    (RESULTS / "cuda.md").write_text(text + "\n")
    data = {"machine": given_by(), "games": rows, "means": means}
    (RESULTS / "cuda.json").write_text(json.dumps(data, indent=1) + "\n")
    print(f"\n{text}")
    return 0


def given_by() -> str:
    """Name what gives the figures."""
    return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {machine()}"


SCRIPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "ppo_atari": (("dense", "compressed", "indexed"), (), 6144),
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
    rows: list[dict[str, Any]] = []
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
            same = same_weights(weights[storage], next(iter(weights.values())))
            failed += not same
            rows.append(
                {"script": script, "storage": storage, "steps": n_steps, "seconds": seconds,
                 "same_weights": same}
            )  # fmt: skip
            write_scripts(rows)
            print(f"{script} {storage}: {n_steps / seconds:,.0f} steps a second, start-up "
                  f"included; weights {'equal' if same else 'NOT equal'}", flush=True)  # fmt: skip
    print("all passed" if not failed else f"{failed} failed")
    return min(failed, 1)


def write_scripts(rows: list[dict[str, Any]]) -> None:
    """Write what there is, so that a run that is cut off leaves what it has seen."""
    table = "\n".join(
        f"| {row['script']} | {row['storage']} | {row['steps']:,} | {row['seconds']:.1f} "
        f"| {row['steps'] / row['seconds']:,.0f} | {'yes' if row['same_weights'] else 'NO'} |"
        for row in rows
    )
    (RESULTS / "cuda_scripts.md").write_text(
        f"""# Trainings on a GPU

Made by `make bench-cuda-scripts` on {given_by()}.
Whole processes, one after the other, start-up included.

| script | storage | steps | seconds | steps a second | weights as with the first |
| :-- | :-- | --: | --: | --: | :-- |
{table}
"""
    )
    data = {"machine": given_by(), "runs": rows}
    (RESULTS / "cuda_scripts.json").write_text(json.dumps(data, indent=1) + "\n")


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
