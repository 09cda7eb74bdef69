"""Memory, speed and right pixels by method and kind of picture: the reports of sb3-extra-buffers.

Four kinds of pictures, recorded from random play: MsPacman in gray (84x84) and in colour (210x160),
its palette's indices (210x160), and ViZDoom's masks of what is on the screen (120x160). Each is
stacked by four, as `VecFrameStack` does. Each method's replay buffer is filled in a process of its
own, and its draws are compared with what was added.

    python -m benchmarks.report_sb3 [--quick] [--help]

Writes `benchmarks/results/sb3-methods.md` and `.json` (`-quick` with `--quick`). Beside the figures
measured here stand those that sb3-extra-buffers has published, on another machine.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.common import RESULTS, machine, make_command, resident_bytes

KINDS = ("gray", "colour", "palette", "masks")
THEIRS = ("none", "rle", "gzip1", "igzip0", "zstd-3", "zstd1", "lz4-frame/1")
OURS = ("delta", "delta-huffman")
CACHE = Path(__file__).parent / ".cache"
STACK = 4

# sb3-extra-buffers' docs/benchmarks.rst: MsPacman, 84x84x4, 4 environments, 40,000 slots, on a
# MacBook Air M4, by sys.getsizeof. Per cent of Stable-Baselines3's buffer.
PUBLISHED_MEMORY = {
    "rle": 75.3, "zstd-5": 7.7, "zstd-3": 6.9, "lz4-frame/1": 10.9,
}  # fmt: skip
# The same, docs/speed.rst: 10 million steps on a Mac mini M4, zstd-3 against no compression.
PUBLISHED_SPEED = {"PPO, Pong": "64 % longer", "DQN, MsPacman": "1.4 % longer"}
# The same, README: 10,000 episodes of each model, rle-jit, one seed.
PUBLISHED_SCORES = {
    "PPO, Pong": ("21.0 +/- 0.00", "21.0 +/- 0.02"),
    "PPO, MsPacman": ("2667 +/- 290", "2500.9 +/- 221"),
    "DQN, MsPacman": ("3300.0 +/- 770.79", "3379.2 +/- 453.78"),
}


@dataclass
class Args:
    steps: int = 4_000
    """transitions that each buffer holds; half as many in colour"""
    quick: bool = False
    """a tenth of them"""
    kind: str = ""
    """measure this kind here, ..."""
    method: str = ""
    """... with this method, and print JSON"""


# -- pictures ----------------------------------------------------------------------------------


def atari_frames(kind: str, n: int) -> np.ndarray[Any, Any]:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    if kind == "gray":
        from compressarray.sb3.training import make_env

        env = make_env("MsPacmanNoFrameskip-v4", 1, framestack=1, seed=1)
        obs, frames = env.reset(), []
        rng = np.random.default_rng(1)
        while len(frames) < n:
            frames.append(obs[0, 0].copy())
            obs = env.step(rng.integers(0, 9, 1))[0]
        env.close()
        return np.stack(frames)
    single = gymnasium.make("MsPacmanNoFrameskip-v4", frameskip=4)
    single.reset(seed=1)
    rng, frames = np.random.default_rng(1), []
    while len(frames) < n:
        ale = single.unwrapped.ale  # type: ignore[attr-defined]
        frames.append((ale.getScreenRGB() if kind == "colour" else ale.getScreen()).copy())
        _, _, terminated, truncated, _ = single.step(int(rng.integers(0, 9)))
        if terminated or truncated:
            single.reset()
    single.close()
    return np.stack(frames)


def masks(n: int) -> np.ndarray[Any, Any]:
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "sb3" / "doom.py"))
    env = example["make_doom"]("VizdoomHealthGathering-v1", "labels")()
    obs, _ = env.reset(seed=1)
    rng, frames = np.random.default_rng(1), []
    while len(frames) < n:
        frames.append(obs[..., 0].copy())
        obs, _, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        if terminated or truncated:
            obs, _ = env.reset()
    env.close()
    return np.stack(frames)


def recorded(kind: str, n: int) -> np.ndarray[Any, Any]:
    """``(n, H, W)`` or ``(n, H, W, 3)`` uint8; recorded once, then read."""
    path = CACHE / f"sb3-{kind}-{n}.npy"
    if not path.is_file():
        CACHE.mkdir(exist_ok=True)
        np.save(path, masks(n) if kind == "masks" else atari_frames(kind, n))
    return np.load(path)


def stacked(frames: np.ndarray[Any, Any], t: int) -> np.ndarray[Any, Any]:
    """The observation of step ``t``, channels first, of one environment."""
    four = frames[t : t + STACK]
    planes = four if four.ndim == 3 else np.moveaxis(four, -1, 1).reshape(-1, *four.shape[1:3])
    return planes[None]


# -- measuring ---------------------------------------------------------------------------------


def make_buffer(method: str, size: int, shape: tuple[int, ...]) -> Any:
    from gymnasium import spaces

    pixels, actions = spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(9)
    if method in OURS:
        from compressarray.sb3 import CompressedReplayBuffer

        return CompressedReplayBuffer(size, pixels, actions, "cpu", codec=method)
    if method == "Stable-Baselines3":
        from stable_baselines3.common.buffers import ReplayBuffer

        return ReplayBuffer(size, pixels, actions, "cpu")
    from sb3_extra_buffers.compressed import CompressedReplayBuffer as Extra
    from sb3_extra_buffers.compressed import find_smallest_dtype

    dtypes = {"elem_type": np.uint8, "runs_type": find_smallest_dtype(int(np.prod(shape)))}
    return Extra(size, pixels, actions, "cpu", dtypes=dtypes, compression_method=method)


def fill(buffer: Any, frames: np.ndarray[Any, Any], n: int) -> float:
    """Add ``n`` steps; return the thread's seconds for adding alone."""
    zero, spent = np.zeros(1), 0.0
    obs = stacked(frames, 0)
    for t in range(n):
        next_obs = stacked(frames, t + 1)
        start = time.thread_time()
        buffer.add(obs, next_obs, zero, zero, zero, [{}])
        spent += time.thread_time() - start
        obs = next_obs
    return spent


def wrong_pixels(buffer: Any, frames: np.ndarray[Any, Any], n: int) -> int:
    """Draws of which an observation or its successor is not what was added."""
    steps = np.random.default_rng(0).choice(n, min(n, 64), replace=False)
    samples = buffer._get_samples(steps)
    wrong = 0
    for row, t in enumerate(steps.tolist()):
        for drawn, truth in (
            (samples.observations, stacked(frames, t)),
            (samples.next_observations, stacked(frames, t + 1)),
        ):
            wrong += not np.array_equal(np.asarray(drawn[row]), truth[0])
    return wrong


def measure(args: Args) -> dict[str, Any]:
    import torch as th

    th.set_num_threads(1)
    frames = recorded(args.kind, args.steps + STACK)
    shape = stacked(frames, 0).shape[1:]
    # What imports, kernels and allocators take is nobody's: once around, and some learning.
    small = make_buffer(args.method, 600, shape)
    fill(small, frames, min(args.steps, 1_000))
    small.sample(32)
    del small
    before = resident_bytes()
    buffer = make_buffer(args.method, args.steps, shape)
    adding = fill(buffer, frames, args.steps)
    held = resident_bytes() - before
    np.random.seed(0)  # noqa: NPY002 - what the buffers draw from
    draws = []
    for _ in range(40):
        start = time.thread_time()
        buffer.sample(32)
        draws.append(time.thread_time() - start)
    own = None
    if args.method in OURS:
        own = buffer.nbytes_stored / args.steps
    elif args.method != "Stable-Baselines3":
        cells = [*buffer.observations.ravel(), *buffer.next_observations.ravel()]
        own = sum(map(sys.getsizeof, cells)) / args.steps
    return {
        "resident": held / args.steps,
        "own_account": own,
        "add_us": adding / args.steps * 1e6,
        "sample_us": float(np.median(draws)) * 1e6,
        "wrong": wrong_pixels(buffer, frames, args.steps),
    }


# -- the report --------------------------------------------------------------------------------


def lines_of(found: dict[str, dict[str, Any]], args: Args, steps: int) -> list[str]:
    lines = [
        f"{steps:,} transitions of each kind, half as many in colour, random play; {machine()}; "
        f"`{make_command('report-sb3', args)}`",
        "",
        "Resident bytes a transition, of observation and next observation, rewards and all; in "
        "brackets what the method says itself: of sb3-extra-buffers the sizes of the compressed "
        "objects alone, as it counts.",
        "",
        "| | " + " | ".join(KINDS) + " |",
        "| --- |" + " ---: |" * len(KINDS),
    ]
    methods = ("Stable-Baselines3", *THEIRS, *OURS)

    def name(method: str) -> str:
        return f"ours, `{method}`" if method in OURS else method

    def cell(row: dict[str, Any]) -> str:
        if "error" in row:
            return f"fails ({row['error']})"
        own = "" if row["own_account"] is None else f" ({row['own_account']:,.0f})"
        wrong = f", {row['wrong']} of 128 wrong" if row["wrong"] else ""
        return f"{row['resident']:,.0f}{own}{wrong}"

    lines += [
        f"| {name(method)} | " + " | ".join(cell(found[method][kind]) for kind in KINDS) + " |"
        for method in methods
    ]
    lines += [
        "",
        "Microseconds to add a transition, and to draw 32:",
        "",
        "| | " + " | ".join(KINDS) + " |",
        "| --- |" + " ---: |" * len(KINDS),
    ]
    for method in methods:
        cells = [
            "" if "error" in row else f"{row['add_us']:,.0f}, {row['sample_us']:,.0f}"
            for row in (found[method][kind] for kind in KINDS)
        ]
        lines.append(f"| {name(method)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Published by sb3-extra-buffers, on a MacBook Air M4 and a Mac mini M4, beside what was "
        "measured here (gray, its own account, as a part of Stable-Baselines3's):",
        "",
        "| | published | here |",
        "| --- | ---: | ---: |",
    ]
    dense = found["Stable-Baselines3"]["gray"]["resident"]
    for method, part in PUBLISHED_MEMORY.items():
        row = found.get(method, {}).get("gray", {})
        here = f"{100 * row['own_account'] / dense:.1f} %" if row.get("own_account") else ""
        lines.append(f"| memory, {method} | {part} % | {here} |")
    smallest = found["delta"]["gray"]["resident"]
    lines.append(f"| memory, ours, `delta`, resident | | {100 * smallest / dense:.2f} % |")
    for what, longer in PUBLISHED_SPEED.items():
        lines.append(f"| a training's time, {what} | {longer} | see [bench-sb3](sb3.md) for ours |")
    for what, (best, final) in PUBLISHED_SCORES.items():
        lines.append(f"| score, {what}, best and last model | {best}, {final} | |")
    lines += [
        "",
        "Scores are not measured anew: with the same seed the weights of a training with our "
        "buffers are those of a training with Stable-Baselines3's, bit for bit "
        "(`tests/sb3/test_training.py`, and the table of `bench-sb3`).",
    ]
    return lines


def main() -> None:
    args = tyro.cli(Args)
    if args.method:
        print(json.dumps(measure(args)))
        return
    steps = args.steps // 10 if args.quick else args.steps
    found: dict[str, dict[str, Any]] = {}
    steps_of = {kind: steps // 2 if kind == "colour" else steps for kind in KINDS}
    for kind in KINDS:
        recorded(kind, steps_of[kind] + STACK)
    for method in ("Stable-Baselines3", *THEIRS, *OURS):
        found[method] = {}
        for kind in KINDS:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.report_sb3"]
            command += ["--steps", str(steps_of[kind]), "--kind", kind, "--method", method]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                found[method][kind] = json.loads(done.stdout.splitlines()[-1])
            else:
                found[method][kind] = {"error": done.stderr.strip().splitlines()[-1][:60]}
            print(method, kind, found[method][kind], file=sys.stderr)
    lines = lines_of(found, args, steps)
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    stem = "sb3-methods-quick" if args.quick else "sb3-methods"
    (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")
    made = {"machine": machine(), "steps": steps, "found": found}
    (RESULTS / f"{stem}.json").write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
